"""One connection of a subscriber: it parses messages, matches confirmations, and sends pings.

redis-py opens it. Unlike a multiplexed connection, it also receives what was not requested.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import hiredis
from redis.exceptions import InvalidResponse

from resilient_io.health import Cause
from resilient_io.link import describe_silence, read_link
from resilient_io.text import clean_text, describe_error

from .errors import CLOSED, ConnectionFailure
from .response_queue import NOT_ENOUGH
from .watchdog import SECOND_CHECK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.health import LoopLag

PING_TIMEOUT = 1.0
"""Longest wait, in seconds, for the reply to PING on an idle connection of a subscriber."""

_ASK_AFTER = 0.2  # seconds of that wait after which the owner may ask on another connection

_ANSWERED_ELSEWHERE = 0.4
"""The longest wait if the server answers on another connection meanwhile.

By then, a lost segment was sent again once, in both directions.
"""

SUBSCRIBING = ("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE")
UNSUBSCRIBING = ("UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE")
PING = "PING"

_PING = b"*2\r\n$4\r\nPING\r\n$12\r\nresilient-io\r\n"

_PARTS = 3  # of confirmations and most messages
_MESSAGES = {b"message": _PARTS, b"pmessage": 4, b"smessage": _PARTS}
"""The kinds of messages, and how many parts each has."""

_CONFIRMATIONS = {name.lower().encode(): name for name in (*SUBSCRIBING, *UNSUBSCRIBING)}
"""The kinds of confirmations, each of and the command."""

_PONG = b"pong"


class Request:
    """A command that was sent and not answered yet.

    A command that names several channels has one reply for each, or one error.
    """

    __slots__ = ("answer", "left", "name", "names")

    def __init__(
        self,
        name: str,
        names: Sequence[bytes] = (),
        *,
        answer: asyncio.Future[object] | None = None,
    ) -> None:
        self.name = name
        self.names = tuple(names)
        self.left = max(len(self.names), 1)
        self.answer = answer
        """Takes the reply if the library itself has sent the command."""


class ConnectionOwner(Protocol):
    """The owner of a subscriber's connection. Its methods must not raise."""

    def message_received(self, message: list[Any], size: int) -> None:
        """Take a message of `size` bytes."""

    def confirmed(self, request: Request | None, reply: list[Any]) -> None:
        """Take the confirmation of one channel; without a request, the server has ended it."""

    def replied(self, request: Request, reply: Any) -> None:
        """Take another reply, or an error reply."""

    def connection_lost(
        self, connection: SubscriptionConnection, failure: ConnectionFailure
    ) -> None:
        """React to the loss of the connection, which may be silent and still be open."""

    def connection_silent(self, connection: SubscriptionConnection) -> None:
        """React to a PING that is not answered at once: the server may answer elsewhere."""

    def connection_recovered(self, connection: SubscriptionConnection) -> None:
        """React to a byte from a connection that was lost because it was silent."""


