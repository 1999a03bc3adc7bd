"""What a consumer does by itself, again and again: commits, shows life, looks for trouble."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.tasks import describe_task_end, log_task_death

from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency
    from resilient_io.kafka.protocols import ConsumerDriver
    from resilient_io.kafka.supervisor import Supervisor

    from .feed import Feed
    from .holdings import Holdings
    from .settings import ConsumerSettings
    from .silence import SilenceWatch
    from .stalling import StallWatch
    from .walk import Walk

__all__ = ["Upkeep"]

_TICK = 1.0
"""Seconds between two rounds, at most."""

_HEAR = 0.9
"""Seconds between two looks at who has answered; a little less than a round, which may be early."""


class Kept(Protocol):
    """The consumer that is kept up."""

    supervisor: Supervisor[ConsumerDriver]
    settings: ConsumerSettings
    health: Dependency
    holdings: Holdings
    feed: Feed
    walk: Walk[Any] | None

    async def commit_due(self) -> bool:
        """Commit what is contiguous now."""
        raise NotImplementedError


class Upkeep:
    """A task that goes its rounds.

    Args:
        engine: Whose parts are kept up.
        stalls: Looks for partitions that do not move; None for not at all.
        silence: Looks for connections that say nothing.
        heard: Told when all that we need of the cluster has just answered: no probe is needed then.
    """

    def __init__(
        self,
        engine: Kept,
        stalls: StallWatch | None,
        silence: SilenceWatch,
        heard: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._stalls = stalls
        self._silence = silence
        self._heard = heard
        self._heard_at = -math.inf
        self._answers: dict[TopicPartition, int | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._committing: asyncio.Task[bool] | None = None
        self._due: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(
            self._go_round(),
            name="resilient-io kafka upkeep",
            context=self._engine.supervisor.context(),
        )
        self._task.add_done_callback(log_task_death)

    def liveness_failure(self) -> str | None:
        """Say that nobody commits any more; None while all is well, and after `aclose`."""
        how = None if self._closed else describe_task_end(self._task)
        return None if how is None else f"the task that commits is gone: {how}"

    def commit_soon(self) -> None:
        """Commit in the next tick of the loop."""
        if self._due is not None and not self._due.done():
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self._due.set_result(None)

    async def aclose(self) -> None:
        """End."""
        self._closed = True
        ending = [task for task in (self._task, self._committing) if task is not None]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        if self._stalls is not None:
            self._stalls.close()

    # --- inside

    async def _go_round(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._engine.settings.commit_interval
        tick = _TICK if interval is None else min(_TICK, interval)
        commit_at = loop.time()
        while True:
            self._due = loop.create_future()
            await asyncio.wait([self._due], timeout=tick)
            now = loop.time()
            self._look(now)
            if interval is not None and (self._due.done() or now >= commit_at):
                self._commit()
                commit_at = now + interval - tick / 2

    def _look(self, now: float) -> None:
        engine = self._engine
        instance = engine.supervisor.instance
        if engine.walk is not None:
            engine.walk.settle()
            if instance is not None and engine.walk.moved():
                # The driver gave its records long ago; that they are being handled counts, too.
                internals.note_poll(instance)
        if self._stalls is not None:
            self._stalls.look(engine.holdings.all, engine.feed.paused, now)
        if instance is not None and now - self._heard_at >= _HEAR:
            self._heard_at = now
            if self._all_answered(instance):
                self._heard()
        if instance is not None and engine.health.state.answering:
            self._silence.look(instance, now)
        else:
            self._silence.forget()

    def _all_answered(self, instance: ConsumerDriver) -> bool:
        """Tell whether each partition's leader has answered since the last time, and the group's.

        One that is silent must be found by the probe, however much the others say.
        """
        engine = self._engine
        before = self._answers
        self._answers = {
            holding.partition: holding.answered
            for holding in engine.holdings.all
            if not engine.feed.paused(holding.partition)
        }
        return (
            bool(self._answers)
            and internals.has_coordinator(instance)
            and all(before.get(partition) != at for partition, at in self._answers.items())
        )

    def _commit(self) -> None:
        if self._committing is not None and not self._committing.done():
            return
        # In a task of its own: what it waits for may be the silence that the next look finds.
        self._committing = asyncio.get_running_loop().create_task(
            self._engine.commit_due(), name="resilient-io kafka commit"
        )
