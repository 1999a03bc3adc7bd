"""Our typed view of aiokafka 0.14, which has almost no type hints: the public API that we use.

`tests/unit/kafka/test_driver_contract.py` fails when a new aiokafka changes any of it. `driver.py`
has the private APIs, and `start_driver` and `stop_driver`, which replace `start` and `stop`: those
may hang.
"""
# ruff: noqa: D102 - aiokafka documents the methods

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Coroutine, Iterable, Mapping

    from aiokafka import ConsumerRecord, TopicPartition
    from aiokafka.abc import ConsumerRebalanceListener
    from aiokafka.cluster import ClusterMetadata
    from aiokafka.producer.message_accumulator import BatchBuilder
    from aiokafka.structs import RecordMetadata


class Connection(Protocol):
    """A connection to one broker (`aiokafka.conn.AIOKafkaConnection`)."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    def connected(self) -> bool: ...
    def send(self, request: Any) -> Coroutine[Any, Any, Any]: ...
    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any: ...


class DriverClient(Protocol):
    """The client inside a producer or a consumer (`aiokafka.client.AIOKafkaClient`)."""

    cluster: ClusterMetadata

    def force_metadata_update(self) -> asyncio.Future[bool]: ...
    def set_topics(self, topics: Iterable[str]) -> asyncio.Future[bool]: ...
    def add_topic(self, topic: str) -> asyncio.Future[bool]: ...


class ProducerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaProducer` that we use."""

    client: Any

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def create_batch(self) -> BatchBuilder: ...
    async def send_batch(
        self, batch: Any, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]: ...
    async def begin_transaction(self) -> None: ...
    async def commit_transaction(self) -> None: ...
    async def abort_transaction(self) -> None: ...
    async def send_offsets_to_transaction(
        self, offsets: Mapping[Any, Any], group_id: str
    ) -> None: ...


class ConsumerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaConsumer` that we use."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def subscribe(
        self,
        topics: Collection[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None: ...
    def assign(self, partitions: Collection[TopicPartition]) -> None: ...
    def assignment(self) -> Collection[TopicPartition]: ...
    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]: ...
    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    async def end_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]: ...


Driver: TypeAlias = ProducerDriver | ConsumerDriver

DriverT = TypeVar("DriverT", bound=ProducerDriver | ConsumerDriver)
