"""Starts and ends an aiokafka instance within bounds, whatever state it is in.

aiokafka's own `start` has no bound and leaves tasks, sockets and a member of the group behind when
it is cancelled; its `stop` may hang for ever, raises `CancelledError` of its own making, and
swallows the caller's. So both run in tasks of ours, and what they leave is ended by force.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import conn as driver
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from resilient_io.deadlines import context_without_deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextvars import Context

    from .protocols import Connection, Driver, DriverClient


_LEAST_PAUSE = 0.05
"""Seconds that an attempt to connect takes at least while none is made."""

CONNECTION_OPTIONS = (
    "client_id",
    "ssl_context",
    "security_protocol",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
    "sasl_oauth_token_provider",
)
"""What `aiokafka.conn.create_conn` takes of a client's options."""


class InstanceEnded(KafkaError):
    """Raised by an ended instance to whoever still waits on it, or uses it.

    Attributes:
        sent: Whether what was handed over may have left this process; False is certain.
    """

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent


def client_of(instance: Driver) -> DriverClient:
    """Give an instance's client: `AIOKafkaProducer.client`, `AIOKafkaConsumer._client`."""
    owner: Any = instance
    client: DriverClient = owner.client if hasattr(owner, "client") else owner._client
    return client


def background_tasks(instance: Driver) -> list[tuple[str, asyncio.Task[Any]]]:
    """Give the tasks without which a started instance is dead, with what they do.

    The heartbeat and the look for committed offsets are not among them: the coordination task
    watches those.
    """
    owner: Any = instance
    client: Any = client_of(instance)
    found = [("metadata", client._sync_task)]
    if hasattr(owner, "_sender"):
        found.append(("sending", owner._sender._sender_task))
    if (fetcher := getattr(owner, "_fetcher", None)) is not None:
        found.append(("fetching", fetcher._fetch_task))
    if (coordinator := getattr(owner, "_coordinator", None)) is not None:
        found += [
            ("coordination", getattr(coordinator, name, None))
            for name in ("_coordination_task", "_reset_committed_task")
        ]
    return [(what, task) for what, task in found if task is not None]


def connections_of(instance: Driver) -> list[Connection]:
    """Give the connections an instance has (`AIOKafkaClient._conns`)."""
    client: Any = client_of(instance)
    return list(client._conns.values())


@dataclass(frozen=True, slots=True)
class Membership:
    """A consumer's place in its group.

    Attributes:
        group: The group's id.
        member: The member's id.
        host: Of the broker that coordinates the group.
        port: Of that broker.
    """

    group: str
    member: str
    host: str
    port: int


def membership_of(instance: Driver) -> Membership | None:
    """Give a consumer's place in its group, if it has one that it gives up when it ends.

    `GroupCoordinator.member_id`, `coordinator_id`, `_group_instance_id`: a static member stays.
    """
    coordinator: Any = getattr(instance, "_coordinator", None)
    if not getattr(coordinator, "member_id", "") or coordinator._group_instance_id is not None:
        return None
    broker: Any = client_of(instance).cluster.broker_metadata(coordinator.coordinator_id)
    if broker is None:
        return None
    return Membership(coordinator.group_id, coordinator.member_id, broker.host, broker.port)


def connection_options(instance: Driver) -> dict[str, Any]:
    """Give what `AIOKafkaClient._get_conn` hands to `create_conn`."""
    client: Any = client_of(instance)
    return {name: getattr(client, f"_{name}") for name in CONNECTION_OPTIONS}


def unknown_topics(instance: Driver) -> list[str]:
    """Give the topics a consumer wants and has no metadata of (`AIOKafkaClient._topics`).

    A producer's are not among them: who sends asks, and asking may make a topic anew.
    """
    if hasattr(instance, "_sender"):
        return []
    client: Any = client_of(instance)
    return [
        topic
        for topic in sorted(client._topics)
        if client.cluster.partitions_for_topic(topic) is None
    ]


