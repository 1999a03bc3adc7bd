"""A consumer's components on virtual time, with a fake of aiokafka's consumer."""

import asyncio
import contextlib
import contextvars
import itertools
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition

from resilient_io.health import Dependency
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.consumer.assignment import Assignment
from resilient_io.kafka.consumer.fetcher import Fetcher, RecordDeserializer
from resilient_io.kafka.consumer.group import Committer, Rebalancer
from resilient_io.kafka.consumer.iteration import (
    BatchIterator,
    BatchStream,
    ExclusiveUse,
    RecordIterator,
    SingleRecordStream,
)
from resilient_io.kafka.consumer.membership import SessionWatch
from resilient_io.kafka.consumer.options import ConsumerSettings
from resilient_io.kafka.consumer.positions import Positions
from resilient_io.kafka.consumer.topics import TopicDetector
from resilient_io.kafka.processing import Processor
from resilient_io.kafka.stats import ConsumerCounters
from tests.unit.kafka.consumer.batches import batch_of, fetch_result

A, B = TopicPartition("t", 0), TopicPartition("t", 1)


class FakePartitionState:
    """aiokafka's state of a partition."""

    def __init__(self, partition, taken):
        self._partition, self._taken = partition, taken
        self.paused = False
        self.position = 0
        self.has_valid_position = True
        self.highwater = None

    def consumed_to(self, position):
        self._taken.append(self._partition)
        self.position = position


class FakeDriver:
    """The parts of aiokafka's consumer that are used; `world.log` contains the records."""

    def __init__(self, world):
        self.world = world
        self.taken = []
        self.polls = 0
        self.raises = []
        self.waiters = []
        self.reassigning = False
        self.generation = next(world.generations)
        self._fetcher = self._coordinator = self._subscription = self._client = self
        self.member_id = "me"
        self._wait_consume_future = None
        self._performed_join_prepare = False
        self._isolation_level = 0
        self.subscription = SimpleNamespace(assignment=None)

    # --- for the tests

    def assigned(self, *partitions):
        states = {each: FakePartitionState(each, self.taken) for each in partitions}
        for partition, state in states.items():
            state.position = self.world.committed.get(partition, 0)
        self.subscription.assignment = SimpleNamespace(
            tps=frozenset(partitions), state_value=states.get, states=states
        )

    def arrived(self):
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- as in aiokafka

    @property
    def reassignment_in_progress(self):
        return self.reassigning

    @contextlib.contextmanager
    def fetch_context(self):
        self.polls += 1
        yield

    def check_errors(self):
        if self.raises:
            raise self.raises.pop(0)

    def _create_fetch_waiter(self):
        self.waiters.append(asyncio.get_running_loop().create_future())
        return self.waiters[-1]

    @property
    def _records(self):
        assert not self.reassigning, "the partitions may belong to another member"
        fetched = {}
        for partition, state in self.subscription.assignment.states.items():
            log = [n for n in self.world.log.get(partition, []) if n >= state.position]
            batches = [batch_of(n, [(None, b"v", [])]) for n in log[: self.world.per_request]]
            if partition in self.world.corrupt:
                batches = [batch[:-1] + b"?" for batch in batches]
            if batches:
                fetched[partition] = fetch_result(partition, b"".join(batches), state)
        return fetched

    def _notify(self, future):
        assert future is self._wait_consume_future

    def seek(self, partition, offset):
        self.subscription.assignment.states[partition].position = offset

    async def ensure_coordinator_known(self):
        while self.world.coordinator_away:  # noqa: ASYNC110 - as the driver does
            await asyncio.sleep(0.1)

    async def _do_commit_offsets(self, _assignment, offsets):
        self.world.commits.append({partition: o.offset for partition, o in offsets.items()})
        if self.world.commit_raises:
            raise self.world.commit_raises.pop(0)
        await asyncio.sleep(0.01)
        self.world.committed |= {partition: o.offset for partition, o in offsets.items()}

    async def fetch_committed_offsets(self, partitions):
        await self.ensure_coordinator_known()
        committed = self.world.committed
        return {
            p: SimpleNamespace(offset=committed[p], metadata="")
            for p in partitions
            if p in committed
        }

    def request_offset_reset(self, partitions, _where):
        for partition in partitions:
            self.seek(partition, 0)
        return asyncio.get_running_loop().create_future()

    def get_random_node(self):
        return 0

    async def send(self, _node, _request):
        raise NotImplementedError  # as of a broker that does not know topic IDs


