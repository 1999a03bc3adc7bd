"""What a caller gives as a record: checked, serialized, measured, before anything waits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiokafka.errors import MessageSizeTooLargeError

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Headers",
    "OutgoingRecord",
    "Serializer",
    "check_serializer",
    "checked",
    "measured",
    "too_large",
]

Headers: TypeAlias = list[tuple[str, bytes | None]]
Serializer: TypeAlias = "Callable[[Any], bytes | None]"

_SERIALIZED = ("key", "value")

_PAIR = 2
_MOST_PARTITION = 2**31 - 1
_STAMPS = 2**63


class OutgoingRecord(NamedTuple):
    """A record for `send_many` that has more than a key and a value.

    Attributes:
        value: Its value, as the value serializer takes it.
        key: Its key, as the key serializer takes it.
        headers: Pairs of a name and bytes.
        partition: Its partition; None to let the key decide.
        timestamp_ms: Its timestamp in milliseconds since 1970; None for now.
    """

    value: Any = None
    key: Any = None
    headers: Iterable[tuple[str, bytes | None]] | None = None
    partition: int | None = None
    timestamp_ms: int | None = None


def checked(name: str, data: object) -> bytes | None:
    """Return a key or a value as bytes of its own, or refuse it.

    What can change (bytearray, memoryview) is copied: it may wait.

    Raises:
        TypeError: It is not bytes.
    """
    if data is None or isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    hint = f", or give the producer {name}_serializer=" if name in _SERIALIZED else ""
    raise TypeError(f"{name} is {type(data).__name__}, not bytes: encode it{hint}")


def measured(
    headers: Iterable[tuple[str, bytes | None]] | None,
    partition: int | None,
    timestamp_ms: int | None,
) -> tuple[Headers | None, int]:
    """Check what is rarely given; return the headers and their size.

    Raises:
        TypeError: A type is wrong.
        ValueError: A number is out of range.
    """
    if partition is not None:
        if isinstance(partition, bool) or not isinstance(partition, int):
            raise TypeError(f"partition={partition!r} is no int")
        if not 0 <= partition <= _MOST_PARTITION:
            raise ValueError(f"partition={partition!r} is out of range: write 0 or more")
    if timestamp_ms is not None:
        if isinstance(timestamp_ms, bool) or not isinstance(timestamp_ms, int):
            raise TypeError(
                f"timestamp_ms={timestamp_ms!r} is no int: write int(time.time() * 1000)"
            )
        if not 0 <= timestamp_ms < _STAMPS:
            raise ValueError(f"timestamp_ms={timestamp_ms!r} is out of range: write 0 or more")
    if not headers:
        return None, 0
    pairs: Headers = []
    size = 0
    for pair in headers:
        given: object = pair
        if not isinstance(given, tuple) or len(given) != _PAIR or not isinstance(given[0], str):
            raise TypeError(f'header {pair!r} is no pair: write headers=[("name", b"value")]')
        name, value = pair
        data = checked("a header's value", value)
        pairs.append((name, data))
        size += len(name.encode()) + len(data or b"") + 8
    return pairs, size


def check_serializer(name: str, serializer: object) -> None:
    """Refuse a serializer that cannot be called.

    Raises:
        ConfigurationError: It cannot, or it would have to be awaited.
    """
    if serializer is not None and not callable(serializer):
        raise ConfigurationError(
            f"{name}={serializer!r} is no function: write {name}=json_bytes or leave it out"
        )
    if inspect.iscoroutinefunction(serializer):
        raise ConfigurationError(
            f"{name}={serializer!r} is async, and would give a coroutine: write a plain function, "
            f"and await before you send"
        )


def too_large(size: int, limit: int) -> Exception:
    """Say that a record is larger than the producer takes."""
    return MessageSizeTooLargeError(
        f"the record has {size} bytes, and max_request_size={limit}: send less, or give the "
        f"producer (and the topic's max.message.bytes) more"
    )
