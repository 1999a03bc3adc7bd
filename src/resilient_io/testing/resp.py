"""The Redis protocol, as far as the proxy and `RedisServer.query` need it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from .faults import Effect

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .faults import Fault, ProxiedRequest

Reply: TypeAlias = "bytes | int | list[Reply] | None"

_ARGUMENTS_KEPT: Final = 8
_BYTES_KEPT: Final = 256

# Reply types: one line, a length and bytes, and a count with the number of elements that 1 means.
_SCALARS: Final = (b"+", b"-", b":", b"_", b"#", b",", b"(")
_BULKS: Final = (b"$", b"=", b"!")
_COUNTS: Final = {b"$": 1, b"=": 1, b"!": 1, b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}
_EMPTY_IS_COMPLETE: Final = (b"*", b"~", b">", b"%")

# After these commands the server sends messages that are not the reply to a request.
_OPEN_ENDED: Final = frozenset(
    {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"}
    | {"MONITOR", "SYNC", "PSYNC"}
)


class ServerError(Exception):
    """The server answered with an error, whose text is the message."""


class InvalidReplyError(Exception):
    """The bytes are not the Redis protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as a client sent it.

    Attributes:
        connection: Number of the connection through the proxy, counted from 1.
        arguments: The command and its next seven arguments, each cut at 256 bytes.
        raw: All bytes of the request.
    """

    connection: int
    arguments: tuple[bytes, ...]
    raw: bytes

    @property
    def name(self) -> str:
        """The command in upper case, without its arguments; empty for an empty request."""
        return self.arguments[0].decode("latin-1").upper() if self.arguments else ""

    def starts_with(self, words: tuple[bytes, ...]) -> bool:
        """Return whether the request starts with these words, such as `CLIENT SETINFO`."""
        return tuple(word.upper() for word in self.arguments[: len(words)]) == words


def encode(*arguments: str | bytes | float) -> bytes:
    """Return a request as an array of bulk strings, as clients send it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Read one RESP2 reply.

    Raises:
        ServerError: The reply is an error.
        InvalidReplyError: The bytes are not a reply.
        asyncio.IncompleteReadError: The server closed the connection within the reply.
    """
    line = (await reader.readuntil(b"\r\n"))[:-2]
    kind, rest = line[:1], line[1:]
    match kind:
        case b"+":
            return rest
        case b"-":
            raise ServerError(rest.decode())
        case b":":
            return int(rest)
        case b"$":
            return None if rest == b"-1" else (await reader.readexactly(int(rest) + 2))[:-2]
        case b"*":
            return None if rest == b"-1" else [await read_reply(reader) for _ in range(int(rest))]
        case _:
            raise InvalidReplyError(f"expected a RESP2 reply, not {line[:40]!r}")


class RequestScanner:
    """Splits what a client sends into requests: pipelined, split anywhere, or inline.

    Bytes that are not the protocol are returned as requests without arguments, so that they can
    be forwarded.
    """

    def __init__(self, connection: int) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 1
        self._opaque = False

    def feed(self, data: bytes) -> list[Request]:
        """Add received bytes, and return the requests that are now complete."""
        self._pieces.append(data)
        self._size += len(data)
        # A value of 200 MiB arrives in thousands of pieces, which are joined once.
        if self._size < self._needed:
            return []
        buffer = data if len(self._pieces) == 1 else b"".join(self._pieces)
        requests: list[Request] = []
        at = 0
        self._needed = 1
        while at < len(buffer):
            try:
                arguments, end = self._parse(buffer, at)
            except _IncompleteError as incomplete:
                self._needed = incomplete.needed
                break
            except ValueError:
                self._opaque = True  # the server will reject it
                continue
            requests.append(Request(self._connection, arguments, buffer[at:end]))
            at = end
        self._pieces = [buffer[at:]] if at < len(buffer) else []
        self._size = len(buffer) - at
        return requests

    def _parse(self, buffer: bytes, start: int) -> tuple[tuple[bytes, ...], int]:
        """Return the arguments and the end of the request at `start`."""
        if self._opaque:
            return (), len(buffer)
        find = buffer.find
        at = find(b"\n", start) + 1
        if not at:
            raise _IncompleteError(len(buffer) - start + 1)
        if buffer[start] != ord("*"):
            words = buffer[start:at].split()
            return tuple(word[:_BYTES_KEPT] for word in words[:_ARGUMENTS_KEPT]), at
        arguments: list[bytes] = []
        for _ in range(int(buffer[start + 1 : at])):
            body = find(b"\n", at) + 1
            if not body:
                raise _IncompleteError(len(buffer) - start + 1)
            length = int(buffer[at + 1 : body])
            at = body + length + 2
            if at > len(buffer):
                raise _IncompleteError(at - start)
            if len(arguments) < _ARGUMENTS_KEPT:
                arguments.append(buffer[body : body + min(length, _BYTES_KEPT)])
        return tuple(arguments), at


class _IncompleteError(Exception):
    """Bytes of the request are missing."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class ReplyEnd(NamedTuple):
    """Where a reply ends in the bytes, and whether it is a push (RESP3), not an answer."""

    at: int
    push: bool


