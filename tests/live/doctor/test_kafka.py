"""The doctor at real Kafka brokers, with and without faults."""

import asyncio
from dataclasses import dataclass

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import FaultProxy, KafkaServer, free_port

STEPS = ["name", "TCP", "login", "reply", "link", "listeners"]


@dataclass
class Misleading:
    """A broker with logins, and with listeners that name wrong addresses."""

    server: KafkaServer
    ports: dict
    nowhere: int


@pytest.fixture(scope="module")
def misleading(_kafka_of_session):
    ports = {name: free_port() for name in ("NOWHERE", "NAMELESS", "MIXED")}
    nowhere = free_port()
    advertised = {
        "NOWHERE": f"127.0.0.1:{nowhere}",
        "NAMELESS": "broker.invalid:9092",
        "MIXED": _kafka_of_session.bootstrap_servers,
    }
    users = {"chief": "hunter2", "shy": "hunter3"}
    server = KafkaServer(port=free_port(), users=users, superusers=["chief"])
    own = server._member.voters[1]
    server._options |= {
        "listeners": ",".join(
            [
                f"CLIENT://127.0.0.1:{server.port}",
                f"DIRECT://{server.direct_servers}",
                f"CONTROLLER://127.0.0.1:{own}",
                *(f"{name}://127.0.0.1:{port}" for name, port in ports.items()),
            ]
        ),
        "advertised.listeners": ",".join(
            [
                f"CLIENT://127.0.0.1:{server.port}",
                f"DIRECT://{server.direct_servers}",
                *(f"{name}://{address}" for name, address in advertised.items()),
            ]
        ),
        "listener.security.protocol.map": ",".join(
            [
                "CLIENT:SASL_PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT",
                *(f"{name}:PLAINTEXT" for name in ports),
            ]
        ),
    }
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(server.start())
        yield Misleading(server, ports, nowhere)
        runner.run(server.aclose())