def oldest_request(connection: Connection) -> object | None:
    """Give the request that has waited longest for its answer (`AIOKafkaConnection._requests`)."""
    known: Any = connection
    return known._requests[0] if known._requests else None


def drop(connection: Connection) -> asyncio.Future[None] | None:
    """Close a connection at once, also one whose peer takes nothing any more.

    Returns:
        What is done when the socket is closed; None when there is none to close.
    """
    known: Any = connection
    writer = known._writer  # None once it was closed
    if writer is not None:
        writer.transport.abort()
    for _, _, future in known._requests:
        future.add_done_callback(take_note)  # who waited may be cancelled before it hears
    closed: asyncio.Future[None] | None = connection.close(reason=CloseReason.SHUTDOWN)
    return closed if writer is not None else None


def reconnect(connection: Connection) -> None:
    """Close a connection so that the instance dials anew and sends again what it may."""
    known: Any = connection
    writer = known._writer
    if writer is not None:
        writer.transport.abort()
    connection.close(reason=CloseReason.CONNECTION_TIMEOUT)


def parts_of(instance: Driver) -> list[object]:
    """Give the objects whose coroutines run as an instance's tasks.

    Not the instance: a task that runs one of its own coroutines was made by whoever uses it.
    """
    owner: Any = instance
    client: Any = client_of(instance)
    parts = [client, *client._conns.values()]
    for name in (
        "_sender",
        "_message_accumulator",
        "_txn_manager",
        "_fetcher",
        "_coordinator",
        "_subscription",
    ):
        part = getattr(owner, name, None)
        if part is not None:
            parts.append(part)
    return parts


def works_for(task: asyncio.Task[Any], parts: list[object]) -> bool:
    """Tell whether a task runs a coroutine of one of these objects.

    A task of ours that happens to await one of them does not: its own coroutine is ours. The
    handlers of aiokafka's sender hold it as `_sender`.
    """
    frame = getattr(task.get_coro(), "cr_frame", None)
    if frame is None:
        return False
    worker = frame.f_locals.get("self")
    if worker is None:
        return False
    chief = getattr(worker, "_sender", None)
    return any(worker is part or (chief is not None and chief is part) for part in parts)


def is_shielded(task: asyncio.Task[Any]) -> bool:
    """Tell whether somebody else waits for it behind a shield, whom cancelling it would cancel.

    `GroupCoordinator.commit_offsets` so shields `_do_commit_offsets`.
    """
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_name == "_do_commit_offsets"


def connections_in(task: asyncio.Task[Any]) -> list[Connection]:
    """Give the connections that only the frames of a waiting task know.

    `AIOKafkaClient.bootstrap` holds its first one so: cancelled, it would leave it open.
    """
    found: list[Connection] = []
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        found += [
            value
            for name, value in frame.f_locals.items()
            if name != "self" and isinstance(value, AIOKafkaConnection)
        ]
        coroutine = coroutine.cr_await
    return found


def notice_hang_ups(instance: Driver, told: Callable[[Connection], None]) -> None:
    """Be told of each connection that a broker closed, or that broke.

    Wraps `AIOKafkaClient._on_connection_closed`, which each connection is given when it is made: so
    call this before the instance is started.
    """
    client: Any = client_of(instance)
    own = client._on_connection_closed

    def closed(connection: Connection, reason: object) -> None:
        own(connection, reason)
        if reason is CloseReason.CONNECTION_BROKEN:
            told(connection)

    client._on_connection_closed = closed


def hold_dialling(instance: Driver) -> None:
    """Let an instance make no connection (`AIOKafkaClient._get_conn`) until `resume_dialling`.

    aiokafka knocks at a cluster that is away some ten times a second, and so would every process
    of a service, at the moment of its return. What is connected stays in use.
    """
    client: Any = client_of(instance)

    async def give_open(node_id: Any, *, group: Any = 0, **_options: object) -> Any:
        connection = client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        # Some loops of aiokafka's ask again at once: without I/O they would never let go.
        await asyncio.sleep(max(client._retry_backoff, _LEAST_PAUSE))
        return None

    client._get_conn = give_open


