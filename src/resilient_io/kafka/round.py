"""One round of questions at several addresses at once, each over a new connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaConnectionError

from resilient_io.health import Cause

from .classification import Failure, connection_failure
from .internals import drop
from .questions import Seen, ask_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from .protocols import Connection
    from .target import Target

__all__ = ["Answer", "Round"]

_SILENT = Failure(Cause.TIMED_OUT, "no answer in time", definite=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was heard at one address, and the connection over which it was."""

    address: tuple[str, int]
    connection: Connection
    seen: Seen


class Round:
    """Dials and asks; leaving its `async with` ends all of it but what was kept.

    Args:
        target: How to dial.
        timeout: Seconds for making a connection, and again for the answer.
        topics: Those whose leaders are asked for.
    """

    def __init__(self, target: Target, *, timeout: float, topics: Sequence[str]) -> None:
        self._target = target
        self._timeout = timeout
        self._topics = topics
        self._tasks: dict[tuple[str, int], asyncio.Task[Answer]] = {}
        self._kept: Answer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        try:
            if any(not task.done() for task in tasks):
                await asyncio.wait(tasks)  # cancelled, they end within a few turns of the loop
        finally:
            for task in tasks:
                _discard(task, self._kept)

    async def ask(self, addresses: Sequence[tuple[str, int]], *, stagger: float = 0.0) -> None:
        """Begin asking, `stagger` seconds apart, until one has answered; failures do not wait."""
        loop = asyncio.get_running_loop()
        for number, address in enumerate(addresses):
            if address not in self._tasks:
                self._tasks[address] = loop.create_task(
                    self._ask_at(address), name=f"resilient-io ask {address[0]}:{address[1]}"
                )
            if not stagger or number == len(addresses) - 1:
                continue
            running = [task for task in self._tasks.values() if not task.done()]
            if running:
                await asyncio.wait(running, timeout=stagger, return_when=asyncio.FIRST_COMPLETED)
            if self._answers():
                return

    async def first(self) -> Answer | None:
        """Wait for the first answer; None when every address has failed."""
        while True:
            answers = self._answers()
            if answers:
                return answers[0]
            running = [task for task in self._tasks.values() if not task.done()]
            if not running:
                return None
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self, timeout: float) -> None:
        """Wait for all, at most so many seconds."""
        running = [task for task in self._tasks.values() if not task.done()]
        if running:
            await asyncio.wait(running, timeout=timeout)

    def failure(self, address: tuple[str, int]) -> Failure | None:
        """Say why an address that was asked has given no answer so far; None if it has."""
        task = self._tasks.get(address)
        if task is None or not task.done():
            return _SILENT
        error = task.exception()
        if error is None:
            return None
        return connection_failure(error, tls=self._target.uses_tls)

    def failures(self) -> list[Failure]:
        """Say why each address that was asked has given no answer."""
        found = [self.failure(address) for address in self._tasks]
        return [failure for failure in found if failure is not None]

    def keep(self, answer: Answer) -> Connection:
        """Give the connection of an answer to the caller, who closes it."""
        self._kept = answer
        return answer.connection

    def _answers(self) -> list[Answer]:
        return [
            task.result()
            for task in self._tasks.values()
            if task.done() and not task.cancelled() and task.exception() is None
        ]

    def _doubt(self) -> str:
        if self._target.logs_in:
            tls = "" if self._target.uses_tls else "is it a TLS port, or "
            return f"on the login ({tls}does it want another mechanism?)"
        return "on the first request" + ("" if self._target.uses_tls else " (is it a TLS port?)")

    async def _ask_at(self, address: tuple[str, int]) -> Answer:
        host, port = address
        try:
            connection = await self._target.dial(host, port, self._timeout)
        except KafkaConnectionError as error:
            if type(error) is KafkaConnectionError:
                raise KafkaConnectionError(f"{host}:{port} hung up {self._doubt()}") from error
            raise
        answered = False
        try:
            seen = await ask_metadata(connection, self._topics, self._timeout)
            answered = True
        except KafkaConnectionError as error:
            if not self._target.logs_in:
                raise KafkaConnectionError(
                    f"{host}:{port} hung up on the second request (does it want a login?)"
                ) from error
            raise
        finally:
            if not answered:
                drop(connection)
        return Answer(address, connection, seen)


def _discard(task: asyncio.Task[Answer], kept: Answer | None) -> None:
    if task.cancelled() or not task.done():
        return
    if task.exception() is None and task.result() is not kept:
        drop(task.result().connection)
