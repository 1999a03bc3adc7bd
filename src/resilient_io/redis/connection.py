"""A lane: one shaken-hands connection that many callers share, its replies matched in order.

redis-py makes the connection (so TLS, ACL, unix sockets and credential providers work); then its
transport is given to `Lane`, an `asyncio.Protocol` that packs the commands of one loop tick into
one write; `Replies` matches what comes. Nothing here decides about retries: a lane only says what
it knows, by setting results. A reply is a result; so are `LaneLost` and `Handover`.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections import deque
from itertools import compress, islice, repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import hiredis
from redis.exceptions import InvalidResponse, RedisError

from resilient_io.health import Cause

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import LoopLag
    from resilient_io.histogram import Latencies

    from .errors import Failure


class Carrier(Protocol):
    """What carries a ticket: a lane, as those see it who follow a call."""

    flushed: int
    """How many calls were handed to the transport so far."""

    lost: LaneLost | None
    fenced: asyncio.Future[bool]
    repeats_paid: bool | None

    @property
    def last_sign(self) -> float:
        """Loop time of the last sign of life."""
        ...

    def serves(self, ticket: Ticket) -> bool:
        """Tell whether the reply that comes next is this ticket's."""
        ...


class LaneLost(Exception):
    """The lane died after this call had been handed to the transport: it was maybe applied."""

    def __init__(self, cause: Cause, detail: str, lane: Carrier) -> None:
        """Keep what the lane knew when it died."""
        super().__init__(detail)
        self.cause = cause
        self.detail = detail
        self.lane = lane


class Handover(Exception):
    """This call's place in the line now belongs to `ticket`; its caller goes on with that one.

    A bare future carries no time limits. When a call has to wait longer than usual (its lane died
    before it was written, or answers late) it keeps its place and gets a ticket.
    """

    def __init__(self, ticket: Ticket) -> None:
        """Hand over the ticket."""
        super().__init__("the call goes on with its ticket")
        self.ticket = ticket


class Undeliverable(Exception):
    """This call was never sent, and waiting longer cannot help."""

    def __init__(self, failure: Failure, error: BaseException | None = None) -> None:
        """Keep why: the client was closed, or dialling failed for good."""
        super().__init__(failure.detail)
        self.failure = failure
        self.error = error


class NoLanes(Exception):
    """This driver's connections have no transport that a lane could take over."""


class _Tick(Exception):
    """It is time to look at the clock."""


TICK = _Tick("look at the clock")


class Ticket:
    """One exchange whose progress is known: `count` commands packed in `data`, sent as one."""

    __slots__ = (
        "allowance",
        "count",
        "data",
        "future",
        "lane",
        "large",
        "ordinal",
        "position",
        "raw",
        "replies",
    )

    def __init__(
        self,
        data: bytes,
        *,
        count: int = 1,
        raw: frozenset[int] = frozenset(),
        large: bool = False,
        allowance: float = 0.0,
    ) -> None:
        """Make a ticket in the running loop.

        Args:
            data: The packed commands.
            count: How many commands they are, so how many replies will come.
            raw: The positions whose replies must not be decoded.
            large: Whether small calls should avoid the lane meanwhile.
            allowance: Seconds that the lane may stay silent beyond its response timeout.
        """
        self.data = data
        self.count = count
        self.raw = raw
        self.large = large
        self.allowance = allowance
        self.replies: list[object] = []
        self.position = 0
        self.lane: Carrier | None = None
        self.ordinal = 0
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    @property
    def special(self) -> bool:
        """Whether a lane has to look at each of its replies."""
        return self.large or bool(self.raw) or self.count > 1

    @property
    def sent(self) -> bool:
        """Whether anything of it was handed to a transport."""
        return self.lane is not None and self.ordinal < self.lane.flushed

    def done(self) -> bool:
        """Tell whether nobody waits for it any more."""
        return self.future.done()

    def set_result(self, reply: object) -> None:
        """Take the next reply."""
        if self.count == 1:
            self.future.set_result(reply)
            return
        self.replies.append(reply)
        if len(self.replies) == self.count:
            self.future.set_result(self.replies)

    def interrupt(self, mark: Exception) -> None:
        """End the waiting with a mark; replies that came before stay in `replies`."""
        if not self.future.done():
            self.future.set_result(mark)

    def tick(self) -> None:
        """Wake the waiting caller so that it looks at the clock.

        What comes before the caller runs must not take it for gone, nor be lost on it.
        """
        if not self.future.done():
            woken, self.future = self.future, self.future.get_loop().create_future()
            woken.set_result(TICK)


