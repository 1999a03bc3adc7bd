"""The least that records cost in Python: no network, no broker, no partition and no failure.

Records are encoded, checked and decoded by aiokafka's C extension, as by resilient-io.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import RecordMetadata

from benchmarks.kafka.plan import BURST, key_of, value_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from benchmarks.kafka.meter import Meter

    from . import Pair

_BATCH = 64 * 1024  # bytes
_TIMESTAMP = 1_700_000_000_000


def _builder() -> Any:
    return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, _BATCH)


class Producer:
    """A producer of which each record has a future and a place in a batch."""

    def __init__(self) -> None:
        self._create_future = asyncio.get_running_loop().create_future
        self._queue: list[tuple[asyncio.Future[RecordMetadata], bytes | None, bytes]] = []

    async def _accept(self, value: bytes, key: bytes | None) -> asyncio.Future[RecordMetadata]:
        future: asyncio.Future[RecordMetadata] = self._create_future()
        self._queue.append((future, key, value))
        return future

    def _complete(self) -> None:
        queue, self._queue = self._queue, []
        partition = TopicPartition("topic", 0)
        builder, count = _builder(), 0
        for offset, (future, key, value) in enumerate(queue):
            while builder.append(count, _TIMESTAMP, key, value, []) is None:
                builder.build()
                builder, count = _builder(), 0
            count += 1
            future.set_result(RecordMetadata("topic", 0, partition, offset, _TIMESTAMP, 0, None))
        builder.build()

    async def send(self, topic: str, pairs: Sequence[Pair]) -> None:  # noqa: ARG002
        accept = self._accept
        futures = [await accept(value, key) for key, value in pairs]
        self._complete()
        for future in futures:
            await future

    async def aclose(self) -> None:
        pass


class Consumer:
    """Iterates over the records of batches that are in memory."""

    def __init__(self) -> None:
        self._batches: list[bytes] = []
        builder, count = _builder(), 0
        for number in range(BURST):
            while builder.append(count, _TIMESTAMP, key_of(number), value_of(number), []) is None:
                self._batches.append(bytes(builder.build()))
                builder, count = _builder(), 0
            count += 1

    async def _records(self) -> AsyncIterator[Any]:
        while True:
            for data in self._batches:
                batch: Any = MemoryRecords(data).next_batch()
                assert batch.validate_crc()
                for record in batch:
                    yield record

    async def iterate(self, meter: Meter, handler: Callable[[], Awaitable[None]] | None) -> None:
        assert handler is None
        handled = meter.handled
        async for _ in self._records():
            if handled():
                return

    async def aclose(self) -> None:
        pass


async def open_producer(servers: str, **setting: Any) -> Producer:  # noqa: ARG001
    return Producer()


async def open_consumer(servers: str, topic: str, group: str, **setting: Any) -> Consumer:  # noqa: ARG001
    return Consumer()
