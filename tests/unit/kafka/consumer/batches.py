"""Batches of records as a broker sends them, and as aiokafka keeps them."""

import struct
from types import SimpleNamespace

from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

_CRC_AT = 17
_ATTRIBUTES_AT = 21


def batch_of(base, records, *, codec=0, producer=-1, transactional=False, attributes=0):
    """Return the bytes of a batch whose first record has this offset."""
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer, 0, 0, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1_000_000 + base + number, key, value, headers)
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, base)
    (found,) = struct.unpack_from(">h", data, _ATTRIBUTES_AT)
    struct.pack_into(">h", data, _ATTRIBUTES_AT, found | attributes)
    struct.pack_into(">I", data, _CRC_AT, calc_crc32c(memoryview(data)[_ATTRIBUTES_AT:]))
    return bytes(data)


def fetch_result(partition, data, state, *, aborted=None, committed=False):
    """Return what aiokafka has after a request, at the position of this state."""
    return FetchResult(
        partition,
        assignment=SimpleNamespace(active=True, state_value=lambda partition: state),
        partition_records=PartitionRecords(
            partition,
            MemoryRecords(data),
            aborted,
            state.position,
            None,
            None,
            True,
            int(committed),
        ),
        backoff=0.0,
    )
