"""What is committed beside an offset: the topic's ID, and the records after it that are handled.

Kafka stores a text with each committed offset, by default of up to 4,096 bytes. A client that does
not know this format ignores it, and reads all records from the offset on.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX = "resilient-io"
_TOPIC, _HANDLED = "topic=", "handled="

_MAX_SIZE = 4000
"""Largest text, in bytes; the broker's default for `offset.metadata.max.bytes` is 4,096."""

_CONTINUED, _BITS = 0x80, 7  # of a variable-length integer: seven bits per byte

Ranges = tuple[tuple[int, int], ...]
"""Pairs of the first offset and the one after the last; ascending, not adjacent."""


@dataclass(frozen=True, slots=True)
class CommitMetadata:
    """The metadata of a committed offset.

    Attributes:
        topic_id: The ID of the topic; None if the broker does not know it.
        handled: The records after the committed offset that are handled already.
    """

    topic_id: str | None = None
    handled: Ranges = ()

    def encode(self, offset: int) -> str:
        """Return the text to commit with an offset. Ranges that do not fit are left out."""
        words = [_PREFIX]
        if self.topic_id is not None:
            words.append(f"{_TOPIC}{self.topic_id}")
        if self.handled:
            room = (_MAX_SIZE - len(" ".join(words)) - len(_HANDLED) - 1) // 4 * 3
            words.append(f"{_HANDLED}{_encode_ranges(self.handled, offset, room)}")
        return " ".join(words) if len(words) > 1 else ""


def decode_metadata(text: str | None, offset: int) -> CommitMetadata:
    """Return what the metadata of a committed offset says; nothing if it has another format."""
    prefix, *words = (text or "").split(" ")
    topic_id: str | None = None
    handled: Ranges = ()
    for word in words if prefix == _PREFIX else ():
        if word.startswith(_TOPIC):
            topic_id = word.removeprefix(_TOPIC)
        elif word.startswith(_HANDLED):
            handled = _decode_ranges(word.removeprefix(_HANDLED), offset)
    return CommitMetadata(topic_id, handled)


def ranges_of(offsets: Iterable[int]) -> Ranges:
    """Return the ranges of some offsets."""
    ordered = sorted(set(offsets))
    if not ordered:
        return ()
    ends = [before + 1 for before, after in pairwise(ordered) if after != before + 1]
    begins = [after for before, after in pairwise(ordered) if after != before + 1]
    return tuple(zip([ordered[0], *begins], [*ends, ordered[-1] + 1], strict=True))


def merge_ranges(first: Ranges, second: Ranges) -> Ranges:
    """Return the ranges of the offsets that are in one of both."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted((*first, *second)):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return tuple(merged)


def _encode_ranges(ranges: Ranges, offset: int, room: int) -> str:
    """Encode the distances between the ends of the ranges, in at most `room` bytes."""
    encoded = bytearray()
    at = offset
    for begin, end in ranges:
        added = _encode_number(begin - at) + _encode_number(end - begin)
        if len(encoded) + len(added) > room:
            break
        encoded += added
        at = end
    return base64.urlsafe_b64encode(encoded).decode()


def _decode_ranges(text: str, offset: int) -> Ranges:
    try:
        encoded = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return ()
    numbers = []
    value = shift = 0
    for byte in encoded:
        value |= (byte & ~_CONTINUED) << shift
        shift += _BITS
        if not byte & _CONTINUED:
            numbers.append(value)
            value = shift = 0
    found = []
    at = offset
    for distance, count in zip(numbers[::2], numbers[1::2], strict=False):
        begin, at = at + distance, at + distance + count
        found.append((begin, at))
    return tuple(found)


def _encode_number(number: int) -> bytes:
    encoded = bytearray()
    while number >= _CONTINUED:
        encoded.append(number & ~_CONTINUED & 0xFF | _CONTINUED)
        number >>= _BITS
    encoded.append(number)
    return bytes(encoded)
