"""Transactions: one at a time, on one instance from beginning to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from aiokafka.errors import IllegalOperation, RequestTimedOutError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause

from ..driver import InstanceEnded
from ..errors import KafkaDeadlineExceeded, meaning_of
from .closing import drop_waiting
from .errors import noted
from .sender import words
from .sequence import is_in_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType
    from typing import Self

    from resilient_io.retry import RetryPolicy

    from ..errors import KafkaOutcomeUnknown
    from ..protocols import ProducerDriver
    from ..supervisor import Supervisor
    from .accumulator import Accumulator
    from .errors import Verdicts
    from .sender import Courier


T = TypeVar("T")

_MOST_FENCES = 3
"""How often in a row, without a commit between, the transactional id is taken back."""

_ABORT_TIMEOUT = 5.0
"""Seconds for an abort when the policy has no deadline."""

_ABORTED = "the transaction was aborted before it was handed over"


def fenced(error: BaseException) -> bool:
    """Tell whether another producer took the transactional id, or the broker gave it up."""
    return meaning_of(error).cause is Cause.FENCED


class Transactions:
    """Begins, commits and aborts.

    Attributes:
        transactional: Whether there are any: then nothing is sent outside them.
        current: The one that is open.
    """

    def __init__(
        self,
        *,
        transactional_id: str | None,
        supervisor: Supervisor[ProducerDriver],
        accumulator: Accumulator,
        courier: Courier,
        verdicts: Verdicts,
        policy: RetryPolicy,
    ) -> None:
        self.transactional = transactional_id is not None
        self.current: Transaction | None = None
        self._supervisor = supervisor
        self._accumulator = accumulator
        self._courier = courier
        self._verdicts = verdicts
        self._timeout = policy.deadline if policy.deadline is not None else _ABORT_TIMEOUT
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Task[Any] | None = None  # a commit, or an abort
        self._fences = 0
        if self.transactional:
            courier.open = False
            accumulator.admission.transaction = lambda: self.current
            verdicts.on_failure = self._doom

    def check(self) -> None:
        """Refuse a record outside a transaction.

        Raises:
            IllegalOperation: There is none.
            Exception: What the open one is to be aborted for.
        """
        if self.transactional and (self.current is None or self.current.ending):
            raise IllegalOperation(
                "a producer with a transactional_id sends in transactions only: write "
                "`async with producer.transaction():` around it"
            )
        if self.current is not None and self.current.doom is not None:
            raise _told(self.current.doom)

    def lost(self, instance: ProducerDriver, error: BaseException | None) -> None:
        """Take note that the instance of a transaction has ended: Kafka will abort it."""
        if self.current is None or self.current.instance is not instance:
            return
        if isinstance(error, Exception) and fenced(error):
            self._doom(error)
        else:
            why = "it was closed" if error is None else words(error)
            lost = self._verdicts.unavailable(
                self._loop.time(), f"the instance of the transaction ended: {why}", "transaction"
            )
            lost.__cause__ = error
            self._doom(lost)
        self._courier.open = False
        doom = self.current.doom
        assert doom is not None  # noqa: S101 (just set)
        self._drop_waiting(lambda _sent, _call: _told(doom))

    def _drop_waiting(self, error_for: Callable[[float, str], Exception]) -> None:
        drop_waiting(self._accumulator.lines, self._verdicts, self._accumulator.room, error_for)
        self._accumulator.progressed()

    def _doom(self, error: Exception) -> None:
        if self.current is not None and self.current.doom is None:
            self.current.doom = error
            self._accumulator.progressed()

    # --- for one transaction

    async def begin(self, transaction: Transaction) -> None:
        """Begin one, on an instance that is in service."""
        if self._ending is None:
            self._refuse_second()
        if not self.transactional:
            raise ConfigurationError(
                "transactions need an id of their own, the same after each restart: write "
                'ResilientKafkaProducer(..., transactional_id="orders-1")'
            )
        call = self._accumulator.admission.begin("transaction")
        self._accumulator.admission.check(call)
        began, until = call.began, call.until
        if self._ending is not None:
            await self._wait(self._ending, until, began, "transaction")
            self._refuse_second()
        refusal = self._supervisor.refusal
        if refusal is not None and fenced(refusal) and self._fences < _MOST_FENCES:
            self._fences += 1
            self._supervisor.revive()
        self.current = transaction
        begun = False
        try:
            instance = await self._supervisor.ready(until, "transaction")
            transaction.instance = instance
            try:
                await self._bounded(instance.begin_transaction(), until, began, "transaction")
            except InstanceEnded as error:
                raise self._verdicts.unavailable(began, words(error), "transaction") from error
            if self._supervisor.instance is not instance:
                raise self._verdicts.unavailable(
                    began, "its instance ended when it had just begun", "transaction"
                )
            begun = True
        finally:
            if not begun:
                self._abort_soon(transaction)
        self._courier.open = True
        self._courier.wake()

    def _refuse_second(self) -> None:
        if self.current is not None:
            raise IllegalOperation(
                "a transaction of this producer is under way: await its end first, or make a "
                "second producer with another transactional_id"
            )

    async def commit(self, transaction: Transaction) -> None:
        """Wait for all its records, then commit; abort it if one of them failed."""
        began = self._loop.time()
        transaction.ending = True
        flushed = False
        try:
            async with asyncio.timeout_at(current_deadline()):
                await self._accumulator.flushed(unless=lambda: transaction.doom is not None)
            flushed = transaction.doom is None
        except TimeoutError:
            error = self._verdicts.too_late(began, "commit")
            error.add_note("the transaction is aborted: nothing of it will be seen")
            raise error from None
        finally:
            if not flushed:
                self._abort_soon(transaction)
        if transaction.doom is not None:
            await self._ended()
            raise _told(transaction.doom)
        until = self._accumulator.admission.begin("commit").until
        self._ending = ending = self._loop.create_task(
            self._commit(transaction, until),
            name="resilient-io kafka commit",
            context=self._supervisor.context(),
        )
        await self._ended()
        error_of_commit = ending.result()
        if error_of_commit is not None:
            raise error_of_commit from error_of_commit.__cause__

    async def _ended(self) -> None:
        """Wait until the transaction is ended; that goes on if the caller is cancelled."""
        if self._ending is not None:
            await asyncio.wait([self._ending])

    async def _commit(self, transaction: Transaction, until: float | None) -> Exception | None:
        """Commit; return what to tell the caller, who may have left."""
        try:
            return await self._try_commit(transaction, until)
        finally:
            self._courier.open = False
            self.current = self._ending = None

    async def _try_commit(
        self, transaction: Transaction, until: float | None
    ) -> KafkaOutcomeUnknown | None:
        instance = transaction.instance
        assert instance is not None  # noqa: S101 (it was begun)
        began = self._loop.time()
        try:
            await self._bounded(instance.commit_transaction(), until, began, "commit")
        except KafkaDeadlineExceeded:
            unknown = self._verdicts.unknown(
                began, "the commit was sent, and no answer came in time", "commit"
            )
            self._verdicts.count(unknown)
            self._supervisor.broken(instance, RequestTimedOutError("the commit"))
            return unknown
        # The boundary to the driver, which asserts, too: none of it proves what became of it.
        except Exception as error:  # noqa: BLE001
            unknown = self._verdicts.unknown(
                began, f"the commit was sent: {words(error)}", "commit"
            )
            self._verdicts.count(unknown)
            self._supervisor.broken(instance, error)
            unknown.__cause__ = error
            return unknown
        self._fences = 0
        return None

    async def abort(self, transaction: Transaction, *, wait: bool) -> None:
        """Abort it; a caller that was cancelled does not wait for that."""
        self._abort_soon(transaction)
        if wait:
            await self._ended()

    async def send_offsets(
        self, transaction: Transaction, offsets: Mapping[Any, Any], group_id: str
    ) -> None:
        """Make offsets a part of it."""
        began = self._loop.time()
        if self.current is not transaction or transaction.ending or transaction.instance is None:
            raise IllegalOperation("this transaction has ended: begin another one")
        if transaction.doom is not None:
            raise _told(transaction.doom)
        sent = False
        try:
            await self._bounded(
                transaction.instance.send_offsets_to_transaction(offsets, group_id),
                self._accumulator.admission.begin("send_offsets").until,
                began,
                "send_offsets",
            )
            sent = True
        except InstanceEnded as error:
            raise self._verdicts.unavailable(began, words(error), "send_offsets") from error
        finally:
            if not sent and transaction.doom is None:
                transaction.doom = self._verdicts.unavailable(
                    began, "its offsets were not accepted", "send_offsets"
                )

    async def aclose(self) -> None:
        """Abort what is open, and wait for it."""
        if self.current is not None and self._ending is None:
            self._abort_soon(self.current)
        await self._ended()

    # --- inside

    def _abort_soon(self, transaction: Transaction) -> None:
        if self.current is not transaction:
            return
        self.current = None
        transaction.ending = True
        self._courier.open = False
        self._drop_waiting(lambda sent, call: self._verdicts.unavailable(sent, _ABORTED, call))
        self._ending = self._loop.create_task(
            self._abort(transaction),
            name="resilient-io kafka abort",
            context=self._supervisor.context(),
        )

    async def _abort(self, transaction: Transaction) -> None:
        """Abort on the instance that has it; another one aborts it by its coming alone."""
        instance = transaction.instance
        try:
            if instance is None or instance is not self._supervisor.instance:
                return
            if not is_in_transaction(instance):
                return  # cancelled before it had begun
            try:
                async with asyncio.timeout(self._timeout):
                    await instance.abort_transaction()
            # The boundary to the driver, which asserts, too. The successor aborts it by coming.
            except Exception as error:  # noqa: BLE001
                self._supervisor.broken(instance, error)
        finally:
            self._ending = None

    async def _bounded(
        self, call: Coroutine[Any, Any, T], until: float | None, began: float, operation: str
    ) -> T:
        """Await a call of the driver's in a task of its own: it may shield itself from us.

        Raises:
            InstanceEnded: The instance ended meanwhile: what it waits on inside was cancelled.
            KafkaDeadlineExceeded: There was no answer in time.
            Exception: What the driver raised.
        """
        task = self._loop.create_task(
            call, name=f"resilient-io kafka {operation}", context=self._supervisor.context()
        )
        try:
            await self._wait(task, until, began, operation)
        finally:
            if not task.done():
                task.cancel()
        if task.cancelled():
            raise InstanceEnded("it ended", sent=True)
        return task.result()

    async def _wait(
        self, task: asyncio.Task[T], until: float | None, began: float, operation: str
    ) -> None:
        timeout = None if until is None else until - self._loop.time()
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise self._verdicts.too_late(began, operation)


def _told(doom: Exception) -> Exception:
    """Copy the first failure in a transaction, for whoever asks for its end."""
    return noted(doom, "the transaction is aborted because of this: nothing of it will be seen")


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
