"""Builds one batch from the front of a line."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from aiokafka.structs import RecordMetadata

from .partition_queue import Cargo, Parcel, Slice
from .sequence import told_count, writer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..protocols import BatchBuilder, ProducerDriver
    from .errors import Verdicts
    from .partition_queue import Line
    from .records import Headers


_NO_HEADERS: Headers = []


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
    write = writer_of(batch)
    if line.byte_limit is not None:
        write = _Limited(write, line.byte_limit).write
    entries, stamps = cargo.entries, cargo.stamps
    before = len(records)
    size = freed = 0
    while records:
        entry = records[0]
        if isinstance(entry, Parcel):
            done, part, gone = _load_parcel(entry, cargo, write, epoch)
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
        if write(cargo.count, stamp, key, value, headers or _NO_HEADERS) is None:
            break
        records.popleft()
        entries.append(entry)
        stamps.append(stamp)
        size += weight
        cargo.count += 1
    line.position += before - len(records)
    line.waiting -= size + freed
    cargo.size = size
    told_count(batch, cargo.count)
    return cargo, freed


def _load_parcel(
    parcel: Parcel, cargo: Cargo, write: Callable[..., object], epoch: float
) -> tuple[bool, int, int]:
    """Take records from a parcel; return whether it is used up, and the bytes taken and dropped."""
    if parcel.shipment.cancelled:
        gone = parcel.left
        parcel.drop()
        return True, 0, gone
    first = cursor = parcel.cursor
    now = int((parcel.sent + epoch) * 1000.0)
    offset = cargo.count
    for _, key, value, headers, stamp in islice(parcel.items, first, None):
        moment = now if stamp is None else stamp
        if write(offset, moment, key, value, headers or _NO_HEADERS) is None:
            break
        offset += 1
    cursor += offset - cargo.count
    part = 0
    if cursor > first:
        part = parcel.share(cursor - first)
        parcel.cursor = cursor
        cargo.entries.append(Slice(parcel, first, cursor, part))
        cargo.count += cursor - first
    return cursor == len(parcel.items), part, 0


class _Limited:
    """A batch that is full earlier: the broker found one too large."""

    def __init__(self, write: Callable[..., object], limit: int) -> None:
        self._write = write
        self._left = limit

    def write(
        self,
        place: int,
        stamp: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
    ) -> object:
        """Add a record, unless it would be too much; the first one always fits."""
        size = len(key or b"") + len(value or b"")
        if place and size > self._left:
            return None
        self._left -= size
        return self._write(place, stamp, key, value, headers)


_UNKNOWN_TIME = -1


def confirm(cargo: Cargo, metadata: RecordMetadata | None, verdicts: Verdicts) -> None:
    """Tell the callers that a batch was written, and where.

    Args:
        cargo: The batch.
        metadata: What aiokafka says of it; None with acks=0. Then, and when the broker knew the
            batch already, its records have the offset -1.
        verdicts: Counts.
    """
    verdicts.delivered += cargo.count
    cargo.told = True
    line = cargo.line
    if metadata is None:
        metadata = RecordMetadata(line.topic, line.partition, line.tp, -1, -1, 0, None)
    topic, partition, tp, base, stamp, kind, start = metadata
    step = 1 if base >= 0 else 0
    fixed = None if stamp == _UNKNOWN_TIME else stamp  # the broker's, for all of them
    # `RecordMetadata(...)` would go through a function of Python's, for each record.
    new, made = tuple.__new__, RecordMetadata
    stamps = iter(cargo.stamps)
    offset = base
    for entry in cargo.entries:
        if not isinstance(entry, Slice):
            future = entry[0]
            own = next(stamps)
            if not future.done():
                when = own if fixed is None else fixed
                future.set_result(new(made, (topic, partition, tp, offset, when, kind, start)))
            offset += step
        else:
            entry.confirm(tp, offset)
            offset += step * entry.count


def fail(cargo: Cargo, verdicts: Verdicts, error_for: Callable[[float, str], Exception]) -> None:
    """Tell the callers that a batch failed.

    Args:
        cargo: The batch.
        verdicts: Counts.
        error_for: Makes the error of one record, from the time it was sent and the call's name.
    """
    cargo.told = True
    for entry in cargo.entries:
        if isinstance(entry, Slice):
            if not entry.told:
                error = error_for(entry.parcel.sent, "send_many")
                verdicts.lost(error, entry.count)
                entry.fail(cargo.line.tp, error)
        elif not entry[0].done():
            verdicts.settle(entry[0], error_for(entry[7], "send"))


def put_back(cargo: Cargo) -> int:
    """Put the records of a batch that certainly was not written back to the front of their line.

    Returns:
        The bytes of those that do not go back, because their time has ended.
    """
    line: Line = cargo.line
    freed = 0
    for entry in reversed(cargo.entries):
        if isinstance(entry, Slice):
            if entry.told:
                freed += entry.size
                continue
            parcel = entry.parcel
            parcel.cursor = entry.first
            parcel.left += entry.size
            if line.records and line.records[0] is parcel:
                continue
            line.records.appendleft(parcel)
        else:
            line.records.appendleft(entry)
        line.position -= 1
    line.waiting += cargo.size - freed
    cargo.told = True
    return freed
