"""`send_many`: takes records from a source, packs them into chunks, and waits for all of them."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline, earlier
from resilient_io.errors import Progress, ResilientIOError

from .partition_queue import BulkChunk, BulkRecord, BulkSend
from .records import (
    OVERHEAD,
    DeliveryFailure,
    DeliveryReport,
    OutgoingRecord,
    check_rare_fields,
    to_bytes,
    too_large,
)

if TYPE_CHECKING:
    from .accumulator import Accumulator
    from .metadata import TopicPartitions
    from .partition_queue import PartitionQueue
    from .records import Serializer

    OpenChunks = defaultdict[PartitionQueue, tuple[list[BulkRecord], list[int]]]


_FIRST_CHUNK = 64
_MAX_CHUNK = 1000
_CHUNK_BYTES = 96 * 1024  # bytes taken from an iterable in one iteration of the event loop
# A chunk takes at most an eighth of the buffer, because one that finds no room in time fails.
_MIN_CHUNKS = 8

_BYTES = {bytes}
_PAIRS = {tuple}


async def send_many(
    accumulator: Accumulator,
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
            f"records must be an iterable of records, not {type(records).__name__}; use "
            f'send_many(topic, [b"..."])'
        )
    accumulator.transaction.check()
    until = None if timeout is None else accumulator.loop.time() + timeout
    bound = earlier(until, current_deadline())
    try:
        topic = await accumulator.find_topic(name, accumulator.begin_call("send_many", timeout))
    except ResilientIOError as error:
        accumulator.errors.count(error)
        raise
    packer = ChunkPacker(
        accumulator,
        topic,
        until=bound,
        serialize_key=serialize_key,
        serialize_value=serialize_value,
    )
    finished = False
    try:
        if isinstance(records, AsyncIterable):
            complete = await packer.take_async(records)
        else:
            complete = await packer.take(records)
        await packer.bulk.wait_settled()
        finished = True
    finally:
        if not finished:
            packer.bulk.cancelled = True
            packer.drop()
            accumulator.expiry.check_now()
    return packer.bulk.report(complete=complete)


class ChunkPacker:
    """Packs the records of one call into chunks, one for each partition and loop iteration."""

    def __init__(
        self,
        accumulator: Accumulator,
        topic: TopicPartitions,
        *,
        until: float | None,
        serialize_key: Serializer | None,
        serialize_value: Serializer | None,
    ) -> None:
        self.bulk = BulkSend()
        self._accumulator = accumulator
        self._buffer = accumulator.buffer
        self._delivery_timeout = accumulator.settings.delivery_timeout
        self._transaction = accumulator.transaction.current
        self._topic = topic
        self._until = math.inf if until is None else until
        self._serialize_key = serialize_key
        self._serialize_value = serialize_value
        self._sticky = serialize_value is None and topic.sticky is not None
        self._plain = serialize_key is serialize_value is None
        self._open: OpenChunks = defaultdict(lambda: ([], []))
        self._scheduled = False
        self._reserved = 0  # bytes of buffer memory that the open chunks already have

    # --- sources

    async def take(self, records: Iterable[Any]) -> bool:
        """Take all records, in chunks; return False if that had to end early."""
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
            if (error := await self._reserve(size)) is not None:
                self.drop(error)
                return False
            self._enqueue()
            average = max(1, size // len(taken) - OVERHEAD)
            part = self._buffer.limit // _MIN_CHUNKS // (average + OVERHEAD)
            chunk = max(1, min(_CHUNK_BYTES // average, _MAX_CHUNK, part))
        return True

    async def take_async(self, records: AsyncIterable[Any]) -> bool:
        """Take records as they come; those of one loop iteration are sent together."""
        until = None if self._until == math.inf else self._until
        buffer, accumulator = self._buffer, self._accumulator
        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                async for record in records:
                    prepared = self._prepare(record)
                    if prepared is None:
                        continue
                    size = prepared[2]
                    if (
                        size <= buffer.allowance
                        and not accumulator.closed
                        and accumulator.available
                    ):
                        buffer.allowance -= size
                    else:
                        scope.reschedule(None)  # reserving has its own time limit and error
                        error = await self._reserve(size)
                        if error is not None:
                            self._add(*prepared)
                            self.drop(error)
                            return False
                        scope.reschedule(until)
                    self._add(*prepared)
                    self._reserved += size
                    if not self._scheduled:
                        self._scheduled = True
                        accumulator.loop.call_soon(self._enqueue)
        except TimeoutError:
            if not scope.expired():
                raise  # raised by the source
            return False
        self._enqueue()
        return True

    async def _reserve(self, size: int) -> Exception | None:
        """Reserve buffer memory for what is about to be enqueued; return why there is none."""
        if not size:
            return None
        call = self._accumulator.begin_call("send_many", self._delivery_timeout)
        call.until = earlier(call.until, self._until)
        call.transaction = self._transaction
        try:
            await self._accumulator.reserve(size, call)
        except (ResilientIOError, KafkaError) as error:
            return error
        return None

    # --- packing

    def _pack_values(self, values: list[bytes]) -> int:
        """Pack values without keys: they all go to one partition."""
        first = self.bulk.taken
        sizes = [len(value) + OVERHEAD for value in values]
        if max(sizes) - OVERHEAD > self._accumulator.max_request_size:
            return sum(self._pack(value) for value in values)
        self.bulk.taken += len(values)
        if self._topic.sticky is None or not self._topic.sticky.idle:
            self._topic.switch_sticky()
        queue = self._topic.choose(None)
        packed: list[BulkRecord] = [
            (place, None, value, None, None) for place, value in enumerate(values, first)
        ]
        records, record_sizes = self._open[queue]
        records.extend(packed)
        record_sizes.extend(sizes)
        return sum(sizes)

    def _pack_pairs(self, pairs: list[tuple[Any, ...]]) -> int:
        """Pack pairs of a key and a value that are both bytes; pack any other record singly."""
        queue_by_key, bulk, chunks = self._topic.queue_by_key, self.bulk, self._open
        limit = self._accumulator.max_request_size + OVERHEAD
        total = 0
        for pair in pairs:
            if len(pair) == 2:  # noqa: PLR2004 (a pair)
                key, value = pair
                if key.__class__ is bytes and value.__class__ is bytes:
                    queue = queue_by_key.get(key)
                    size = len(key) + len(value) + OVERHEAD
                    if queue is not None and size <= limit:
                        place = bulk.taken
                        bulk.taken = place + 1
                        records, sizes = chunks[queue]
                        records.append((place, key, value, None, None))
                        sizes.append(size)
                        total += size
                        continue
            total += self._pack(pair)
        return total

    def _pack(self, record: Any) -> int:
        """Pack one record; return its size, or 0 if it failed."""
        if (prepared := self._prepare(record)) is None:
            return 0
        self._add(*prepared)
        return prepared[2]

    def _prepare(self, record: Any) -> tuple[PartitionQueue, BulkRecord, int] | None:
        """Return a record's queue, the record and its size; None if it failed."""
        place = self.bulk.taken
        self.bulk.taken += 1
        given = _as_outgoing(record)
        try:
            return self._serialize(place, given)
        # The boundary to the user's serializers and partitioner: only this record fails.
        except Exception as error:  # noqa: BLE001
            self._accumulator.count_lost(error)
            self.bulk.reject(
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

    def _serialize(
        self, place: int, given: OutgoingRecord
    ) -> tuple[PartitionQueue, BulkRecord, int]:
        value, key, headers, partition, timestamp_ms = given
        if self._serialize_value is not None:
            value = self._serialize_value(value)
        if self._serialize_key is not None and key is not None:
            key = self._serialize_key(key)
        value, key = to_bytes("value", value), to_bytes("key", key)
        if value is None and key is None:
            raise ValueError("a record needs a value or a key")
        pairs, size = check_rare_fields(headers, partition, timestamp_ms)
        size += len(value or b"") + len(key or b"")
        if size > self._accumulator.max_request_size:
            raise too_large(size, self._accumulator.max_request_size)
        topic = self._topic
        if partition is not None:
            queue = topic.queue_of(partition)
        else:
            queue = topic.queue_by_key.get(key) or topic.choose(key)
        return queue, (place, key, value, pairs, timestamp_ms), size + OVERHEAD

    def _add(self, queue: PartitionQueue, record: BulkRecord, size: int) -> None:
        records, sizes = self._open[queue]
        records.append(record)
        sizes.append(size)

    def _enqueue(self) -> None:
        """Put the open chunks, for which room was reserved, into their queues."""
        self._scheduled = False
        self._reserved = 0
        packed = self._open.copy()
        self._open.clear()
        now = self._accumulator.loop.time()
        until = min(now + self._delivery_timeout, self._until)
        for queue, (records, sizes) in packed.items():
            size = sum(sizes)
            chunk = BulkChunk(self.bulk, records, size, now, until)
            self._accumulator.enqueue(queue, chunk, size, until)

    def drop(self, error: Exception | None = None) -> None:
        """Fail the open chunks, or forget them without an error."""
        self._buffer.release(self._reserved)
        self._reserved = 0
        packed = self._open.copy()
        self._open.clear()
        if error is not None:
            for queue, (records, _) in packed.items():
                self._accumulator.count_lost(error, len(records))
                self.bulk.fail(queue.tp, records, error)


def _as_outgoing(record: Any) -> OutgoingRecord:
    if isinstance(record, OutgoingRecord):
        return record
    if isinstance(record, tuple) and len(record) == 2:  # noqa: PLR2004 (a pair)
        return OutgoingRecord(key=record[0], value=record[1])
    return OutgoingRecord(value=record)
