"""The few requests of the Kafka protocol with which the kit queries a broker.

They are encoded here, because the kit must not use a client to check what a client did. All have
versions before the flexible ones, which Apache Kafka 4 still supports.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..resp import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from .frames import KafkaRequest

_METADATA: Final = (3, 4)  # API key and version
_FIND_COORDINATOR: Final = (10, 1)
_CREATE_TOPICS: Final = (19, 4)
_DELETE_TOPICS: Final = (20, 3)
_OLDEST_PRODUCE: Final = 3
_NEWEST_PRODUCE: Final = 8  # later versions are flexible; aiokafka 0.14 uses up to this one
_WITH_START_OFFSET: Final = 5
_WITH_RECORD_ERRORS: Final = 8

_REPLY_TIMEOUT: Final = 15.0
_BROKER_TIMEOUT_MS: Final = 10_000
_BROKER_DEFAULT: Final = -1  # number of replicas in the broker's configuration

TRANSIENT_CODES: Final = frozenset({5, 14, 15, 41})
"""Transient codes: no leader, coordinator loading or unknown, not the controller."""

UNKNOWN_TOPIC: Final = 3
"""Code of a topic that does not exist."""

_DESCRIPTIONS: Final = {
    3: "unknown topic",
    17: "invalid topic name",
    29: "not authorized for the topic",
    36: "the topic already exists",
    37: "invalid number of partitions",
    38: "invalid number of replicas",
    40: "invalid configuration",
    42: "invalid request",
}


class KafkaServerError(ServerError):
    """The broker answered with an error code.

    Args:
        code: The code of the Kafka protocol.
        detail: The broker's message, if any.
    """

    def __init__(self, code: int, detail: str | None) -> None:
        super().__init__(
            f"code {code}: {detail or _DESCRIPTIONS.get(code, 'see the Kafka protocol')}"
        )
        self.code = code


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, as in metadata.

    Attributes:
        index: Number of the partition.
        leader: Id of the leading broker, or -1.
        replicas: Ids of the brokers with a replica.
        in_sync: Ids of the brokers whose replica is in sync.
    """

    index: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """A broker's view of its cluster.

    Attributes:
        cluster_id: Id of the cluster; None if it has none.
        brokers: Ids and ports of the live brokers.
        topics: The partitions of each requested topic.
        errors: The error code of each topic that has one.
    """

    cluster_id: str | None
    brokers: dict[int, int]
    topics: dict[str, list[Partition]]
    errors: dict[str, int]