Entry: TypeAlias = asyncio.Future[object] | Ticket


NOT_ENOUGH = object()
"""What the reader returns while a reply is incomplete (False is a reply in RESP3)."""

LARGE = 64 * 1024
"""Bytes from which a request or a reply keeps small calls off its lane."""


class Replies:
    """The line of those who wait on one connection, and the parser of what comes for them."""

    __slots__ = ("_dangling_is_wrong", "_partial", "_reader", "_special", "large", "waiting")

    def __init__(self, connection: Any, *, pushes: bool) -> None:
        """Parse as `connection` would.

        Args:
            connection: redis-py's connection, whose encoder and error classes are used.
            pushes: Whether RESP3 pushes may come, so that a part of one is nothing wrong.
        """
        encoder = connection.encoder
        decoding: dict[str, str] = {}
        if encoder.decode_responses:
            decoding = {"encoding": encoder.encoding, "errors": encoder.encoding_errors}
        # redis-py 8.1 `BaseParser.parse_error` maps the prefix of an error reply to its class.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=NOT_ENOUGH,
            **decoding,
        )
        self._dangling_is_wrong = not pushes
        self._partial = 0
        self._special = 0
        self.large = 0
        self.waiting: deque[Entry] = deque()

    @property
    def busy(self) -> bool:
        """Whether a large request or reply is on its way."""
        return self.large > 0 or self._partial > LARGE

    def expect(self, ticket: Ticket) -> None:
        """Note a ticket that wants a look at each of its replies."""
        self._special += ticket.count
        self.large += ticket.large

    def forget(self, ticket: Ticket, *, first: bool) -> None:
        """Note that one command of a special ticket is not sent after all."""
        self._special -= 1
        if first:
            self.large -= ticket.large

    def feed(self, data: bytes) -> int:
        """Settle those whose replies are complete; return how many they were.

        Raises:
            InvalidResponse: What came is not RESP, or nobody had asked for it.
        """
        before = len(self.waiting)
        self._reader.feed(data)
        try:
            if self._special:
                self._read_each()
            else:
                self._read()
        except IndexError:
            raise InvalidResponse("a reply came that nobody had asked for") from None
        if not self.waiting and self._dangling_is_wrong and self._reader.has_data():
            raise InvalidResponse("half a reply came that nobody had asked for")
        answered = before - len(self.waiting)
        self._partial = 0 if answered else self._partial + len(data)
        return answered

    def _read(self) -> None:
        gets, next_entry = self._reader.gets, self.waiting.popleft
        push = hiredis.PushNotification
        reply: object
        while True:
            try:
                reply = gets()
            except UnicodeDecodeError as error:
                # hiredis 3.5 raises for this one reply and stays in step.
                reply = error
            if reply is NOT_ENOUGH:
                return
            if type(reply) is push:
                continue
            try:
                next_entry().set_result(reply)
            except asyncio.InvalidStateError:
                continue  # nobody waits for it any more

    def _read_each(self) -> None:
        """Read as `_read` does, with special tickets in the line."""
        reply: object
        while True:
            head = self.waiting[0] if self.waiting else None
            ticket = head if isinstance(head, Ticket) and head.special else None
            try:
                reply = self._reader.gets(ticket is None or ticket.position not in ticket.raw)
            except UnicodeDecodeError as error:
                reply = error
            if reply is NOT_ENOUGH:
                return
            if type(reply) is hiredis.PushNotification:
                continue
            entry = self.waiting.popleft()
            if ticket is not None:
                self._special -= 1
                ticket.position += 1
                if ticket.position == ticket.count:
                    self.large -= ticket.large
            if not entry.done():
                entry.set_result(reply)

    def hand_over(self, late: int, lane_of: Callable[[Ticket, int], None]) -> None:
        """Give tickets to the oldest `late` who have none, so that they can look at the clock.

        Args:
            late: How many, from the head of the line.
            lane_of: Told each new ticket and its distance from the end of the line.
        """
        if not any(isinstance(entry, asyncio.Future) for entry in islice(self.waiting, late)):
            return
        entries = list(self.waiting)
        for place, entry in enumerate(entries[:late]):
            if isinstance(entry, asyncio.Future) and not entry.done():
                ticket = entries[place] = Ticket(b"")
                lane_of(ticket, len(entries) - place)
                entry.set_result(Handover(ticket))
        self.waiting = deque(entries)

    def settle(self, lost: LaneLost) -> bool:
        """Tell everyone that no reply will come; return whether there was anyone."""
        waiting, self.waiting = self.waiting, deque()
        for entry in waiting:
            if isinstance(entry, Ticket):
                entry.interrupt(lost)
            elif not entry.done():
                entry.set_result(lost)
        return bool(waiting)


