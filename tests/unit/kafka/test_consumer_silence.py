"""A connection that owes an answer and says nothing is closed; one that is only slow is not."""

from types import SimpleNamespace

import pytest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest

from resilient_io.kafka.consumer.housekeeping import SilenceWatch


class Connection:
    def __init__(self):
        self._requests = []
        self._reader = SimpleNamespace(_buffer=bytearray())
        self._writer = None
        self.closed = False

    def owes(self, kind):
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
        self.watch = SilenceWatch(2.0, fetch=0.5, join=10.0)
        self.now = 0.0

    def pass_time(self, seconds):
        """A look every half second."""
        for _ in range(int(seconds * 2)):
            self.now += 0.5
            self.watch.look(self.instance, self.now)


@pytest.fixture
def scene():
    return Scene()


def test_who_owes_nothing_may_be_silent(scene):
    scene.pass_time(60)
    assert not scene.connection.closed


@pytest.mark.parametrize(
    ("kind", "patience"), [(HeartbeatRequest, 2.0), (FetchRequest, 2.5), (JoinGroupRequest, 12.0)]
)
def test_silence_is_ended_after_what_the_answer_may_take(scene, kind, patience):
    scene.connection.owes(kind)
    scene.pass_time(patience + 0.5)
    assert not scene.connection.closed, "one look may only be early"
    scene.pass_time(0.5)
    assert scene.connection.closed
    assert scene.watch.closed == 1


def test_answers_one_after_the_other_are_no_silence(scene):
    for _ in range(20):
        scene.connection.owes(HeartbeatRequest)
        scene.pass_time(1.5)
        scene.connection._requests.clear()
    assert not scene.connection.closed


def test_a_large_answer_that_is_still_coming_is_no_silence(scene):
    scene.connection.owes(FetchRequest)
    for _ in range(20):
        scene.connection._reader._buffer += bytes(1000)
        scene.pass_time(2.0)
    assert not scene.connection.closed


def test_an_outage_begins_the_time_anew(scene):
    scene.connection.owes(HeartbeatRequest)
    scene.pass_time(2.0)
    scene.watch.forget()
    scene.pass_time(2.0)
    assert not scene.connection.closed
