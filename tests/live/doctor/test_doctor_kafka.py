"""The doctor at real Kafka brokers, well and with faults."""

import asyncio
from dataclasses import dataclass

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from resilient_io.doctor import Status, exit_code
from resilient_io.testing import FaultProxy, KafkaServer, free_port

STEPS = ["name", "TCP", "login", "brokers", "listeners", "partitions"]


async def fill(server, topic, counts):
    """Make a topic with so many records in each partition."""
    await server.create_topic(topic, partitions=len(counts))
    async with AIOKafkaProducer(bootstrap_servers=server.bootstrap_servers) as producer:
        for partition, count in enumerate(counts):
            for _ in range(count):
                await producer.send_and_wait(topic, b"x", partition=partition)


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
    told = {
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
                *(f"{name}://{address}" for name, address in told.items()),
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
    """Start consumers of the shared broker, which commit only what they are told to."""
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


async def test_a_cluster_that_is_well_has_no_problem(looked, shared_kafka):
    await shared_kafka.create_topic("doctor-well", partitions=2)
    seen = await looked(
        f"kafka://{shared_kafka.bootstrap_servers}", topics=["doctor-well"], timeout=10.0
    )
    assert seen.names == STEPS
    assert exit_code(seen.steps) == 0, seen
    assert seen["brokers"].found == "1 broker (1), controller 1"
    assert shared_kafka.bootstrap_servers in seen["listeners"].found
    assert seen["partitions"].found == "2 partitions of 1 topic, all led and in sync"


async def test_an_address_that_leads_nowhere_from_here_is_found(looked, misleading):
    """The classic of containers: the bootstrap server answers, and names one that does not."""
    seen = await looked(f"kafka://127.0.0.1:{misleading.ports['NOWHERE']}", timeout=10.0)
    assert seen.names == STEPS
    assert seen["login"].status is Status.OK
    assert seen["listeners"].status is Status.PROBLEM
    assert seen["listeners"].found == (
        f"broker 1 says it is at 127.0.0.1:{misleading.nowhere}: refused"
    )
    assert "advertised.listeners" in seen["listeners"].advice
    assert exit_code(seen.steps) == 1


async def test_a_name_that_only_the_broker_knows_is_found(looked, misleading):
    seen = await looked(f"kafka://127.0.0.1:{misleading.ports['NAMELESS']}", timeout=10.0)
    assert seen["listeners"].status is Status.PROBLEM
    assert seen["listeners"].found == (
        "broker 1 says it is at broker.invalid:9092: there is no such name here"
    )


async def test_two_clusters_that_are_mixed_up_are_found(looked, misleading):
    seen = await looked(f"kafka://127.0.0.1:{misleading.ports['MIXED']}", timeout=10.0)
    assert seen["listeners"].status is Status.PROBLEM
    assert "another cluster answers there" in seen["listeners"].found


async def test_a_broker_that_is_frozen_is_told_within_the_time(looked, misleading, slack):
    misleading.server.freeze()
    try:
        began = asyncio.get_running_loop().time()
        seen = await looked(f"kafka://127.0.0.1:{misleading.ports['NOWHERE']}", timeout=2.0)
        assert asyncio.get_running_loop().time() - began < 2.0 + slack()
    finally:
        misleading.server.thaw()
    assert seen.names == ["name", "TCP", "login"]
    assert seen.last.status is Status.PROBLEM
    assert "answers nothing" in seen.last.found


async def test_a_port_at_which_no_broker_listens(looked):
    seen = await looked(f"kafka://127.0.0.1:{free_port()}")
    assert seen.names == ["name", "TCP"]
    assert seen.last.status is Status.PROBLEM
    assert "refused" in seen.last.found


async def test_a_listener_that_falls_silent_on_the_way(looked, shared_kafka):
    async with FaultProxy(shared_kafka.port, protocol="kafka") as proxy:
        proxy.hold("Metadata", nth=2)  # the first belongs to the login
        seen = await looked(f"kafka://127.0.0.1:{proxy.port}", timeout=2.0)
    assert seen["login"].status is Status.OK
    assert seen.last.name == "brokers"
    assert seen.last.status is Status.BLIND


async def test_one_bootstrap_server_of_two_may_be_away(looked, shared_kafka):
    url = f"kafka://127.0.0.1:{free_port()},{shared_kafka.bootstrap_servers}"
    seen = await looked(url, timeout=10.0)
    assert seen["TCP"].status is Status.NOTE
    assert "refused" in seen["TCP"].found
    assert seen["brokers"].status is Status.OK


async def test_topics_that_are_not_there_are_told_and_not_made(looked, shared_kafka):
    seen = await looked(
        f"kafka://{shared_kafka.bootstrap_servers}", topics=["doctor-missing"], timeout=10.0
    )
    assert seen["partitions"].status is Status.PROBLEM
    assert "there is no topic doctor-missing" in seen["partitions"].found
    assert "doctor-missing" not in await shared_kafka.topics()


async def test_a_group_that_lags_and_then_is_left(looked, shared_kafka, consumer):
    await fill(shared_kafka, "doctor-lag", [4, 6])
    url = f"kafka://{shared_kafka.bootstrap_servers}"
    reader = await consumer("doctor-lag", "doctor-lag")
    for _ in range(3):
        await reader.getone()
    await reader.commit()
    seen = await looked(url, group="doctor-lag", topics=["doctor-lag"], timeout=10.0)
    group = seen["group"]
    assert group.status is Status.NOTE
    assert "lag 7" in group.found
    assert "nothing was committed" in group.found
    assert "g" in group.data["state"].lower() or group.data["state"] == "Stable"
    assert (group.data["members"], group.data["lag"]) == (1, 7)
    assert sum(group.data["lag_by_partition"].values()) == 7
    await reader.stop()
    seen = await looked(url, group="doctor-lag", timeout=10.0)
    assert seen["group"].status is Status.PROBLEM
    assert "nobody reads in doctor-lag, and 7 records wait" in seen["group"].found


async def test_a_group_that_works_is_seen_to_move(looked, shared_kafka, consumer):
    await fill(shared_kafka, "doctor-moves", [400])
    reader = await consumer("doctor-moves", "doctor-moves")
    await reader.getone()
    await reader.commit()

    async def work():
        while True:
            await reader.getone()
            await reader.commit()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(work())
    try:
        seen = await looked(
            f"kafka://{shared_kafka.bootstrap_servers}", group="doctor-moves", timeout=10.0
        )
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert seen["group"].status is Status.OK, seen
    assert seen["group"].data["moved"] > 0
    assert "records committed in 1 s" in seen["group"].found


async def test_a_group_that_keeps_up_and_one_that_nobody_knows(looked, shared_kafka, consumer):
    await fill(shared_kafka, "doctor-done", [2])
    url = f"kafka://{shared_kafka.bootstrap_servers}"
    reader = await consumer("doctor-done", "doctor-done")
    for _ in range(2):
        await reader.getone()
    await reader.commit()
    seen = await looked(url, group="doctor-done", timeout=10.0)
    assert seen["group"].found == "doctor-done is stable, 1 member; no lag"
    seen = await looked(url, group="doctor-unheard-of", timeout=10.0)
    assert seen["group"].status is Status.PROBLEM
    assert "nobody has ever used the group doctor-unheard-of" in seen["group"].found


async def test_logins_and_permissions(looked, misleading):
    at = f"127.0.0.1:{misleading.server.port}"
    secrets = ("hunter2", "hunter3", "hunter4")
    seen = await looked(f"kafka://chief:hunter2@{at}", secrets=secrets, timeout=10.0)
    assert exit_code(seen.steps) == 0, seen
    assert "with a login" in seen["login"].found
    seen = await looked(f"kafka://chief:hunter4@{at}", secrets=secrets, timeout=10.0)
    assert seen.last.name == "login"
    assert "does not let us in" in seen.last.found
    url = f"kafka://chief:hunter2@{at}?sasl_mechanism=SCRAM-SHA-512"
    seen = await looked(url, secrets=secrets, timeout=10.0)
    assert "does not know the mechanism" in seen.last.found
    seen = await looked(f"kafka://{at}", timeout=10.0)
    assert seen.last.name == "login"
    assert "wants a login" in seen.last.advice


async def test_a_user_who_may_not_ask_leaves_steps_blind_and_the_look_goes_on(looked, misleading):
    seen = await looked(
        f"kafka://shy:hunter3@127.0.0.1:{misleading.server.port}",
        group="g",
        topics=["t"],
        secrets=("hunter3",),
        timeout=10.0,
    )
    assert seen.names == [*STEPS, "group"]
    assert seen["partitions"].status is Status.BLIND
    assert "no permission for topic t" in seen["partitions"].found
    assert seen["group"].status is Status.BLIND
    assert "no permission for the group g" in seen["group"].found
    assert exit_code(seen.steps) == 2


async def test_tls_and_logins_where_there_are_none(looked, shared_kafka):
    seen = await looked(f"kafkas://{shared_kafka.bootstrap_servers}", timeout=10.0)
    assert seen.last.name == "TLS"
    assert "answers, but not in TLS" in seen.last.found
    assert "kafka://" in seen.last.advice
    seen = await looked(f"kafka://me:hunter2@{shared_kafka.bootstrap_servers}", timeout=10.0)
    assert "takes no login" in seen.last.found


@pytest.mark.soak
async def test_a_broker_that_dies_leaves_copies_behind(looked, kafka_cluster):
    await kafka_cluster.create_topic("doctor-three", partitions=3)
    await kafka_cluster.create_topic("doctor-one", replicas=1)
    await kafka_cluster.until_in_sync("doctor-three")
    url = f"kafka://{kafka_cluster.bootstrap_servers}"
    seen = await looked(url, timeout=20.0)
    assert exit_code(seen.steps) == 0, seen
    assert "3 brokers answer where advertised" in seen["listeners"].found
    assert "topics with one copy only: doctor-one" in seen["partitions"].found
    dead = kafka_cluster.brokers[1]
    dead.kill()
    async with asyncio.timeout(60):
        while dead.node_id in await kafka_cluster.in_sync("doctor-three"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    seen = await looked(url, topics=["doctor-three"], timeout=20.0)
    assert seen["brokers"].status is Status.PROBLEM
    assert f"broker {dead.node_id} is not there" in seen["brokers"].found
    assert seen["partitions"].status is Status.PROBLEM
    assert "3 partitions with copies that are behind" in seen["partitions"].found
    assert f"broker {dead.node_id}:" in seen["partitions"].advice
