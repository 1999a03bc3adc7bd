"""Large values among the replies: they are put together here, and not by `hiredis`.

`hiredis` copies each part of a value into a buffer that it must enlarge again and again, and copies
the whole value once more when it is complete. Most of the time of a reply of 1 MiB is spent there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEGMENT = 1400  # bytes of the shortest read in which a large value is expected to begin
_LINES = b"+-:,#(_"  # types of RESP whose replies are one line
_AGGREGATES = (b"*", b"%", b"~", b">", b"|")
_LONGEST_HEADER = 32


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

    __slots__ = ("_held", "_least", "_missing", "_parts", "in_step", "pending")

    def __init__(self, least: int) -> None:
        self._least = least
        self.in_step = False
        """Whether it is known that the next byte begins a reply, or continues what is kept here."""
        self.pending = False
        """Whether a part of a reply is kept here."""
        self._parts: list[memoryview] = []
        self._missing = 0  # bytes of the large value, with its end of line
        self._held = b""  # the beginning of a small reply

    @property
    def received(self) -> int:
        """The number of bytes that are kept here."""
        return sum(map(len, self._parts)) + len(self._held)

    def split(self, data: bytes) -> Iterator[tuple[memoryview | bytes, bool]]:
        """Yield what was received in pieces, in order, and for each whether it is a large value.

        A value is complete, and has no header and no end of line. All other bytes are for the
        parser. The beginning of a reply may be kept until the next call. Call it only `in_step`.
        """
        if self._held:
            data, self._held = self._held + data, b""
        view, start, end = memoryview(data), 0, 0
        while end < len(data):
            if not self._missing:
                after = self._end_of_reply(data, end)
                if after > 0:
                    end = after  # a complete reply for the parser
                    continue
                if not after:
                    break
                if start < end:
                    yield view[start:end], False
                end = -after
            part = view[end : end + self._missing]
            self._parts.append(part)
            self._missing -= len(part)
            start = end = end + len(part)
            if not self._missing:
                yield self._join(), True
        begun = data[end : end + 1]
        if len(data) - end <= self._least + _LONGEST_HEADER and begun in _LINES + b"$":
            self._held = data[end:]
        else:
            self.in_step, end = False, len(data)
        self.pending = bool(self._missing or self._held)
        if start < end:
            yield view[start:end], False

    def follow(self, data: bytes, *, incomplete: bool) -> None:
        """Note that the parser was given a small read, of which a part may be `incomplete`."""
        # The parser does not tell whether it is between the elements of an array.
        self.in_step = not incomplete and not any(mark in data for mark in _AGGREGATES)

    def clear(self) -> None:
        """Forget what is kept: the connection is lost."""
        self._parts, self._missing, self._held = [], 0, b""
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
        self._missing = int(header) + 2
        return -(line + 2)

    def _join(self) -> bytes:
        parts, self._parts = self._parts, []
        if len(parts[-1]) > 1:
            ending = bytes(parts[-1][-2:])
            parts[-1] = parts[-1][:-2]
            value = b"".join(parts)
        else:
            whole = b"".join(parts)
            ending, value = whole[-2:], whole[:-2]
        if ending != b"\r\n":
            raise InvalidResponse("a bulk string without its end of line")
        return value