def resume_dialling(instance: Driver) -> None:
    """Let an instance connect again."""
    client: Any = client_of(instance)
    vars(client).pop("_get_conn", None)


def dead_sender_is_ours(instance: Driver) -> None:
    """Take over from aiokafka what happens when a producer's sending task dies.

    Its own `Sender._fail_all` ends in an AttributeError where no transaction was begun
    (`TransactionManager.fatal_error`), and it does not tell which batches were never sent.
    """
    sender: Any = getattr(instance, "_sender", None)
    if sender is not None and sender._sender_task is not None:
        sender._sender_task.remove_done_callback(sender._fail_all)


def fail_transaction(instance: Driver, error: BaseException) -> None:
    """Tell those who wait for a transaction's end the error of which the sending task died."""
    manager: Any = getattr(instance, "_txn_manager", None)
    if manager is None or manager._transaction_waiter is None or manager.is_fatal_error():
        return
    manager.fatal_error(error)
    manager._transaction_waiter.exception()


def take_note(future: Any) -> None:
    """Take note of a future's error, so that the loop does not complain that nobody did."""
    if future.done() and not future.cancelled():
        future.exception()


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


_create_conn: Any = driver.create_conn


async def leave_group(instance: Driver, membership: Membership, timeout: float) -> None:
    """Tell the coordinator that a member is gone, so that it needs not wait for its session's end.

    A best effort: when it fails, the session's timeout does the same, later.

    Args:
        instance: The consumer, for how to log in.
        membership: What to leave.
        timeout: Seconds for all of it.
    """
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(timeout):
            connection: Connection = await _create_conn(
                membership.host,
                membership.port,
                request_timeout_ms=int(timeout * 1000) + 1000,
                **connection_options(instance),
            )
            try:
                await connection.send(LeaveGroupRequest(membership.group, membership.member))
            finally:
                drop(connection)


_ROUNDS = 20
"""How often leftover tasks are cancelled again: some of aiokafka's swallow one or await another."""

_ROUND = 0.1
"""Longest wait for cancelled tasks, in seconds; they do no I/O any more."""


async def start_instance(
    instance: Driver, timeout: float, *, context: Context | None = None
) -> None:
    """Start an instance that was never started.

    One that does not come up, for whatever reason, is ended wholly before this returns, by force:
    no task, no socket, no member of a group is left. So it is when this is cancelled.

    Args:
        instance: Made in the running loop.
        timeout: Longest wait in seconds.
        context: The context its tasks run in.

    Raises:
        TimeoutError: It did not come up in time.
        Exception: Whatever `start()` raised.
    """
    starting = asyncio.get_running_loop().create_task(
        instance.start(),
        name="resilient-io kafka start",
        context=context if context is not None else context_without_deadline(),
    )
    up = False
    try:
        await asyncio.wait([starting], timeout=timeout)
        if not starting.done():
            raise TimeoutError(f"it did not come up within {timeout:g} s")
        if starting.cancelled():
            # By nobody who may: the start has nothing that cancels.
            raise TimeoutError("its start was cancelled from inside")
        starting.result()
        dead_sender_is_ours(instance)
        up = True
    finally:
        if not up:
            await _force(instance, [starting], "it did not come up", None)


