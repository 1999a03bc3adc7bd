"""One multiplexed connection: many callers share it, and replies are matched with calls in order.

redis-py opens it. A connection only sets results: a reply, or an exception of this module.
"""

from __future__ import annotations

import asyncio
from _thread import get_ident
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import hiredis
from redis.exceptions import InvalidResponse, RedisError

from resilient_io.health import Cause
from resilient_io.link import describe_silence, read_link
from resilient_io.text import clean_text, describe_error
from resilient_io.wakeups import can_wake, deliver

from .driver_connection import take_writer
from .errors import REPLACED, ConnectionFailure
from .in_flight import CALL_COST, InFlightWrite, InFlightWrites
from .large_values import LargeValueReader, parts_of
from .response_queue import LARGE, ReplyCollector, ResponseQueue
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from resilient_io.health import LoopLag
    from resilient_io.histogram import Latencies
    from resilient_io.link import LinkState, PathMonitor
    from resilient_io.wakeups import Answer

    from .large_values import Packed


_pack: Callable[[Any], bytes] = hiredis.pack_command


class ConnectionLost(Exception):
    """The connection died after this call was passed to the transport: it was maybe applied."""

    def __init__(self, failure: ConnectionFailure, connection: MultiplexedConnection) -> None:
        super().__init__(failure.detail)
        self.failure = failure
        self.connection = connection


class Promoted(Exception):
    """The position of this call in the queue now belongs to `request`, which the caller follows.

    A plain future has no time limits. A call that waits longer than usual (its connection died
    before it was written, or answers late) keeps its position and becomes a `PendingRequest`.
    """

    def __init__(self, request: PendingRequest) -> None:
        super().__init__("the call continues as a pending request")
        self.request = request


