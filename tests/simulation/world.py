"""What exists in one run: the loop, the network, the servers and the clients under test."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import redis
from redis.asyncio import ConnectionPool

from resilient_io import RetryPolicy, deadline
from resilient_io.errors import (
    Closed,
    DeadlineExceeded,
    DependencyUnavailable,
    OutcomeUnknown,
    Overloaded,
    Progress,
)
from resilient_io.health import Dependency, HealthSettings
from resilient_io.redis import ConnectionSettings, ResilientRedis

from .clients import BareConnection, ReopeningRedis, RotatingCredentials, Spans, login
from .history import ErrorReply, Operation, Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.health import Change

    from .history import History
    from .loop import SimulatedLoop
    from .network import Network
    from .plan import Call, ClientSetup, Plan
    from .redis_server.server import RedisServer

HOST = "redis.test"
PORT = 6379
ADDRESSES = ("10.0.0.1", "10.0.0.2")

KEPT_UNUSED = 10.0
"""Seconds for which the connections of a pool are kept without a client."""

LONGEST_CLOSE = 3.0
"""Seconds that closing them may take."""


@dataclass(slots=True)
class Client:
    """A client under test.

    Attributes:
        own: The arguments that are not redis-py's. Clients on one pool share what has the same.
        users: How many clients share its connections.
        unused_since: When the last of them was closed or dropped, or None.
    """

    setup: ClientSetup
    redis: ResilientRedis
    policy: RetryPolicy
    own: dict[str, Any]
    credentials: RotatingCredentials | None = None
    spans: Spans | None = None
    open: bool = True
    users: int = 1
    unused_since: float | None = None

    @property
    def pooled(self) -> bool:
        """Whether it is on the pool of the application."""
        return bool(self.setup.form.get("pooled"))


@dataclass(slots=True)
class World:
    """Everything in one run. `clients` is by label, and `pool` that of the application.

    Attributes:
        temporary: When nothing of each client that is not in `clients` is left, by label.
    """

    plan: Plan
    loop: SimulatedLoop
    network: Network
    history: History
    servers: list[RedisServer]
    clients: dict[str, Client] = field(default_factory=dict)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    pool: ConnectionPool | None = None
    temporary: dict[str, float] = field(default_factory=dict)

    def start_clients(self) -> None:
        """Construct all clients of the plan. Needs the running loop."""
        for setup in self.plan.clients:
            self.clients[setup.label] = self._client(setup)

    def _client(self, setup: ClientSetup) -> Client:
        policy = RetryPolicy(**setup.policy)
        label, rng = setup.label, Random(f"{self.plan.seed}/client/{setup.label}")
        other = self.clients.get(setup.shares_health_of or "")
        health: Dependency | None = None  # the client's own
        if other is not None:
            health = other.redis.health
        elif setup.health:
            health = Dependency(
                f"redis-{label}", settings=HealthSettings(**setup.health), rng=Random(rng.random())
            )
        form, options = setup.form, dict(setup.options)
        if self.servers[0].password_required:
            options |= login(form.get("login", ""))
        credentials = options.get("credential_provider")
        own: dict[str, Any] = {
            "policy": policy,
            "health": health,
            "name": f"redis-{label}",
            "connections": ConnectionSettings(**setup.connections),
            "rng": rng,
        }
        reopens = bool(form.get("reopens"))
        kind: type[ResilientRedis] = ResilientRedis
        if reopens or form.get("pooled"):
            kind = ReopeningRedis
        address = {"host": ADDRESSES[0] if form.get("by_address") else HOST, "port": PORT}
        options |= {"protocol": setup.protocol}
        if form.get("bare"):
            options["connection_class"] = BareConnection
        if form.get("pooled"):
            if self.pool is None:
                self.pool = ConnectionPool(**address, **options)
            client = kind(connection_pool=self.pool, reopen=reopens, **own)
        elif form.get("by_url"):
            url = f"redis://{address['host']}:{PORT}/0"
            client = kind.from_url(
                url, single_connection_client=setup.single, reopen=reopens, **own, **options
            )
        elif "connection_class" in options:
            client = kind.from_pool(ConnectionPool(**address, **options), reopen=reopens, **own)
        else:
            client = kind(
                **address, single_connection_client=setup.single, reopen=reopens, **own, **options
            )
        if isinstance(client, ReopeningRedis):
            client.observe(lambda change: self._note_opening(label, change))
        spans = Spans(self.history, label) if form.get("traced") else None
        if spans is not None:
            client.trace_with(spans)
        if other is None:
            client.health.on_change(self._note_change)
        rotating = credentials if isinstance(credentials, RotatingCredentials) else None
        return Client(setup, client, policy, own, rotating, spans)

    def _note_opening(self, label: str, change: str) -> None:
        """Note that a call of a client has found it closed ("opening"), or has opened it."""
        client = self.clients[label]
        if change == "opened" and not client.open:
            client.open = True
            self.join(label)
        self.history.event("workload", change, client=label)

    # -- clients that share their connections ------------------------------------------------

    def begin_temporary(self, label: str) -> None:
        """Note that a client was constructed that shares nothing with the others."""
        self.temporary[label] = math.inf

    def end_temporary(self, label: str) -> None:
        """Note that it was dropped. It closes in the background."""
        self.temporary[label] = self.loop.time() + LONGEST_CLOSE

    @property
    def only_clients(self) -> bool:
        """Whether all tasks and connections are those of `clients`, and not of a temporary one."""
        now = self.loop.time()
        return all(until <= now for until in self.temporary.values())

    def join(self, label: str) -> None:
        """Note that one more client uses the connections."""
        client = self.clients[label]
        client.users += 1
        if client.pooled:
            self.history.event(
                "workload", "joined", client=label, users=client.users, connections=self._numbers()
            )
        client.unused_since = None

    def leave(self, label: str) -> None:
        """Note that one client fewer uses the connections: it was closed, or dropped."""
        client = self.clients[label]
        client.users -= 1
        self.history.event(
            "workload",
            "left",
            client=label,
            users=client.users,
            connections=self._numbers() if self.only_clients else [],
        )
        if not client.users:
            client.unused_since = since = self.loop.time()
            self.loop.at(since + KEPT_UNUSED - 0.001, self._rest, client, since, "closing")
            self.loop.at(since + KEPT_UNUSED + LONGEST_CLOSE, self._rest, client, since, "closed")

    def _rest(self, client: Client, since: float, change: str) -> None:
        """Note that the connections of an unused client are about to close, or have closed."""
        if client.unused_since != since:
            return
        self.history.event("workload", change, client=client.setup.label)
        now = self.loop.time()
        if (
            change == "closed"
            and self.only_clients
            and all(
                each.unused_since is not None
                and each.unused_since + KEPT_UNUSED + LONGEST_CLOSE <= now
                for each in self.clients.values()
            )
        ):
            self.history.event(
                "workload", "unused", connections=self._numbers(), tasks=client_tasks(self.loop)
            )

    def _numbers(self) -> list[int]:
        return [connection.number for connection in self.network.connections]

    def _note_change(self, change: Change) -> None:
        cause = change.cause.value if change.cause is not None else ""
        self.history.health_changed(change.dependency, change.state.value, cause, change.detail)

    async def perform(
        self, operation: Operation, call: Call, work: Callable[[], Awaitable[Any]]
    ) -> None:
        """Run one operation in a task of its own, cancel it if planned, and record its end."""
        loop = self.loop
        task = loop.create_task(self._run(operation, call, work), name=f"call {operation.number}")
        self.history.operations.append(operation)
        cancellation = None
        if call.cancel_after is not None:
            when = loop.time() + call.cancel_after
            cancellation = loop.at_poll(when, self._cancel, task, operation)
        ended = loop.create_future()

        def note_end(_task: object) -> None:
            if not ended.done():
                ended.set_result(None)

        task.add_done_callback(note_end)
        try:
            await ended
        finally:
            if cancellation is not None:
                cancellation.cancel()
            if not task.done():  # the run has given up waiting for it
                task.cancel()

    def _cancel(self, task: asyncio.Task[None], operation: Operation) -> None:
        if not task.done() and operation.ended is None:
            operation.cancelled_at, operation.cancelled = self.history.next(), self.loop.time()
            operation.facts["cancel_delivered"] = task.cancel()

    async def _run(
        self, operation: Operation, call: Call, work: Callable[[], Awaitable[Any]]
    ) -> None:
        history, loop = self.history, self.loop
        operation.started_at, operation.started = history.next(), loop.now
        try:
            operation.reply = plain(await self._within_deadline(operation, call, work))
            operation.outcome = Outcome.OK
        except asyncio.CancelledError:
            operation.outcome = Outcome.CANCELLED
        except Exception as error:  # noqa: BLE001 (any error is a result here)
            _note_error(operation, error)
            client = self.clients.get(operation.client)
            if client is not None:
                operation.facts["health"] = client.redis.health.state.value
        operation.ended_at, operation.ended = history.next(), loop.now

    async def _within_deadline(
        self, operation: Operation, call: Call, work: Callable[[], Awaitable[Any]]
    ) -> Any:
        limit = operation.facts.get("limit")  # the policy's own
        if call.deadline is None:
            if limit is not None:
                operation.deadline = operation.started + limit
            return await work()
        with deadline(call.deadline) as within:
            if not operation.facts.get("thinks"):
                operation.deadline = within.at
            if limit is not None:
                operation.deadline = min(within.at, operation.started + limit)
            return await work()


def client_tasks(loop: SimulatedLoop) -> list[str]:
    """Return the names of the tasks of all clients."""
    names = sorted(task.get_name() for task in loop.unfinished_tasks())
    return [name for name in names if name.startswith("resilient-io")]


_REPLIES = (redis.ResponseError, redis.BusyLoadingError, redis.exceptions.LockError)
_NOT_APPLIED = (DependencyUnavailable, DeadlineExceeded, Overloaded, Closed)


def _note_error(operation: Operation, error: Exception) -> None:
    operation.error = f"{type(error).__name__}: {error}"
    operation.error_bases = tuple(cls.__name__ for cls in type(error).__mro__)
    progress = getattr(error, "progress", None)
    if progress is not None:
        operation.facts["progress"] = progress.value
    notes = getattr(error, "__notes__", ())
    operation.facts["notes"] = tuple(notes)
    operation.answered = tuple(plain(reply) for reply in getattr(error, "answered", ()))
    operation.facts["unanswered"] = tuple(getattr(error, "unanswered", ()))
    if isinstance(error, OutcomeUnknown):
        operation.outcome = Outcome.UNKNOWN
    elif isinstance(error, _NOT_APPLIED):
        applied = progress is Progress.MAYBE_APPLIED
        operation.outcome = Outcome.UNKNOWN if applied else Outcome.NOT_APPLIED
    elif isinstance(error, redis.WatchError):
        operation.outcome = Outcome.WATCH_FAILED
    elif isinstance(error, _REPLIES) or any("nothing was applied" in note for note in notes):
        operation.outcome = Outcome.REFUSED
    else:
        operation.outcome = Outcome.OTHER


def plain(value: Any) -> Any:
    """Return a reply as plain data: bytes become text, errors become ErrorReply."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, set):
        return sorted(plain(each) for each in value)
    if isinstance(value, dict):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, Exception):
        return ErrorReply(f"{type(value).__name__}: {value}")
    return value
