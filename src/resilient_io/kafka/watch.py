"""Watches an instance in service: its background tasks, and whether it still finds its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Generic

from aiokafka.errors import KafkaConnectionError, KafkaError

from resilient_io.health import State

from .internals import (
    background_tasks,
    client_of,
    connections_of,
    fail_transaction,
    hold_dialling,
    oldest_request,
    reconnect,
    resume_dialling,
    unknown_topics,
)
from .protocols import Connection, DriverT

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from resilient_io.health import Change, Dependency

__all__ = ["Watch"]

_LOOK = 1.0
"""Seconds between looks at whether any connection is open."""

_TOPICS_CAP = 10.0
"""Greatest pause between questions for topics that are not there yet, in seconds."""

_STRIKES = 3
"""How often in a row an instance must fail to find a cluster that answers the probe."""


class Watch(Generic[DriverT]):
    """Says when an instance must be replaced.

    Args:
        instance: In service from now on.
        health: Of the cluster; its probe also asks the bootstrap servers.
        timeout: Seconds for an answer through the instance.
        context: Makes a context in which the driver's records are ours.
        broken: Called at once when the first word comes that it is broken.
    """

    def __init__(
        self,
        instance: DriverT,
        health: Dependency,
        timeout: float,
        context: Callable[[], Context],
        broken: Callable[[], None],
    ) -> None:
        self._instance = instance
        self._health = health
        self._timeout = timeout
        self._context = context
        self._when_broken = broken
        self._broken: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._doubt = asyncio.Event()
        self._after_outage = False
        self._strikes = 0
        self._topics_pause = _LOOK
        self._topics_due = 0.0
        self._tasks: list[tuple[asyncio.Task[Any], Callable[[asyncio.Task[Any]], None]]] = []
        for what, task in background_tasks(instance):
            ended = functools.partial(self._task_ended, what)
            task.add_done_callback(ended)
            self._tasks.append((task, ended))
        if health.state is State.DOWN:
            hold_dialling(instance)

    def report(self, error: BaseException) -> None:
        """Take somebody's word that it is broken; the first word counts."""
        if not self._broken.done():
            self._broken.set_result(error)
            self._when_broken()

    def health_changed(self, change: Change) -> None:
        """Let only the probe knock in an outage; after it, look whether the instance is back."""
        if change.state is State.DOWN:
            hold_dialling(self._instance)
        elif change.previous is State.DOWN:
            resume_dialling(self._instance)
            self._after_outage = True
            self._doubt.set()

    def close(self) -> None:
        """Watch no longer."""
        for task, ended in self._tasks:
            task.remove_done_callback(ended)
            if task.done() and not task.cancelled():
                task.exception()

    async def until_broken(self) -> Exception:
        """Return what it is broken by."""
        looking = asyncio.get_running_loop().create_task(
            self._look(), name="resilient-io kafka look", context=self._context()
        )
        try:
            waited: list[asyncio.Future[Any]] = [self._broken, looking]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looking.cancel()
        if not self._broken.done():
            looking.result()  # a bug: let it be seen
        error = self._broken.result()
        return error if isinstance(error, Exception) else KafkaError(repr(error))

    # --- inside

    def _task_ended(self, what: str, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            error = KafkaError(f"its {what} task ended")
        elif what == "sending":
            fail_transaction(self._instance, error)
        self.report(error)

    async def _look(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            self._doubt.clear()
            health = self._health
            if health.state not in (State.UP, State.DEGRADED):
                self._strikes = 0
                continue
            open_connections = [c for c in connections_of(self._instance) if c.connected()]
            if open_connections and not self._after_outage and not self._strikes:
                await self._look_for_topics()
            else:
                await self._find_cluster()

    async def _look_for_topics(self) -> None:
        """Ask again for topics that are not there yet.

        aiokafka 0.14 asks once when it subscribes, and then only after `metadata_max_age_ms`: a
        topic that is made a moment later would not be read for five minutes.
        """
        loop = asyncio.get_running_loop()
        if not unknown_topics(self._instance):
            self._topics_pause = _LOOK
        elif loop.time() >= self._topics_due:
            self._topics_due = loop.time() + self._topics_pause
            self._topics_pause = min(2.0 * self._topics_pause, _TOPICS_CAP)
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(self._timeout):
                    await client_of(self._instance).force_metadata_update()

    async def _find_cluster(self) -> None:
        """Ask for metadata through the instance; it must find what the probe finds."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        owed = self._owed()
        found = False
        try:
            async with asyncio.timeout(self._timeout):
                found = await client_of(self._instance).force_metadata_update()
        except (KafkaError, TimeoutError):
            pass
        if owed and (self._after_outage or not found):
            await asyncio.sleep(began + self._timeout - loop.time())
            _renew(owed)
        if found:
            self._strikes = 0
            self._after_outage = False
            return
        if self._health.since > began or self._health.state is State.DOWN:
            return  # it is the cluster, not the instance
        self._strikes += 1
        if self._strikes >= _STRIKES:
            self.report(
                KafkaConnectionError("it finds none of its brokers, while the cluster answers")
            )

    def _owed(self) -> list[tuple[Connection, object]]:
        """Give the connections that owe an answer, with the request that has waited longest."""
        owed = [(c, oldest_request(c)) for c in connections_of(self._instance) if c.connected()]
        return [(connection, request) for connection, request in owed if request is not None]


def _renew(owed: list[tuple[Connection, object]]) -> None:
    """Close the connections that still owe the same answer.

    It was lost in the outage: without this the instance waits for it until its request timeout.
    """
    for connection, request in owed:
        if connection.connected() and oldest_request(connection) is request:
            reconnect(connection)
