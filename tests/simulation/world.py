"""What exists in one run: the loop, the network, the servers and the clients under test."""

from __future__ import annotations

import asyncio
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

from .clients import BareConnection, RotatingCredentials, Spans, login
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


@dataclass(slots=True)
class Client:
    """A client under test."""

    setup: ClientSetup
    redis: ResilientRedis
    policy: RetryPolicy
    credentials: RotatingCredentials | None = None
    spans: Spans | None = None
    open: bool = True


@dataclass(slots=True)
class World:
    """Everything in one run. `clients` is by label."""

    plan: Plan
    loop: SimulatedLoop
    network: Network
    history: History
    servers: list[RedisServer]
    clients: dict[str, Client] = field(default_factory=dict)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)

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
            "reopen": False,  # the checks expect that nothing happens after a close
        }
        address = {"host": ADDRESSES[0] if form.get("by_address") else HOST, "port": PORT}
        options |= {"protocol": setup.protocol}
        if form.get("bare"):
            options["connection_class"] = BareConnection
        if form.get("by_url"):
            url = f"redis://{address['host']}:{PORT}/0"
            client = ResilientRedis.from_url(
                url, single_connection_client=setup.single, **own, **options
            )
        elif "connection_class" in options:
            client = ResilientRedis.from_pool(ConnectionPool(**address, **options), **own)
        else:
            client = ResilientRedis(
                **address, single_connection_client=setup.single, **own, **options
            )
        spans = Spans(self.history, label) if form.get("traced") else None
        if spans is not None:
            client.trace_with(spans)
        if other is None:
            client.health.on_change(self._note_change)
        rotating = credentials if isinstance(credentials, RotatingCredentials) else None
        return Client(setup, client, policy, rotating, spans)

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
        operation.started_at, operation.started = history.next(), loop.time()
        try:
            operation.reply = plain(await self._within_deadline(operation, call, work))
            operation.outcome = Outcome.OK
        except asyncio.CancelledError:
            operation.outcome = Outcome.CANCELLED
        except Exception as error:  # noqa: BLE001 (any error is a result here)
            _note_error(operation, error)
            operation.facts["health"] = self.clients[operation.client].redis.health.state.value
        operation.ended_at, operation.ended = history.next(), loop.time()

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
