"""What the kernel knows about the links of clients, in the state and the data of a dependency."""

import asyncio
import dataclasses
import json
import math
import random

import pytest

from resilient_io import HealthMonitor
from resilient_io.health import Cause, Dependency, ProbeFailed, State
from resilient_io.link import LinkState
from resilient_io.telemetry.readings import Readings

LINK = LinkState(
    rtt=0.002,
    rttvar=0.001,
    retransmits=0,
    retransmitted=1,
    segments=50,
    unacked=0,
    unacked_bytes=0,
    ack_age=0.5,
    sent_age=0.5,
    received_age=0.5,
)
LOST = dataclasses.replace(LINK, retransmits=2, unacked=1, unacked_bytes=30, ack_age=0.9)
ACKED = dataclasses.replace(LINK, ack_age=0.9, sent_age=1.0, received_age=2.0)
GONE = "no acknowledgement from the host for 0.9 s, 2 retransmissions"


class Client:
    """A client whose probe waits until the test lets it fail, and whose links are data."""

    def __init__(self):
        self.links = [LINK]
        self.heard = -math.inf
        self.probes = []
        self.mute = False
        self.stall = 0.0

    async def probe(self, suspicious):
        self.probes.append(suspicious)
        if self.mute:
            asyncio.get_running_loop().block(self.stall)
            await asyncio.Event().wait()
        return 0.001


def now():
    return asyncio.get_running_loop().time()


@pytest.fixture
def client():
    return Client()


@pytest.fixture
async def watched(client):
    dependency = Dependency("redis", rng=random.Random(1))
    dependency.start(client.probe, last_reply=lambda: client.heard, links=lambda: client.links)
    await dependency.until_up(1)
    yield dependency
    await dependency.aclose()


async def test_a_path_that_is_gone_is_down_immediately(client, watched):
    client.mute = True
    watched.unreachable(GONE, now() - 0.9)
    assert (watched.state, watched.cause, watched.detail) == (State.DOWN, Cause.UNREACHABLE, GONE)
    await asyncio.sleep(3)
    assert watched.detail == GONE, "probes that time out afterwards say less"
    client.mute = False
    await watched.until_up(2)
    assert watched.cause is None


async def test_a_running_probe_does_not_delay_the_finding(client, watched):
    client.mute = True
    await asyncio.sleep(1.5)  # a probe is running
    before = len(client.probes)
    watched.unreachable(GONE, now() - 0.9)
    await asyncio.sleep(0.2)
    assert len(client.probes) == before + 1
    assert client.probes[-1] is True


async def test_a_path_is_not_gone_if_another_client_has_received_something(client, watched):
    client.heard = now() + 0.1
    await asyncio.sleep(0.2)
    watched.unreachable(GONE, now() - 0.9)
    assert watched.state is State.UP
    await asyncio.sleep(0.01)
    assert client.probes[-1] is True, "a probe on a new connection decides"


async def test_a_reporter_of_a_closed_client_reports_nothing(watched):
    reporter = watched.reporter()
    reporter.close()
    reporter.unreachable(GONE, now())
    assert watched.state is State.UP


async def test_another_failure_replaces_the_cause(client, watched):
    watched.unreachable(GONE, now() - 0.9)

    async def refused(_suspicious):
        raise ProbeFailed(Cause.REFUSED, "connection refused", definite=True)

    client.probe = refused
    watched._prober._clients[0].probe = refused
    await asyncio.sleep(0.3)
    assert watched.cause is Cause.REFUSED


async def test_a_probe_that_times_out_says_whether_the_host_is_reachable(client, watched):
    client.links, client.mute = [ACKED], True
    await asyncio.sleep(5)
    assert watched.cause is Cause.TIMED_OUT
    assert watched.detail == (
        "no answer within 1 s: the host is reachable, the server does not answer"
    )


async def test_a_stall_of_our_loop_does_not_hide_that_the_host_is_reachable(client, watched):
    """Its time does not count for the probe, whose request was acknowledged before the stall."""
    client.links, client.mute = [dataclasses.replace(ACKED, ack_age=1.6, sent_age=1.6)], True
    client.stall = 1.0
    await asyncio.sleep(5)
    assert watched.detail.endswith("the host is reachable, the server does not answer")


async def test_an_earlier_acknowledgement_does_not_show_that_the_host_is_reachable(client, watched):
    client.links, client.mute = [dataclasses.replace(ACKED, ack_age=1.5)], True
    await asyncio.sleep(5)
    assert watched.detail == "no answer within 1 s"


async def test_the_link_is_plain_data_and_metrics(client, watched):
    client.links = [LINK, LOST]
    snapshot = json.loads(json.dumps(watched.snapshot()))
    assert snapshot["link"]["rtt"] == 0.002
    assert snapshot["link"]["retransmits"] == 2
    assert snapshot["link"]["loss"] == 0.02
    async with HealthMonitor(watched) as monitor:
        found = {
            reading.metric.name: reading.value
            for reading in Readings(monitor, []).collect()
            if reading.metric.name.startswith("resilient_io.link.")
        }
    assert found == {
        "resilient_io.link.rtt": 0.002,
        "resilient_io.link.rtt.deviation": 0.001,
        "resilient_io.link.timeouts": 2,
        "resilient_io.link.retransmitted": 2,
        "resilient_io.link.sent": 100,
        "resilient_io.link.unacknowledged": 30,
        "resilient_io.link.unacknowledged.age": 0.9,
    }


async def test_links_must_be_a_function(client):
    with pytest.raises(TypeError, match="links must be a function"):
        Dependency("redis").start(client.probe, last_reply=lambda: 0.0, links=[])
