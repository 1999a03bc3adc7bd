"""Our typed view of aiokafka 0.14, which has almost no type hints: the public API that we use.

Private APIs that we rely on are in `driver.py`. `tests/unit/kafka/test_driver_contract.py` fails
when a new aiokafka changes any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Coroutine, Iterable, Mapping

    from aiokafka import ConsumerRecord, TopicPartition
    from aiokafka.abc import ConsumerRebalanceListener
    from aiokafka.cluster import ClusterMetadata
    from aiokafka.producer.message_accumulator import BatchBuilder
    from aiokafka.structs import OffsetAndTimestamp, RecordMetadata


class Connection(Protocol):
    """A connection to one broker (`aiokafka.conn.AIOKafkaConnection`)."""

    @property
    def host(self) -> str:
        """Host of the broker, as it was dialed."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """Port of the broker."""
        raise NotImplementedError

    def connected(self) -> bool:
        """Return whether the connection is open."""
        raise NotImplementedError

    def send(self, request: Any) -> Coroutine[Any, Any, Any]:
        """Write a request immediately; await the response."""
        raise NotImplementedError

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        """Close the connection. Its outstanding requests fail."""
        raise NotImplementedError


class DriverClient(Protocol):
    """The client inside a producer or a consumer (`aiokafka.client.AIOKafkaClient`)."""

    cluster: ClusterMetadata

    def force_metadata_update(self) -> asyncio.Future[bool]:
        """Request new metadata. The result is whether any broker sent it."""
        raise NotImplementedError

    async def coordinator_lookup(self, coordinator_type: int, coordinator_key: str) -> int:
        """Return the node id of the coordinator of a group (0) or a transactional id (1)."""
        raise NotImplementedError

    async def send(self, node_id: int, request: Any, *, group: Any = ...) -> Any:
        """Send a request to a broker and return the response."""
        raise NotImplementedError

    def set_topics(self, topics: Iterable[str]) -> asyncio.Future[bool]:
        """Set the topics of which metadata is requested."""
        raise NotImplementedError

    def add_topic(self, topic: str) -> asyncio.Future[bool]:
        """Add a topic of which metadata is requested."""
        raise NotImplementedError


class ProducerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaProducer` that we use."""

    client: Any

    async def start(self) -> None:
        """Connect. Use `driver.start_driver`, which limits the time and cleans up."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Flush and disconnect. Use `driver.stop_driver`: this may hang and may raise."""
        raise NotImplementedError

    def create_batch(self) -> BatchBuilder:
        """Return an empty batch."""
        raise NotImplementedError

    async def send_batch(
        self, batch: Any, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]:
        """Pass a batch to the driver. The future is done when its outcome is known."""
        raise NotImplementedError

    async def partitions_for(self, topic: str) -> set[int]:
        """Wait for the metadata of a topic and return its partitions."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Wait until all batches are done."""
        raise NotImplementedError

    async def begin_transaction(self) -> None:
        """Begin a transaction."""
        raise NotImplementedError

    async def commit_transaction(self) -> None:
        """Commit the transaction."""
        raise NotImplementedError

    async def abort_transaction(self) -> None:
        """Abort the transaction."""
        raise NotImplementedError

    async def send_offsets_to_transaction(self, offsets: Mapping[Any, Any], group_id: str) -> None:
        """Make the offsets of a group part of the transaction."""
        raise NotImplementedError


class ConsumerDriver(Protocol):
    """The part of `aiokafka.AIOKafkaConsumer` that we use."""

    async def start(self) -> None:
        """Connect. Use `driver.start_driver`, which limits the time and cleans up."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Leave the group and disconnect. Use `driver.stop_driver`: this may hang and may raise."""
        raise NotImplementedError

    def subscribe(
        self,
        topics: Collection[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """Join the group and subscribe to topics."""
        raise NotImplementedError

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Read a fixed set of partitions."""
        raise NotImplementedError

    def assignment(self) -> Collection[TopicPartition]:
        """Return the partitions assigned to this consumer."""
        raise NotImplementedError

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        """Return records that have arrived."""
        raise NotImplementedError

    def pause(self, *partitions: TopicPartition) -> None:
        """Stop fetching from partitions."""
        raise NotImplementedError

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch from partitions again."""
        raise NotImplementedError

    def paused(self) -> Collection[TopicPartition]:
        """Return the paused partitions."""
        raise NotImplementedError

    async def commit(self, offsets: Mapping[TopicPartition, Any] | None = None) -> None:
        """Commit offsets. Retries forever while the coordinator is unavailable."""
        raise NotImplementedError

    async def committed(self, partition: TopicPartition) -> int | None:
        """Request the committed offset."""
        raise NotImplementedError

    async def position(self, partition: TopicPartition) -> int:
        """Return the offset of the next record."""
        raise NotImplementedError

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Continue at an offset."""
        raise NotImplementedError

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        """Continue at the first record."""
        raise NotImplementedError

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        """Continue after the last record."""
        raise NotImplementedError

    def highwater(self, partition: TopicPartition) -> int | None:
        """Return the end offset of the latest fetch."""
        raise NotImplementedError

    async def beginning_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Request the first offsets."""
        raise NotImplementedError

    async def end_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Request the end offsets."""
        raise NotImplementedError

    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """Request the offsets at points in time."""
        raise NotImplementedError


Driver: TypeAlias = ProducerDriver | ConsumerDriver

DriverT = TypeVar("DriverT", bound=ProducerDriver | ConsumerDriver)
