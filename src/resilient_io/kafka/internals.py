"""What is private in aiokafka 0.14 and leant on all the same, each with the attribute's name.

`tests/unit/kafka/test_driver_contract.py` fails when a new aiokafka changes any of it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocols import Connection, Driver, DriverClient

__all__ = [
    "CONNECTION_OPTIONS",
    "InstanceEnded",
    "Membership",
    "background_tasks",
    "client_of",
    "connection_options",
    "connections_in",
    "connections_of",
    "dead_sender_is_ours",
    "drop",
    "fail_transaction",
    "hold_dialling",
    "is_shielded",
    "membership_of",
    "notice_hang_ups",
    "oldest_request",
    "parts_of",
    "reconnect",
    "resume_dialling",
    "take_note",
    "unknown_topics",
    "works_for",
]


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
