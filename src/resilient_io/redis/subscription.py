"""The channels of a subscriber, which are subscribed to again whenever their connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
from redis.exceptions import MovedError, RedisError, ResponseError

from resilient_io.deadlines import earlier
from resilient_io.errors import Progress
from resilient_io.health import Cause, LoopLag, State
from resilient_io.tasks import Signal, describe_task_end, log_task_death

from .attempt import AttemptFailed, Call, end_of_wait, expired_while_waiting, server_down
from .commands import Effect
from .connect import connect
from .connection import NotMultiplexable
from .driver_connection import abort, identify, is_multiplexable, query_over
from .errors import CLOSED, ConnectionFailure, RedisClosed, RedisUnavailable, refusal
from .messages import Gap
from .standby import PING as SHARED_PING
from .subscription_connection import (
    PING,
    SUBSCRIBING,
    UNSUBSCRIBING,
    Request,
    SubscriptionConnection,
)
from .turns import ConnectBackoff, ConnectTurn

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from resilient_io.health import Dependency, Reporter
    from resilient_io.retry import RetryPolicy

    from .attempt import Limits
    from .driver_connection import Query
    from .messages import MessageQueue
    from .multiplexer import Multiplexer

    Missing: TypeAlias = tuple[ConnectionFailure, float]
    """Why messages may be missed, and the loop time since when."""

_REFUSED_PAUSE = 0.25  # seconds after which a subscription is repeated that the server refused

_REVOKED_PAUSE = 1.0
"""Seconds after which a shard channel is requested again from a server that has lost its slot.