class DrainingProcessor(Processor):
    """The processor of a `run`, reduced to a drain that the test provides."""

    retry_topics = ()

    def __init__(self, drain):
        self._drain_of_test = drain

    def assigned(self, partitions):
        """Nothing to do."""

    async def drain(self, partitions):
        await self._drain_of_test(partitions)


class World:
    """The components of a consumer with a fake driver."""

    def __init__(self, *, deserializer=None, settings=None, has_group=True, target_options=None):
        self.log = {A: list(range(10)), B: list(range(10))}
        self.per_request = None  # most records of a partition
        self.corrupt = []
        self.committed = {}
        self.commits = []
        self.commit_raises = []
        self.coordinator_away = False
        self.generations = itertools.count(1)
        self.broken = []
        self.counters = ConsumerCounters()
        self.settings = settings or ConsumerSettings(drain_timeout=5.0, commit_timeout=3.0)
        self.health = Dependency("kafka")
        self.target = KafkaTarget("kafka:9092", target_options)
        self.supervisor = SimpleNamespace(
            generation=0,
            permanent_error=None,
            halted=False,
            driver_failed=lambda instance, error: self.broken.append(error),
        )
        self.assignment = Assignment(self.counters)
        self.use = ExclusiveUse("kafka", lambda topics: None)
        self.positions = Positions(
            self.health,
            assignment=self.assignment,
            strategy="earliest",
            on_gap="continue",
            degraded_for=60.0,
            timeout=3.0,
            group="g" if has_group else None,
            has_pattern=False,
            drop=self.use.drop,
            context=contextvars.Context,
            counters=self.counters,
        )
        self.session = SessionWatch(1_000_000.0, self.hold)
        self.fetcher = Fetcher(
            self.health,
            target=self.target,
            supervisor=self.supervisor,
            assignment=self.assignment,
            positions=self.positions,
            topics=TopicDetector(self.health),
            drop=self.use.drop,
            deserializer=RecordDeserializer(None, deserializer, self.counters),
            has_group=has_group,
            session=self.session,
            counters=self.counters,
        )
        self.committer = Committer(self.target, "kafka", self.counters)
        self.rebalancer = Rebalancer(
            health=self.health,
            assignment=self.assignment,
            fetcher=self.fetcher,
            positions=self.positions,
            committer=self.committer,
            use=self.use,
            session=self.session,
            settings=self.settings,
            counters=self.counters,
        )

    async def join(self, *partitions):
        """Add an instance in service and assign it partitions."""
        instance = self.add_instance()
        await self.assign(instance, *partitions)
        return instance

    def add_instance(self):
        instance = FakeDriver(self)
        self.fetcher.use_instance(instance)
        return instance

    async def assign(self, instance, *partitions):
        instance.assigned(*partitions)
        await self.rebalancer.assign(instance, partitions)

    async def run_with(self, drain):
        """Acquire the consumer for a `run` whose drain is this function."""
        await self.use.acquire(DrainingProcessor(drain))

    def records(self, most=4):
        return RecordIterator(SingleRecordStream(self.fetcher, self.use, lambda: None, most))

    def batches(self, most=4, max_wait=0.0):
        return BatchIterator(BatchStream(self.fetcher, self.use, lambda: None, most, max_wait))

    async def fetch_offsets(self, most=100, wait=0.0):
        found = await self.fetcher.fetch(most, wait)
        return {
            partition: [record.offset for record in records] for partition, records in found.items()
        }

    def hold(self):
        """Put the membership in the group in doubt."""
        self.fetcher.hold(held=True)
        self.use.hold(held=True)

    def resume(self):
        """Confirm the membership in the group."""
        self.fetcher.hold(held=False)
        self.use.hold(held=False)


CANARY = "canary-of-a-secret"


@pytest.fixture
async def answering():
    """Yield a `Dependency` that is UP, with a probe that always succeeds."""
    health = Dependency("kafka")

    async def probe(suspicious):
        return 0.001

    attachment = health.start(probe, last_reply=asyncio.get_running_loop().time)
    await health.until_up()
    yield health
    await attachment.detach()
    await health.aclose()


@pytest.fixture
def world_with_secret(make_world):
    """A world whose cluster has a password, and that password."""
    world = make_world(
        target_options={
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_plain_username": "me",
            "sasl_plain_password": CANARY,
        }
    )
    return world, CANARY


@pytest.fixture
def make_world():
    """Create worlds: `make_world(deserializer=..., settings=...)`."""
    made = []

    def make(**options):
        made.append(World(**options))
        return made[-1]

    yield make
    for world in made:
        world.session.close()


@pytest.fixture
def world(make_world):
    """A world with default settings."""
    return make_world()
