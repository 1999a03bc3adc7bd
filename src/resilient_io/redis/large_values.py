"""Large values in requests and replies: none is copied in this process.

`hiredis` copies each part of a reply into a buffer that it must enlarge again and again, and copies
the whole value once more when it is complete. Here, the memory of a value is allocated when it
begins, and the kernel writes into it. A request refers to its values instead of containing them.
Each copy of 1 MiB takes as long as the system call that sends it, because its memory is new.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_SEGMENT = 1400  # bytes of the shortest read in which a large value is expected to begin
_LINES = b"+-:,#(_"  # types of RESP whose replies are one line
_AGGREGATES = (b"*", b"%", b"~", b">", b"|")
_LONGEST_HEADER = 32
_MOST_AT_ONCE = 512 * 1024  # bytes that are read while the event loop waits


def may_begin(data: bytes) -> bool:
    """Return whether it is likely enough that a large value begins in a read, and does not end.

    It costs more to look for it than to parse hundreds of small replies.
    """
    return len(data) >= _SEGMENT and not data.endswith(b"\r\n")


class LargeReplies:
    """Takes large bulk strings out of the received bytes, where no other reply contains them.

    It has to know where a reply begins. It does while no replies are expected, and follows the
    replies from there on. After an array, for example, it does not know any more.

    Args:
        least: Number of bytes from which on a value is large.
    """

    __slots__ = ("_held", "_least", "_size", "_value", "in_step", "pending", "room")

    def __init__(self, least: int) -> None:
        self._least = least
        self.in_step = False
        """Whether it is known that the next byte begins a reply, or continues what is kept here."""
        self.pending = False
        """Whether a part of a reply is kept here."""
        self.room: memoryview | None = None
        """Where the rest of the large value belongs, with its end of line, if one has begun."""
        self._value: BytesIO | None = None  # the large value, with its end of line
        self._size = 0  # of it
        self._held = b""  # the beginning of a small reply

    @property
    def received(self) -> int:
        """The number of bytes that are kept here."""
        missing = 0 if self.room is None else len(self.room)
        return self._size - missing + len(self._held)

    def split(self, data: bytes) -> Iterator[tuple[memoryview | bytes, bool]]:
        """Yield what was received in pieces, in order, and for each whether it is a large value.

        A value is complete, and has no header and no end of line. All other bytes are for the
        parser. The beginning of a reply may be kept until the next call. Call it only `in_step`.
        """
        if self._held:
            data, self._held = self._held + data, b""
        view, start, end = memoryview(data), 0, 0
        while end < len(data):
            if self.room is None:
                after = self._end_of_reply(data, end)
                if after > 0:
                    end = after  # a complete reply for the parser
                    continue
                if not after:
                    break
                if start < end:
                    yield view[start:end], False
                end = -after
            assert self.room is not None  # noqa: S101
            part = view[end : end + len(self.room)]
            self.room[: len(part)] = part
            start = end = end + len(part)
            value = self.fill(len(part))
            if value is not None:
                yield value, True
        begun = data[end : end + 1]
        if len(data) - end <= self._least + _LONGEST_HEADER and begun in _LINES + b"$":
            self._held = data[end:]
        else:
            self.in_step, end = False, len(data)
        self.pending = self.room is not None or bool(self._held)
        if start < end:
            yield view[start:end], False

    def fill(self, count: int) -> bytes | None:
        """Note that so many bytes were written into the room. Return the value if it is complete.

        Raises:
            InvalidResponse: The value does not end where it should.
        """
        room = self.room
        assert room is not None  # noqa: S101
        if count < len(room):
            self.room = room[count:]
            room.release()
            return None
        room.release()
        self.room, self.pending = None, False
        return self._take()

    def follow(self, data: bytes, *, incomplete: bool) -> None:
        """Note that the parser was given a small read, of which a part may be `incomplete`."""
        # The parser does not tell whether it is between the elements of an array.
        self.in_step = not incomplete and not any(mark in data for mark in _AGGREGATES)

    def clear(self) -> None:
        """Forget what is kept: the connection is lost."""
        self._value = self.room = None
        self._size, self._held = 0, b""
        self.in_step = self.pending = False

    def _end_of_reply(self, data: bytes, begin: int) -> int:
        """Return where the reply that begins there ends, or 0 if that is not known yet.

        At a large value that is not complete, return where it begins, negated.
        """
        kind = data[begin : begin + 1]
        if kind != b"$":
            line = data.find(b"\r\n", begin) if kind in _LINES else -1
            return line + 2 if line >= 0 else 0
        line = data.find(b"\r\n", begin, begin + _LONGEST_HEADER)
        if line < 0:
            return 0
        header = data[begin + 1 : line]
        if not header.isdigit():
            return line + 2 if header == b"-1" else 0
        end = line + 2 + int(header) + 2
        if end <= len(data):
            return end
        if int(header) < self._least:
            return 0
        self._begin(int(header) + 2)
        return -(line + 2)

    def _begin(self, size: int) -> None:
        try:
            # `BytesIO` takes the bytes over, and returns them in the end, without a copy.
            self._value = BytesIO(bytes(size))
        except (MemoryError, OverflowError):
            raise InvalidResponse(f"a bulk string of {size - 2} bytes is too long") from None
        self._size, self.room = size, self._value.getbuffer()

    def _take(self) -> bytes:
        value, size = self._value, self._size - 2
        assert value is not None  # noqa: S101
        self._value, self._size = None, 0
        value.seek(size)
        if value.read() != b"\r\n":
            raise InvalidResponse("a bulk string without its end of line")
        try:
            value.truncate(size)
        except BufferError:  # something still refers to the memory
            return value.getvalue()[:size]
        return value.getvalue()


class LargeValueReader(asyncio.BufferedProtocol):
    """Stands in for the protocol of a connection while a large value arrives.

    What was received goes directly to where it belongs. `received` is called with its size. All
    other events are those of the connection.
    """

    def __init__(
        self, connection: Any, replies: LargeReplies, received: Callable[[int], object]
    ) -> None:
        self._connection = connection
        self._replies = replies
        self._received = received
        self._buffer = memoryview(b"")

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 (asyncio's signature)
        """Return where the next bytes belong."""
        room = self._replies.room
        assert room is not None  # noqa: S101
        self._buffer = room[:_MOST_AT_ONCE]
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Note that bytes were received. After the value, the connection reads again."""
        self._buffer.release()  # asyncio still refers to it
        self._received(nbytes)
        if self._replies.room is None:
            self._connection.transport.set_protocol(self._connection)

    def pause_writing(self) -> None:
        """Pass on that the peer takes no more."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the connection may write again."""
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on that the connection is lost."""
        self._connection.connection_lost(exc)


class PackedParts:
    """A packed request in parts, which refers to its values.

    Args:
        parts: The parts, in order.
    """

    __slots__ = ("_size", "parts")

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts
        self._size = sum(map(len, parts))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __add__(self, after: bytes) -> PackedParts:
        return PackedParts([*self.parts, after])

    def __radd__(self, before: bytes) -> PackedParts:
        return PackedParts([before, *self.parts])


Packed: TypeAlias = "bytes | PackedParts"
"""A packed request. A large one may be in parts."""


def pack_in_parts(words: Iterable[bytes], *, count: int, least: int) -> Packed:
    """Return a packed command of `count` words, in parts if it is longer than `least` bytes."""
    parts: list[bytes] = []
    between = [b"*%d\r\n" % count]  # the large values
    for word in words:
        between.append(b"$%d\r\n" % len(word))
        if len(word) > least // 2:
            parts += (b"".join(between), word)
            between = [b"\r\n"]
        else:
            between += (word, b"\r\n")
    packed = PackedParts([*parts, b"".join(between)])
    return packed if len(packed) > least else bytes(packed)


def parts_of(requests: Iterable[Packed]) -> Iterator[bytes]:
    """Yield what is sent for packed requests."""
    for request in requests:
        if isinstance(request, PackedParts):
            yield from request.parts
        else:
            yield request