A former master accepts it as a replica, so there would be another gap when the new one is known.
"""

_SHARDED = "SSUBSCRIBE"

_PART = "subscription"  # in the health of the client

_log = logging.getLogger("resilient_io.redis")


class Subscription:
    """What one subscriber has subscribed to on one server, and the connection that carries it.

    It runs until it is ended, and refers neither to the subscriber nor to its client: so these are
    collected if the application drops them. After each loss of the connection it subscribes to the
    same channels again, and adds a `Gap` to the messages.

    Args:
        owner: The subscriptions of the client.
        messages: Takes what arrives.
        wanted: The channels, patterns and shard channels, by the command that subscribes to them.
        missing: Since when messages may be missed already, and why.
        moved: Called if the server says that another one has the slot of a shard channel, with the
            error that names it, if there is one.
        troubled: Called if the server does not answer, or does not accept the connection.
    """

    def __init__(
        self,
        owner: Subscriptions,
        messages: MessageQueue,
        wanted: Mapping[str, Iterable[bytes]],
        *,
        missing: Missing | None = None,
        moved: Callable[[Subscription, MovedError | None], None] | None = None,
        troubled: Callable[[Subscription], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.messages = messages
        self.wanted: dict[str, dict[bytes, None]] = {
            name: dict.fromkeys(wanted.get(name, ())) for name in SUBSCRIBING
        }
        self.connection: SubscriptionConnection | None = None
        """The open connection, on which everything wanted was subscribed to."""
        self.failure: ConnectionFailure | None = None
        """Why the latest attempt to connect failed, if it did."""
        self.unsupported = False
        """Whether the driver's connections have no transport, as those of a fake may."""
        self.ended = False
        self.waiting = 0  # calls that wait for the connection
        self.changed = Signal()
        """Set, and cleared at once, when anything has changed that a waiting call should know."""
        self._owner = owner
        self._moved = moved
        self._troubled = troubled
        self._silent: SubscriptionConnection | None = None
        self._attempt: asyncio.Timeout | None = None  # ends the attempt to connect
        self._receives = False  # whether the server has confirmed any channel that is still wanted
        self._unconfirmed: list[Request] = []  # of the new connection
        self._missing = missing
        self._ended_at = self.loop.time()
        self._limit_hits: int | None = None  # of all clients of the server, at the latest connect
        self._state_set: list[str] = []  # commands after which another connection differs
        self._lost: asyncio.Future[None] = self.loop.create_future()
        self._task = owner.start_task(self._run())

    # -- for the subscriber ----------------------------------------------------------------

    @property
    def health(self) -> Dependency:
        """The availability of its server."""
        return self._owner.health

    @property
    def movable(self) -> bool:
        """Whether another server may continue it, so that its messages do not end with this one."""
        return self._troubled is not None

    @property
    def active(self) -> bool:
        """Whether any channel is wanted."""
        return any(self.wanted.values())

    def runs_in(self, task: asyncio.Task[None]) -> bool:
        """Return whether this is the task that keeps the connection open."""
        return task is self._task

    def need(self) -> None:
        """Open a connection now, although nothing is wanted yet: a call waits for it."""
        self._notify()

    def subscribe(self, name: str, names: Sequence[bytes]) -> None:
        """Subscribe to channels, on the open connection and on those that follow it."""
        if self.connection is not None:
            self._send(Request(name, names), name, *names)
        self.wanted[name] |= dict.fromkeys(names)

    def unsubscribe(self, name: str, names: Sequence[bytes]) -> None:
        """Unsubscribe from channels, from all of this kind if there are no names.

        Without an open connection there is nothing to wait for: it is confirmed immediately.
        """
        wanted = self.wanted[SUBSCRIBING[UNSUBSCRIBING.index(name)]]
        names = list(names) or list(wanted)
        for each in names:
            wanted.pop(each, None)
        if self.connection is not None:
            self._send(Request(name, names), name, *names)
        else:
            self._confirm_unsubscribed(name, names)
        if not self.active:
            self._receives, self._missing = False, None
            self._owner.note_restored(self)

    def send(self, name: str, words: Sequence[Any]) -> None:
        """Send another command on the open connection. The subscriber reads the reply."""
        if name != PING:
            self._state_set.append(name)
        self._send(Request(name), *words)

    @property
    def query(self) -> Query | None:
        """A function that sends a command of the library itself and returns its reply, or None.

        With RESP2, the connection of a subscriber accepts no such command.
        """
        connection = self.connection
        if connection is None or str(connection.connection.protocol) != "3":
            return None
        return self._query

    async def _query(self, *words: Any) -> object:
        if self.connection is None:
            raise ConnectionResetError("the connection of a subscriber was lost")
        answer: asyncio.Future[object] = self.loop.create_future()
        self._send(Request(words[0], answer=answer), *words)
        reply = await answer
        if isinstance(reply, Exception):
            raise reply
        return reply

    def leave(self, failure: ConnectionFailure) -> None:
        """Leave the server of the open connection. The next one asks for the address again."""
        if self.connection is not None:
            self.connection.lose(failure)
        if self._attempt is not None and not self._attempt.expired():
            self._attempt.reschedule(self.loop.time())

    def move(self, owner: Subscriptions, failure: ConnectionFailure) -> None:
        """Continue on another server."""
        before, self._owner = self._owner, owner
        before.release(self, self._task)
        owner.adopt(self, self._task)
        self.failure = None
        if self.connection is None and self.active:
            owner.note_lost(self, failure)
        self.leave(failure)
        before.hurry()
        self._notify()

    def hand_over(
        self,
        wanted: Mapping[str, Sequence[bytes]],
        other: Subscription,
        failure: ConnectionFailure,
    ) -> None:
        """Have another subscription receive some of the channels instead of this one."""
        missing = self.take_missing(failure)
        for name, channels in wanted.items():
            for each in channels:
                self.wanted[name].pop(each, None)
                if self.connection is not None and not self.ended:
                    # One at a time, because each may be in another slot.
                    ending = UNSUBSCRIBING[SUBSCRIBING.index(name)]
                    ignored = Request(ending, [each], answer=self.loop.create_future())
                    self._send(ignored, ending, each)
        other.take_over(wanted, missing)

    def take_missing(self, failure: ConnectionFailure) -> Missing | None:
        """Return since when messages may be missed, for the successor of this subscription."""
        missing, self._missing = self._missing, None
        if missing is None and self._receives:
            connection = self.connection
            missing = (failure, connection.last_byte if connection is not None else self._ended_at)
        return missing

    def take_over(
        self,
        wanted: Mapping[str, Sequence[bytes]],
        missing: Missing | None,
    ) -> None:
        """Receive channels that another subscription has received until now."""
        if self._missing is None:
            self._missing = missing
        for name, channels in wanted.items():
            for each in channels:
                self.subscribe(name, [each])
        self._notify()

    def end(self) -> None:
        """End everything, without waiting. Idempotent."""
        if self.ended:
            return
        self.ended, self._ended_at = True, self.loop.time()
        self._task.cancel()
        self._end_requests(CLOSED)
        for connection in (self.connection, self._silent):
            if connection is not None:
                connection.close()
                self._owner.note_closing(connection)
        self._owner.forget(self)
        self._notify()

    def end_later(self) -> None:
        """End from wherever the subscriber is collected, which may be in another thread."""
        if not self.ended and not self._owner.disowned:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.loop.call_soon_threadsafe(self.end, context=Context())

    async def aclose(self) -> None:
        """End everything, and wait for the end. Cancelling returns immediately. Idempotent."""
        self.end()
        connections = [each for each in (self.connection, self._silent) if each is not None]
        await asyncio.wait([self._task, *(each.closed for each in connections)])

    # -- the connection --------------------------------------------------------------------

    async def _run(self) -> None:
        lag = LoopLag.acquire()
        try:
            await self._keep_open(lag)
        finally:
            lag.release()

    async def _keep_open(self, lag: LoopLag) -> None:
        backoff = ConnectBackoff(self._owner.rng)
        while True:
            while not (self.active or self.waiting):
                await self.changed.wait()
            await self._owner.multiplexer.failover.until_over()
            owner = self._owner
            attempt = asyncio.timeout(None)
            try:
                # Only probes contact a server that is down, also during the wait for the turn.
                async with ConnectTurn(), attempt:
                    down = owner.health.state is State.DOWN
                    connection = None if down else await self._attempt_open(owner, lag, attempt)
            except (RedisError, OSError) as error:
                if attempt.expired():
                    continue  # that server was left meanwhile
                failure = owner.target.failure(error)
                self._note_failure(failure)
                await backoff.pause(owner.improved, permanent=failure.permanent)
                continue
            except NotMultiplexable:
                self.unsupported = True
                self._notify()
                return
            if connection is None:
                while owner is self._owner and owner.health.state is State.DOWN:
                    await self.changed.wait()
                continue
            await asyncio.wait([self._use(connection)])
            lived = self.loop.time() - connection.opened
            await backoff.pause_after_loss(lived, owner.improved)

    async def _attempt_open(
        self, owner: Subscriptions, lag: LoopLag, attempt: asyncio.Timeout
    ) -> SubscriptionConnection:
        self._attempt = attempt
        try:
            return await self._open(owner, lag)
        finally:
            self._attempt = None

    async def _open(self, owner: Subscriptions, lag: LoopLag) -> SubscriptionConnection:
        policy, multiplexer = owner.policy, owner.multiplexer
        connection = await connect(
            owner.target,
            client_name=owner.target.client_name,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
        )
        check_master = owner.target.expect_master()
        opened = None
        try:
            if not is_multiplexable(connection):
                raise NotMultiplexable
            name = multiplexer.next_name()
            await identify(connection, name, timeout=policy.connect_timeout)
            query = query_over(connection, policy.connect_timeout)
            await multiplexer.session.apply(query, name)
            self._note_limit_hits(await _count_limit_hits(query))
            check_master()
            opened = SubscriptionConnection(
                connection, owner=self, lag=lag, interval=owner.health.settings.interval
            )
            return opened
        finally:
            if opened is None:
                abort(connection)

    def _use(self, connection: SubscriptionConnection) -> asyncio.Future[None]:
        """Subscribe to everything on a new connection. Return a future of its loss."""
        if self._silent is not None:
            self._silent.close()
            self._silent = None
        self.connection, self.failure = connection, None
        self._lost = self.loop.create_future()
        # One command for each channel: an ACL may forbid one of them.
        requests = [Request(name, [each]) for name in SUBSCRIBING for each in self.wanted[name]]
        self._unconfirmed = list(requests)
        if requests:
            pack: Any = hiredis.pack_command
            connection.send_all(requests, b"".join([pack((e.name, *e.names)) for e in requests]))
        self._notify()
        return self._lost

    def _send(self, request: Request, *words: object) -> None:
        assert self.connection is not None, "callers have checked it"  # noqa: S101
        self.connection.send(request, b"".join(self.connection.connection.pack_command(*words)))

    def _note_failure(self, failure: ConnectionFailure) -> None:
        self.failure = failure
        if self.active:
            self._owner.note_lost(self, failure)
        self._notify()
        if self._troubled is not None:
            self._troubled(self)

    def _notify(self) -> None:
        self.changed.set()
        self.changed.clear()

    # -- for the connection ----------------------------------------------------------------

    def message_received(self, message: list[Any], size: int) -> None:
        """Keep a message until the subscriber reads it."""
        self.messages.put_message(message, size)

    def confirmed(self, request: Request | None, reply: list[Any]) -> None:
        """Pass on the confirmation of one channel, as redis-py does, also after a reconnect."""
        if request is not None and request.answer is not None:
            return
        if request is None and reply[0] == _REVOKED and self._moved is not None:
            self._note_revoked(reply[1], self._moved)
            return
        self._report_gap()
        if request is not None and request.name in SUBSCRIBING:
            self._receives = True
            self._note_confirmed(request)
        self.messages.put(reply)

    def replied(self, request: Request, reply: Any) -> None:
        """Pass on a reply, or the refusal to subscribe."""
        if request.answer is not None:
            if not request.answer.done():
                request.answer.set_result(reply)
            return
        if isinstance(reply, Exception) and request.name in SUBSCRIBING:
            meaning = refusal(reply)
            if isinstance(reply, MovedError) and self._moved is not None:
                self.loop.call_later(_REFUSED_PAUSE, self._repeat, self.connection, request)
                self._moved(self, reply)
                return
            if meaning is not None:
                failure = ConnectionFailure(meaning.cause, str(reply))
                self._owner.note_lost(self, failure)
                self.loop.call_later(_REFUSED_PAUSE, self._repeat, self.connection, request)
                return
        self._report_gap()
        if isinstance(reply, Exception) and request.name in SUBSCRIBING:
            for each in request.names:
                self.wanted[request.name].pop(each, None)
            request.left = 0
            self._note_confirmed(request)
        self.messages.put(reply)

    def connection_lost(
        self, connection: SubscriptionConnection, failure: ConnectionFailure
    ) -> None:
        """Subscribe again on another connection."""
        if connection is not self.connection:
            return
        self.connection = None
        if self._silent is not None:
            self._silent.close()
        self._silent = connection if connection.lost_silently else None
        self._unconfirmed.clear()
        self._end_requests(failure, connection)
        if failure.cause is Cause.PROTOCOL:
            _log.error(
                "%s: a subscriber has %s; it subscribes again",
                self._owner.health.name,
                failure.detail,
                extra={"event": "subscription_garbage", "dependency": self._owner.health.name},
            )
        if self._receives and self._missing is None:
            self._missing = (failure, connection.last_byte)
            if connection.cut and self._owner.survived(connection.last_byte):
                self._blame_limit("in the middle of a message")
        if self.active:
            self._owner.note_lost(self, failure)
        if not self._lost.done():
            self._lost.set_result(None)
        self._notify()
        if connection.lost_silently and self._troubled is not None:
            self._troubled(self)

    def connection_silent(self, connection: SubscriptionConnection) -> None:
        """Ask on a shared connection whether the server answers."""
        multiplexer, ping = self._owner.multiplexer, connection.ping
        # A connection that is bound to a caller may be within MULTI.
        shared = None if multiplexer.bound else multiplexer.open_connection
        if shared is None or ping is None:
            return

        def take(answer: asyncio.Future[object]) -> None:
            if not answer.cancelled() and not isinstance(answer.result(), Exception):
                connection.note_answer_elsewhere(ping)

        shared.ask(SHARED_PING).add_done_callback(take)

    def connection_recovered(self, connection: SubscriptionConnection) -> None:
        """Report that the server answers again, on the connection that was given up."""
        connection.close()
        if connection is self._silent:
            self._silent = None
        self._owner.reports.succeeded()

    # -- internal --------------------------------------------------------------------------

    def _report_gap(self) -> None:
        """Add a gap to the messages, before anything that a new connection receives."""
        if self._missing is None:
            return
        failure, since = self._missing
        self._missing = None
        gap = Gap(failure.cause, self.loop.time() - since, failure.detail)
        self._owner.health.note(
            "subscription restored", cause=gap.cause.value, seconds=round(gap.seconds, 3)
        )
        self.messages.put(gap)

    def _note_revoked(self, channel: bytes, moved: Callable[..., None]) -> None:
        """Find the server that has the slot of a shard channel, which this one has just lost.

        If it is not known soon, this one names it, or has the slot again.
        """
        if channel in self.wanted[_SHARDED] and self.connection is not None:
            if self._missing is None:
                self._missing = (_SLOT_MOVED, self.loop.time())
            request = Request(_SHARDED, [channel])
            self._unconfirmed.append(request)
            self.loop.call_later(_REVOKED_PAUSE, self._repeat, self.connection, request)
            moved(self, None)

    def _note_limit_hits(self, hits: int | None) -> None:
        """Compare how many connections the server has closed because of their output buffer."""
        before, self._limit_hits = self._limit_hits, hits
        if self._missing is None or before is None or hits is None or hits <= before:
            return
        failure, since = self._missing
        if failure.cause is Cause.RESET and self._owner.survived(since):
            self._blame_limit("at the limit of an output buffer")

    def _blame_limit(self, why: str) -> None:
        assert self._missing is not None, "a connection was lost"  # noqa: S101
        failure, since = self._missing
        detail = f"{failure.detail} {why}: messages are read too slowly, or are {_TOO_LARGE}"
        self._missing = (replace(failure, cause=Cause.SLOW_SUBSCRIBER, detail=detail), since)

    def _note_confirmed(self, request: Request) -> None:
        if not request.left and request in self._unconfirmed:
            self._unconfirmed.remove(request)
        if not self._unconfirmed:
            self._owner.note_restored(self)

    def _repeat(self, connection: SubscriptionConnection | None, request: Request) -> None:
        """Send a command again that the server has refused for now."""
        names = [each for each in request.names if each in self.wanted[request.name]]
        if request in self._unconfirmed:
            self._unconfirmed.remove(request)
        if names and connection is not None and connection is self.connection:
            repeated = Request(request.name, names)
            self._unconfirmed.append(repeated)
            self._send(repeated, request.name, *names)

    def _end_requests(
        self, failure: ConnectionFailure, connection: SubscriptionConnection | None = None
    ) -> None:
        """End what a lost connection has not answered, and report that its state is lost."""
        connection = connection if connection is not None else self.connection
        for request in connection.unanswered if connection is not None else []:
            if request.answer is not None and not request.answer.done():
                request.answer.set_result(ConnectionResetError(failure.detail))
            elif request.name in UNSUBSCRIBING and request.names:
                self._confirm_unsubscribed(request.name, request.names[-request.left :])
        if self._state_set:
            names = ", ".join(dict.fromkeys(self._state_set))
            self._state_set = []
            error = RedisUnavailable(
                f"the connection of a subscriber was lost ({failure.detail}), and with it the "
                f"state set by {names}: start again",
                dependency=self._owner.health.name,
                operation=names,
            )
            self.messages.put(error)

    def _confirm_unsubscribed(self, name: str, names: Sequence[bytes]) -> None:
        left = sum(map(len, self.wanted.values()))
        for each in names:
            self.messages.put([name.lower().encode(), each, left])


