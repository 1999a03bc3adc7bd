"""A connection with a pending request is closed if it is silent, but not if it is slow."""

from types import SimpleNamespace

import pytest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest

from resilient_io.kafka.consumer.housekeeping import DeadConnectionDetector


class Connection:
    def __init__(self):
        self._requests = []
        self._reader = SimpleNamespace(_buffer=bytearray())
        self._writer = None
        self.closed = False

    def send(self, kind):
        self._requests.append((len(self._requests), kind, None))

    def connected(self):
        return not self.closed

    def close(self, reason=None, exc=None):
        self.closed = True


class Scene:
    def __init__(self):
        self.connection = Connection()
        client = SimpleNamespace(_conns={1: self.connection})
        self.instance = SimpleNamespace(_client=client)
        self.detector = DeadConnectionDetector(2.0, fetch=0.5, join=10.0)
        self.now = 0.0

    def pass_time(self, seconds):
        """Check every half second."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.detector.check(self.instance, self.now)


@pytest.fixture
def scene():
    return Scene()


def test_a_connection_without_requests_may_be_silent(scene):
    scene.pass_time(60)
    assert not scene.connection.closed


@pytest.mark.parametrize(
    ("kind", "limit"), [(HeartbeatRequest, 2.0), (FetchRequest, 2.5), (JoinGroupRequest, 12.0)]
)
def test_a_silent_connection_is_closed_after_the_time_that_its_response_may_take(
    scene, kind, limit
):
    scene.connection.send(kind)
    scene.pass_time(limit + 0.5)
    assert not scene.connection.closed, "the first check may be early"
    scene.pass_time(0.5)
    assert scene.connection.closed
    assert scene.detector.closed == 1


def test_consecutive_responses_keep_a_connection_open(scene):
    for _ in range(20):
        scene.connection.send(HeartbeatRequest)
        scene.pass_time(1.5)
        scene.connection._requests.clear()
    assert not scene.connection.closed


def test_a_large_response_that_is_arriving_keeps_a_connection_open(scene):
    scene.connection.send(FetchRequest)
    for _ in range(20):
        scene.connection._reader._buffer += bytes(1000)
        scene.pass_time(2.0)
    assert not scene.connection.closed


def test_an_outage_resets_the_detector(scene):
    scene.connection.send(HeartbeatRequest)
    scene.pass_time(2.0)
    scene.detector.reset()
    scene.pass_time(2.0)
    assert not scene.connection.closed
