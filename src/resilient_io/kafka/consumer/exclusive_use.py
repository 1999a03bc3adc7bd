"""Exclusive use of a consumer: one loop or one `run` at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.tasks import wake

from ..errors import KafkaClosed
from ..processing.processor import Processor

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from .iteration import RecordStream


class ExclusiveUse:
    """Holds the record stream of the current loop, or the processor of the current `run`.

    Args:
        dependency: Name of the dependency, for errors.

    Attributes:
        current: The stream or the processor that receives records; None while there is none.
    """

    __slots__ = ("_closed", "_dependency", "_ending", "_waiting", "current")

    def __init__(self, dependency: str) -> None:
        self.current: RecordStream[Any] | Processor | None = None
        self._dependency = dependency
        self._closed = False
        self._ending = False
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def processor(self) -> Processor | None:
        """The processor of the current `run`; None while there is none."""
        return self.current if isinstance(self.current, Processor) else None

    @property
    def stream(self) -> RecordStream[Any] | None:
        """The record stream of the current loop; None while there is none."""
        return None if isinstance(self.current, Processor) else self.current

    async def acquire(self, user: RecordStream[Any] | Processor) -> None:
        """Make `user` the only one that receives records.

        Waits only for a user that is about to release. Cancelling returns immediately.

        Raises:
            RuntimeError: Another loop or `run` is active.
            KafkaClosed: The consumer was closed while this waited.
        """
        while self.current is not None:
            if not self._ending:
                raise RuntimeError(
                    f"this consumer is {self.current.activity} already: one loop or run() at a "
                    f"time; create a second consumer of the same group for more"
                )
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        if self._closed:
            raise KafkaClosed(
                "the consumer was closed", dependency=self._dependency, operation="consume"
            )
        self.current = user

    def expect_release(self) -> None:
        """Note that the current user receives no more records and releases soon."""
        self._ending = self.current is not None

    def release(self) -> None:
        """Allow another user to acquire the consumer."""
        self.current = None
        self._ending = False
        waiting, self._waiting = self._waiting, []
        wake(waiting)

    def close(self) -> None:
        """Refuse every further user."""
        self._closed = True

    # --- what the current user must know

    def assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Report that these partitions are assigned."""
        if isinstance(self.current, Processor):
            self.current.assigned(partitions)

    def drop(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Discard fetched records of these partitions that were not delivered yet."""
        if self.stream is not None:
            self.stream.drop(partitions)

    async def drain(self, partitions: tuple[TopicPartition, ...], timeout: float) -> None:
        """Wait until no record of these partitions is in hand, for at most `timeout` seconds."""
        if isinstance(self.current, Processor):
            await self.current.drain(partitions)
        elif self.current is not None:
            await self.current.drain(partitions, timeout)

    def hold(self, *, held: bool) -> None:
        """Deliver no further record until this is called again with False."""
        if isinstance(self.current, Processor):
            self.current.hold(held=held)
        elif self.current is not None and held:
            self.current.hold()

    def settle(self) -> None:
        """Update the progress of the partitions with what the current loop has handled."""
        if self.stream is not None:
            self.stream.settle()