@pytest_asyncio.fixture
async def consumer(shared_kafka):
    """Start consumers of the shared broker, which commit only when asked."""
    running = []

    async def start(topic, group):
        one = AIOKafkaConsumer(
            topic,
            bootstrap_servers=shared_kafka.bootstrap_servers,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        running.append(one)
        await one.start()
        return one

    yield start
    for one in running:
        await one.stop()


async def test_healthy_cluster_has_no_problem(examined, shared_kafka):
    seen = await examined(f"kafka://{shared_kafka.bootstrap_servers}", timeout=10.0)
    assert seen.names == STEPS
    assert exit_code(seen.steps) == 0, seen
    assert seen["reply"].found == "1 broker (1), controller 1"
    assert shared_kafka.bootstrap_servers in seen["listeners"].found


async def test_advertised_address_on_which_nothing_listens(examined, misleading):
    """The classic in containers: the bootstrap server answers, and names one that does not."""
    seen = await examined(f"kafka://127.0.0.1:{misleading.ports['NOWHERE']}", timeout=10.0)
    assert seen.names == STEPS
    assert seen["login"].status is Status.OK
    assert seen["listeners"].status is Status.PROBLEM
    assert seen["listeners"].found == (
        f"broker 1 advertises 127.0.0.1:{misleading.nowhere}: connection refused"
    )
    assert "advertised.listeners" in seen["listeners"].advice
    assert exit_code(seen.steps) == 1


async def test_advertised_name_that_does_not_exist_here(examined, misleading):
    seen = await examined(f"kafka://127.0.0.1:{misleading.ports['NAMELESS']}", timeout=10.0)
    assert seen["listeners"].status is Status.PROBLEM
    assert seen["listeners"].found == (
        "broker 1 advertises broker.invalid:9092: this name does not exist here"
    )


async def test_mixed_up_clusters(examined, misleading):
    seen = await examined(f"kafka://127.0.0.1:{misleading.ports['MIXED']}", timeout=10.0)
    assert seen["listeners"].status is Status.PROBLEM
    assert "another cluster answers there" in seen["listeners"].found


async def test_frozen_broker_is_reported_within_the_time_limit(examined, misleading, slack):
    misleading.server.freeze()
    try:
        began = asyncio.get_running_loop().time()
        seen = await examined(f"kafka://127.0.0.1:{misleading.ports['NOWHERE']}", timeout=2.0)
        assert asyncio.get_running_loop().time() - began < 2.0 + slack()
    finally:
        misleading.server.thaw()
    assert seen.names == ["name", "TCP", "login"]
    assert seen.last.status is Status.PROBLEM
    assert "does not answer" in seen.last.found


async def test_port_on_which_no_broker_listens(examined):
    seen = await examined(f"kafka://127.0.0.1:{free_port()}")
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "refused" in seen.last.found


async def test_broker_that_stops_answering_after_the_login(examined, shared_kafka):
    async with FaultProxy(shared_kafka.port, protocol="kafka") as proxy:
        proxy.hold("Metadata", nth=2)  # the first belongs to the login
        seen = await examined(f"kafka://127.0.0.1:{proxy.port}", timeout=2.0)
    assert seen["login"].status is Status.OK
    assert seen.last.name == "reply"
    assert seen.last.status is Status.UNKNOWN


async def test_one_bootstrap_server_of_two_may_be_down(examined, shared_kafka):
    url = f"kafka://127.0.0.1:{free_port()},{shared_kafka.bootstrap_servers}"
    seen = await examined(url, timeout=10.0)
    assert seen["TCP"].status is Status.NOTE
    assert "refused" in seen["TCP"].found
    assert seen["reply"].status is Status.OK


async def test_all_addresses_of_a_broker_are_tried(examined, shared_kafka, monkeypatch):
    loop = asyncio.get_running_loop()
    look_up = loop.getaddrinfo

    async def two_addresses(host, port, **options):
        if host != "broker.example":
            return await look_up(host, port, **options)
        # Nothing listens at the first.
        return [*await look_up("127.0.0.2", port, **options), *await look_up(*local, **options)]

    local = ("127.0.0.1", shared_kafka.port)
    monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
    seen = await examined(f"kafka://broker.example:{shared_kafka.port}", timeout=10.0)
    assert "127.0.0.2: connection refused" in seen["TCP"].found
    assert seen["login"].status is Status.OK, seen
    assert seen["listeners"].status is Status.OK, seen


async def test_group_exists_once_its_consumer_has_started(examined, shared_kafka, consumer):
    await shared_kafka.create_topic("doctor-group")
    url = f"kafka://{shared_kafka.bootstrap_servers}"
    reader = await consumer("doctor-group", "doctor-group")
    await reader.commit()
    seen = await examined(url, group="doctor-group", timeout=10.0)
    assert seen.names == [*STEPS, "group"]
    assert seen["group"].status is Status.OK
    assert seen["group"].found.startswith("the group doctor-group is stable, coordinator")
    seen = await examined(url, group="doctor-unheard-of", timeout=10.0)
    assert seen["group"].status is Status.PROBLEM
    assert "the group doctor-unheard-of does not exist" in seen["group"].found


async def test_logins(examined, misleading):
    at = f"127.0.0.1:{misleading.server.port}"
    secrets = ("hunter2", "hunter3", "hunter4")
    seen = await examined(f"kafka://chief:hunter2@{at}", secrets=secrets, timeout=10.0)
    assert exit_code(seen.steps) == 0, seen
    assert "with a login" in seen["login"].found
    seen = await examined(f"kafka://chief:hunter4@{at}", secrets=secrets, timeout=10.0)
    assert seen.last.name == "login"
    assert "authentication failed" in seen.last.found
    url = f"kafka://chief:hunter2@{at}?sasl_mechanism=SCRAM-SHA-512"
    seen = await examined(url, secrets=secrets, timeout=10.0)
    assert "does not support the SASL mechanism" in seen.last.found
    seen = await examined(f"kafka://{at}", timeout=10.0)
    assert seen.last.name == "login"
    assert "requires a login" in seen.last.advice


async def test_user_without_permissions_is_examined_as_far_as_possible(examined, misleading):
    seen = await examined(
        f"kafka://shy:hunter3@127.0.0.1:{misleading.server.port}",
        group="g",
        secrets=("hunter3",),
        timeout=10.0,
    )
    assert seen.names == [*STEPS, "group"]
    assert seen["group"].status is Status.UNKNOWN
    assert "no permission for the group g" in seen["group"].found
    assert exit_code(seen.steps) == 2


async def test_tls_and_logins_on_a_listener_without_them(examined, shared_kafka):
    seen = await examined(f"kafkas://{shared_kafka.bootstrap_servers}", timeout=10.0)
    assert seen.last.name == "TLS"
    assert "answers, but not over TLS" in seen.last.found
    assert "kafka://" in seen.last.advice
    seen = await examined(f"kafka://me:hunter2@{shared_kafka.bootstrap_servers}", timeout=10.0)
    assert "does not accept a login" in seen.last.found


@pytest.mark.soak
async def test_listeners_of_a_cluster_with_a_dead_broker(examined, kafka_cluster):
    url = f"kafka://{kafka_cluster.bootstrap_servers}"
    seen = await examined(url, timeout=20.0)
    assert exit_code(seen.steps) == 0, seen
    assert "3 brokers answer where advertised" in seen["listeners"].found
    dead = kafka_cluster.brokers[1]
    dead.kill()
    async with asyncio.timeout(60):
        while len((await examined(url, timeout=20.0))["reply"].data["brokers"]) > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
