"""A record source without a broker, and `run` over it."""

import asyncio
import random

import pytest
from aiokafka import TopicPartition

from resilient_io.kafka.processing import Processor, plan_run
from resilient_io.kafka.record import PartitionProgress, Record, UnreadableRecord


def partition(number=0, topic="t"):
    return TopicPartition(topic, number)


class FakeSource:
    """A `RecordSource` that tests fill by hand; as strict as the fetcher.

    Attributes:
        processor: The processor that is notified of assigned and revoked partitions.
    """

    def __init__(self, *partitions):
        self.log = {}
        self.position = {}
        self.progress_of = {}
        self.committed = {}
        self.reasons = {}
        self.polls = []
        self.commits = 0
        self.membership_checks = 0
        self.required = []
        self.put_back_records = {}
        self.processor = None
        self._arrived = asyncio.Event()
        for each in partitions or (partition(),):
            self.assign(each)

    # --- for the tests

    def assign(self, *partitions):
        """Assign partitions, at their committed offsets."""
        for each in partitions:
            self.log.setdefault(each, [])
            self.position[each] = self.committed.get(each, 0)
            self.put_back_records.pop(each, None)
            self.progress_of[each] = PartitionProgress()
        if self.processor is not None:
            self.processor.assigned(partitions)

    async def revoke(self, *partitions):
        """Revoke partitions as a rebalance does: drain, commit, remove."""
        going = {each: self.progress_of[each] for each in partitions}
        for each in partitions:
            self.reasons.setdefault(each, set()).add("revoked")
        if self.processor is not None:
            await self.processor.drain(partitions)
        for each, progress in going.items():
            if progress.committable is not None:
                self.committed[each] = progress.committable
            del self.progress_of[each]
            self.reasons[each].discard("revoked")

    def put(
        self,
        key,
        value=b"v",
        number=0,
        *,
        topic="t",
        timestamp=None,
        headers=(),
        error=None,
        read_as=None,
    ):
        """Append a record; `read_as` is its deserialized value, `error` why it has none."""
        where = partition(number, topic)
        offset = len(self.log[where])
        record = Record(
            topic=where.topic,
            partition=number,
            offset=offset,
            timestamp=1_000 + offset if timestamp is None else timestamp,
            timestamp_type=0,
            key=key,
            value=value,
            checksum=None,
            serialized_key_size=-1 if key is None else len(key),
            serialized_value_size=-1 if value is None else len(value),
            headers=headers,
        )
        if error is not None:
            record._raw = (key, value)
            record.error = error
            record.__class__ = UnreadableRecord
        elif read_as is not None:
            record._raw = (key, value)
            record.key, record.value = {"unhashable": key}, read_as
        self.log[where].append(record)
        self._arrived.set()
        return record

    def paused(self, where):
        return bool(self.reasons.get(where))

    def committable(self, number=0, topic="t"):
        return self.progress_of[partition(number, topic)].committable

    async def commit(self, timeout):
        self.commits += 1
        for where, progress in self.progress_of.items():
            if progress.committable is not None:
                self.committed[where] = progress.committable

    # --- as in `RecordSource`

    async def fetch(self, max_records, max_wait):
        assert max_records >= 1
        loop = asyncio.get_running_loop()
        self.polls.append(loop.time())
        until = loop.time() + max_wait
        while True:
            self._arrived.clear()
            found = {}
            for where, progress in self.progress_of.items():
                if self.paused(where) or max_records == 0:
                    continue
                records = self.put_back_records.pop(where, [])
                if not records:
                    start = self.position[where]
                    records = self.log[where][start : start + max_records]
                    self.position[where] += len(records)
                if not records:
                    continue
                max_records = max(0, max_records - len(records))
                for record in records:
                    record._progress = progress
                    progress.delivered(record.offset)
                found[where] = records
            if found or loop.time() >= until:
                return found
            try:
                async with asyncio.timeout_at(until):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    async def require_topics(self, topics):
        self.required.append(topics)

    def put_back(self, where, records):
        if records[0]._progress is not self.progress_of.get(where):
            return False
        self.put_back_records[where] = [*records, *self.put_back_records.get(where, [])]
        return True

    def pause(self, partitions, reason):
        for each in partitions:
            self.reasons.setdefault(each, set()).add(reason)

    def resume(self, partitions, reason):
        for each in partitions:
            self.reasons.get(each, set()).discard(reason)
        self._arrived.set()

    def assignment(self):
        return tuple(self.progress_of)

    def progress(self, where):
        return self.progress_of.get(where)

    def check_membership(self):
        self.membership_checks += 1


class FakeProducer:
    """Stores the records that it receives; raises for the next `failing` ones."""

    def __init__(self):
        self.sent = []
        self.failing = 0
        self.attempts = 0
        self.closed = False

    async def send_and_wait(
        self, topic, value=None, key=None, partition=None, timestamp_ms=None, headers=None
    ):
        self.attempts += 1
        await asyncio.sleep(0.01)
        if self.failing:
            self.failing -= 1
            raise ConnectionError("no broker")
        self.sent.append((topic, key, value, dict(headers)))

    async def aclose(self, timeout=None):
        self.closed = True


class Scene:
    """One `run` over a fake source."""

    def __init__(
        self,
        source=None,
        *,
        drain_timeout=5.0,
        max_poll_interval=300.0,
        rebalance_timeout=10.0,
        **options,
    ):
        self.source = source or FakeSource()
        self.producer = FakeProducer()
        self.options = options
        self.drain_timeout = drain_timeout
        self.max_poll_interval = max_poll_interval
        self.rebalance_timeout = rebalance_timeout
        self.ended = 0
        self.processor = None
        self.running = None

    def start(self, handler):
        self.create(handler)
        self.running = asyncio.create_task(self.processor.run(), name="run of the test")
        return self.running

    def create(self, handler):
        self.processor = self.source.processor = Processor(
            source=self.source,
            plan=plan_run(handler, **self.options),
            commit=self.source.commit,
            commit_timeout=3.0,
            drain_timeout=self.drain_timeout,
            max_poll_interval=self.max_poll_interval,
            rebalance_timeout=self.rebalance_timeout,
            make_producer=lambda: self.producer,
            rng=random.Random(1),
            ended=self._note_end,
            note=lambda event, **fields: None,
        )

    def _note_end(self, stats):
        self.ended += 1
        self.source.processor = None

    @property
    def stats(self):
        return self.processor.stats()

    async def aclose(self):
        if self.processor is not None:
            await self.processor.aclose()
        if self.running is not None:
            await asyncio.wait([self.running])
            if not self.running.cancelled():
                self.running.exception()


@pytest.fixture
async def scenes():
    """Create scenes, which are closed after the test and must leave nothing behind."""
    made = []

    def make(source=None, **options):
        scene = Scene(source, **options)
        made.append(scene)
        return scene

    yield make
    for scene in made:
        await scene.aclose()
        assert scene.ended == (scene.processor is not None)
        assert scene.source.processor is None
        assert not any(scene.source.reasons.values())


@pytest.fixture
def sources():
    """Create sources: `sources(2)` has the partitions 0 and 1."""
    return lambda count=1, *further: FakeSource(*map(partition, range(count)), *further)


@pytest.fixture
def until():
    """Wait for a condition, in virtual time."""

    async def wait(condition, timeout=1000.0):
        async with asyncio.timeout(timeout):
            while not condition():  # noqa: ASYNC110 - several components change it
                await asyncio.sleep(0.01)

    return wait