class Reader:
    """Reads values of the Kafka protocol from bytes, in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self._data, self._at)[0]
        self._at += struct.calcsize(layout)
        return value

    def int8(self) -> int:
        """Read an int8."""
        return self._take(">b")

    def int16(self) -> int:
        """Read an int16."""
        return self._take(">h")

    def int32(self) -> int:
        """Read an int32."""
        return self._take(">i")

    def skip(self, count: int) -> None:
        """Skip this many bytes."""
        self._at += count

    def text(self) -> str | None:
        """Read a string or null."""
        length = self.int16()
        if length < 0:
            return None
        start = self._at
        self._at += length
        return self._data[start : self._at].decode()

    def ids(self) -> tuple[int, ...]:
        """Read an array of int32."""
        return tuple(self.int32() for _ in range(self.int32()))


def text(value: str | None) -> bytes:
    """Return an encoded string or null."""
    if value is None:
        return struct.pack(">h", -1)
    data = value.encode()
    return struct.pack(">h", len(data)) + data


class BrokerQueries:
    """Sends requests to one broker, each on a new connection.

    Args:
        host: Address of the broker.
        port: Port of a listener without authentication.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    async def metadata(self, topics: Sequence[str] | None = ()) -> Metadata:
        """Return the broker's metadata of these topics (None for all), without creating any."""
        body = struct.pack(">i", -1 if topics is None else len(topics))
        body += b"".join(text(topic) for topic in topics or ()) + b"\0"
        reader = await self._send(_METADATA, body)
        reader.int32()  # throttle time
        brokers: dict[int, int] = {}
        for _ in range(reader.int32()):
            broker = reader.int32()
            reader.text()
            brokers[broker] = reader.int32()
            reader.text()
        cluster_id = reader.text()
        reader.int32()  # the controller
        found: dict[str, list[Partition]] = {}
        errors: dict[str, int] = {}
        for _ in range(reader.int32()):
            error, name = reader.int16(), reader.text() or ""
            reader.int8()  # whether it is internal
            found[name] = [_partition(reader) for _ in range(reader.int32())]
            if error:
                errors[name] = error
        return Metadata(cluster_id, brokers, found, errors)

    async def coordinator(self, key: str, *, transactional: bool = False) -> int:
        """Return the id of the coordinator of a group or transactional id.

        Raises:
            KafkaServerError: There is none; temporarily if the code is in `TRANSIENT_CODES`.
        """
        reader = await self._send(_FIND_COORDINATOR, text(key) + bytes([transactional]))
        reader.int32()  # throttle time
        error, detail = reader.int16(), reader.text()
        if error:
            raise KafkaServerError(error, detail)
        return reader.int32()

    async def create_topic(
        self, name: str, partitions: int, replicas: int | None, config: Mapping[str, str]
    ) -> None:
        """Create a topic.

        Raises:
            KafkaServerError: The broker rejected the request.
        """
        count = _BROKER_DEFAULT if replicas is None else replicas
        body = (
            struct.pack(">i", 1)
            + text(name)
            + struct.pack(">ihii", partitions, count, 0, len(config))
        )
        body += b"".join(text(option) + text(value) for option, value in config.items())
        reader = await self._send(
            _CREATE_TOPICS, body + struct.pack(">i?", _BROKER_TIMEOUT_MS, False)
        )
        reader.int32()  # throttle time
        for _ in range(reader.int32()):
            reader.text()
            error, detail = reader.int16(), reader.text()
            if error:
                raise KafkaServerError(error, detail)

    async def delete_topic(self, name: str) -> None:
        """Delete a topic.

        Raises:
            KafkaServerError: The broker rejected the request, or the topic does not exist.
        """
        body = struct.pack(">i", 1) + text(name) + struct.pack(">i", _BROKER_TIMEOUT_MS)
        reader = await self._send(_DELETE_TOPICS, body)
        reader.int32()  # throttle time
        for _ in range(reader.int32()):
            reader.text()
            if error := reader.int16():
                raise KafkaServerError(error, None)

    async def _send(self, api: tuple[int, int], body: bytes) -> Reader:
        async with asyncio.timeout(_REPLY_TIMEOUT):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                payload = struct.pack(">hhi", *api, 1) + text("resilient-io-testing") + body
                writer.write(struct.pack(">i", len(payload)) + payload)
                [length] = struct.unpack(">i", await reader.readexactly(4))
                reply = await reader.readexactly(length)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        return Reader(reply[4:])  # after the correlation id


def _partition(reader: Reader) -> Partition:
    reader.int16()  # error code, redundant with a leader of -1
    return Partition(reader.int32(), reader.int32(), reader.ids(), reader.ids())


async def until(
    query: Callable[[], Coroutine[None, None, bool]],
    description: str,
    timeout: float,
    interval: float = 0.02,
) -> None:
    """Wait until a query returns True.

    Args:
        query: The query; OSError and the codes of `TRANSIENT_CODES` count as False.
        description: Describes the awaited state, for the error.
        timeout: Maximum wait in seconds.
        interval: Seconds between two queries.

    Raises:
        TimeoutError: The query did not return True within `timeout`.
    """
    try:
        async with asyncio.timeout(timeout):
            while not await _result(query):  # noqa: ASYNC110 - brokers do not send events
                await asyncio.sleep(interval)
    except TimeoutError:
        raise TimeoutError(f"{description}: not within {timeout:g} s") from None


async def _result(query: Callable[[], Coroutine[None, None, bool]]) -> bool:
    try:
        return await query()
    except (OSError, asyncio.IncompleteReadError):
        return False
    except KafkaServerError as error:
        if error.code in TRANSIENT_CODES:
            return False
        raise


def produce_error(code: int) -> Callable[[KafkaRequest], bytes]:
    """Return a function that answers a Produce request with an error for each partition.

    Use it as `proxy.answer("Produce", produce_error(45))`. With `forward=True` the broker writes
    the records, although the client receives an error.

    Args:
        code: Error code of the Kafka protocol, such as 19 (not enough replicas), 20 (not enough
            replicas after append), 45 (out of order sequence) or 59 (unknown producer id).
    """

    def answer(request: KafkaRequest) -> bytes:
        if not _OLDEST_PRODUCE <= request.version <= _NEWEST_PRODUCE:
            raise ValueError(f"the version of Produce must be 3 to 8, not {request.version}")
        reader = Reader(request.raw[4:])
        reader.skip(8)  # API key, version, correlation id
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
        return body + struct.pack(">i", 0)  # throttle time

    return answer