class SubscriptionConnection(asyncio.Protocol):
    """The traffic of one subscriber, from the end of the handshake to its end.

    Args:
        connection: A connection of redis-py after its handshake, which this takes over.
        owner: Takes what arrives.
        lag: The measurement of the event loop's stalls, which do not count as silence.
        interval: Seconds without a byte after which a PING is sent.
    """

    def __init__(
        self, connection: Any, *, owner: ConnectionOwner, lag: LoopLag, interval: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.connection = connection
        self._owner = owner
        self._lag = lag
        self._interval = interval
        # redis-py 8.1 `BaseParser.parse_error` maps the prefix of an error reply to its class.
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=NOT_ENOUGH,
        )
        self._expected: deque[Request] = deque()
        self._pinged: Request | None = None
        self._silent_since = 0.0  # the later of the latest ping and the latest byte
        self._stalled = 0.0
        self._suspicious = False
        self._asked = False  # whether the owner was notified that the reply is late
        self._timeout = PING_TIMEOUT
        self.opened = self.last_byte = self._loop.time()
        self.lost: ConnectionFailure | None = None
        self.lost_silently = False
        """Whether it was lost because nothing arrived, so that it may still be open."""
        self.cut = False
        """Whether the server closed it in the middle of a message."""
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.transport: asyncio.Transport = connection._writer.transport
        self.peer: Any = self.transport.get_extra_info("peername")
        self._driver_protocol: Any = self.transport.get_protocol()
        self.transport.set_protocol(self)
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval, self._check)

    @property
    def ping(self) -> Request | None:
        """The PING of the library itself that is not answered yet, if there is one."""
        return self._pinged

    @property
    def unanswered(self) -> list[Request]:
        """The requests without a reply."""
        return list(self._expected)

    def send(self, request: Request, data: bytes) -> None:
        """Send a packed command."""
        self._expected.append(request)
        self.transport.write(data)

    def send_all(self, requests: Sequence[Request], data: bytes) -> None:
        """Send several packed commands in one write."""
        self._expected.extend(requests)
        self.transport.write(data)

    def note_answer_elsewhere(self, ping: Request) -> None:
        """Wait less for the reply to a PING: the server answers on another connection.

        Not if the kernel waits for an acknowledgement: then the network is slow, not the server.
        """
        link = read_link(self.transport.get_extra_info("socket"))
        if ping is self._pinged and self.lost is None and not (link and link.unacked):
            self._timeout = _ANSWERED_ELSEWHERE
            self._schedule(SECOND_CHECK)

    def lose(self, failure: ConnectionFailure, *, silently: bool = False) -> None:
        """Note that the connection is lost, and close it. Idempotent.

        One that is lost `silently` stays open: its next byte shows that the server answers again.
        """
        if self.lost is None:
            self.lost, self.lost_silently = failure, silently
            self._stop_timer()
            self._owner.connection_lost(self, failure)
        if not silently:
            self.transport.abort()

    def close(self) -> None:
        """Close the connection, without notifying the owner. Idempotent."""
        if self.lost is None:
            self.lost = CLOSED
        self._stop_timer()
        self.transport.abort()

    # -- reading ---------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Pass on what has arrived."""
        now = self.last_byte = self._silent_since = self._loop.time()
        self._stalled = self._lag.stalled_at(now)
        if self.lost is not None:
            if self.lost is not CLOSED:
                self._owner.connection_recovered(self)
            return
        reader, push = self._reader, hiredis.PushNotification
        owner, gets = self._owner, self._reader.gets
        try:
            reader.feed(data)
            while (reply := gets(False)) is not NOT_ENOUGH:
                kind = reply[0] if isinstance(reply, list) and reply else None
                if kind == b"message" and len(reply) == _PARTS:
                    content = reply[2]
                    size = len(content) if type(content) is bytes else _size_of(content)
                    owner.message_received(reply, len(reply[1]) + size)
                elif type(reply) is push:
                    self._take_push(reply, kind)
                else:
                    self._take(reply, kind)
                if self.lost is not None:
                    return
        except InvalidResponse as error:
            detail = f"received an invalid RESP reply: {clean_text(str(error))}"
            self.lose(ConnectionFailure(Cause.PROTOCOL, detail))

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self.cut = self._reader.has_data()
        if self.lost is None:
            why = f"the connection was lost: {describe_error(exc)}" if exc else None
            self.lose(ConnectionFailure(Cause.RESET, why or "the server closed the connection"))
        # redis-py 8.1 warns about connections that still have a writer when they are collected.
        self.connection._reader = self.connection._writer = None
        self._stop_timer()
        # The application may wait for the end of `pubsub.connection.disconnect()`.
        self._driver_protocol.connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)

    def _take_push(self, reply: list[Any], kind: object) -> None:
        """Take a push message. One of an unknown kind is ignored, as redis-py does."""
        if isinstance(kind, bytes) and (kind in _MESSAGES or kind in _CONFIRMATIONS):
            self._take_announced(reply, kind)

    def _take(self, reply: Any, kind: object) -> None:
        """Take a reply, or with RESP2 also a message, which is an array."""
        head = self._expected[0] if self._expected else None
        if isinstance(kind, bytes) and (kind in _MESSAGES or kind in _CONFIRMATIONS):
            self._take_announced(reply, kind)
            return
        if head is None:
            if isinstance(reply, Exception):
                detail = f"the server sent an error: {clean_text(str(reply))}"
                self.lose(ConnectionFailure(Cause.OTHER, detail))
                return
            raise InvalidResponse("a reply without a request")
        if isinstance(reply, Exception):
            # The error of a command that names several channels stands for all of its replies.
            self._expected.popleft()
        elif head.name in _COUNTED:
            raise InvalidResponse(f"not a confirmation of {head.name}")
        else:
            self._expected.popleft()
        if head is self._pinged:
            self._pinged, self._suspicious, self._asked = None, False, False
            self._timeout = PING_TIMEOUT
            if kind != _PONG and not isinstance(reply, (bytes, Exception)):
                raise InvalidResponse("not a reply to PING")
            self._schedule(self._interval)
            return
        self._owner.replied(head, reply)

    def _take_announced(self, reply: list[Any], kind: bytes) -> None:
        """Take a message or a confirmation."""
        parts = _MESSAGES.get(kind)
        if parts is not None:
            if len(reply) != parts or not isinstance(reply[-2], bytes):
                raise InvalidResponse(f"a {kind.decode()} of {len(reply)} parts")
            self._owner.message_received(reply, sum(_size_of(part) for part in reply[1:]))
            return
        if len(reply) != _PARTS or not isinstance(reply[2], int):
            raise InvalidResponse(f"an invalid confirmation of {kind.decode()}")
        head = self._expected[0] if self._expected else None
        expected = head is not None and head.name == _CONFIRMATIONS[kind]
        request = head if expected and head and (not head.names or reply[1] in head.names) else None
        if request is not None:
            request.left -= 1
            if not request.left:
                self._expected.popleft()
        self._owner.confirmed(request, reply)

    # -- silence ---------------------------------------------------------------------------

    def _schedule(self, seconds: float) -> None:
        self._stop_timer()
        if self.lost is None:
            self._timer = self._loop.call_later(max(seconds, SECOND_CHECK), self._check)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """Send a PING if the connection is idle, or end it if the reply is late.

        When the time is over, data that is already in the socket is read first.
        """
        self._timer = None
        now = self._loop.time()
        if self._pinged is None:
            idle = now - self.last_byte
            if idle < self._interval - SECOND_CHECK:
                self._schedule(self._interval - idle)
                return
            self._pinged = Request(PING)
            self._silent_since, self._stalled = now, self._lag.stalled_at(now)
            self.send(self._pinged, _PING)
            self._schedule(_ASK_AFTER)
            return
        silence = now - self._silent_since - (self._lag.stalled - self._stalled)
        if silence < self._timeout - _RESOLUTION:
            self._suspicious = False
            if not self._asked and silence >= _ASK_AFTER - _RESOLUTION:
                self._asked = True
                self._owner.connection_silent(self)
            self._schedule((self._timeout if self._asked else _ASK_AFTER) - silence)
        elif not self._suspicious:
            self._suspicious = True
            self._schedule(SECOND_CHECK)
        else:
            self._lose_silently()

    def _lose_silently(self) -> None:
        known = describe_silence([read_link(self.transport.get_extra_info("socket"))])
        detail = f"no reply to PING within {self._timeout:g} s"
        if self._timeout < PING_TIMEOUT:
            detail += ", while the server answers on another connection"
        elif known:
            detail += f": {known}"
        self.lose(ConnectionFailure(Cause.TIMED_OUT, detail, definite=False), silently=True)


_RESOLUTION = 1e-6  # seconds below which no time is left

_COUNTED = (*SUBSCRIBING, *UNSUBSCRIBING)


def _size_of(part: Any) -> int:
    """Return the size of a part of a message: the keys of an invalidation are a list."""
    if isinstance(part, bytes):
        return len(part)
    return sum(_size_of(each) for each in part) if isinstance(part, list) else 8
