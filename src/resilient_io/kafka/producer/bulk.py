"""`send_many`: takes records from a source, packs them by partition, waits for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline
from resilient_io.errors import Progress, ResilientIOError

from .accumulator import OVERHEAD
from .buffer import unknown_partition
from .partition_queue import Item, Parcel, Shipment
from .records import OutgoingRecord, checked, measured, too_large
from .reports import DeliveryFailure, DeliveryReport

if TYPE_CHECKING:
    from .engine import Engine
    from .partition_queue import Line
    from .partitioner import Topic
    from .records import Serializer


_FIRST_CHUNK = 64
_MOST_CHUNK = 1000
_CHUNK_BYTES = 96 * 1024
"""Bytes taken from an iterable before the loop gets a turn."""

_LEAST_CHUNKS = 8
"""Of a small buffer a chunk takes only a part: what finds no room in time has failed."""

_BYTES = {bytes}
_PAIRS = {tuple}


async def ship(
    engine: Engine,
    name: str,
    records: Iterable[Any] | AsyncIterable[Any],
    *,
    timeout: float | None,
    serialize_key: Serializer | None,
    serialize_value: Serializer | None,
) -> DeliveryReport:
    """Send many records; see `ResilientKafkaProducer.send_many`."""
    given: object = records
    if isinstance(given, (str, bytes)) or not isinstance(given, (Iterable, AsyncIterable)):
        raise TypeError(
            f"records= is {type(records).__name__}, no iterable of records: write "
            f'send_many(topic, [b"..."])'
        )
    engine.transactions.check()
    bound = current_deadline()
    if timeout is not None:
        ends = engine.loop.time() + timeout
        bound = ends if bound is None else min(bound, ends)
    admission = engine.accumulator.admission
    try:
        topic = await admission.topic(name, admission.begin("send_many", timeout))
    except ResilientIOError as error:
        engine.verdicts.count(error)
        raise
    packer = Packer(
        engine,
        topic,
        until=bound,
        serialize_key=serialize_key,
        serialize_value=serialize_value,
    )
    ended = False
    try:
        if isinstance(records, AsyncIterable):
            complete = await packer.take_async(records)
        else:
            complete = await packer.take(records)
        await packer.shipment.settled()
        ended = True
    finally:
        if not ended:
            packer.shipment.cancelled = True
            packer.drop()
            engine.accumulator.expiry.sweep()
    return packer.shipment.report(complete=complete)


class Packer:
    """Packs the records of one call into parcels, one for each partition and turn."""

    def __init__(
        self,
        engine: Engine,
        topic: Topic,
        *,
        until: float | None,
        serialize_key: Serializer | None,
        serialize_value: Serializer | None,
    ) -> None:
        self.shipment = Shipment()
        self._engine = engine
        self._accumulator = engine.accumulator
        self._admission = engine.accumulator.admission
        self._transaction = self._admission.transaction()
        self._topic = topic
        self._until = math.inf if until is None else until
        self._serialize_key = serialize_key
        self._serialize_value = serialize_value
        self._sticky = serialize_value is None and topic.sticky is not None
        self._plain = serialize_key is serialize_value is None
        self._open: dict[Line, tuple[list[Item], list[int]]] = {}
        self._scheduled = False
        self._held = 0  # bytes of the buffer that what is packed has already

    # --- sources

    async def take(self, records: Iterable[Any]) -> bool:
        """Take all there is, a chunk for each turn of the loop; False if that had to end early."""
        source = iter(records)
        chunk = _FIRST_CHUNK
        while taken := list(islice(source, chunk)):
            kinds = set(map(type, taken))
            if kinds == _BYTES and self._sticky:
                size = self._pack_values(taken)
            elif kinds == _PAIRS and self._plain:
                size = self._pack_pairs(taken)
            else:
                size = sum(map(self._pack, taken))
            if (error := await self._room_for(size)) is not None:
                self.drop(error)
                return False
            self._push()
            average = max(1, size // len(taken) - OVERHEAD)
            part = self._engine.settings.buffer_bytes // _LEAST_CHUNKS // (average + OVERHEAD)
            chunk = max(1, min(_CHUNK_BYTES // average, _MOST_CHUNK, part))
        return True

    async def take_async(self, records: AsyncIterable[Any]) -> bool:
        """Take records as they come; those of one tick travel together."""
        until = None if self._until == math.inf else self._until
        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                async for record in records:
                    prepared = self._prepared(record)
                    if prepared is None:
                        continue
                    size, room = prepared[2], self._engine.room
                    if size <= room.allowance and not self._refused():
                        room.allowance -= size
                    else:
                        scope.reschedule(None)  # room has a bound of its own, and a verdict
                        error = await self._room_for(size)
                        if error is not None:
                            self._add(*prepared)
                            self.drop(error)
                            return False
                        scope.reschedule(until)
                    self._add(*prepared)
                    self._held += size
                    if not self._scheduled:
                        self._scheduled = True
                        self._engine.loop.call_soon(self._push)
        except TimeoutError:
            if not scope.expired():
                raise  # the source's own
            return False
        self._push()
        return True

    def _refused(self) -> bool:
        return self._admission.closed or not self._admission.up

    async def _room_for(self, size: int) -> Exception | None:
        """Take room for what is about to be pushed; return why there is none."""
        if not size:
            return None
        call = self._admission.begin("send_many", self._engine.settings.delivery_timeout)
        if call.until is None or self._until < call.until:
            call.until = self._until
        call.transaction = self._transaction
        try:
            await self._admission.room(size, call)
        except (ResilientIOError, KafkaError) as error:
            return error
        return None

    # --- packing

    def _pack_values(self, values: list[bytes]) -> int:
        """Pack values without keys: they all go to one partition."""
        first = self.shipment.taken
        sizes = [len(value) + OVERHEAD for value in values]
        if max(sizes) - OVERHEAD > self._accumulator.max_request_size:
            return sum(self._pack(value) for value in values)
        self.shipment.taken += len(values)
        if self._topic.sticky is None or not self._topic.sticky.idle:
            self._topic.move_on()
        line = self._topic.route(None)
        items: list[Item] = [
            (place, None, value, None, None) for place, value in enumerate(values, first)
        ]
        known = self._open.get(line)
        if known is None:
            self._open[line] = (items, sizes)
        else:
            known[0].extend(items)
            known[1].extend(sizes)
        return sum(sizes)

    def _pack_pairs(self, pairs: list[tuple[Any, ...]]) -> int:
        """Pack keys with their values, where both are bytes; any other record goes its own way."""
        keys, shipment, lines = self._topic.keys, self.shipment, self._open
        most = self._accumulator.max_request_size + OVERHEAD
        total = 0
        for pair in pairs:
            if len(pair) == 2:  # noqa: PLR2004 (a pair)
                key, value = pair
                if key.__class__ is bytes and value.__class__ is bytes:
                    line = keys.get(key)
                    size = len(key) + len(value) + OVERHEAD
                    if line is not None and size <= most:
                        place = shipment.taken
                        shipment.taken = place + 1
                        known = lines.get(line)
                        if known is None:
                            known = lines[line] = ([], [])
                        known[0].append((place, key, value, None, None))
                        known[1].append(size)
                        total += size
                        continue
            total += self._pack(pair)
        return total

    def _pack(self, record: Any) -> int:
        """Pack one record; return its size, 0 if it failed."""
        prepared = self._prepared(record)
        if prepared is None:
            return 0
        self._add(*prepared)
        return prepared[2]

    def _prepared(self, record: Any) -> tuple[Line, Item, int] | None:
        """Give a record's line and size; None if it failed."""
        place = self.shipment.taken
        self.shipment.taken += 1
        given = _given(record)
        try:
            return self._prepare(place, given)
        # The boundary to the user's serializers and partitioner: it fails this record only.
        except Exception as error:  # noqa: BLE001
            self._engine.verdicts.lost(error)
            self.shipment.reject(
                DeliveryFailure(
                    position=place,
                    topic=self._topic.name,
                    partition=given.partition,
                    key=given.key,
                    value=given.value,
                    headers=None,
                    timestamp_ms=given.timestamp_ms,
                    error=error,
                    progress=Progress.NOT_SENT,
                )
            )
            return None

    def _add(self, line: Line, item: Item, size: int) -> None:
        known = self._open.get(line)
        if known is None:
            known = self._open[line] = ([], [])
        known[0].append(item)
        known[1].append(size)

    def _prepare(self, place: int, given: OutgoingRecord) -> tuple[Line, Item, int]:
        value, key, headers, partition, stamp = given
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(key)
        value, key = checked("value", value), checked("key", key)
        if value is None and key is None:
            raise ValueError("a record needs a value or a key")
        pairs, size = measured(headers, partition, stamp)
        size += len(value or b"") + len(key or b"")
        if size > self._accumulator.max_request_size:
            raise too_large(size, self._accumulator.max_request_size)
        topic = self._topic
        if partition is not None:
            chosen = topic.lines.get(partition)
            if chosen is None:
                raise unknown_partition(topic, partition)
            line = chosen
        else:
            line = topic.keys.get(key) or topic.route(key)
        return line, (place, key, value, pairs, stamp), size + OVERHEAD

    def _push(self) -> None:
        """Put what was packed, and has its room, into the lines."""
        self._scheduled = False
        self._held = 0
        packed, self._open = self._open, {}
        now = self._engine.loop.time()
        until = min(now + self._engine.settings.delivery_timeout, self._until)
        for line, (items, sizes) in packed.items():
            size = sum(sizes)
            self._accumulator.expect(until)
            line.records.append(Parcel(self.shipment, items, size, now, until))
            line.waiting += size
            self._accumulator.notice(line)

    def drop(self, error: Exception | None = None) -> None:
        """Fail what was packed and not pushed."""
        self._engine.room.release(self._held)
        self._held = 0
        packed, self._open = self._open, {}
        for line, (items, _) in packed.items():
            if error is not None:
                self._engine.verdicts.lost(error, len(items))
                self.shipment.fail(line.tp, items, error)


def _given(record: Any) -> OutgoingRecord:
    if isinstance(record, OutgoingRecord):
        return record
    if isinstance(record, tuple) and len(record) == 2:  # noqa: PLR2004 (a pair)
        return OutgoingRecord(key=record[0], value=record[1])
    return OutgoingRecord(value=record)
