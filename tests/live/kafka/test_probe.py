"""The health probe on real brokers."""

import asyncio
import contextlib

import pytest

from resilient_io import Cause
from resilient_io.health import ProbeDegraded, ProbeFailed
from resilient_io.kafka.connect import KafkaTarget
from resilient_io.kafka.probe import GROUP, KafkaProbe
from resilient_io.testing import FaultProxy, KafkaServer, cancel_everywhere

SOON = 30.0


@pytest.fixture
def create_probe():
    """Return a function that creates probes, which are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(servers, options=None, **more):
            probe = KafkaProbe(target=KafkaTarget(servers, options), timeout=1.0, **more)
            stack.callback(probe.close)
            return probe

        yield make


async def _probe_until(probe, expected, *, suspicious=False):
    """Probe, as health does, until the result is the expected cause, or None for success."""
    said = []
    async with asyncio.timeout(SOON):
        while True:
            found = None
            try:
                await probe(suspicious)
            except (ProbeDegraded, ProbeFailed) as trouble:
                found = trouble
            if (found.cause if found else None) is expected:
                return found
            said.append(found)
            await asyncio.sleep(0.2)


async def test_probe_keeps_one_connection(shared_kafka, create_probe):
    probe = create_probe(shared_kafka.bootstrap_servers)
    assert 0 < await probe(False) < 1
    first = probe._kept
    assert first is not None
    await probe(False)
    assert probe._kept is first
    await probe(True)
    assert probe._kept is not first
    assert not first.connected()
    assert list(probe._target.brokers.values()) == [("127.0.0.1", shared_kafka.port)]
    probe.close()
    assert probe._kept is None


async def test_probe_cancelled_at_any_point_leaves_nothing(shared_kafka, name, create_probe):
    for suspicious in (False, True):
        probe = create_probe(
            f"127.0.0.1:1,{shared_kafka.bootstrap_servers}", coordinator=(GROUP, name)
        )

        async def once(probe=probe, suspicious=suspicious):
            await probe(suspicious)
            probe.close()

        async def closed(probe=probe):
            probe.close()

        report = await cancel_everywhere(once, check=closed)
        report.assert_clean()
        assert report.complete


async def test_one_address_that_answers_is_enough(shared_kafka, create_probe):
    probe = create_probe(f"127.0.0.1:1,{shared_kafka.bootstrap_servers}")
    assert await probe(True) < 1


async def test_refusal_at_every_address_is_definite_and_a_timeout_is_not(create_probe):
    with pytest.raises(ProbeFailed) as refused:
        await create_probe("127.0.0.1:1,127.0.0.1:2")(True)
    assert refused.value.cause is Cause.REFUSED
    assert refused.value.definite
    async with FaultProxy(1, protocol=None) as silent:
        silent.accept_silently()
        with pytest.raises(ProbeFailed) as unheard:
            await create_probe(f"127.0.0.1:1,127.0.0.1:{silent.port}")(True)
    assert unheard.value.cause is Cause.TIMED_OUT
    assert not unheard.value.definite


async def test_broker_with_an_unreachable_advertised_address_is_reported(create_probe):
    server = KafkaServer()
    async with FaultProxy(server.port, protocol="kafka") as advertised:
        advertised.refuse()
        server.advertised_port = advertised.port
        async with server:
            probe = create_probe(f"127.0.0.1:{server.port}")
            found = await _probe_until(probe, Cause.BROKER_LOST)
            assert f"broker 1 at 127.0.0.1:{advertised.port} is unreachable" in found.detail
            advertised.accept()
            await _probe_until(probe, None)


async def test_lost_broker_and_missing_leaders_are_reported_until_they_return(
    kafka_cluster, name, create_probe
):
    brokers = {broker.node_id: broker for broker in kafka_cluster.brokers}
    await kafka_cluster.create_topic(name, partitions=3, replicas=1)
    probe = create_probe(
        kafka_cluster.bootstrap_servers, topics=lambda: [name], coordinator=(GROUP, name)
    )
    await _probe_until(probe, None)
    victim = brokers[await kafka_cluster.leader_of(name, 0)]
    victim.kill()
    # First the broker is found to be lost, then the cluster reports that there is no leader.
    await _probe_until(probe, Cause.BROKER_LOST, suspicious=True)
    found = await _probe_until(probe, Cause.NO_LEADER)
    assert f"{name}[0]" in found.detail
    await victim.start()
    await _probe_until(probe, None)


async def test_first_coordinator_of_a_new_cluster_causes_no_alarm(create_probe, name):
    async with KafkaServer() as server:
        probe = create_probe(server.bootstrap_servers, coordinator=(GROUP, name))
        for _ in range(3):
            await probe(False)
            await asyncio.sleep(0.5)
