"""Builds one batch from the front of a line."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from .line import Cargo
from .parcel import Parcel, Slice

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.kafka.protocols import BatchBuilder, ProducerDriver

    from .line import Line

__all__ = ["load"]


def load(
    line: Line, instance: ProducerDriver, batch: BatchBuilder, now: float, epoch: float
) -> tuple[Cargo, int]:
    """Take records from the front of a line into a batch, until it is full or none is left.

    What has ended already (cancelled, or too late) is dropped on the way: it is never sent.

    Args:
        line: Whose records.
        instance: Whose batch.
        batch: Empty.
        now: The loop's time.
        epoch: What to add to it for the wall clock's, in seconds.

    Returns:
        The batch with its records, and the bytes of those that were dropped.
    """
    records = line.records
    cargo = Cargo(line, instance, batch, line.position, now)
    append = batch.append if line.byte_limit is None else _Limited(batch, line.byte_limit).append
    entries, stamps = cargo.entries, cargo.stamps
    before = len(records)
    size = freed = count = 0
    while records:
        entry = records[0]
        if isinstance(entry, Parcel):
            done, part, gone = _load_parcel(entry, cargo, append, epoch)
            size += part
            freed += gone
            if not done:
                break
            records.popleft()
            continue
        future, key, value, headers, stamp, _, weight, sent = entry
        if future.done():
            freed += weight
            records.popleft()
            continue
        if stamp is None:
            stamp = int((sent + epoch) * 1000.0)
        if append(timestamp=stamp, key=key, value=value, headers=headers) is None:
            break
        records.popleft()
        entries.append(entry)
        stamps.append(stamp)
        size += weight
        count += 1
    line.position += before - len(records)
    line.waiting -= size + freed
    cargo.count += count
    cargo.size = size
    return cargo, freed


def _load_parcel(
    parcel: Parcel, cargo: Cargo, append: Callable[..., object], epoch: float
) -> tuple[bool, int, int]:
    """Take records from a parcel; return whether it is used up, and the bytes taken and dropped."""
    if parcel.shipment.cancelled:
        gone = parcel.left
        parcel.drop()
        return True, 0, gone
    first = cursor = parcel.cursor
    now = int((parcel.sent + epoch) * 1000.0)
    for _, key, value, headers, stamp in islice(parcel.items, first, None):
        if (
            append(timestamp=now if stamp is None else stamp, key=key, value=value, headers=headers)
            is None
        ):
            break
        cursor += 1
    part = 0
    if cursor > first:
        part = parcel.share(cursor - first)
        parcel.cursor = cursor
        cargo.entries.append(Slice(parcel, first, cursor, part))
        cargo.count += cursor - first
    return cursor == len(parcel.items), part, 0


class _Limited:
    """A batch that is full earlier: the broker found one too large."""

    def __init__(self, batch: BatchBuilder, limit: int) -> None:
        self._batch = batch
        self._left = limit
        self._empty = True

    def append(self, **record: Any) -> object:
        """Add a record, unless it would be too much; the first one always fits."""
        size = sum(len(record[name] or b"") for name in ("key", "value"))
        if not self._empty and size > self._left:
            return None
        self._left -= size
        self._empty = False
        return self._batch.append(**record)