CALL_COST = 4096
"""Bytes that a call counts for beside its own, so that one bound covers calls and bytes."""


class Write:
    """The calls of one write: when they left, how many are unanswered, what they count for.

    `end` is the place of its last byte among all bytes that the lane wrote.
    """

    __slots__ = ("at", "cost", "end", "remaining", "stalled")

    def __init__(self, at: float, stalled: float, remaining: int, cost: int, end: int) -> None:
        self.at = at
        self.stalled = stalled
        self.remaining = remaining
        self.cost = cost
        self.end = end


class Outstanding:
    """The unanswered writes of a lane, oldest first, and the silence since.

    Time during which our own event loop was blocked is nobody's silence.
    """

    __slots__ = ("_lag", "_latencies", "_loop", "_moved", "_stalled", "last_byte", "writes")

    def __init__(self, latencies: Latencies, lag: LoopLag) -> None:
        self._loop = asyncio.get_running_loop()
        self._latencies = latencies
        self._lag = lag
        self.writes: deque[Write] = deque()
        self.last_byte = self._moved = self._loop.time()
        self._stalled = lag.stalled

    def wrote(self, count: int, size: int, end: int) -> float:
        """Note a write of `count` calls and `size` bytes up to `end`; return its time."""
        now = self._loop.time()
        self.writes.append(Write(now, self._lag.stalled, count, size + count * CALL_COST, end))
        return now

    def heard(self) -> None:
        """Note that bytes came."""
        self.last_byte = self._loop.time()
        self._stalled = self._lag.stalled

    @property
    def last_sign(self) -> float:
        """Loop time of the last sign of life: a byte came, or a part of what we wrote left."""
        return max(self.last_byte, self._moved)

    def moved(self) -> None:
        """Note that a part of what we wrote has left: that is no silence."""
        self._moved, self._stalled = self._loop.time(), self._lag.stalled

    def answered(self, count: int) -> int:
        """Take `count` replies off, oldest first; return what they counted for."""
        freed = 0
        while count:
            write = self.writes[0]
            taken = min(count, write.remaining)
            self._latencies.record(self.last_byte - write.at, taken)
            write.remaining -= taken
            count -= taken
            if not write.remaining:
                self.writes.popleft()
                freed += write.cost
        return freed

    def silence(self) -> float:
        """Seconds without a byte since the oldest unanswered write."""
        oldest = self.writes[0]
        since, stalled = oldest.at, oldest.stalled
        if self.last_sign > since:
            since, stalled = self.last_sign, self._stalled
        return self._loop.time() - since - (self._lag.stalled - stalled)

    def written_before(self, moment: float) -> int:
        """Count the unanswered calls that were written until then."""
        late = 0
        for write in self.writes:
            if write.at > moment:
                break
            late += write.remaining
        return late


SECOND_LOOK = 0.005
"""Seconds between a verdict and its execution: a reply that lies in the socket is read first."""


class Watched(Protocol):
    """What a watchdog needs of its lane."""

    response_timeout: float
    bytes_sent: int
    deadline: float | None
    allowance: float
    transport: asyncio.Transport

    def fall_silent(self) -> None:
        """Hear that half of the patience is over."""

    def close(self, cause: Cause, detail: str) -> None:
        """Die."""

    def own(self, ticket: Ticket, from_end: int) -> None:
        """Take over a ticket for a call that was sent with a bare future."""


