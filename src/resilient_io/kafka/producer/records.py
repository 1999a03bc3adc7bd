"""The records that callers pass in: checked and measured before they are queued."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiokafka.errors import MessageSizeTooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Headers: TypeAlias = list[tuple[str, bytes | None]]
Serializer: TypeAlias = "Callable[[Any], bytes | None]"

OVERHEAD = 256
"""Bytes that a record costs besides its own: its tuple, its future, its place in a queue."""

_WITH_SERIALIZER = ("key", "value")

_PAIR = 2
_MAX_PARTITION = 2**31 - 1
_MAX_TIMESTAMP = 2**63


class OutgoingRecord(NamedTuple):
    """A record for `send_many` that has more than a key and a value.

    Attributes:
        value: Value, as the value serializer takes it.
        key: Key, as the key serializer takes it.
        headers: Pairs of a name and bytes.
        partition: Partition; None to let the key choose.
        timestamp_ms: Timestamp in milliseconds since 1970; None for now.
    """

    value: Any = None
    key: Any = None
    headers: Iterable[tuple[str, bytes | None]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None


def to_bytes(name: str, data: object) -> bytes | None:
    """Return a key or a value as bytes; mutable data is copied because the record may wait.

    Raises:
        TypeError: It is not bytes.
    """
    if data is None or isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    hint = f", or pass {name}_serializer= to the producer" if name in _WITH_SERIALIZER else ""
    raise TypeError(f"{name} must be bytes, not {type(data).__name__}; encode it{hint}")


def check_rare_fields(
    headers: Iterable[tuple[str, bytes | None]] | None,
    partition: int | None,
    timestamp_ms: int | None,
) -> tuple[Headers | None, int]:
    """Check the fields that most records do not have; return the headers and their size.

    Raises:
        TypeError: A type is wrong.
        ValueError: A number is out of range.
    """
    if partition is not None:
        if isinstance(partition, bool) or not isinstance(partition, int):
            raise TypeError(f"partition must be an int, not {partition!r}")
        if not 0 <= partition <= _MAX_PARTITION:
            raise ValueError(f"partition must be 0 or more, not {partition!r}")
    if timestamp_ms is not None:
        if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
            raise TypeError(
                f"timestamp_ms must be an int, not {timestamp_ms!r}; use int(time.time() * 1000)"
            )
        if not 0 <= timestamp_ms < _MAX_TIMESTAMP:
            raise ValueError(f"timestamp_ms must be 0 or more, not {timestamp_ms!r}")
    if not headers:
        return None, 0
    pairs: Headers = []
    size = 0
    for pair in headers:
        given: object = pair
        if not isinstance(given, tuple) or len(given) != _PAIR or not isinstance(given[0], str):
            raise TypeError(
                f"a header must be a pair of a name and bytes, not {type(pair).__name__}; use "
                f'headers=[("name", b"value")]'
            )
        name, value = pair
        data = to_bytes("a header's value", value)
        pairs.append((name, data))
        size += len(name.encode()) + len(data or b"") + 8
    return pairs, size


def check_function(name: str, function: object) -> None:
    """Check a serializer or partitioner.

    Raises:
        TypeError: It cannot be called, or would have to be awaited.
    """
    if function is None:
        return
    if not callable(function):
        raise TypeError(f"{name} must be a function, not {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{name} must be a plain function, not an async one; await before you send")


def too_large(size: int, limit: int) -> Exception:
    """Return the error of a record that is larger than the producer accepts."""
    return MessageSizeTooLargeError(
        f"the record has {size} bytes, more than max_request_size={limit}; send less, or raise "
        f"max_request_size and the topic's max.message.bytes"
    )