class Undeliverable(Exception):
    """This call was never sent, and waiting longer cannot help."""

    def __init__(self, failure: ConnectionFailure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class LeftBehind(Exception):
    """This call was not sent: its connection took no more calls before it was written.

    It must not move to another connection, because an earlier copy of it may still be in flight.
    """

    def __init__(self, connection: MultiplexedConnection) -> None:
        super().__init__("the connection that carries an earlier copy takes no more calls")
        self.connection = connection


class NotMultiplexable(Exception):
    """The driver's connections have no transport that a multiplexed connection could take over."""


class _CheckClock(Exception):
    """The caller should check its time limits."""


CHECK_CLOCK = _CheckClock("check the clock")


class PendingRequest(ReplyCollector):
    """A request whose progress is known: `count` commands packed in `data`, sent as one."""

    __slots__ = (
        "connection", "data", "expires", "extra_timeout", "home", "movable", "sequence", "slot",
        "timed",
    )  # fmt: skip

    def __init__(
        self,
        data: Packed,
        *,
        count: int = 1,
        raw: frozenset[int] = frozenset(),
        large: bool = False,
        extra_timeout: float = 0.0,
        expires: float | None = None,
        movable: bool = True,
    ) -> None:
        super().__init__(count=count, raw=raw, large=large)
        self.data = data
        self.extra_timeout = extra_timeout
        self.expires = expires
        """Loop time from which on it must not be sent, whether its caller has noticed or not."""
        self.movable = movable
        """Whether another connection may send it if its own is lost before it is written."""
        self.timed = True
        """Whether its caller checks its time limits itself, and not only after `note_late`."""
        self.slot: int | None = None
        """The hash slot of its keys, if it moves to another node together with that slot."""
        self.home: ConnectionOwner | None = None
        """The multiplexer of the node to which it was moved, if it was."""
        self.connection: MultiplexedConnection | None = None
        self.sequence = 0

    @property
    def sent(self) -> bool:
        """Whether any part of it was passed to a transport."""
        return self.connection is not None and self.sequence < self.connection.flushed

    def assign(self, connection: MultiplexedConnection | None, sequence: int = 0) -> None:
        """Set the connection that carries it, and its number among the calls of the connection."""
        self.connection, self.sequence = connection, sequence

    def sendable(self) -> bool:
        """Return whether its caller still waits, and its time is not over."""
        return not self.done() and (
            self.expires is None or self.future.get_loop().time() < self.expires
        )

    def check_clock(self) -> None:
        """Wake the waiting caller so that it checks its time limits.

        The future is replaced first, so that a reply that arrives before the caller runs is kept.
        """
        if not self.future.done():
            woken, self.future = self.future, self.future.get_loop().create_future()
            woken.set_result(CHECK_CLOCK)

    def note_late(self) -> None:
        """Wake the caller if it has no timer, because it waits longer than usual."""
        if not self.timed:
            self.timed = True
            self.check_clock()


class InternalRequest(PendingRequest):
    """A request of the library itself, which belongs to its connection.

    It ends with that connection, and never moves to another one.
    """

    __slots__ = ()

    def check_clock(self) -> None:
        """Do nothing: it has no time limits, and its caller expects the reply."""


Entry: TypeAlias = asyncio.Future[object] | PendingRequest
"""What waits for a reply: the plain future of the hot path, or a request with time limits."""


HUGE = 1024 * 1024 + LARGE  # bytes of a reply above which its connection is replaced if necessary

_is_done: Any = asyncio.Future.done

_ENOUGH = 500
"""Queued calls, or a quarter of those in flight, that are written before the loop's tick ends."""


class ConnectionOwner(Protocol):
    """The owner of a multiplexed connection, which reacts to changes of the connection."""

    def connection_lost(
        self, connection: MultiplexedConnection, unsent: list[tuple[Entry, Packed]]
    ) -> None:
        """Take over the calls that were never written. The connection is closed already."""

    def connection_changed(self) -> None:
        """Choose again: the connection became full, busy with a large value, or free again."""

    def connection_blocked(self, connection: MultiplexedConnection) -> None:
        """React to a huge reply, or to a short silence, which keeps the calls behind it waiting."""

    def connection_silent(self, connection: MultiplexedConnection) -> None:
        """React to half of the response timeout without a byte while calls wait."""


class MultiplexedConnection(asyncio.Protocol):
    """The traffic of one connection, from the end of its handshake to its end."""

    # A dictionary of so many attributes takes 1.6 KB.
    # fmt: off
    __slots__ = (
        "__weakref__", "_crowded", "_data", "_driver", "_driver_protocol", "_end", "_enough",
        "_fenced", "_has_requests", "_in_flight", "_loop", "_owner", "_paused", "_queue",
        "_repeats_paid", "_responses", "_retirement", "_scheduled", "_time", "_wakes_directly",
        "_watchdog", "_writer", "bytes_received", "bytes_sent", "client_id", "clock",
        "continuing", "deadline", "delayed", "encoder", "ended", "extra_timeout", "flushed",
        "full", "limit", "load", "lost", "name", "opened", "peer", "protocol", "replies",
        "response_timeout", "retired", "socket", "transport",
    )
    # fmt: on

    _end: asyncio.Future[None] | None
    _retirement: asyncio.Future[None] | None
    _fenced: asyncio.Future[bool] | None

    def __init__(
        self,
        connection: Any,
        *,
        owner: ConnectionOwner,
        name: str,
        client_id: int | None,
        response_timeout: float,
        deadline: float | None,
        limit: int,
        latencies: Latencies,
        lag: LoopLag,
        pushes: bool = False,
        path: PathMonitor | None = None,
        direct_wakeups: bool = True,
        detachable: bool = True,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._wakes_directly = direct_wakeups and can_wake(self._loop)
        self.encoder: Any = connection.encoder
        self.protocol: object = getattr(connection, "protocol", None)
        """The version of RESP. Only RESP3 has push messages."""
        self.name = name
        self.client_id = client_id
        self.response_timeout = response_timeout
        self.deadline = deadline
        self.limit = limit
        self._owner = owner
        self._in_flight = InFlightWrites(latencies, lag)
        self._queue: list[Entry] = []
        self._data: list[Any] = []  # packed requests, in parts only while a large one is sent
        self._has_requests = False  # whether anything but plain futures may be in the queue
        self._enough = _ENOUGH
        self._responses = ResponseQueue(connection, pushes=pushes)
        self._scheduled = self._crowded = self._paused = False
        self.continuing = 0
        """The thread in which a read is just now continuing tasks: its loop certainly runs."""
        self.extra_timeout = 0.0
        """Seconds that a blocking command may be silent beyond the response timeout."""
        self.load = 0
        self.full = False
        self.delayed = False
        """Whether the server answers on another connection, but sends nothing on this one."""
        self.flushed = 0  # the number of calls that were passed to the transport so far
        self.opened = self.clock = self._loop.time()
        """The second is the loop time of the latest call or read, exact within a tick."""
        self.ended = float("inf")
        self.replies = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.lost: ConnectionLost | None = None
        self._repeats_paid: bool | None = None
        self.retired = False
        """Whether it accepts no more calls, and is closed after the last reply."""
        # Each takes 0.14 KB, and a connection that stays open needs none of them.
        self._end = self._retirement = self._fenced = None
        # redis-py 8.1 `AbstractConnection._writer` is a StreamWriter; after the handshake every
        # reply has been read, so its StreamReader holds no data.
        self.transport: asyncio.Transport = connection._writer.transport
        self.transport.set_write_buffer_limits(high=4 * 1024 * 1024)
        self._driver_protocol: Any = self.transport.get_protocol() if detachable else None
        self.socket: Any = self.transport.get_extra_info("socket")
        self.peer: Any = self.transport.get_extra_info("peername")
        self._watchdog = Watchdog(self, self._in_flight, self._responses, path)
        self.transport.set_protocol(self)
        self._driver: Any = connection if detachable else None
        self._writer = None if detachable else take_writer(connection)

    # -- for callers -----------------------------------------------------------------------

    @property
    def owner(self) -> ConnectionOwner:
        """The multiplexer or pool to which it belongs."""
        return self._owner

    @property
    def busy(self) -> bool:
        """Whether a large value is being transferred, so that small calls should go elsewhere."""
        return self._responses.busy

    @property
    def hogged(self) -> bool:
        """Whether a huge reply is being received, behind which other calls would wait long."""
        return self._responses.partial > HUGE

    @property
    def last_byte(self) -> float:
        """Loop time at which the last byte arrived."""
        return self._in_flight.last_byte

    def write_of(self, request: PendingRequest) -> InFlightWrite | None:
        """Return the write of a request that was sent, or None if it was answered."""
        return self._in_flight.find(self.flushed - request.sequence)

    @property
    def last_activity(self) -> float:
        """Loop time of the last activity: a byte arrived, or a part of a request left."""
        return self._in_flight.last_activity

    @property
    def idle(self) -> float:
        """Seconds since the last activity."""
        return self._loop.time() - self.last_activity

    @property
    def link(self) -> LinkState | None:
        """What the kernel knows about the connection now, or None if it does not tell."""
        return read_link(self.socket)

    @property
    def in_flight(self) -> int:
        """The number of calls without a reply, including those whose caller no longer waits."""
        return len(self._responses.waiting) + len(self._queue)

    @property
    def closed(self) -> asyncio.Future[None]:
        """A future that is done when its transport is closed."""
        if self._end is None:
            self._end = self._loop.create_future()
        return self._end

    @property
    def retirement(self) -> asyncio.Future[None]:
        """A future that is done when it is `retired`."""
        if self._retirement is None:
            self._retirement = self._loop.create_future()
            if self.retired:
                self._retirement.set_result(None)
        return self._retirement

    @property
    def fenced(self) -> asyncio.Future[bool]:
        """Whether the server can no longer apply anything that this connection sent."""
        if self._fenced is None:
            self._fenced = self._loop.create_future()
        return self._fenced

    def is_next(self, request: PendingRequest) -> bool:
        """Return whether the next reply belongs to this request."""
        waiting = self._responses.waiting
        return bool(waiting) and waiting[0] is request

    def send(self, entry: Entry, data: bytes) -> None:
        """Send one packed command. The reply becomes the result of `entry`.

        The command is written immediately if nothing is in flight. Otherwise the commands of this
        loop tick are written together, also after a read with several replies, because several
        callers are about to call again. Of many commands, a part is written before the tick ends,
        so that the server works while the rest is packed.
        """
        load = self.load = self.load + len(data) + CALL_COST
        if self._scheduled:
            self._queue.append(entry)
            self._data.append(data)
            if len(self._data) >= self._enough:
                self._write_queue()
        elif self._responses.waiting or self._crowded or self._queue or self._paused:
            self._queue.append(entry)
            self._data.append(data)
            self._schedule()
        else:
            self._responses.waiting.append(entry)
            self._written(1, len(data))
            self.transport.write(data)
        if load > self.limit and not self.full:
            self.full = True
            self._owner.connection_changed()

    def send_request(self, request: PendingRequest) -> None:
        """Send all commands of a request without other commands between them."""
        request.assign(self, self.flushed + len(self._queue))
        self.extra_timeout = max(self.extra_timeout, request.extra_timeout)
        if not request.special:
            self._has_requests = True
            self.send(request, bytes(request.data))
            return
        self._responses.expect(request)
        count, size, waiting = request.count, len(request.data), self._responses.waiting
        self.load += size + count * CALL_COST
        if waiting or self._scheduled or self._queue or self._paused or request.large:
            # The first entry carries the data; the others reserve positions for their replies.
            self._has_requests = True
            self._queue.extend(repeat(request, count))
            self._data.append(request.data)
            self._data.extend(repeat(b"", count - 1))
            if waiting or self._scheduled:
                self._schedule()
            else:
                self._flush()
        else:
            waiting.extend(repeat(request, count))
            self._written(count, size)
            self.transport.write(bytes(request.data))
        if request.large or self.load > self.limit:
            self.full = self.load > self.limit
            self._owner.connection_changed()

    def ask(
        self, data: bytes, *, count: int = 1, raw: frozenset[int] = frozenset()
    ) -> asyncio.Future[object]:
        """Send packed commands of the library itself. Return the future of the reply.

        For several commands, the result is the list of their replies; those at the positions in
        `raw` are not decoded. The result is a `ConnectionLost` if the connection is lost, even
        before anything was sent.
        """
        request = InternalRequest(data, count=count, raw=raw)
        if self.lost is None:
            self.send_request(request)
        else:
            request.interrupt(self.lost)
        return request.future

    async def query(self, *words: Any) -> Any:
        """Send a command of the library itself and return its reply. There is no time limit."""
        reply = await self.ask(self.pack(words))
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(reply, Exception):
            raise ConnectionResetError(str(reply))
        return reply

    def pack(self, words: Iterable[object]) -> bytes:
        """Return the packed words of a command of the library itself."""
        encode = self.encoder.encode
        return _pack(tuple(bytes(encode(word)) for word in words))

    def listen(self, pushed: Callable[[list[Any]], object]) -> None:
        """Pass each push message of the server to `pushed`, which must not send anything itself."""
        self._responses.listen(pushed)

    def retire(self) -> list[tuple[Entry, Packed]]:
        """Accept no more calls, and close after the last reply. Return the unsent calls."""
        self.retired = True
        if self._retirement is not None:
            self._retirement.set_result(None)
        unsent = self._take_queue(ConnectionLost(REPLACED, self))
        if not self._responses.waiting:
            self.close(REPLACED)
        return unsent

    def close(self, failure: ConnectionFailure) -> None:
        """Close the connection immediately and fail every call. Idempotent."""
        if self.lost is not None:
            return
        self.lost = lost = ConnectionLost(failure, self)
        self.ended = self._loop.time()
        self._watchdog.stop()
        self.transport.abort()
        unsent = self._take_queue(lost)
        self._in_flight.writes.clear()
        if not self._responses.fail_all(lost):
            # Nothing that this connection sent can still be applied, so there is nothing to fence.
            self.fenced.set_result(True)
        self._owner.connection_lost(self, unsent)

    def detach(self) -> bool:
        """Hand the transport back to redis-py if nothing is in flight; otherwise, close it.

        Return whether redis-py can use the connection again.
        """
        left = self._responses.waiting or self._queue or self.transport.get_write_buffer_size()
        if self.lost is None and left:
            self.close(ConnectionFailure(Cause.CONNECTION_LOST, "its caller no longer waits"))
        if self.lost is not None:
            return False
        self.lost = ConnectionLost(REPLACED, self)
        self._watchdog.stop()
        self.fenced.set_result(True)
        self.closed.set_result(None)
        self.transport.set_protocol(self._driver_protocol)
        return True

    def pay_for_repeats(self, spend: Callable[[], bool]) -> bool:
        """Return whether the budget covers repeating the calls that this connection lost.

        All of them pay once, together: they are repeated over a new connection, which the server
        has accepted by then.
        """
        if self._repeats_paid is None:
            self._repeats_paid = spend()
        return self._repeats_paid

    # -- writing ---------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.clock = self._time()
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._write_queue()

    def _write_queue(self) -> None:
        if self._paused or self.lost is not None:
            return
        queue, self._queue = self._queue, []
        data, self._data = self._data, []
        if self._has_requests:
            self._has_requests = False
            # The data of a request of several commands is with the first one.
            cancelled = True in [entry.done() for entry in compress(queue, data)]
        else:
            cancelled = any(map(_is_done, queue))
        if cancelled:
            queue, data = self._without_cancelled(queue, data)
        if queue:
            waiting = self._responses.waiting
            waiting.extend(queue)
            self._enough = max(_ENOUGH, len(waiting) // 4)
            if self._responses.large:
                self._written(len(queue), sum(map(len, data)))
                for part in parts_of(data):
                    self.transport.write(memoryview(part))
            else:
                blob = b"".join(data) if len(data) > 1 else data[0]
                self._written(len(queue), len(blob))
                self.transport.write(blob)

    def _without_cancelled(
        self, queue: list[Entry], data: list[Any]
    ) -> tuple[list[Entry], list[Any]]:
        """Remove the calls that were cancelled before they were written: they are never sent."""
        for entry, packed in zip(queue, data, strict=True):
            if entry.done():
                self._forget(entry, len(packed))
        kept = [not entry.done() for entry in queue]
        return list(compress(queue, kept)), list(compress(data, kept))

    def _take_queue(self, lost: ConnectionLost) -> list[tuple[Entry, Packed]]:
        """Empty the queue. Return the calls whose callers still wait; end internal requests."""
        entries = list(zip(self._queue, self._data, strict=True))
        self._queue, self._data = [], []
        for entry, _ in entries:
            if isinstance(entry, InternalRequest):
                entry.interrupt(lost)
        return [(entry, data) for entry, data in entries if not entry.done()]

    def _forget(self, entry: Entry, size: int) -> None:
        self.flushed += 1
        self.load -= size + CALL_COST
        if isinstance(entry, PendingRequest) and entry.special:
            self._responses.forget(entry, first=size > 0)

    def _written(self, count: int, size: int) -> None:
        self.flushed += count
        self.bytes_sent += size
        self.clock = self._in_flight.add(count, size, self.bytes_sent)
        self._watchdog.arm(self.clock)

    def pause_writing(self) -> None:
        """Keep calls in the queue: what is not passed to the transport is certainly not sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write the calls that were queued meanwhile."""
        self._paused = False
        if self._queue:
            self._schedule()

    # -- reading ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Match replies with calls, in order. Then continue the tasks that waited for them."""
        # A task, which closes a TLS connection for example, cannot continue another one.
        if not self._wakes_directly or asyncio.current_task(self._loop) is not None:
            self._receive(len(data), data, None)
            return
        answers: list[Answer] = []
        try:
            self._receive(len(data), data, answers)
        finally:
            if answers:
                self.continuing = get_ident()
                if len(answers) > 1:
                    self._deliver(answers)
                else:
                    deliver(self._loop, answers)
                self.continuing = 0

    def _deliver(self, answers: list[Answer]) -> None:
        """Continue several tasks. What they send is written together."""
        scheduled, self._scheduled = self._scheduled, True
        deliver(self._loop, answers)
        self._scheduled = scheduled
        if self._queue:
            self._write_queue()

    def _receive(
        self, size: int, data: bytes | None = None, answers: list[Answer] | None = None
    ) -> None:
        """Account for what was received. Without `data`, it is a part of a large value."""
        self.clock = self._in_flight.note_bytes()
        self.bytes_received += size
        responses = self._responses
        was_busy = responses.busy
        try:
            answered = responses.fill(size) if data is None else responses.feed(data, answers)
        except InvalidResponse as error:
            detail = f"received an invalid RESP reply: {clean_text(str(error))}"
            self.close(ConnectionFailure(Cause.PROTOCOL, detail, permanent=True))
            return
        self._crowded = answered > 1
        if answered:
            self.replies += answered
            self.load -= self._in_flight.answer(answered)
            if not responses.waiting:
                if not self._queue:  # a blocking command may be in it
                    self.extra_timeout = 0.0
                if self.retired:
                    self.close(REPLACED)
                    return
        else:
            if HUGE < responses.partial <= HUGE + size:
                self._owner.connection_blocked(self)
            if data is not None and responses.large_replies.room is not None:
                self._read_large_value()
        if self.full and self.load <= self.limit:
            self.full = False
            self._owner.connection_changed()
        elif responses.busy is not was_busy:
            self._owner.connection_changed()

    def _read_large_value(self) -> None:
        """Receive the rest of a large value directly into its own memory."""
        # uvloop reads as before until it is paused.
        if isinstance(self._loop, asyncio.BaseEventLoop):
            large = self._responses.large_replies
            self.transport.set_protocol(LargeValueReader(self, large, self._receive))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the remaining calls: the connection is gone."""
        why = f"the connection was lost: {describe_error(exc)}" if exc else None
        self.close(ConnectionFailure(Cause.RESET, why or "the server closed the connection"))
        self._writer = None
        if self._driver is not None:
            # redis-py 8.1 warns about connections that have a writer when they are collected.
            self._driver._reader = self._driver._writer = None
        if not self.closed.done():
            self.closed.set_result(None)

    # -- for the watchdog ------------------------------------------------------------------

    def fall_behind(self) -> None:
        """Notify the owner that nothing has arrived for a short time."""
        self._owner.connection_blocked(self)

    def catch_up(self) -> None:
        """Take reads again: the server answers on this connection."""
        self.delayed = False
        self._owner.connection_changed()

    def fall_silent(self) -> None:
        """Notify the owner that half of the timeout passed in silence."""
        self._owner.connection_silent(self)

    def describe_silence(self, seconds: float) -> ConnectionFailure:
        """Return the failure that a silence of so many seconds means, as far as is known."""
        link = self.link
        known = describe_silence([link])
        if link is not None and link.unacked and known:
            return ConnectionFailure(Cause.UNREACHABLE, known, definite=False)
        detail = f"no byte arrived within {seconds:g} s" + (f": {known}" if known else "")
        return ConnectionFailure(Cause.TIMED_OUT, detail, definite=False)

    def check_clocks(self) -> None:
        """Wake the callers that wait for replies: reads may use another connection."""
        requests = [each for each in self._responses.waiting if isinstance(each, PendingRequest)]
        for request in dict.fromkeys(requests):
            request.check_clock()
        self._responses.promote(len(self._responses.waiting), self.adopt)

    def adopt_queued(self) -> None:
        """Turn the calls that wait until the socket takes more into requests with time limits."""
        if not self._paused:
            return
        for index, (entry, data) in enumerate(zip(self._queue, self._data, strict=True)):
            if isinstance(entry, PendingRequest):
                entry.note_late()
            elif not entry.done():
                request = self._queue[index] = PendingRequest(data)
                request.assign(self, self.flushed + index)
                entry.set_result(Promoted(request))
                self._has_requests = True

    def adopt(self, future: asyncio.Future[object], from_end: int) -> PendingRequest:
        """Return the request that a call becomes which was sent with a plain future."""
        request = PendingRequest(b"")
        request.assign(self, self.flushed - from_end)
        future.set_result(Promoted(request))
        return request
