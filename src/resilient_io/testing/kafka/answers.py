"""Replies in a broker's place, for `FaultProxy.answer`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from resilient_io.testing.kafka._wire import Reader, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.testing.kafka.frames import KafkaRequest

_OLDEST: Final = 3
_NEWEST: Final = 8  # later ones are flexible; aiokafka 0.14 writes up to this one
_WITH_START_OFFSET: Final = 5
_WITH_RECORD_ERRORS: Final = 8


def produce_error(code: int) -> Callable[[KafkaRequest], bytes]:
    """Give what answers a Produce request with an error for each of its partitions.

    For `proxy.answer("Produce", produce_error(45))`; with `forward=True` the records are written,
    and said not to be.

    Args:
        code: The code of the Kafka protocol, as 19 (not enough replicas), 20 (not enough replicas
            after the append), 45 (out of order sequence), 59 (unknown producer id).
    """

    def answer(request: KafkaRequest) -> bytes:
        if not _OLDEST <= request.version <= _NEWEST:
            raise ValueError(f"Produce is answered in versions 3 to 8, got {request.version}")
        reader = Reader(request.raw[4:])
        reader.skip(8)  # key, version, correlation id
        reader.text()
        reader.text()  # the transactional id
        reader.skip(6)  # acks and timeout
        topics = reader.int32()
        body = struct.pack(">i", topics)
        for _ in range(topics):
            body += text(reader.text())
            partitions = reader.int32()
            body += struct.pack(">i", partitions)
            for _ in range(partitions):
                body += struct.pack(">ihqq", reader.int32(), code, -1, -1)
                if request.version >= _WITH_START_OFFSET:
                    body += struct.pack(">q", -1)
                if request.version >= _WITH_RECORD_ERRORS:
                    body += struct.pack(">ih", 0, -1)
                reader.skip(reader.int32())  # the records
        return body + struct.pack(">i", 0)  # not throttled

    return answer
