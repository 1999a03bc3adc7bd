"""One aiokafka instance (a "driver"): start, stop, disable, and the private APIs that we rely on.

aiokafka's own `start` has no time limit and leaves tasks, sockets and a group member behind when it
is cancelled. Its `stop` may hang forever, raises a `CancelledError` that no one requested, and
swallows the caller's. So both run in tasks of ours, and what they leave behind is ended by force.
aiokafka has almost no type hints, so the Protocols below are a typed view of its public API. All
names, public and private, are those of aiokafka 0.14, which
`tests/unit/kafka/test_driver_contract.py` checks.
"""
# ruff: noqa: D102 - aiokafka documents the methods of the Protocols

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from aiokafka import conn as driver_module
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer import group_coordinator
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from resilient_io.retry import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
    from contextvars import Context

    from aiokafka import TopicPartition
    from aiokafka.abc import ConsumerRebalanceListener
    from aiokafka.cluster import ClusterMetadata
    from aiokafka.producer.message_accumulator import BatchBuilder
    from aiokafka.structs import OffsetAndTimestamp, RecordMetadata

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
"""The options of a client that `aiokafka.conn.create_conn` takes."""

# Shortest time, in seconds, that a driver waits for a connection while connecting is paused.
_MIN_CONNECT_PAUSE = 0.05
# Seconds between two requests for the metadata of the same topics that follow each other.
_FIRST_METADATA_PAUSE = 0.02
_MAX_METADATA_PAUSE = 0.5
# How often to cancel leftover tasks: some swallow a cancellation, some await another task.
_CANCEL_ROUNDS = 20
_CANCEL_WAIT = 0.1  # longest wait for cancelled tasks, in seconds; they do no more I/O

_create_conn: Any = driver_module.create_conn
_coordination: Any = group_coordinator


class DriverClosed(KafkaError):
    """The driver was stopped or disabled while a call used it, or before."""

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent  # whether the request may have been sent; False is certain


# --- typed view


class Connection(Protocol):
    """A connection to one broker (`aiokafka.conn.AIOKafkaConnection`)."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    def connected(self) -> bool: ...
    def send(self, request: Any) -> Coroutine[Any, Any, Any]: ...
    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any: ...


class DriverClient(Protocol):
    """The client inside a producer or a consumer (`aiokafka.client.AIOKafkaClient`)."""

    cluster: ClusterMetadata

    def force_metadata_update(self) -> asyncio.Future[bool]: ...
    def set_topics(self, topics: Iterable[str]) -> asyncio.Future[bool]: ...
    def add_topic(self, topic: str) -> asyncio.Future[bool]: ...


class ProducerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaProducer` that we use."""

    client: Any

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def create_batch(self) -> BatchBuilder: ...
    async def send_batch(
        self, batch: Any, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]: ...
    async def begin_transaction(self) -> None: ...
    async def commit_transaction(self) -> None: ...
    async def abort_transaction(self) -> None: ...
    async def send_offsets_to_transaction(
        self, offsets: Mapping[Any, Any], group_id: str
    ) -> None: ...


class ConsumerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaConsumer` that we use."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def subscribe(
        self,
        topics: Collection[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None: ...
    def assign(self, partitions: Collection[TopicPartition]) -> None: ...
    def assignment(self) -> Collection[TopicPartition]: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    async def beginning_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]: ...
    async def end_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]: ...
    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]: ...


Driver: TypeAlias = ProducerDriver | ConsumerDriver

DriverT = TypeVar("DriverT", bound=ProducerDriver | ConsumerDriver)


# --- parts of a driver


def client_of(driver: Driver) -> DriverClient:
    """Return the client of a driver: `AIOKafkaProducer.client`, `AIOKafkaConsumer._client`."""
    owner: Any = driver
    client: DriverClient = owner.client if hasattr(owner, "client") else owner._client
    return client


def connections_of(driver: Driver) -> list[Connection]:
    """Return the connections of a driver (`AIOKafkaClient._conns`)."""
    client: Any = client_of(driver)
    return list(client._conns.values())


def background_tasks(driver: Driver) -> list[tuple[str, asyncio.Task[Any]]]:
    """Return the tasks without which a started driver does not work, each with its purpose.

    The coordination task watches the heartbeat and the refresh of committed offsets itself.
    """
    owner: Any = driver
    client: Any = client_of(driver)
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
    return [(purpose, task) for purpose, task in found if task is not None]


def parts_of(driver: Driver) -> list[object]:
    """Return the objects whose coroutines run as tasks of a driver.

    Those of the driver itself run in tasks of the code that uses it.
    """
    owner: Any = driver
    client: Any = client_of(driver)
    names = "_sender _message_accumulator _txn_manager _fetcher _coordinator _subscription"
    own = [getattr(owner, name, None) for name in names.split()]
    return [client, *client._conns.values(), *(part for part in own if part is not None)]


def works_for(task: asyncio.Task[Any], parts: list[object]) -> bool:
    """Return whether the outermost coroutine of a task is a method of one of these objects.

    The handlers of aiokafka's sender refer to it as `_sender`.
    """
    frame = getattr(task.get_coro(), "cr_frame", None)
    worker = frame.f_locals.get("self") if frame is not None else None
    if worker is None:
        return False
    sender = getattr(worker, "_sender", worker)
    return any(worker is part or sender is part for part in parts)


def connection_options(driver: Driver) -> dict[str, Any]:
    """Return the options that `AIOKafkaClient._get_conn` passes to `create_conn`."""
    client: Any = client_of(driver)
    return {name: getattr(client, f"_{name}") for name in CONNECTION_OPTIONS}


def unknown_topics(driver: Driver) -> list[str]:
    """Return the topics that a consumer wants and has no metadata of (`AIOKafkaClient._topics`)."""
    if hasattr(driver, "_sender"):
        return []  # a producer's `send` requests it; here it might create a deleted topic again
    client: Any = client_of(driver)
    return [
        topic
        for topic in sorted(client._topics)
        if client.cluster.partitions_for_topic(topic) is None
    ]


# --- connections


def socket_of(connection: Connection) -> Any:
    """Return the socket of a connection (`AIOKafkaConnection._writer`), or None if it is closed."""
    known: Any = connection
    return known._writer.get_extra_info("socket") if known._writer is not None else None


def oldest_request(connection: Connection) -> object | None:
    """Return the request that has waited longest (`AIOKafkaConnection._requests`)."""
    requests: Any = connection
    return requests._requests[0] if requests._requests else None


def requests_sent(connection: Connection) -> int:
    """Return how many requests were sent on a connection (`AIOKafkaConnection._correlation_id`)."""
    known: Any = connection
    count: int = known._correlation_id
    return count


def answered_at(connection: Connection) -> float:
    """Return the loop time of the latest response (`AIOKafkaConnection._last_action`).

    Before the first one, this is when the connection was created. aiokafka reads
    `time.monotonic()`, which is the time of the event loop.
    """
    known: Any = connection
    latest: float = known._last_action
    return latest


def abort_connection(connection: Connection) -> asyncio.Future[None] | None:
    """Close a connection immediately, even if the broker no longer reads from it.

    Return a future that is done when the socket is closed, or None if it already was.
    """
    opened = _abort_transport(connection)
    known: Any = connection
    for _, _, future in known._requests:
        future.add_done_callback(retrieve_exception)  # its waiter may be cancelled first
    closed: asyncio.Future[None] | None = connection.close(reason=CloseReason.SHUTDOWN)
    return closed if opened else None


def reconnect(connection: Connection) -> None:
    """Close a connection, so that the driver connects again and repeats its requests."""
    _abort_transport(connection)
    connection.close(reason=CloseReason.CONNECTION_TIMEOUT)


def _abort_transport(connection: Connection) -> bool:
    known: Any = connection
    writer = known._writer  # None after close()
    if writer is None:
        return False
    writer.transport.abort()
    return True


def notify_on_connection_loss(driver: Driver, notify: Callable[[Connection], None]) -> None:
    """Call `notify` with each connection that breaks. Call it before the driver is started.

    It wraps `AIOKafkaClient._on_connection_closed`, which each new connection gets.
    """
    client: Any = client_of(driver)
    original = client._on_connection_closed

    def closed(connection: Connection, reason: object) -> None:
        original(connection, reason)
        if reason is CloseReason.CONNECTION_BROKEN:
            notify(connection)

    client._on_connection_closed = closed


def pace_metadata_requests(driver: Driver) -> None:
    """Have a driver pause before it requests the same metadata again (`_metadata_update`).

    While a partition has no leader, or its topic was deleted, aiokafka's sender and fetcher request
    metadata as often as the broker answers: 800 times a second. Call it before the driver is
    started.
    """
    client: Any = client_of(driver)
    original = client._metadata_update
    loop = asyncio.get_running_loop()
    backoff = Backoff(_FIRST_METADATA_PAUSE, _MAX_METADATA_PAUSE)
    known: set[str] | None = None
    ended = -math.inf

    async def update(cluster: Any, topics: Any) -> Any:
        nonlocal known, ended
        if cluster is client.cluster:
            now = loop.time()
            if now - ended > _MAX_METADATA_PAUSE or known != topics:
                backoff.reset()
            else:
                await asyncio.sleep(ended + backoff.next() - now)
            known = set(topics)
        try:
            return await original(cluster, topics)
        finally:
            ended = loop.time()

    client._metadata_update = update


def pause_connecting(driver: Driver) -> None:
    """Prevent new connections (`AIOKafkaClient._get_conn`) until `resume_connecting`.

    aiokafka tries to connect to an unavailable cluster about ten times a second, and so would every
    process of a service when the cluster returns. Open connections stay in use.
    """
    client: Any = client_of(driver)

    async def open_connection(node_id: Any, *, group: Any = 0, **_options: object) -> Any:
        connection = client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        # Some of aiokafka's loops retry immediately. Without I/O they would block the event loop.
        await asyncio.sleep(max(client._retry_backoff, _MIN_CONNECT_PAUSE))
        return None

    client._get_conn = open_connection


def resume_connecting(driver: Driver) -> None:
    """Allow new connections again."""
    client: Any = client_of(driver)
    vars(client).pop("_get_conn", None)


# --- group membership


class Membership(NamedTuple):
    """A consumer's membership of its group, and the address of the group's coordinator."""

    group: str
    member: str
    host: str
    port: int


def membership_of(driver: Driver) -> Membership | None:
    """Return a consumer's membership, or None if it has none that ends with the consumer.

    `GroupCoordinator.member_id`, `coordinator_id`, `_group_instance_id`: a static member stays.
    """
    coordinator: Any = getattr(driver, "_coordinator", None)
    if not getattr(coordinator, "member_id", "") or coordinator._group_instance_id is not None:
        return None
    client: Any = client_of(driver)
    broker = client.cluster.broker_metadata(coordinator.coordinator_id)
    if broker is None:
        return None
    return Membership(coordinator.group_id, coordinator.member_id, broker.host, broker.port)


async def leave_group(driver: Driver, membership: Membership, timeout: float) -> None:
    """Leave a group over a new connection, so that it does not wait for the session to expire.

    Best effort: if it fails, the session expires later.
    """
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(timeout):
            connection: Connection = await _create_conn(
                membership.host,
                membership.port,
                request_timeout_ms=int(timeout * 1000) + 1000,
                **connection_options(driver),
            )
            try:
                await connection.send(LeaveGroupRequest(membership.group, membership.member))
            finally:
                abort_connection(connection)


# --- start and stop


def _create_lazy_task(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Create a task that does not run yet, even with `asyncio.eager_task_factory`.

    `GroupCoordinator.__init__` creates the task of the coordination before the attributes that
    this task needs, so that an eager one fails immediately.
    """
    return asyncio.Task(work, loop=asyncio.get_running_loop())


async def start_driver(driver: Driver, timeout: float, *, context: Context) -> None:
    """Start a new driver. If that fails or is cancelled, no task, socket or membership remains."""
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is not None:
        _coordination.create_task = _create_lazy_task
    starting = loop.create_task(driver.start(), name="resilient-io kafka start", context=context)
    started = False
    try:
        await asyncio.wait([starting], timeout=timeout)
        if not starting.done():
            raise TimeoutError(f"no connection within {timeout:g} s")
        if starting.cancelled():
            raise TimeoutError("aiokafka cancelled its own start")
        starting.result()
        ignore_sender_death(driver)
        started = True
    finally:
        if not started:
            await _force_stop(driver, [starting], "the driver did not start", None)


async def stop_driver(
    driver: Driver,
    timeout: float,
    *,
    context: Context,
    reason: str = "the driver was stopped",
    error: BaseException | None = None,
) -> bool:
    """Stop a driver: gracefully if it can within the timeout, else by force.

    Afterwards none of its tasks runs, its sockets are closed, nothing waits on it, and nothing can
    start on it. A graceful stop completes a producer's batches and leaves a consumer's group. By
    force, batches fail with `DriverClosed` and the group notices when the session expires. Return
    whether the stop was graceful. The exceptions of `stop()` are never raised. Idempotent.
    Cancelling the call forces the stop, which takes no I/O, and then propagates.
    """
    tasks: list[asyncio.Task[Any]] = []
    stopping: asyncio.Task[None] | None = None
    try:
        if timeout > 0:
            stopping = asyncio.get_running_loop().create_task(
                driver.stop(), name="resilient-io kafka stop", context=context
            )
            tasks.append(stopping)
            await asyncio.wait(tasks, timeout=timeout / 2)
            if not stopping.done():
                tasks += _leaving(driver, timeout / 2, context)
                await asyncio.wait([stopping], timeout=timeout / 2)
    finally:
        await _force_stop(driver, tasks, reason, error)
    return stopping is not None and not stopping.cancelled() and stopping.exception() is None


def _leaving(driver: Driver, timeout: float, context: Context) -> list[asyncio.Task[None]]:
    """Leave the group on behalf of a consumer that waits for the other members to join.

    Its `stop()` waits for that, too. The broker's response that it is not a member ends both.
    """
    if (membership := membership_of(driver)) is None:
        return []
    leave = leave_group(driver, membership, timeout)
    loop = asyncio.get_running_loop()
    return [loop.create_task(leave, name="resilient-io kafka leave", context=context.copy())]


async def _force_stop(
    driver: Driver, tasks: list[asyncio.Task[Any]], reason: str, error: BaseException | None
) -> None:
    """End everything that remains, as far as possible before the first await."""
    parts = parts_of(driver)
    left = _leftover_tasks(driver, parts, tasks)
    closing = _abort_connections(driver, left)
    disable(driver, reason, error)
    for task in left:
        if not is_shielded(task):  # the loss of its connection ends it, with an error
            task.cancel()
    for _ in range(_CANCEL_ROUNDS):
        if not left and not closing:
            break
        # Each of these ends within a few iterations of the loop.
        await asyncio.wait([*left, *closing], timeout=_CANCEL_WAIT)
        closing = [future for future in closing if not future.done()]
        left = _leftover_tasks(driver, parts, left)
        closing += _abort_connections(driver, left)
        for task in left:
            task.cancel()
    for task in tasks:
        retrieve_exception(task)


def _leftover_tasks(
    driver: Driver, parts: list[object], known: Iterable[asyncio.Task[Any]]
) -> list[asyncio.Task[Any]]:
    """Return the tasks that still work for a driver, oldest first."""
    found = [task for task in known if not task.done()]
    for part in parts_of(driver):  # a start in progress may have created more of them
        if not any(part is seen for seen in parts):
            parts.append(part)

    def age(task: asyncio.Task[Any]) -> tuple[int, str]:
        name = task.get_name()  # "Task-9", then "Task-10"
        return len(name), name

    for task in sorted(asyncio.all_tasks(), key=age):  # a set: the same order in each run
        if task not in found and not task.done() and works_for(task, parts):
            found.append(task)
    current = asyncio.current_task()
    return [task for task in found if task is not current]


def is_shielded(task: asyncio.Task[Any]) -> bool:
    """Return whether another task awaits this one through a shield and would be cancelled with it.

    `GroupCoordinator.commit_offsets` shields `_do_commit_offsets`.
    """
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_name == "_do_commit_offsets"


def connections_in(task: asyncio.Task[Any]) -> list[Connection]:
    """Return the connections that only the frames of a waiting task refer to.

    `AIOKafkaClient.bootstrap` holds its first connection so, and leaves it open when cancelled.
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


def _abort_connections(
    driver: Driver, tasks: Iterable[asyncio.Task[Any]]
) -> list[asyncio.Future[None]]:
    """Close all connections; return the futures of the sockets that are still closing."""
    held = [connection for task in tasks for connection in connections_in(task)]
    closing = [abort_connection(connection) for connection in (*connections_of(driver), *held)]
    return [future for future in closing if future is not None and not future.done()]


# --- disabling a driver


def ignore_sender_death(driver: Driver) -> None:
    """Replace aiokafka's reaction to the death of a producer's sender task with ours.

    aiokafka's `Sender._fail_all` ends in an AttributeError if no transaction was begun
    (`TransactionManager.fatal_error`), and does not tell which batches were never sent.
    """
    sender: Any = getattr(driver, "_sender", None)
    if sender is not None and sender._sender_task is not None:
        sender._sender_task.remove_done_callback(sender._fail_all)


def fail_transaction(driver: Driver, error: BaseException) -> None:
    """Fail the calls that wait for the end of a transaction, after the sender task died."""
    manager: Any = getattr(driver, "_txn_manager", None)
    if manager is None or manager._transaction_waiter is None or manager.is_fatal_error():
        return
    manager.fatal_error(error)
    manager._transaction_waiter.exception()


def retrieve_exception(future: Any) -> None:
    """Mark the exception of a future as retrieved, so that the event loop does not log it."""
    if future.done() and not future.cancelled():
        future.exception()


def disable(driver: Driver, reason: str, error: BaseException | None = None) -> None:
    """Refuse every new call on a stopped driver, and fail the calls that wait on it.

    A late call would otherwise connect again, retry forever, or wait for a task that has ended.
    """

    def closed(*, sent: bool = False) -> DriverClosed:
        failure = DriverClosed(reason, sent=sent)
        failure.__cause__ = error
        return failure

    def refuse(*_args: object, **_options: object) -> Any:
        raise closed()

    async def refuse_later(*_args: object, **_options: object) -> Any:
        raise closed()

    owner: Any = driver
    client: Any = client_of(driver)
    owner._closed = True  # else `__del__` warns
    client.force_metadata_update = refuse
    client._get_conn = refuse_later
    # A task that waits for metadata finds that there is none, requests it again, and is refused.
    if client._md_update_fut is not None and not client._md_update_fut.done():
        client._md_update_fut.set_result(False)
    if hasattr(owner, "_sender"):
        _disable_producer(owner, closed)
    else:
        _disable_consumer(owner, closed, refuse_later)


def _disable_producer(owner: Any, closed: Callable[..., DriverClosed]) -> None:
    accumulator = owner._message_accumulator
    accumulator._closed = True
    if accumulator._wakeup_handle is not None:
        accumulator._wakeup_handle.cancel()
    waiting = [batch for batches in accumulator._batches.values() for batch in batches]
    # A batch that waits to be sent again is no longer pending, where its callback expects it.
    accumulator._pending_batches.update(batch for batch in waiting if batch.retry_count > 0)
    pending = sorted(accumulator._pending_batches, key=lambda batch: batch.tp)
    for batch in dict.fromkeys([*waiting, *pending]):
        batch.failure(closed(sent=batch.retry_count > 0))
        # `send_batch` returned a shield of the first future, which has the exception already.
        for future in (batch.future, batch._drain_waiter):
            retrieve_exception(future)
    accumulator._exception = closed()
    manager = owner._txn_manager
    if manager is None:
        return
    # `wait_for_pid`, `wait_for_transaction_end` and `add_offsets_to_txn` wait on these.
    for future in (
        manager._pid_waiter,
        manager._transaction_waiter,
        *(entry[2] for entry in manager._pending_txn_offsets),
    ):
        _fail(future, closed(sent=True))


def _disable_consumer(
    owner: Any, closed: Callable[..., DriverClosed], refuse_later: Callable[..., Any]
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
        _fail(waiter, closed())


def _fail(future: Any, error: DriverClosed) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
        retrieve_exception(future)
