"""The Redis protocol, as much of it as a proxy and a look into a server need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import asyncio

Reply: TypeAlias = "bytes | int | list[Reply] | None"

_ARGUMENTS_KEPT: Final = 8
_BYTES_KEPT: Final = 256


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
        while at < len(buffer):
            arguments, end = self._parse(buffer, at)
            if end > len(buffer):
                break
            requests.append(Request(self._connection, arguments, buffer[at:end]))
            at = end
        else:
            self._needed = 1
        self._pieces = [buffer[at:]] if at < len(buffer) else []
        self._held = len(buffer) - at
        return requests

    def _parse(self, buffer: bytes, start: int) -> tuple[tuple[bytes, ...], int]:
        """Give the arguments of the request at `start` and its end, past the buffer if cut."""
        size = len(buffer)
        line_end = buffer.find(b"\n", start) + 1
        if self._opaque:
            return (), size
        if line_end == 0:
            return self._wait(size - start + 1), size + 1
        if buffer[start] != ord("*"):
            words = buffer[start:line_end].split()
            return tuple(word[:_BYTES_KEPT] for word in words[:_ARGUMENTS_KEPT]), line_end
        arguments: list[bytes] = []
        try:
            count = int(buffer[start + 1 : line_end])
            at = line_end
            for _ in range(count):
                line_end = buffer.find(b"\n", at) + 1
                if line_end == 0:
                    return self._wait(size - start + 1), size + 1
                length = int(buffer[at + 1 : line_end])
                at = line_end + length + 2
                if at > size:
                    return self._wait(at - start), size + 1
                if len(arguments) < _ARGUMENTS_KEPT:
                    arguments.append(buffer[line_end : line_end + min(length, _BYTES_KEPT)])
        except ValueError:
            self._opaque = True  # the server will say what it thinks of it
            return (), size
        return tuple(arguments), at

    def _wait(self, needed: int) -> tuple[bytes, ...]:
        self._needed = needed
        return ()


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
        if kind in b"+-:_#,(":
            return self._finish_value()
        try:
            count = int(line[1:])
        except ValueError:
            self.lost = True
            return False
        if kind in b"$=!":
            if count < 0:
                return self._finish_value()
            self._skip = count + 2
            return False
        if kind not in b"*~>%|":
            self.lost = True
            return False
        if count <= 0:
            return kind != b"|" and self._finish_value()
        self._open.append(2 * count if kind in b"%|" else count)
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