class Watchdog:
    """One timer a lane, armed while calls are outstanding.

    It looks twice within the response timeout: a large request that is still leaving is no
    silence, and only what lies between two looks shows that it is. That holds for the oldest one
    alone: that those behind it leave (a ping of ours, say) tells nothing about the peer.
    """

    __slots__ = ("_lane", "_left", "_loop", "_outstanding", "_replies", "_timer", "_written")

    def __init__(self, lane: Watched, outstanding: Outstanding, replies: Replies) -> None:
        """Watch a lane.

        Args:
            lane: Told when half of its patience passed in silence, and closed when all of it did.
            outstanding: What it wrote and did not hear back about.
            replies: Those who wait on it.
        """
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        self._outstanding = outstanding
        self._replies = replies
        self._timer: asyncio.TimerHandle | None = None
        # At the latest look: the bytes that the lane had written, and those that had left.
        self._written = self._left = 0

    def arm(self, now: float) -> None:
        """Watch from `now` on, unless it is watched already."""
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._lane.response_timeout / 2, self._watch)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _patience(self) -> float:
        return self._lane.response_timeout + self._lane.allowance

    def _watch(self) -> None:
        self._timer, lane = None, self._lane
        if not self._replies.waiting:
            return
        written = lane.bytes_sent
        left = written - self._leaving()
        if self._left < self._outstanding.writes[0].end <= self._written and left > self._left:
            self._outstanding.moved()
        self._written, self._left = written, left
        patience, silence = self._patience, self._outstanding.silence()
        if silence >= patience:
            self._timer = self._loop.call_later(
                SECOND_LOOK, self._judge, self._outstanding.last_byte
            )
            return
        # Not later than their deadline, though the next look is half of the patience away.
        age = patience if lane.deadline is None else min(patience, lane.deadline - patience / 2)
        late = self._outstanding.written_before(self._loop.time() - age)
        self._replies.hand_over(late, lane.own)
        if silence < patience / 2:
            next_look = patience / 2 - silence
        else:
            next_look = patience - silence
            lane.fall_silent()
        self._timer = self._loop.call_later(max(next_look, SECOND_LOOK), self._watch)

    def _judge(self, last_byte: float) -> None:
        self._timer = None
        outstanding = self._outstanding
        quiet = outstanding.last_byte == last_byte and bool(self._replies.waiting)
        if quiet and outstanding.silence() >= self._patience:
            seconds = self._lane.response_timeout
            self._lane.close(Cause.TIMED_OUT, f"no byte came within {seconds:g} s")
        else:
            self._watch()

    def _leaving(self) -> int:
        """Bytes of ours that the peer has not acknowledged yet."""
        transport = self._lane.transport
        size = transport.get_write_buffer_size()
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return size
        queued: bytes = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return size + int.from_bytes(queued, sys.byteorder)


_ENOUGH = 16
"""Queued calls, or a quarter of those in flight, that are written before the loop's tick ends."""


class LaneOwner(Protocol):
    """What a lane talks to: the set of lanes that it belongs to."""

    def lane_lost(self, lane: Lane, unsent: list[tuple[Entry, bytes]]) -> None:
        """Take over the calls that were never written; the lane is closed already."""

    def lane_changed(self, lane: Lane) -> None:
        """Choose anew: the lane became full, busy with a large value, or free again."""

    def lane_fell_silent(self, lane: Lane) -> None:
        """Hear that half of the response timeout passed without a byte, with calls waiting."""


