"""A lane: one shaken-hands connection that many callers share, its replies matched in order.

redis-py makes the connection (so TLS, ACL, unix sockets and credential providers work); then its
transport is given to `Lane`, an `asyncio.Protocol` that packs the commands of one loop tick into
one write; `Replies` matches what comes. Nothing here decides about retries: a lane only says what
it knows, by setting results. A reply is a result; so are `LaneLost` and `Handover`.
"""

from __future__ import annotations

import asyncio
from itertools import compress, repeat
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import InvalidResponse, RedisError

from resilient_io.health import Cause

from .outstanding import CALL_COST, Outstanding
from .replies import Replies
from .ticket import LaneLost, Ticket
from .watchdog import Watchdog

if TYPE_CHECKING:
    from resilient_io.health import LoopLag

    from .stats import Latencies
    from .ticket import Entry

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
