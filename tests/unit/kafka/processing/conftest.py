"""A source of records without a broker, and `run` over it, for the tests of processing."""

import asyncio
import random

import pytest
from aiokafka import TopicPartition

from resilient_io.kafka.consumer.assignment import PartitionProgress
from resilient_io.kafka.consumer.record import Record, UnreadableRecord
from resilient_io.kafka.processing import Processor, plan_run


def partition(number=0):
    return TopicPartition("t", number)


class FakeSource:
    """What `consumer/source.py` describes, fed by hand; as strict as the real one."""

    def __init__(self, *partitions):
        self.log = {}
        self.position = {}
        self.accounts = {}
        self.committed = {}
        self.reasons = {}
        self.polls = []
        self.commits = 0
        self.drain = None
        self.taken = None
        self._news = asyncio.Event()
        for each in partitions or (partition(),):
            self.take(each)

    # --- the test's side

    def take(self, *partitions):
        """They become ours, at what is committed."""
        for each in partitions:
            self.log.setdefault(each, [])
            self.position[each] = self.committed.get(each, 0)
            self.accounts[each] = PartitionProgress()
        if self.taken is not None:
            self.taken(partitions)

    async def lose(self, *partitions):
        """A rebalance takes them away: drain, commit, forget."""
        going = {each: self.accounts[each] for each in partitions}
        for each in partitions:
            self.reasons.setdefault(each, set()).add("revoked")
        if self.drain is not None:
            await self.drain(partitions)
        for each, account in going.items():
            if account.committable is not None:
                self.committed[each] = account.committable
            del self.accounts[each]
            self.reasons[each].discard("revoked")

    def put(self, key, value=b"v", number=0, *, headers=(), error=None, read_as=None):
        """Append a record; `read_as` is its value deserialised, `error` why it cannot be."""
        where = partition(number)
        offset = len(self.log[where])
        record = Record(
            topic=where.topic,
            partition=number,
            offset=offset,
            timestamp=1_000 + offset,
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
        self._news.set()
        return record

    def paused(self, where):
        return bool(self.reasons.get(where))

    def done_up_to(self, number=0):
        return self.accounts[partition(number)].committable

    # --- Source

    async def fetch(self, max_records, max_wait):
        assert max_records >= 1
        loop = asyncio.get_running_loop()
        self.polls.append(loop.time())
        until = loop.time() + max_wait
        while True:
            self._news.clear()
            found = {}
            for where, account in self.accounts.items():
                if self.paused(where) or max_records == 0:
                    continue
                start = self.position[where]
                records = self.log[where][start : start + max_records]
                if not records:
                    continue
                max_records -= len(records)
                self.position[where] += len(records)
                for record in records:
                    record._progress = account
                    account.delivered(record.offset)
                found[where] = records
            if found or loop.time() >= until:
                return found
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                pass

    def pause(self, partitions, reason):
        for each in partitions:
            self.reasons.setdefault(each, set()).add(reason)

    def resume(self, partitions, reason):
        for each in partitions:
            self.reasons.get(each, set()).discard(reason)
        self._news.set()

    def assignment(self):
        return tuple(self.accounts)

    def progress(self, where):
        return self.accounts.get(where)

    async def commit(self, timeout):
        self.commits += 1
        for where, account in self.accounts.items():
            if account.committable is not None:
                self.committed[where] = account.committable

    def on_revoked(self, drain):
        self.drain = drain

    def on_assigned(self, taken):
        self.taken = taken


class FakeProducer:
    """Keeps what it is given; fails while told to."""

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
    """One `run` over a fake source, with what it did."""

    def __init__(self, source=None, *, max_poll_interval=300.0, rebalance_timeout=10.0, **options):
        self.source = source or FakeSource()
        self.producer = FakeProducer()
        self.handled = []
        self.options = options
        self.max_poll_interval = max_poll_interval
        self.rebalance_timeout = rebalance_timeout
        self.ended = 0
        self.processor = None
        self.running = None

    def start(self, handler):
        self.make(handler)
        self.running = asyncio.create_task(self.processor.run(), name="run of the test")
        return self.running

    def make(self, handler):
        self.processor = Processor(
            self.source,
            plan_run(handler, **self.options),
            max_poll_interval=self.max_poll_interval,
            rebalance_timeout=self.rebalance_timeout,
            make_producer=lambda: self.producer,
            rng=random.Random(1),
            ended=self._note_end,
        )

    def _note_end(self):
        self.ended += 1

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
    """Make scenes; each is closed at the end, and has to leave nothing behind."""
    made = []

    def make(source=None, **options):
        scene = Scene(source, **options)
        made.append(scene)
        return scene

    yield make
    for scene in made:
        await scene.aclose()
        assert scene.ended == (scene.processor is not None)
        assert scene.source.drain is None
        assert scene.source.taken is None
        assert not any(scene.source.reasons.values())


@pytest.fixture
def sources():
    """Make sources: `sources(2)` has partitions 0 and 1."""
    return lambda count=1: FakeSource(*map(partition, range(count)))


@pytest.fixture
def until():
    """Wait for a fact; on virtual time this takes none."""

    async def wait(fact, timeout=1000.0):
        async with asyncio.timeout(timeout):
            while not fact():  # noqa: ASYNC110 - a fact about many parts, on virtual time
                await asyncio.sleep(0.01)

    return wait