class ReplyScanner:
    """Finds where the replies of a server end, however they are split. Keeps no payload."""

    def __init__(self) -> None:
        self._skip = 0  # remaining bytes of a bulk string
        self._line = b""  # the received part of an incomplete line
        self._open: list[int] = []  # remaining elements of each open aggregate
        self._prefix: list[bool] = []  # whether that aggregate is an attribute, before its value
        self._push = False
        self.lost = False
        """Whether the server sent invalid bytes, so that the ends of replies are unknown."""

    def feed(self, data: bytes) -> list[ReplyEnd]:
        """Add received bytes, and return the ends of replies in them."""
        ends: list[ReplyEnd] = []
        at, size = 0, len(data)
        while at < size and not self.lost:
            if self._skip:
                step = min(self._skip, size - at)
                at += step
                self._skip -= step
                complete = not self._skip and self._finish_value()
            else:
                line_end = data.find(b"\n", at) + 1
                if line_end == 0:
                    self._line += data[at:]
                    break
                line = self._line + data[at:line_end]
                self._line = b""
                at = line_end
                complete = self._take_line(line)
            if complete:
                ends.append(ReplyEnd(at, self._push))
        return ends

    def _take_line(self, line: bytes) -> bool:
        """Take the first line of a value, and return whether a whole reply ends with it."""
        kind = line[:1]
        if not self._open:
            self._push = kind == b">"
        if kind in _SCALARS:
            return self._finish_value()
        try:
            count = int(line[1:]) * _COUNTS[kind]
        except (ValueError, KeyError):
            self.lost = True
            return False
        if count < 0 or (count == 0 and kind in _EMPTY_IS_COMPLETE):
            return self._finish_value()
        if kind in _BULKS:
            self._skip = count + 2
        elif count:
            self._open.append(count)
            self._prefix.append(kind == b"|")
        return False

    def _finish_value(self) -> bool:
        while self._open:
            self._open[-1] -= 1
            if self._open[-1]:
                return False
            self._open.pop()
            if self._prefix.pop():
                return False  # the value after the attribute is still missing
        return True


class ReplyStream:
    """Forwards what a server sends, and applies faults to the replies in it.

    Args:
        deliver: Takes the bytes for the client.
        strike: Takes a fault, the complete reply that it hits (empty if there is none), and the
            reply to deliver instead.
        counting: Whether each request is answered by exactly one reply.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], None],
        strike: Callable[[Fault, bytes, bytes], None],
        *,
        counting: bool,
    ) -> None:
        self._deliver = deliver
        self._strike = strike
        self._counting = counting
        self._scanner = ReplyScanner()
        # For each request without a reply: the fault that hits its reply, if any.
        self._unanswered: deque[tuple[ProxiedRequest, Fault] | None] = deque()
        self._kept = bytearray()  # the received part of a reply that a fault hits

    def expect(self, request: ProxiedRequest, fault: Fault | None) -> None:
        """Expect the reply to a request, and apply the fault to it."""
        answered_here = fault is not None and fault.effect is Effect.ANSWER
        if request.name in _OPEN_ENDED and not answered_here:
            self._counting = False  # forward everything once the earlier requests are answered
        if self._counting:
            self._unanswered.append(None if fault is None else (request, fault))
            self._send_due_answers()
        elif fault is not None:
            self._strike(fault, b"", fault.reply_to(request))  # its own reply cannot be found

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        if self._scanner.lost or not (self._counting or self._unanswered):
            self._deliver(data)
            return
        start = plain = 0  # the bytes from `plain` to `start` are forwarded unchanged
        for end, push in self._scanner.feed(data):
            expected = None if push or not self._unanswered else self._unanswered[0]
            if not push and self._unanswered:
                self._unanswered.popleft()
            if expected is not None:
                request, fault = expected
                self._deliver(data[plain:start])
                reply = bytes(self._kept) + data[start:end]
                self._kept.clear()
                self._strike(fault, reply, fault.reply_to(request))
                plain = end
            elif self._kept:  # a push arrived instead of the reply
                self._deliver(bytes(self._kept) + data[start:end])
                self._kept.clear()
                plain = end
            if self._hits_next():
                self._deliver(data[plain:end])
                plain = end
                self._send_due_answers()
            start = end
        if self._hits_next() and not self._scanner.lost:
            self._deliver(data[plain:start])
            self._kept += data[start:]
        else:
            self._deliver(bytes(self._kept) + data[plain:])
            self._kept.clear()

    def _hits_next(self) -> bool:
        return bool(self._unanswered) and self._unanswered[0] is not None

    def _send_due_answers(self) -> None:
        """Send made-up answers whose request is the next to be answered."""
        while self._unanswered:
            expected = self._unanswered[0]
            if expected is None or expected[1].effect is not Effect.ANSWER:
                break
            self._unanswered.popleft()
            request, fault = expected
            self._strike(fault, b"", fault.reply_to(request))
