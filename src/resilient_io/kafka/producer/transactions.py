"""Transactions: one at a time, on one aiokafka producer from beginning to end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.errors import IllegalOperation, KafkaError, RequestTimedOutError
from aiokafka.producer.transaction_manager import TransactionState as DriverState

from resilient_io.deadlines import timeout_within
from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause

from ..driver import DriverClosed, retrieve_exception
from ..errors import KafkaDeadlineExceeded, classify_error, copy_with_note
from .transaction_state import OpenTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from types import TracebackType
    from typing import Self

    from resilient_io.retry import RetryPolicy

    from ..driver import ProducerDriver
    from ..errors import KafkaOutcomeUnknown
    from ..supervisor import Supervisor
    from .accumulator import Accumulator


T = TypeVar("T")

# How often in a row, without a commit in between, the transactional id is taken back.
_MAX_TAKEOVERS = 3
_ABORT_TIMEOUT = 5.0  # seconds for an abort when the policy has no deadline

_ABORTED = "the transaction was aborted before the record was sent"


def is_fenced(error: BaseException) -> bool:
    """Return whether another producer took the transactional id, or the broker gave it up."""
    return classify_error(error).cause is Cause.FENCED


def is_in_transaction(driver: ProducerDriver) -> bool:
    """Return whether a transaction is open, or failed and has to be aborted.

    After a cancelled `begin_transaction` either may be so (`TransactionManager.state`).
    """
    owner: Any = driver
    return owner._txn_manager.state in (
        DriverState.IN_TRANSACTION,
        DriverState.ABORTABLE_ERROR,
        DriverState.FATAL_ERROR,
    )


def correct_transactions(driver: ProducerDriver) -> None:
    """Correct two mistakes of aiokafka's `TransactionManager`.

    It forgets the partitions of a transaction that fails (`error_transaction`). Then it takes the
    transaction for empty, and "aborts" it without a request: the broker would make its records
    visible with the next commit. And it adds only the first group whose offsets are sent to the
    transaction, so the broker refuses those of another one.
    """
    owner: Any = driver
    manager = owner._txn_manager
    if manager is None:
        return
    original = manager.error_transaction

    def error_transaction(error: Exception) -> None:
        partitions, group = set(manager._txn_partitions), manager._txn_consumer_group
        original(error)
        manager._txn_partitions.update(partitions)
        manager._txn_consumer_group = group
        retrieve_exception(manager._transaction_waiter)  # no commit may be waiting for it

    def consumer_group_to_add() -> str | None:
        for group, _, _ in manager._pending_txn_offsets:
            return None if group == manager._txn_consumer_group else str(group)
        return None

    manager.error_transaction = error_transaction
    manager.consumer_group_to_add = consumer_group_to_add


class TransactionManager:
    """Begins, commits and aborts transactions."""

    def __init__(
        self,
        accumulator: Accumulator,
        supervisor: Supervisor[ProducerDriver],
        policy: RetryPolicy,
    ) -> None:
        self._accumulator = accumulator
        self._supervisor = supervisor
        self._state = accumulator.transaction
        self._sender = accumulator.sender
        self._errors = accumulator.errors
        self._timeout = policy.deadline if policy.deadline is not None else _ABORT_TIMEOUT
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Task[Any] | None = None  # a commit or an abort
        self._takeovers = 0

    def driver_closed(self, driver: ProducerDriver, error: BaseException | None) -> None:
        """Abort the transaction of a driver that was closed: Kafka aborts it, too."""
        transaction = self._state.current
        if transaction is None or transaction.driver is not driver:
            return
        if isinstance(error, Exception) and is_fenced(error):
            self._state.abort(error)
        else:
            why = "it was closed" if error is None else self._errors.describe(error)
            lost = self._errors.unavailable(
                self._loop.time(),
                f"the aiokafka producer of the transaction ended: {why}",
                "transaction",
            )
            lost.__cause__ = self._errors.cause(error)
            self._state.abort(lost)
        self._state.suspend()
        self._accumulator.fail_waiting(lambda _began, _call: transaction.aborted())

    async def begin(self, transaction: OpenTransaction) -> None:
        """Begin a transaction on an aiokafka producer that is in service."""
        if self._ending is None:
            self._refuse_second()
        if not self._state.transactional:
            raise ConfigurationError(
                "a transaction needs a transactional_id that is the same after each restart; use "
                'ResilientKafkaProducer(..., transactional_id="orders-1")'
            )
        call = self._accumulator.begin_call("transaction")
        self._accumulator.check_call(call)
        began, until = call.began, call.until
        if self._ending is not None:
            await self._wait(self._ending, until, began, "transaction")
            self._refuse_second()
        reason = self._supervisor.permanent_error
        if reason is not None and is_fenced(reason) and self._takeovers < _MAX_TAKEOVERS:
            self._takeovers += 1
            self._supervisor.resume()
        self._state.open(transaction)
        begun = False
        try:
            driver = await self._supervisor.ready(until, "transaction")
            transaction.driver = driver
            await self._change(driver.begin_transaction(), until, began, "transaction")
            if self._supervisor.driver is not driver:
                raise self._errors.unavailable(
                    began, "its aiokafka producer ended when it had just begun", "transaction"
                )
            begun = True
        finally:
            if not begun:
                self._start_abort(transaction)
        self._state.begun()
        self._sender.resume()

    def _refuse_second(self) -> None:
        if self._state.current is not None:
            raise IllegalOperation(
                "a transaction of this producer is still open; await its end first, or create a "
                "second producer with another transactional_id"
            )

    async def commit(self, transaction: OpenTransaction) -> None:
        """Wait for all records, then commit; abort if one of them failed."""
        began = self._loop.time()
        transaction.ending = True
        flushed = False
        try:
            async with timeout_within(None):
                await self._accumulator.flush(transaction)
            flushed = transaction.abort_reason is None
        except TimeoutError:
            error = self._errors.too_late(began, "commit")
            error.add_note("the transaction is aborted: none of it becomes visible")
            raise error from None
        finally:
            if not flushed:
                self._start_abort(transaction)
        if transaction.abort_reason is not None:
            await self._wait_ended()
            raise transaction.aborted()
        until = self._accumulator.begin_call("commit").until
        self._ending = ending = self._create_task(self._commit(transaction, until), "commit")
        await self._wait_ended()
        unknown = ending.result()
        if unknown is not None:
            raise unknown from unknown.__cause__

    async def abort(self, transaction: OpenTransaction, *, wait: bool) -> None:
        """Abort; a caller that was cancelled does not wait for the end."""
        self._start_abort(transaction)
        if wait:
            await self._wait_ended()

    async def send_offsets(
        self, transaction: OpenTransaction, offsets: Mapping[Any, Any], group_id: str
    ) -> None:
        """Add a consumer group's offsets to a transaction."""
        began = self._loop.time()
        current = self._state.current
        if current is not transaction or transaction.ending or transaction.driver is None:
            raise IllegalOperation("this transaction has ended; begin a new one")
        transaction.raise_if_aborted()
        sent = False
        try:
            until = self._accumulator.begin_call("send_offsets").until
            sending = transaction.driver.send_offsets_to_transaction(offsets, group_id)
            await self._change(sending, until, began, "send_offsets")
            sent = True
        finally:
            if not sent and transaction.abort_reason is None:
                transaction.abort_reason = self._errors.unavailable(
                    began, "its offsets were not accepted", "send_offsets"
                )

    async def aclose(self) -> None:
        """Abort the open transaction and wait for its end."""
        if self._state.current is not None and self._ending is None:
            self._start_abort(self._state.current)
        await self._wait_ended()

    async def _wait_ended(self) -> None:
        """Wait until the commit or abort is done; it continues if the caller is cancelled."""
        if self._ending is not None:
            await asyncio.wait([self._ending])

    async def _commit(
        self, transaction: OpenTransaction, until: float | None
    ) -> KafkaOutcomeUnknown | None:
        """Commit; return the error for the caller, which may have been cancelled."""
        driver = transaction.driver
        assert driver is not None  # noqa: S101 (it has begun)
        began = self._loop.time()
        try:
            await self._call_driver(driver.commit_transaction(), until, began, "commit")
        except KafkaDeadlineExceeded:
            why = "the commit was sent, and no answer came in time"
            return self._commit_lost(driver, began, why, RequestTimedOutError("the commit"))
        # The boundary to the driver, which also uses assertions. No error proves the outcome.
        except Exception as error:  # noqa: BLE001
            why = f"the commit was sent: {self._errors.describe(error)}"
            unknown = self._commit_lost(driver, began, why, error)
            unknown.__cause__ = self._errors.cause(error)
            return unknown
        else:
            self._takeovers = 0
            return None
        finally:
            self._state.close()
            self._ending = None

    def _commit_lost(
        self, driver: ProducerDriver, began: float, why: str, error: Exception
    ) -> KafkaOutcomeUnknown:
        unknown = self._errors.unknown(began, why, "commit")
        self._errors.count(unknown)
        self._supervisor.driver_failed(driver, error)
        return unknown

    def _start_abort(self, transaction: OpenTransaction) -> None:
        if self._state.current is not transaction:
            return
        transaction.ending = True
        self._state.close()
        self._accumulator.fail_waiting(
            lambda began, call: self._errors.unavailable(began, _ABORTED, call)
        )
        self._ending = self._create_task(self._abort(transaction), "abort")

    async def _abort(self, transaction: OpenTransaction) -> None:
        """Abort on the driver of the transaction; the start of another one aborts it anyway."""
        driver = transaction.driver
        try:
            if driver is None or driver is not self._supervisor.driver:
                return
            if not is_in_transaction(driver):
                return  # cancelled before it had begun
            try:
                async with asyncio.timeout(self._timeout):
                    await driver.abort_transaction()
            # The boundary to the driver, which also uses assertions. Its successor aborts instead.
            except Exception as error:  # noqa: BLE001
                self._supervisor.driver_failed(driver, error)
        finally:
            self._ending = None

    async def _change(
        self, call: Coroutine[Any, Any, None], until: float | None, began: float, operation: str
    ) -> None:
        """Await a call of aiokafka; nothing is applied if its driver ends meanwhile."""
        try:
            await self._call_driver(call, until, began, operation)
        except DriverClosed as error:
            why = self._errors.describe(error)
            raise self._errors.unavailable(began, why, operation) from error
        except KafkaError as error:
            reason = self._errors.cause(error.__cause__)
            if type(error) is KafkaError and isinstance(reason, KafkaError):
                # The sender task ended, and the error says only that.
                note = "the aiokafka producer ended because of this error"
                raise copy_with_note(reason, note) from None
            raise

    async def _call_driver(
        self, call: Coroutine[Any, Any, T], until: float | None, began: float, operation: str
    ) -> T:
        """Await a call of aiokafka in its own task, because it may shield itself from a cancel."""
        task = self._create_task(call, operation)
        try:
            await self._wait(task, until, began, operation)
        finally:
            if not task.done():
                task.cancel()
        if task.cancelled():
            raise DriverClosed("it ended", sent=True)
        return task.result()

    def _create_task(self, call: Coroutine[Any, Any, T], operation: str) -> asyncio.Task[T]:
        return self._loop.create_task(
            call, name=f"resilient-io kafka {operation}", context=self._supervisor.context()
        )

    async def _wait(
        self, task: asyncio.Task[T], until: float | None, began: float, operation: str
    ) -> None:
        timeout = None if until is None else until - self._loop.time()
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise self._errors.too_late(began, operation)