_REVOKED = b"sunsubscribe"

_SLOT_MOVED = ConnectionFailure(Cause.OTHER, "the slot of a shard channel moved to another node")

_TOO_LARGE = "larger than client-output-buffer-limit permits"

_LIMIT_HITS = re.compile(r"client_output_buffer_limit_disconnections:(\d+)")


async def _count_limit_hits(query: Query) -> int | None:
    """Return how many connections the server has closed because their output buffer was full.

    Redis counts them from version 7.2 on. An ACL may forbid the question.
    """
    try:
        stats = await query("INFO", "stats")
    except ResponseError:
        return None
    text = stats.decode("utf-8", "replace") if isinstance(stats, bytes) else str(stats)
    found = _LIMIT_HITS.search(text)
    return None if found is None else int(found[1])


class Subscriptions:
    """The subscriptions of one client. They are a part of its health."""

    __slots__ = (
        "__weakref__",
        "_closed",
        "_closing",
        "_died",
        "_lost",
        "_subscriptions",
        "_tasks",
        "disowned",
        "health",
        "improved",
        "multiplexer",
        "policy",
        "reports",
        "rng",
        "target",
    )

    def __init__(
        self,
        *,
        multiplexer: Multiplexer,
        policy: RetryPolicy,
        rng: random.Random,
    ) -> None:
        self.multiplexer = multiplexer
        self.target = multiplexer.target
        self.health = multiplexer.health
        self.reports: Reporter = multiplexer.reports
        self.policy = policy
        self.rng = rng
        self.disowned = False
        """Whether the process was forked: the parent uses the connections."""
        self._subscriptions: list[Subscription] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._lost: list[Subscription] = []
        self._closed: list[asyncio.Future[None]] = []  # of connections that are being closed
        self.improved = Signal()  # ends the backoff of attempts to connect
        self._died: str | None = None
        self._closing = False

    def __len__(self) -> int:
        return len(self._subscriptions)

    def open(
        self, messages: MessageQueue, wanted: Mapping[str, Iterable[bytes]], **hooks: Any
    ) -> Subscription:
        """Return a new subscription, which connects when anything is wanted."""
        subscription = Subscription(self, messages, wanted, **hooks)
        self._subscriptions.append(subscription)
        return subscription

    def release(self, subscription: Subscription, task: asyncio.Task[None]) -> None:
        """Forget a subscription that continues on another server."""
        self.forget(subscription)
        task.remove_done_callback(self._task_ended)
        if task in self._tasks:
            self._tasks.remove(task)

    def adopt(self, subscription: Subscription, task: asyncio.Task[None]) -> None:
        """Take over a subscription of another server, and its task."""
        self._subscriptions.append(subscription)
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)

    def refresh(self) -> None:
        """React to a change of health: calls wait no longer, or connecting is worthwhile again."""
        if self.health.state.answering:
            self.hurry()
        for subscription in self._subscriptions:
            subscription.changed.set()
            subscription.changed.clear()

    def leave_server(self, failure: ConnectionFailure) -> None:
        """Leave the server of every open connection: another one has taken over."""
        for subscription in list(self._subscriptions):
            subscription.leave(failure)
        self.hurry()

    @property
    def queries(self) -> list[Query]:
        """A function for each open connection that sends a command and returns its reply."""
        return [query for each in self._subscriptions if (query := each.query) is not None]

    def liveness_failure(self) -> str | None:
        """Return which of the tasks ended because of a bug, or None."""
        return None if self._closing else self._died

    def disown(self) -> None:
        """Never touch the connections again: they belong to the parent process."""
        self.disowned = True
        self._close_queues()

    def close(self) -> None:
        """End every subscription, without waiting. Their readers raise. Idempotent."""
        self._closing = True
        self._close_queues()
        for subscription in list(self._subscriptions):
            subscription.end()

    async def aclose(self) -> None:
        """End every subscription, and wait for the end. Idempotent."""
        self.close()
        if ends := [*self._tasks, *self._closed]:
            await asyncio.wait(ends)

    # -- for the subscriptions -------------------------------------------------------------

    def survived(self, since: float) -> bool:
        """Return whether a shared connection is still open that was opened before `since`."""
        return any(each.opened < since for each in self.multiplexer.connections)

    def note_lost(self, subscription: Subscription, failure: ConnectionFailure) -> None:
        """Report that a subscriber receives nothing."""
        if subscription not in self._lost:
            self._lost.append(subscription)
            self.health.note("subscription lost", cause=failure.cause.value, detail=failure.detail)
        self.reports.part_lost(_PART, failure.cause, failure.detail)

    def note_restored(self, subscription: Subscription) -> None:
        """Report that a subscriber receives messages again, or wants none."""
        if subscription in self._lost:
            self._lost.remove(subscription)
            if not self._lost:
                self.reports.part_back(_PART)

    def forget(self, subscription: Subscription) -> None:
        """Forget a subscription that has ended."""
        self.note_restored(subscription)
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def note_closing(self, connection: SubscriptionConnection) -> None:
        """Wait for the end of a connection when the client is closed."""
        if not connection.closed.done():
            self._closed.append(connection.closed)
            connection.closed.add_done_callback(self._closed.remove)

    def hurry(self) -> None:
        """End the backoff of attempts to connect."""
        self.improved.set()
        self.improved.clear()

    def start_task(self, work: Any) -> asyncio.Task[None]:
        """Start the task of a subscription."""
        # In an empty context: the deadline and the trace span of the first call do not apply to a
        # task that outlives it.
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
            work, name="resilient-io redis subscription", context=Context()
        )
        self._tasks.append(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        if task.cancelled() or task.exception() is None:
            return
        log_task_death(task)
        how = describe_task_end(task)
        if how is not None:
            self._died = f"the task of a subscription ended: {how}"
        for subscription in list(self._subscriptions):
            if subscription.runs_in(task):  # its readers would wait forever
                subscription.messages.close(self.closed_error(self._died))
                subscription.end()

    def _close_queues(self) -> None:
        for subscription in self._subscriptions:
            if not subscription.movable:
                subscription.messages.close(self.closed_error())

    def closed_error(self, reason: str | None = None) -> RedisClosed:
        """Return the error of a reader whose subscriber or client was closed."""
        reason = reason or "the client was closed"
        return RedisClosed(reason, dependency=self.health.name, operation="pubsub")


class SubscriptionCall(Call):
    """A command of a subscriber, which waits for the connection and not for the reply.

    Args:
        subscription: The subscription.
        operation: The name of the command.
        send: Sends it on the open connection; None only to wait for the connection.
        misplaced: Returns whether the command belongs to another server by now.
    """

    def __init__(
        self,
        subscription: Subscription,
        operation: str,
        send: Callable[[], None] | None,
        *,
        misplaced: Callable[[], bool] = bool,
    ) -> None:
        self.operation = operation
        self._subscription = subscription
        self._send = send
        self._misplaced = misplaced

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return Effect.READ

    async def attempt(self, limits: Limits) -> object:
        """Wait for the connection, and send. Return None, or why none could be made."""
        subscription = self._subscription
        subscription.waiting += 1
        subscription.need()
        try:
            while (result := self._look(limits)) is _NOT_YET:
                health = subscription.health
                until = earlier(limits.sent, end_of_wait(health, limits.outage_wait))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(until):
                        await subscription.changed.wait()
            return result
        finally:
            subscription.waiting -= 1

    def _look(self, limits: Limits) -> object:
        """Send if there is a connection. Return the result of the attempt, if it has ended."""
        subscription = self._subscription
        if self._misplaced():
            return MISPLACED
        if subscription.unsupported:
            return NotMultiplexable()
        if subscription.connection is None or subscription.ended:
            return self._reason_to_stop(limits) or _NOT_YET
        if self._send is not None:
            self._send()
        return None

    def _reason_to_stop(self, limits: Limits) -> AttemptFailed | None:
        """Return why this waits no longer for a connection, or None."""
        subscription, health = self._subscription, self._subscription.health
        if subscription.ended:
            return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
        failure = subscription.failure
        if failure is not None and failure.permanent:
            return AttemptFailed.because(failure, Progress.NOT_SENT, final=True)
        now = subscription.loop.time()
        end = end_of_wait(health, limits.outage_wait)
        if end is not None and now >= end:
            return server_down(health)
        if limits.sent is not None and now >= limits.sent:
            why = f" ({failure.detail})" if failure is not None else ""
            return expired_while_waiting(f"a connection{why}", overloaded=False)
        return None


_NOT_YET = object()

MISPLACED = object()
"""The result of an attempt to send a command that belongs to another server by now."""
