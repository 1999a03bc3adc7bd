"""What health learns of real brokers."""

import asyncio
import contextlib

import pytest

from resilient_io import Cause
from resilient_io.health import ProbeDegraded, ProbeFailed
from resilient_io.kafka.connect import Target
from resilient_io.kafka.probe import GROUP, KafkaProbe
from resilient_io.testing import FaultProxy, KafkaServer, cancel_everywhere

SOON = 30.0


@pytest.fixture
def ask():
    """Make probes, closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(servers, options=None, **more):
            probe = KafkaProbe(target=Target(servers, options), timeout=1.0, **more)
            stack.callback(probe.close)
            return probe

        yield make


async def _until_it_says(probe, expected, *, suspicious=False):
    """Probe as health does until it says what is expected: None for all well, or a cause."""
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


async def test_an_answer_costs_one_connection_that_is_kept(shared_kafka, ask):
    probe = ask(shared_kafka.bootstrap_servers)
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


async def test_a_probe_cancelled_at_any_point_leaves_nothing(shared_kafka, name, ask):
    for suspicious in (False, True):
        probe = ask(f"127.0.0.1:1,{shared_kafka.bootstrap_servers}", coordinator=(GROUP, name))

        async def once(probe=probe, suspicious=suspicious):
            await probe(suspicious)
            probe.close()

        async def closed(probe=probe):
            probe.close()

        report = await cancel_everywhere(once, check=closed)
        report.assert_clean()
        assert report.complete


async def test_one_address_that_answers_is_enough(shared_kafka, ask):
    probe = ask(f"127.0.0.1:1,{shared_kafka.bootstrap_servers}")
    assert await probe(True) < 1


async def test_refused_everywhere_is_proof_and_silence_is_not(ask):
    with pytest.raises(ProbeFailed) as refused:
        await ask("127.0.0.1:1,127.0.0.1:2")(True)
    assert refused.value.cause is Cause.REFUSED
    assert refused.value.definite
    async with FaultProxy(1, protocol=None) as silent:
        silent.accept_silently()
        with pytest.raises(ProbeFailed) as unheard:
            await ask(f"127.0.0.1:1,127.0.0.1:{silent.port}")(True)
    assert unheard.value.cause is Cause.TIMED_OUT
    assert not unheard.value.definite


async def test_a_broker_that_names_an_address_nobody_reaches_is_told(ask):
    server = KafkaServer()
    async with FaultProxy(server.port, protocol="kafka") as advertised:
        advertised.refuse()
        server.advertised_port = advertised.port
        async with server:
            probe = ask(f"127.0.0.1:{server.port}")
            told = await _until_it_says(probe, Cause.BROKER_LOST)
            assert f"broker 1 at 127.0.0.1:{advertised.port} cannot be reached" in told.detail
            advertised.accept()
            await _until_it_says(probe, None)


async def test_a_lost_broker_and_its_leaders_are_told_and_their_return_too(
    kafka_cluster, name, ask
):
    brokers = {broker.node_id: broker for broker in kafka_cluster.brokers}
    await kafka_cluster.create_topic(name, partitions=3, replicas=1)
    probe = ask(kafka_cluster.bootstrap_servers, topics=lambda: [name], coordinator=(GROUP, name))
    await _until_it_says(probe, None)
    victim = brokers[await kafka_cluster.leader_of(name, 0)]
    victim.kill()
    # First the broker is found to be lost; then the cluster itself says that it has no leader.
    await _until_it_says(probe, Cause.BROKER_LOST, suspicious=True)
    told = await _until_it_says(probe, Cause.NO_LEADER)
    assert f"{name}[0]" in told.detail
    await victim.start()
    await _until_it_says(probe, None)


async def test_a_new_cluster_has_its_first_coordinator_without_an_alarm(ask, name):
    async with KafkaServer() as server:
        probe = ask(server.bootstrap_servers, coordinator=(GROUP, name))
        for _ in range(3):
            await probe(False)
            await asyncio.sleep(0.5)
