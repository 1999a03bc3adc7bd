"""The few requests of the Kafka protocol with which the kit looks into a broker.

They are written by hand, for a look past the client under test must not go through a client. All
are of versions before the flexible ones, which Apache Kafka 4 still answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.testing._resp import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

_METADATA: Final = (3, 4)  # its key and the version that is written here
_FIND_COORDINATOR: Final = (10, 1)
_CREATE_TOPICS: Final = (19, 4)
_DELETE_TOPICS: Final = (20, 3)

_ANSWER_TIMEOUT: Final = 15.0
_BROKER_WORK_MS: Final = 10_000
_BY_BROKER: Final = -1  # partitions or replicas as the broker is configured

NOT_YET: Final = frozenset({5, 14, 15, 41})
"""Codes that pass by themselves: no leader, coordinator loading or unknown, not the controller."""

UNKNOWN_TOPIC: Final = 3

_SAID: Final = {
    3: "unknown topic",
    17: "invalid topic name",
    29: "not authorised for the topic",
    36: "the topic exists already",
    37: "invalid number of partitions",
    38: "invalid number of replicas",
    40: "invalid configuration",
    42: "invalid request",
}


class KafkaRefusedError(ServerError):
    """The broker answered with an error code.

    Args:
        code: The code of the Kafka protocol.
        detail: What the broker says of it.
    """

    def __init__(self, code: int, detail: str | None) -> None:
        super().__init__(f"code {code}: {detail or _SAID.get(code, 'see the Kafka protocol')}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Partition:
    """What metadata say of a partition.

    Attributes:
        index: Its number.
        leader: Id of the broker that leads it, -1 for none.
        replicas: Ids of the brokers that have it.
        in_sync: Ids of those whose copy is complete.
    """

    index: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a broker knows of its cluster.

    Attributes:
        cluster_id: The cluster's id; None if it has none.
        brokers: Ids of the living brokers, and their ports.
        topics: The partitions of each topic that was asked for.
        errors: The error codes of those that have one.
    """

    cluster_id: str | None
    brokers: dict[int, int]
    topics: dict[str, list[Partition]]
    errors: dict[str, int]


class Reader:
    """Takes values of the Kafka protocol from bytes, in their order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, layout: str) -> int:
        value: int = struct.unpack_from(layout, self._data, self._at)[0]
        self._at += struct.calcsize(layout)
        return value

    def int8(self) -> int:
        """Take an int8."""
        return self._take(">b")

    def int16(self) -> int:
        """Take an int16."""
        return self._take(">h")

    def int32(self) -> int:
        """Take an int32."""
        return self._take(">i")

    def skip(self, count: int) -> None:
        """Pass over so many bytes."""
        self._at += count

    def text(self) -> str | None:
        """Take a string, or none."""
        length = self.int16()
        if length < 0:
            return None
        start = self._at
        self._at += length
        return self._data[start : self._at].decode()

    def ids(self) -> tuple[int, ...]:
        """Take an array of int32."""
        return tuple(self.int32() for _ in range(self.int32()))


def text(value: str | None) -> bytes:
    """Write a string, or none."""
    if value is None:
        return struct.pack(">h", -1)
    data = value.encode()
    return struct.pack(">h", len(data)) + data


class Inquirer:
    """Asks one broker, each time on a new plain connection.

    Args:
        host: Its address.
        port: Port of a listener that asks for no credentials.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    async def metadata(self, topics: Sequence[str] | None = ()) -> Metadata:
        """Ask what it knows of the cluster, and of these topics (None for all); makes none."""
        body = struct.pack(">i", -1 if topics is None else len(topics))
        body += b"".join(text(topic) for topic in topics or ()) + b"\0"
        reader = await self._ask(_METADATA, body)
        reader.int32()  # throttled for so long
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
            reader.int8()  # whether it is the broker's own
            found[name] = [_partition(reader) for _ in range(reader.int32())]
            if error:
                errors[name] = error
        return Metadata(cluster_id, brokers, found, errors)

    async def coordinator(self, key: str, *, transactional: bool = False) -> int:
        """Ask which broker coordinates a group, or a transactional id.

        Raises:
            KafkaRefusedError: There is none (yet: its code is in `NOT_YET`).
        """
        reader = await self._ask(_FIND_COORDINATOR, text(key) + bytes([transactional]))
        reader.int32()  # throttled for so long
        error, said = reader.int16(), reader.text()
        if error:
            raise KafkaRefusedError(error, said)
        return reader.int32()

    async def create_topic(
        self, name: str, partitions: int, replicas: int | None, config: Mapping[str, str]
    ) -> None:
        """Make a topic.

        Raises:
            KafkaRefusedError: The broker will not.
        """
        count = _BY_BROKER if replicas is None else replicas
        body = (
            struct.pack(">i", 1)
            + text(name)
            + struct.pack(">ihii", partitions, count, 0, len(config))
        )
        body += b"".join(text(option) + text(value) for option, value in config.items())
        reader = await self._ask(_CREATE_TOPICS, body + struct.pack(">i?", _BROKER_WORK_MS, False))
        reader.int32()  # throttled for so long
        for _ in range(reader.int32()):
            reader.text()
            error, said = reader.int16(), reader.text()
            if error:
                raise KafkaRefusedError(error, said)

    async def delete_topic(self, name: str) -> None:
        """Remove a topic.

        Raises:
            KafkaRefusedError: The broker will not, or has none of that name.
        """
        body = struct.pack(">i", 1) + text(name) + struct.pack(">i", _BROKER_WORK_MS)
        reader = await self._ask(_DELETE_TOPICS, body)
        reader.int32()  # throttled for so long
        for _ in range(reader.int32()):
            reader.text()
            if error := reader.int16():
                raise KafkaRefusedError(error, None)

    async def _ask(self, api: tuple[int, int], body: bytes) -> Reader:
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            reader, writer = await asyncio.open_connection(self._host, self._port)
            try:
                payload = struct.pack(">hhi", *api, 1) + text("resilient-io-testing") + body
                writer.write(struct.pack(">i", len(payload)) + payload)
                [length] = struct.unpack(">i", await reader.readexactly(4))
                answer = await reader.readexactly(length)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        return Reader(answer[4:])  # after the correlation id: there is no other request


def _partition(reader: Reader) -> Partition:
    reader.int16()  # an error that the leader of -1 tells of, too
    return Partition(reader.int32(), reader.int32(), reader.ids(), reader.ids())


async def until(
    fact: Callable[[], Coroutine[None, None, bool]], what: str, timeout: float, pause: float = 0.02
) -> None:
    """Wait until a question to a broker is answered with yes.

    Args:
        fact: Asks; OSError and the codes of `NOT_YET` mean no.
        what: What is awaited, for the error.
        timeout: Longest wait in seconds.
        pause: Seconds between two questions.

    Raises:
        TimeoutError: It was not so within `timeout`.
    """
    try:
        async with asyncio.timeout(timeout):
            while not await _asked(fact):  # noqa: ASYNC110 - a broker tells only who asks
                await asyncio.sleep(pause)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {timeout:g} s") from None


async def _asked(fact: Callable[[], Coroutine[None, None, bool]]) -> bool:
    try:
        return await fact()
    except (OSError, asyncio.IncompleteReadError):
        return False
    except KafkaRefusedError as error:
        if error.code in NOT_YET:
            return False
        raise