async def end_instance(
    instance: Driver,
    timeout: float,
    *,
    reason: str = "it was ended",
    error: BaseException | None = None,
    context: Context | None = None,
) -> bool:
    """Stop an instance: in good order if it can within the timeout, else by force.

    Afterwards none of its tasks runs, none of its sockets is open, nobody waits on it, and nothing
    can begin on it. In good order means that a producer's batches are settled, and that a consumer
    has left its group; by force, batches fail with `InstanceEnded` and the group notices when the
    session times out. Never raises what `stop()` raises. Ending one twice does no harm.

    Cancelling goes straight on to force, which takes no I/O, and then leaves.

    Args:
        instance: The instance, started or not.
        timeout: Longest wait for good order, in seconds; 0 for force at once.
        reason: What those are told who wait on it.
        error: Of what it has to end, if anything.
        context: The context its tasks run in.

    Returns:
        Whether it ended in good order.
    """
    tasks: list[asyncio.Task[Any]] = []
    stopping: asyncio.Task[None] | None = None
    try:
        if timeout > 0:
            stopping = asyncio.get_running_loop().create_task(
                instance.stop(),
                name="resilient-io kafka stop",
                context=context if context is not None else context_without_deadline(),
            )
            tasks.append(stopping)
            await asyncio.wait(tasks, timeout=timeout / 2)
            if not stopping.done():
                tasks += _help(instance, timeout / 2, context)
                await asyncio.wait([stopping], timeout=timeout / 2)
    finally:
        await _force(instance, tasks, reason, error)
    return stopping is not None and not stopping.cancelled() and stopping.exception() is None


def _help(instance: Driver, timeout: float, context: Context | None) -> list[asyncio.Task[None]]:
    """Leave the group for a consumer that cannot, while it waits for the others to join.

    Its `stop()` waits for that, too: the broker's answer that it is no member ends both.
    """
    membership = membership_of(instance)
    if membership is None:
        return []
    leaving = asyncio.get_running_loop().create_task(
        leave_group(instance, membership, timeout),
        name="resilient-io kafka leave",
        context=context.copy() if context is not None else context_without_deadline(),
    )
    return [leaving]


async def _force(
    instance: Driver, tasks: list[asyncio.Task[Any]], reason: str, error: BaseException | None
) -> None:
    """End what is left; the first part does not wait, so that no cancel can come between."""
    parts = parts_of(instance)
    left = _leftovers(instance, parts, tasks)
    closing = _drop([*connections_of(instance), *_held_by(left)])
    seal(instance, reason, error)
    for task in left:
        if not is_shielded(task):  # the loss of its connection ends it, with an error
            task.cancel()
    for _ in range(_ROUNDS):
        if not left and not closing:
            break
        # Each of these ends within a few turns of the loop.
        await asyncio.wait([*left, *closing], timeout=_ROUND)
        closing = [future for future in closing if not future.done()]
        left = _leftovers(instance, parts, left)
        closing += _drop([*connections_of(instance), *_held_by(left)])
        for task in left:
            task.cancel()
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # whatever it is, it was no answer to anybody


def _leftovers(
    instance: Driver, parts: list[object], known: Iterable[asyncio.Task[Any]]
) -> list[asyncio.Task[Any]]:
    """Find the tasks that still work for an instance, oldest first."""
    found = [task for task in known if not task.done()]
    for part in parts_of(instance):  # a start that was under way may have made more of them
        if not any(part is seen for seen in parts):
            parts.append(part)
    for task in sorted(asyncio.all_tasks(), key=_age):  # of the set: the same order in each run
        if task not in found and not task.done() and works_for(task, parts):
            found.append(task)
    me = asyncio.current_task()
    return [task for task in found if task is not me]


def _age(task: asyncio.Task[Any]) -> tuple[int, str]:
    name = task.get_name()  # "Task-9", then "Task-10"
    return len(name), name


def _held_by(tasks: Iterable[asyncio.Task[Any]]) -> list[Connection]:
    return [connection for task in tasks for connection in connections_in(task)]


def _drop(connections: Iterable[Connection]) -> list[asyncio.Future[None]]:
    """Close connections at once; give what is done when their sockets are closed."""
    closing = []
    for connection in connections:
        future = drop(connection)
        if future is not None and not future.done():
            closing.append(future)
    return closing
