"""Our typed view of aiokafka 0.14, which has no type hints: what is public there, as Protocols.

What is private there and leant on all the same is in internals.py.
`tests/unit/kafka/test_driver_contract.py` fails when a new aiokafka changes any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

    from aiokafka import ConsumerRecord, TopicPartition
    from aiokafka.abc import ConsumerRebalanceListener
    from aiokafka.structs import BrokerMetadata, OffsetAndTimestamp, RecordMetadata

__all__ = [
    "BatchBuilder",
    "Cluster",
    "Connection",
    "ConsumerDriver",
    "Driver",
    "DriverClient",
    "DriverT",
    "ProducerDriver",
]


class Cluster(Protocol):
    """What an instance knows of its cluster (`aiokafka.cluster.ClusterMetadata`)."""

    def brokers(self) -> set[BrokerMetadata]:
        """Give the brokers last seen."""
        raise NotImplementedError

    def broker_metadata(self, broker_id: Any) -> BrokerMetadata | None:
        """Give a broker by its node id."""
        raise NotImplementedError

    def topics(self, exclude_internal_topics: bool = True) -> set[str]:
        """Give the topics it knows."""
        raise NotImplementedError

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Give a topic's partitions; None when the topic is unknown."""
        raise NotImplementedError

    def available_partitions_for_topic(self, topic: str) -> set[int] | None:
        """Give those that have a leader; None when the topic is unknown."""
        raise NotImplementedError

    def leader_for_partition(self, partition: TopicPartition) -> int | None:
        """Give the leader's node id; -1 without one, None when it is unknown."""
        raise NotImplementedError

    def add_listener(self, listener: Callable[[Any], object]) -> None:
        """Call a function after every update."""
        raise NotImplementedError

    def remove_listener(self, listener: Callable[[Any], object]) -> None:
        """Call it no more."""
        raise NotImplementedError

    unauthorized_topics: set[str]


class Connection(Protocol):
    """One connection to one broker (`aiokafka.conn.AIOKafkaConnection`)."""

    @property
    def host(self) -> str:
        """The broker's host, as it was dialled."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The broker's port."""
        raise NotImplementedError

    def connected(self) -> bool:
        """Tell whether it is open."""
        raise NotImplementedError

    def send(self, request: Any) -> Coroutine[Any, Any, Any]:
        """Write a request now; await the answer."""
        raise NotImplementedError

    def close(self, reason: Any = None, exc: BaseException | None = None) -> Any:
        """Close it; its outstanding requests fail."""
        raise NotImplementedError


class DriverClient(Protocol):
    """What producer and consumer are built on (`aiokafka.client.AIOKafkaClient`)."""

    cluster: Cluster

    def force_metadata_update(self) -> asyncio.Future[bool]:
        """Ask for new metadata; the result says whether any broker gave it."""
        raise NotImplementedError

    async def coordinator_lookup(self, coordinator_type: int, coordinator_key: str) -> int:
        """Ask who coordinates a group (0) or a transactional id (1)."""
        raise NotImplementedError

    async def send(self, node_id: int, request: Any, *, group: Any = ...) -> Any:
        """Send a request to a broker and return its answer."""
        raise NotImplementedError

    def set_topics(self, topics: Iterable[str]) -> asyncio.Future[bool]:
        """Say which topics the metadata is about."""
        raise NotImplementedError

    def add_topic(self, topic: str) -> asyncio.Future[bool]:
        """Add a topic that the metadata is about."""
        raise NotImplementedError


class Driver(Protocol):
    """What any instance of aiokafka's has. `stop` is for instance.py only."""

    async def start(self) -> None:
        """Connect."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Flush or commit, leave, disconnect; may hang and may raise (see instance.py)."""
        raise NotImplementedError


DriverT = TypeVar("DriverT", bound=Driver)


class BatchBuilder(Protocol):
    """A batch that is being filled (`aiokafka.producer.message_accumulator.BatchBuilder`)."""

    def append(
        self,
        *,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes | None]] | None = ...,
    ) -> Any:
        """Add a record, its timestamp in milliseconds; None when the batch is full."""
        raise NotImplementedError

    def close(self) -> None:
        """Take no more records."""
        raise NotImplementedError

    def size(self) -> int:
        """Give its size in bytes."""
        raise NotImplementedError

    def record_count(self) -> int:
        """Give how many records it has."""
        raise NotImplementedError


class ProducerDriver(Driver, Protocol):
    """What we use of `aiokafka.AIOKafkaProducer`."""

    client: Any

    def create_batch(self) -> BatchBuilder:
        """Make an empty batch."""
        raise NotImplementedError

    async def send_batch(
        self, batch: Any, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]:
        """Hand a batch over; the future tells what became of it."""
        raise NotImplementedError

    async def partitions_for(self, topic: str) -> set[int]:
        """Wait for the topic's metadata and give its partitions."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Wait until all batches are settled."""
        raise NotImplementedError

    async def begin_transaction(self) -> None:
        """Begin a transaction."""
        raise NotImplementedError

    async def commit_transaction(self) -> None:
        """Commit it."""
        raise NotImplementedError

    async def abort_transaction(self) -> None:
        """Abort it."""
        raise NotImplementedError

    async def send_offsets_to_transaction(self, offsets: Mapping[Any, Any], group_id: str) -> None:
        """Make a group's offsets part of it."""
        raise NotImplementedError


class ConsumerDriver(Driver, Protocol):
    """What we use of `aiokafka.AIOKafkaConsumer`."""

    def subscribe(
        self,
        topics: Collection[str] = (),
        pattern: str | None = None,
        listener: ConsumerRebalanceListener | None = None,
    ) -> None:
        """Join the group for these topics."""
        raise NotImplementedError

    def assign(self, partitions: Collection[TopicPartition]) -> None:
        """Read fixed partitions."""
        raise NotImplementedError

    def assignment(self) -> Collection[TopicPartition]:
        """Give the partitions that are its own now."""
        raise NotImplementedError

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[ConsumerRecord[Any, Any]]]:
        """Give records that have arrived."""
        raise NotImplementedError

    def pause(self, *partitions: TopicPartition) -> None:
        """Fetch nothing from these."""
        raise NotImplementedError

    def resume(self, *partitions: TopicPartition) -> None:
        """Fetch from these again."""
        raise NotImplementedError

    def paused(self) -> Collection[TopicPartition]:
        """Give those that are paused."""
        raise NotImplementedError

    async def commit(self, offsets: Mapping[TopicPartition, Any] | None = None) -> None:
        """Commit offsets; retries for ever while the coordinator is away."""
        raise NotImplementedError

    async def committed(self, partition: TopicPartition) -> int | None:
        """Ask for the committed offset."""
        raise NotImplementedError

    async def position(self, partition: TopicPartition) -> int:
        """Give the offset of the next record."""
        raise NotImplementedError

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Go to an offset."""
        raise NotImplementedError

    async def seek_to_beginning(self, *partitions: TopicPartition) -> bool:
        """Go to the first record."""
        raise NotImplementedError

    async def seek_to_end(self, *partitions: TopicPartition) -> bool:
        """Go behind the last record."""
        raise NotImplementedError

    def highwater(self, partition: TopicPartition) -> int | None:
        """Give the end offset of the latest fetch."""
        raise NotImplementedError

    async def beginning_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Ask for the first offsets."""
        raise NotImplementedError

    async def end_offsets(
        self, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Ask for the end offsets."""
        raise NotImplementedError

    async def offsets_for_times(
        self, timestamps: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, OffsetAndTimestamp | None]:
        """Ask for the offsets at points in time."""
        raise NotImplementedError
