"""One transaction, as its user holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from aiokafka.errors import IllegalOperation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from resilient_io.kafka.protocols import ProducerDriver

__all__ = ["Transaction"]


class Conductor(Protocol):
    """What leads transactions from their beginning to their end."""

    async def begin(self, transaction: Transaction) -> None:
        """Begin it."""

    async def commit(self, transaction: Transaction) -> None:
        """Commit it."""

    async def abort(self, transaction: Transaction, *, wait: bool) -> None:
        """Abort it."""

    async def send_offsets(
        self, transaction: Transaction, offsets: Mapping[Any, Any], group_id: str
    ) -> None:
        """Make a group's offsets part of it."""


class Transaction:
    """One transaction: `async with producer.transaction() as transaction:`.

    Leaving the block commits, when every record of it was delivered; leaving it by an exception
    aborts.
    """

    __slots__ = ("_begun", "_producer", "doom", "ending", "instance")

    def __init__(self, producer: Callable[[], Conductor]) -> None:
        """Prepare; it begins when it is entered."""
        self._producer = producer
        self._begun: Conductor | None = None
        self.instance: ProducerDriver | None = None
        self.doom: Exception | None = None
        self.ending = False

    async def send_offsets(self, offsets: Mapping[Any, Any], group_id: str) -> None:
        """Commit a consumer's offsets as a part of the transaction.

        They count if, and only if, the transaction is committed. If this fails or is cancelled,
        the transaction can only be aborted.

        Args:
            offsets: By `TopicPartition`, the offset of the next record to read (that of the last
                one handled, and one), alone or with metadata: as `AIOKafkaConsumer.commit` takes.
            group_id: The consumer's group.

        Raises:
            KafkaDeadlineExceeded: There was no answer in time; nothing is applied.
            KafkaUnavailable: The instance of the transaction ended; nothing is applied.
            IllegalOperation: The transaction has ended.
            KafkaError: What the broker refused.
        """
        if self._begun is None:
            raise IllegalOperation("write `async with producer.transaction() as transaction:`")
        await self._begun.send_offsets(self, offsets, group_id)

    async def __aenter__(self) -> Self:
        if self._begun is not None:
            raise IllegalOperation("a transaction is for once: call producer.transaction() again")
        owner = self._producer()
        await owner.begin(self)
        self._begun = owner
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        owner = self._begun
        assert owner is not None  # noqa: S101 (it was entered)
        if kind is None:
            await owner.commit(self)
        else:
            await owner.abort(self, wait=issubclass(kind, Exception))
