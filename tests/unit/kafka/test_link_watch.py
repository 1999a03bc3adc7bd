"""When the connections of a Kafka client are looked at, and when a broker is sent something."""

import asyncio
from types import SimpleNamespace

import pytest

from resilient_io.kafka.link import LinkWatch


class Connection:
    """A connection as aiokafka's, without a socket."""

    def __init__(self):
        self._writer = None
        self._requests = []
        self._correlation_id = 0
        self._last_action = asyncio.get_running_loop().time()

    def connected(self):
        return True

    def send(self):
        self._correlation_id += 1
        self._requests.append(object())

    def answer(self):
        self._requests.pop(0)
        self._last_action = asyncio.get_running_loop().time()


class Scene:
    """A client with one connection to a broker, and that of its probe."""

    def __init__(self, fetch):
        self.broker, self.kept = Connection(), Connection()
        self.looks, self.nudges = [], []
        self.loop = asyncio.get_running_loop()
        self.watch = LinkWatch(
            health=None,
            probe=SimpleNamespace(connection=self.kept, requested_at=0.0, nudge=self.nudge),
            driver=self.driver,
            fetch=fetch,
        )
        self.watch.start()

    def driver(self):
        self.looks.append(self.loop.time())
        client = SimpleNamespace(_conns={"broker": self.broker})
        return SimpleNamespace(client=client)

    def nudge(self):
        self.nudges.append(self.loop.time())
        self.kept._last_action = self.loop.time()

    async def fetch(self, times, wait):
        """Fetch without finding records."""
        for _ in range(times):
            self.broker.send()
            await asyncio.sleep(wait)
            self.broker.answer()


@pytest.fixture
async def begin():
    scenes = []

    def begin(fetch=0.5):
        scenes.append(Scene(fetch))
        return scenes[-1]

    yield begin
    for scene in scenes:
        await scene.watch.aclose()


async def test_connections_of_an_idle_consumer_are_looked_at_on_each_beat(begin):
    scene = begin()
    await scene.fetch(5, 0.503)
    assert scene.looks == [0.25 * number for number in range(1, 11)]
    assert scene.nudges == []


async def test_connections_with_many_requests_are_looked_at_twice_as_often(begin):
    scene = begin()
    await scene.fetch(40, 1 / 32)
    assert scene.looks == [0.25, *(0.25 + 0.125 * number for number in range(1, 9))]


async def test_broker_is_sent_something_once_the_response_to_a_fetch_is_late(begin):
    scene = begin()
    await scene.fetch(2, 0.503)
    scene.broker.send()
    await asyncio.sleep(3.0)
    assert scene.nudges == [1.75, 2.75, 3.75]


async def test_broker_is_sent_something_while_a_fetch_may_wait_long(begin):
    scene = begin(fetch=30.0)
    scene.broker.send()
    await asyncio.sleep(4.0)
    assert scene.nudges == [0.75, 1.75, 2.75, 3.75]


async def test_broker_that_is_slow_to_answer_a_producer_is_sent_something(begin):
    scene = begin(fetch=0.0)
    scene.broker.send()
    await asyncio.sleep(0.5)
    assert scene.nudges == [0.25]


async def test_connection_of_the_probe_is_used_before_it_is_forgotten(begin):
    scene = begin()
    await scene.fetch(60, 0.503)
    assert scene.nudges == [10.0, 20.0, 30.0]
