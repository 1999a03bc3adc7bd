"""The Redis protocol, as much of it as a proxy and a look into a server need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import asyncio

Reply: TypeAlias = "bytes | int | list[Reply] | None"

_ARGUMENTS_KEPT: Final = 8
_BYTES_KEPT: Final = 256

# Replies: values that end with their line, those of a length, and how many elements a count means.
_SCALARS: Final = (b"+", b"-", b":", b"_", b"#", b",", b"(")
_BULKS: Final = (b"$", b"=", b"!")
_COUNTS: Final = {b"$": 1, b"=": 1, b"!": 1, b"*": 1, b"~": 1, b">": 1, b"%": 2, b"|": 2}
_EMPTY_IS_COMPLETE: Final = (b"*", b"~", b">", b"%")


class ServerError(Exception):
    """The server answered with an error; its text is the message."""


class ProtocolGarbageError(Exception):
    """What was read is not the Redis protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a client sent it.

    Attributes:
        connection: Number of the proxy's connection that it came on, counted from 1.
        arguments: Its first eight arguments, the command first, each cut at 256 bytes.
        raw: All its bytes.
    """

    connection: int
    arguments: tuple[bytes, ...]
    raw: bytes

    @property
    def name(self) -> str:
        """The command in upper case, without its arguments; empty for an empty request."""
        return self.arguments[0].decode("latin-1").upper() if self.arguments else ""

    def starts_with(self, words: tuple[bytes, ...]) -> bool:
        """Tell whether it begins with these words (upper case), as `CLIENT SETINFO` does."""
        return tuple(word.upper() for word in self.arguments[: len(words)]) == words


def encode(*arguments: str | bytes | float) -> bytes:
    """Write a request as the array of bulk strings that clients send."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Read one RESP2 reply.

    Raises:
        ServerError: The reply is an error.
        ProtocolGarbageError: It is no reply.
        asyncio.IncompleteReadError: The server closed the connection in the middle of it.
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
            raise ProtocolGarbageError(f"expected a RESP2 reply, got {line[:40]!r}")


class RequestScanner:
    """Cuts what a client sends into requests: pipelined, split anywhere, or inline.

    Nothing is lost when a client does not speak the protocol: `feed` gives what it cannot read as
    requests without arguments, so that it can be handed on.
    """

    def __init__(self, connection: int) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = 1
        self._opaque = False

    def feed(self, data: bytes) -> list[Request]:
        """Take what came, give the requests that are complete with it."""
        self._pieces.append(data)
        self._held += len(data)
        # A value of 200 MiB comes in thousands of pieces: they are joined when all are there.
        if self._held < self._needed:
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
                self._opaque = True  # the server will say what it thinks of it
                continue
            requests.append(Request(self._connection, arguments, buffer[at:end]))
            at = end
        self._pieces = [buffer[at:]] if at < len(buffer) else []
        self._held = len(buffer) - at
        return requests

    def _parse(self, buffer: bytes, start: int) -> tuple[tuple[bytes, ...], int]:
        """Give the arguments of the request at `start`, and its end."""
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
    """The request is longer than what has come of it."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class ReplyEnd(NamedTuple):
    """Where a reply ends in what was fed, and whether it is a push (RESP3), which answers none."""

    at: int
    push: bool


class ReplyScanner:
    """Finds where the replies of a server end, whatever pieces they come in; keeps no payload."""

    def __init__(self) -> None:
        self._skip = 0  # bytes of a bulk string still to come
        self._line = b""  # beginning of a line that is not complete
        self._open: list[int] = []  # elements to come, of each aggregate we are inside
        self._prefix: list[bool] = []  # whether that aggregate is an attribute, which precedes
        self._push = False
        self.lost = False
        """It is no longer known where replies end: the server sent what is no reply."""

    def feed(self, data: bytes) -> list[ReplyEnd]:
        """Take what came, give the ends of the replies in it."""
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
        """Take the line that begins a value; tell whether a whole reply ends with it."""
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
                return False  # the value that the attribute speaks of is still to come
        return True