class Lane(asyncio.Protocol):
    """The traffic of one connection, from the end of its handshake to its death."""

    def __init__(
        self,
        connection: Any,
        *,
        owner: LaneOwner,
        name: str,
        client_id: int | None,
        response_timeout: float,
        deadline: float | None,
        limit: int,
        latencies: Latencies,
        lag: LoopLag,
        pushes: bool = False,
    ) -> None:
        """Take over the transport of a connection that has shaken hands.

        Args:
            connection: redis-py's connection. It is kept: its StreamWriter closes the transport.
            owner: Who hears of the lane's death and of changes in its load.
            name: The connection's unique client name on the server.
            client_id: Its CLIENT ID, None where the server forbids the question.
            response_timeout: Seconds of silence, with calls outstanding, that end the lane.
            deadline: Seconds that a call may take; near them it gets a ticket and a timer.
            limit: Bytes in flight (see `CALL_COST`) above which the lane calls itself full.
            latencies: Where the time of each answered write is recorded.
            lag: How long the event loop was blocked; that time is nobody's silence.
            pushes: Whether its caller may have asked for RESP3 pushes (CLIENT TRACKING).
        """
        self._loop = asyncio.get_running_loop()
        self.connection = connection
        self.name = name
        self.client_id = client_id
        self.response_timeout = response_timeout
        self.deadline = deadline
        self.limit = limit
        self._owner = owner
        self._outstanding = Outstanding(latencies, lag)
        self._queue: list[Entry] = []
        self._data: list[bytes] = []
        self._enough = _ENOUGH
        self._replies = Replies(connection, pushes=pushes)
        self._watchdog = Watchdog(self, self._outstanding, self._replies)
        self._scheduled = False
        self._crowded = False
        self._paused = False
        self.allowance = 0.0
        """Seconds that a blocking command may stay silent beyond the response timeout."""
        self.load = 0
        self.full = False
        self.flushed = 0
        self.opened = self._loop.time()
        self.replies = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.lost: LaneLost | None = None
        self.repeats_paid: bool | None = None
        """Whether the retry budget covers the calls that this lane lost; None until asked."""
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.retired: asyncio.Future[None] = self._loop.create_future()
        self.fenced: asyncio.Future[bool] = self._loop.create_future()
        # redis-py 8.1 `AbstractConnection._writer` is a StreamWriter; after the handshake every
        # reply has been read, so its StreamReader holds nothing that we would miss.
        self.transport: asyncio.Transport = connection._writer.transport
        self.transport.set_write_buffer_limits(high=4 * 1024 * 1024)
        self.transport.set_protocol(self)

    # -- what callers use ------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a large value is on its way, so that small calls should go elsewhere."""
        return self._replies.busy

    @property
    def last_byte(self) -> float:
        """Loop time at which the last byte came."""
        return self._outstanding.last_byte

    @property
    def last_sign(self) -> float:
        """Loop time of the last sign of life: a byte came, or a part of what we wrote left."""
        return self._outstanding.last_sign

    @property
    def in_flight(self) -> int:
        """Calls that were accepted and have no reply yet, abandoned ones included."""
        return len(self._replies.waiting) + len(self._queue)

    def serves(self, ticket: Ticket) -> bool:
        """Tell whether the reply that comes next is this ticket's."""
        waiting = self._replies.waiting
        return bool(waiting) and waiting[0] is ticket

    def send(self, entry: Entry, data: bytes) -> None:
        """Send one packed command; `entry` gets its reply as the result.

        At once when nothing is in flight, else together with the others of this loop tick; also
        when several replies have just come, for then several callers are about to call again. Of
        many, a part is written before the tick ends: so the server works while we pack the rest.
        """
        load = self.load = self.load + len(data) + CALL_COST
        if self._scheduled:
            self._queue.append(entry)
            self._data.append(data)
            if len(self._data) >= self._enough:
                self._write_queue()
        elif self._replies.waiting or self._crowded or self._queue or self._paused:
            self._queue.append(entry)
            self._data.append(data)
            self._schedule()
        else:
            self._replies.waiting.append(entry)
            self._written(1, len(data))
            self.transport.write(data)
        if load > self.limit and not self.full:
            self.full = True
            self._owner.lane_changed(self)

    def send_ticket(self, ticket: Ticket) -> None:
        """Send all commands of a ticket uninterrupted."""
        ticket.lane = self
        self.allowance = max(self.allowance, ticket.allowance)
        ticket.ordinal = self.flushed + len(self._queue)
        if not ticket.special:
            self.send(ticket, ticket.data)
            return
        self._replies.expect(ticket)
        # The data hangs on the first place; the others hold the room for their replies.
        self.load += (ticket.count - 1) * CALL_COST
        self._queue.extend(repeat(ticket, ticket.count))
        self._data.append(ticket.data)
        self._data.extend(repeat(b"", ticket.count - 1))
        self.load += len(ticket.data) + CALL_COST
        if self._replies.waiting or self._scheduled:
            self._schedule()
        else:
            self._flush()
        if ticket.large or self.load > self.limit:
            self.full = self.load > self.limit
            self._owner.lane_changed(self)

    async def ask(self, *words: Any) -> Any:
        """Ask a question of our own, beside the callers' traffic.

        Cancelling drops the reply. It sets no time limit but the lane's own.

        Raises:
            redis.exceptions.RedisError: The server answered with an error.
            OSError: The lane died.
        """
        ticket = Ticket(b"".join(self.connection.pack_command(*words)))
        self.send_ticket(ticket)
        reply = await ticket.future
        if isinstance(reply, RedisError):
            raise reply
        if isinstance(reply, Exception):
            raise ConnectionResetError(str(reply)) from reply
        return reply

    def retire(self) -> list[tuple[Entry, bytes]]:
        """Take no more calls, close when those in flight are answered; return the unsent ones."""
        self.retired.set_result(None)
        unsent = self._take_queue()
        if not self._replies.waiting:
            self.close(Cause.CLOSED, "replaced")
        return unsent

    def close(self, cause: Cause, detail: str) -> None:
        """Drop the connection at once and settle every call; doing it twice is fine."""
        if self.lost is not None:
            return
        self.lost = lost = LaneLost(cause, detail, self)
        self._watchdog.stop()
        self.transport.abort()
        unsent = self._take_queue()
        self._outstanding.writes.clear()
        if not self._replies.settle(lost):
            # Nothing of ours can still be on its way, so there is nothing to fence.
            self.fenced.set_result(True)
        self._owner.lane_lost(self, unsent)

    # -- writing ---------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._write_queue()

    def _write_queue(self) -> None:
        if self._paused or self.lost is not None:
            return
        queue, self._queue = self._queue, []
        data, self._data = self._data, []
        if True in [entry.done() for entry in queue]:
            queue, data = self._without_cancelled(queue, data)
        if queue:
            waiting = self._replies.waiting
            waiting.extend(queue)
            self._enough = max(_ENOUGH, len(waiting) // 4)
            blob = b"".join(data) if len(data) > 1 else data[0]
            self._written(len(queue), len(blob))
            self.transport.write(blob)

    def _without_cancelled(
        self, queue: list[Entry], data: list[bytes]
    ) -> tuple[list[Entry], list[bytes]]:
        """Leave out the calls that were cancelled before they were written: never sent."""
        for entry, packed in zip(queue, data, strict=True):
            if entry.done():
                self._forget(entry, len(packed))
        kept = [not entry.done() for entry in queue]
        return list(compress(queue, kept)), list(compress(data, kept))

    def _take_queue(self) -> list[tuple[Entry, bytes]]:
        """Give up the queue: what in it somebody still waits for."""
        places = zip(self._queue, self._data, strict=True)
        unsent = [place for place in places if not place[0].done()]
        self._queue, self._data = [], []
        return unsent

    def _forget(self, entry: Entry, size: int) -> None:
        self.flushed += 1
        self.load -= size + CALL_COST
        if isinstance(entry, Ticket) and entry.special:
            self._replies.forget(entry, first=size > 0)

    def _written(self, count: int, size: int) -> None:
        self.flushed += count
        self.bytes_sent += size
        self._watchdog.arm(self._outstanding.wrote(count, size, self.bytes_sent))

    def pause_writing(self) -> None:
        """Keep calls in the queue: what is not handed to the transport is certainly not sent."""
        self._paused = True

    def resume_writing(self) -> None:
        """Write what gathered meanwhile."""
        self._paused = False
        if self._queue:
            self._schedule()

    # -- reading ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Match replies with calls, in order."""
        self._outstanding.heard()
        self.bytes_received += len(data)
        was_busy = self.busy
        try:
            answered = self._replies.feed(data)
        except InvalidResponse as error:
            self.close(Cause.PROTOCOL, f"what came is no answer: {error}")
            return
        self._crowded = answered > 1
        if answered:
            self.replies += answered
            self.load -= self._outstanding.answered(answered)
            if not self._replies.waiting:
                self.allowance = 0.0
                if self.retired.done():
                    self.close(Cause.CLOSED, "replaced")
                    return
        if self.full and self.load <= self.limit:
            self.full = False
            self._owner.lane_changed(self)
        elif self.busy is not was_busy:
            self._owner.lane_changed(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle what is left: the connection is gone."""
        detail = f"the connection was lost: {exc}" if exc else "the server closed the connection"
        self.close(Cause.RESET, detail)
        # redis-py 8.1 warns of connections that still have a writer when they are collected.
        self.connection._reader = self.connection._writer = None
        if not self.closed.done():
            self.closed.set_result(None)

    # -- what its watchdog tells -----------------------------------------------------------

    def fall_silent(self) -> None:
        """Pass on that half of the patience is over."""
        self._owner.lane_fell_silent(self)

    def own(self, ticket: Ticket, from_end: int) -> None:
        """Take over a ticket for a call that was sent with a bare future."""
        ticket.lane, ticket.ordinal = self, self.flushed - from_end
