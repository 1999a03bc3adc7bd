"""Seals an instance that has ended: nothing begins on it, and nobody waits on it for ever.

Leans on what is private in aiokafka 0.14, as internals.py does; the same test watches over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .internals import InstanceEnded, client_of, take_note

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocols import Driver

__all__ = ["seal"]


def seal(instance: Driver, reason: str, error: BaseException | None = None) -> None:
    """Let nothing begin, and nobody wait, on an instance that has ended.

    A call that comes late would dial anew, retry for ever or wait for a task that is gone.

    Args:
        instance: What has ended.
        reason: What those are told who wait on it.
        error: Of what it ended; the cause of what they are told.
    """

    def ended(*, sent: bool = False) -> InstanceEnded:
        told = InstanceEnded(reason, sent=sent)
        told.__cause__ = error
        return told

    def refuse(*_args: object, **_options: object) -> Any:
        raise ended()

    async def refuse_later(*_args: object, **_options: object) -> Any:
        raise ended()

    owner: Any = instance
    client: Any = client_of(instance)
    owner._closed = True  # else `__del__` complains
    client.force_metadata_update = refuse
    client._get_conn = refuse_later
    # Whoever waits for metadata sees that there is none, asks again, and is refused.
    if client._md_update_fut is not None and not client._md_update_fut.done():
        client._md_update_fut.set_result(False)
    if hasattr(owner, "_sender"):
        _seal_producer(owner, ended)
    else:
        _seal_consumer(owner, ended, refuse_later)


def _seal_producer(owner: Any, ended: Callable[..., InstanceEnded]) -> None:
    accumulator = owner._message_accumulator
    accumulator._closed = True
    if accumulator._wakeup_handle is not None:
        accumulator._wakeup_handle.cancel()
    waiting = [batch for batches in accumulator._batches.values() for batch in batches]
    # One that waits to be sent again is no longer pending, and its callback would miss it there.
    accumulator._pending_batches.update(batch for batch in waiting if batch.retry_count > 0)
    pending = sorted(accumulator._pending_batches, key=lambda batch: batch.tp)
    for batch in dict.fromkeys([*waiting, *pending]):
        batch.failure(ended(sent=batch.retry_count > 0))
        # Nobody else may ask: `send_batch` gave a shield of the first, which knows it already.
        for future in (batch.future, batch._drain_waiter):
            take_note(future)
    accumulator._exception = ended()
    manager = owner._txn_manager
    if manager is None:
        return
    # `wait_for_pid`, `wait_for_transaction_end` and `add_offsets_to_txn` wait on these.
    for future in (
        manager._pid_waiter,
        manager._transaction_waiter,
        *(entry[2] for entry in manager._pending_txn_offsets),
    ):
        _fail(future, ended(sent=True))


def _seal_consumer(
    owner: Any, ended: Callable[..., InstanceEnded], refuse_later: Callable[..., Any]
) -> None:
    coordinator, fetcher = owner._coordinator, owner._fetcher
    if coordinator is not None and hasattr(coordinator, "_closing"):
        if not coordinator._closing.done():
            coordinator._closing.set_result(None)
        coordinator._send_req = refuse_later
        coordinator.ensure_coordinator_known = refuse_later
    if fetcher is not None:
        fetcher._closed = True
        for waiter in list(fetcher._fetch_waiters):
            if not waiter.done():
                waiter.set_result(None)
    for waiter in owner._subscription._assignment_waiters:
        _fail(waiter, ended())


def _fail(future: Any, error: InstanceEnded) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        take_note(future)