class Transaction:
    """One transaction: `async with producer.transaction() as transaction:`.

    Leaving the block commits if every record was delivered; leaving it by an exception aborts.
    """

    __slots__ = ("_get_manager", "_manager", "_open")

    def __init__(self, get_manager: Callable[[], TransactionManager]) -> None:
        """Prepare a transaction; it begins when it is entered."""
        self._get_manager = get_manager
        self._manager: TransactionManager | None = None
        self._open = OpenTransaction()

    async def send_offsets(self, offsets: Mapping[Any, Any], group_id: str) -> None:
        """Commit a consumer's offsets as a part of the transaction.

        They take effect if and only if the transaction is committed. If this call fails or is
        cancelled, the transaction can only be aborted.

        Args:
            offsets: By `TopicPartition`, the offset of the next record to read (that of the last
                handled record plus one), alone or with metadata: as `AIOKafkaConsumer.commit`
                takes it.
            group_id: The consumer's group.

        Raises:
            KafkaDeadlineExceeded: No answer came in time; nothing is applied.
            KafkaUnavailable: The aiokafka producer of the transaction ended; nothing is applied.
            IllegalOperation: The transaction has ended.
            KafkaError: The broker refused the offsets.
        """
        if self._manager is None:
            raise IllegalOperation("use `async with producer.transaction() as transaction:`")
        await self._manager.send_offsets(self._open, offsets, group_id)

    async def __aenter__(self) -> Self:
        if self._manager is not None:
            raise IllegalOperation("a transaction can be used once: call producer.transaction()")
        manager = self._get_manager()
        await manager.begin(self._open)
        self._manager = manager
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        manager = self._manager
        assert manager is not None  # noqa: S101 (it was entered)
        if kind is None:
            await manager.commit(self._open)
        else:
            await manager.abort(self._open, wait=issubclass(kind, Exception))
