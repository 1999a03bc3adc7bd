"""Brokers can be killed, frozen and restarted with their data, and never outlive the tests."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
)

from resilient_io.testing import (
    KafkaCluster,
    KafkaServer,
    ServerDidNotStartError,
    ServerError,
    embedded_kafka,
    find_apache_kafka,
)
from resilient_io.testing.kafka.distribution import ClusterMember, copy_format
from resilient_io.testing.kafka.wire import BrokerQueries
from tests.live.kafka.tokens import Tokens, login, oauth, unsigned


def lives(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def write(servers, topic, *values, **options):
    producer = AIOKafkaProducer(bootstrap_servers=servers, **options)
    try:
        await producer.start()
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def read(servers, topic, count, **options):
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, auto_offset_reset="earliest", **options
    )
    try:
        await consumer.start()
        async with asyncio.timeout(30):
            got = [(await consumer.getone()).value for _ in range(count)]
        if consumer._group_id is not None:
            await consumer.commit()
    finally:
        await consumer.stop()
    return got


async def test_started_broker_supports_groups_and_idempotence_immediately(shared_kafka):
    await shared_kafka.create_topic("at-once")
    servers = shared_kafka.bootstrap_servers
    await write(servers, "at-once", b"1", b"2", enable_idempotence=True)
    assert await read(servers, "at-once", 2, group_id="at-once") == [b"1", b"2"]
    assert await shared_kafka.coordinator_of("at-once") == shared_kafka.node_id


async def test_killed_broker_refuses_and_restarts_on_its_port_with_its_data(
    kafka_server,
):
    await kafka_server.create_topic("kept")
    servers, pid = kafka_server.bootstrap_servers, kafka_server.pid
    await write(servers, "kept", b"1", b"2", b"3", acks="all")
    await read(servers, "kept", 1, group_id="kept", max_poll_records=1)

    kafka_server.kill()
    kafka_server.kill()
    assert not kafka_server.running
    assert not lives(pid)
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection(kafka_server.host, kafka_server.port)
    await kafka_server.restart()
    await kafka_server.start()

    assert kafka_server.bootstrap_servers == servers
    assert await kafka_server.topics() == ["kept"]
    assert await read(servers, "kept", 3) == [b"1", b"2", b"3"]
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id="kept")
    await consumer.start()
    assert await consumer.committed(TopicPartition("kept", 0)) == 1
    await consumer.stop()


async def test_frozen_broker_accepts_but_does_not_answer_and_can_be_terminated(
    kafka_server,
):
    await kafka_server.create_topic("kept")
    await write(kafka_server.bootstrap_servers, "kept", b"1")
    kafka_server.freeze()
    assert kafka_server.running
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await kafka_server.topics()
    kafka_server.thaw()
    assert await kafka_server.topics() == ["kept"]

    kafka_server.freeze()
    await kafka_server.terminate()
    assert not kafka_server.running
    await kafka_server.start()
    assert await read(kafka_server.bootstrap_servers, "kept", 1) == [b"1"]


async def test_credentials_are_required_and_not_in_a_repr():
    words = {"alice": 'a "secret" \\of ours', "bob": "builder"}
    superusers = ["alice", "carol"]
    async with KafkaServer(users=words, scram=True, oauth=True, superusers=superusers) as server:
        await server.create_topic("private")
        servers = server.bootstrap_servers
        alice = login("PLAIN", words["alice"])
        await write(servers, "private", b"1", **alice)
        assert await read(servers, "private", 1, **alice) == [b"1"]
        # The address that bypasses authentication.
        assert await read(server.direct_servers, "private", 1) == [b"1"]

        await write(servers, "private", b"2", **oauth(Tokens(lambda: unsigned(600, "carol"))))
        await write(servers, "private", b"3", **login("SCRAM-SHA-512", words["alice"]))

        with pytest.raises((AuthenticationFailedError, KafkaConnectionError)):
            await write(servers, "private", b"4", **login("PLAIN", "guessed"))
        with pytest.raises(KafkaConnectionError):
            await write(servers, "private", b"4")
        with pytest.raises(TopicAuthorizationFailedError):
            await write(servers, "private", b"4", **login("PLAIN", words["bob"], "bob"))

        assert await read(server.direct_servers, "private", 3) == [b"1", b"2", b"3"]
        assert "secret" not in repr(server)
        assert "secret" not in repr(vars(server)["_member"])


async def test_options_become_lines_of_the_configuration():
    options = {"message.max.bytes": 1000, "default.replication.factor": 1}
    async with KafkaServer(options=options) as server:
        await server.create_topic("small", partitions=2)
        with pytest.raises(MessageSizeTooLargeError):
            await write(server.bootstrap_servers, "small", b"x" * 2000)


async def test_topics_are_created_and_deleted(shared_kafka):
    await shared_kafka.create_topic(
        "made", partitions=3, config={"max.message.bytes": "1000", "retention.ms": "-1"}
    )
    assert "made" in await shared_kafka.topics()
    assert await shared_kafka.leader_of("made", 2) == shared_kafka.node_id
    assert await shared_kafka.in_sync("made") == [shared_kafka.node_id]
    with pytest.raises(MessageSizeTooLargeError):
        await write(shared_kafka.bootstrap_servers, "made", b"x" * 2000)
    with pytest.raises(LookupError, match="does not have a partition 3"):
        await shared_kafka.leader_of("made", 3)
    with pytest.raises(ServerError, match="exists"):
        await shared_kafka.create_topic("made")
    with pytest.raises(ServerError, match="code 40"):
        await shared_kafka.create_topic("unmade", config={"retention.ms": "soon"})
    await shared_kafka.delete_topic("made")
    assert "made" not in await shared_kafka.topics()
    with pytest.raises(ServerError, match="unknown topic"):
        await shared_kafka.delete_topic("made")


async def test_start_error_contains_the_log(shared_kafka):
    server = KafkaServer(options={"message.max.bytes": "many"})
    with pytest.raises(ServerDidNotStartError, match="Invalid value many"):
        await server.start()
    await server.aclose()
    assert not server.folder.exists()


async def test_port_taken_by_another_process_is_replaced(shared_kafka):
    server = KafkaServer()
    server.port = shared_kafka.port
    async with server:
        assert server.port != shared_kafka.port
        assert await server.topics() == []


async def test_cancelling_the_start_leaves_no_process():
    find_apache_kafka()
    server = KafkaServer()
    starting = asyncio.create_task(server.start())
    while not server.running:  # noqa: ASYNC110 - without an event
        await asyncio.sleep(0)
    pid = server.pid
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not lives(pid)
    await server.aclose()
    assert not server.folder.exists()


async def test_kafkas_tool_formats_the_storage_without_a_prepared_one(shared_kafka, tmp_path):
    kafka = shared_kafka._kafka
    (tmp_path / "libs").symlink_to(kafka.libs)
    bare = type(kafka)(tmp_path / "libs", kafka.java, "environment")
    server = KafkaServer(kafka=bare)
    await server._prepare()  # the tool has to run
    assert "Formatting metadata directory" in server.log
    assert (server.folder / "data" / "meta.properties").exists()
    await server.aclose()
    # From now on the output of the tool is copied.
    member = ClusterMember(node=2, cluster_id="ours", voters={})
    assert copy_format(bare.libs, tmp_path / "data", member)
    assert "node.id=2\n" in (tmp_path / "data" / "meta.properties").read_text()


async def test_server_is_killed_with_the_process_that_started_it(shared_kafka):
    script = (
        "import asyncio, sys\n"
        "from resilient_io.testing import KafkaServer\n"
        "async def main():\n"
        "    server = KafkaServer()\n"
        "    await server.start()\n"
        "    server.freeze()\n"
        "    print(server.pid, server.folder, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        pid, folder = child.stdout.readline().split()
        assert lives(int(pid))
        os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while lives(int(pid)) or Path(folder.decode()).exists():  # noqa: ASYNC110 - as it says
            await asyncio.sleep(0.01)


async def test_cluster_works_without_a_leader_and_accepts_it_back(kafka_cluster):
    cluster = kafka_cluster
    await cluster.create_topic("led", partitions=2)
    await write(cluster.bootstrap_servers, "led", b"1", acks="all")
    leader = cluster.broker(await cluster.leader_of("led"))
    leader.kill()
    assert not cluster.running
    async with asyncio.timeout(30):
        while await cluster.leader_of("led") in (leader.node_id, -1):  # noqa: ASYNC110 - as it says
            await asyncio.sleep(0.05)
    await write(cluster.bootstrap_servers, "led", b"2", acks="all")
    assert leader.node_id not in await cluster.in_sync("led")

    await leader.start()
    await cluster.until_in_sync("led")
    assert cluster.running
    assert await cluster.in_sync("led") == [1, 2, 3]
    got = await read(cluster.bootstrap_servers, "led", 2, isolation_level="read_committed")
    assert sorted(got) == [b"1", b"2"]
    # All brokers agree.
    for broker in cluster.brokers:
        [queries] = broker._queries
        assert (await queries.metadata(["led"])).topics.keys() == {"led"}
    with pytest.raises(LookupError, match="does not have a broker with the id 9"):
        cluster.broker(9)


@pytest.mark.soak
async def test_killed_cluster_restarts_with_its_data(kafka_cluster):
    await kafka_cluster.create_topic("kept", partitions=2)
    await write(kafka_cluster.bootstrap_servers, "kept", b"1", b"2", acks="all")
    await kafka_cluster.restart()
    assert sorted(await read(kafka_cluster.bootstrap_servers, "kept", 2)) == [b"1", b"2"]
    kafka_cluster.freeze()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await kafka_cluster.topics()
    kafka_cluster.thaw()
    assert await kafka_cluster.topics() == ["kept"]


async def test_cluster_with_a_broker_that_does_not_start_leaves_no_process():
    cluster = KafkaCluster()
    cluster.brokers[1]._options["message.max.bytes"] = "many"
    with pytest.raises(ServerDidNotStartError, match="Invalid value many"):
        await cluster.start()
    assert not any(broker.running for broker in cluster.brokers)
    await cluster.aclose()
    assert not any(broker.folder.exists() for broker in cluster.brokers)


def test_cluster_needs_three_brokers():
    with pytest.raises(ValueError, match="use KafkaServer"):
        KafkaCluster(size=1)


async def test_stand_in_has_the_same_methods_but_keeps_no_data():
    async with embedded_kafka() as server:
        await server.create_topic("t", partitions=2)
        await write(server.bootstrap_servers, "t", b"1", b"2")
        assert sorted(await read(server.bootstrap_servers, "t", 2)) == [b"1", b"2"]
        assert await server.leader_of("t", 1) == server.node_id
        server.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.topics()
        server.thaw()
        port = server.port
        await server.restart()
        assert server.port == port
        assert await server.topics() == []
        await server.create_topic("again")
        await server.delete_topic("again")
        await server.terminate()
        assert not server.running


async def test_query_of_a_missing_broker_raises_an_os_error():
    server = embedded_kafka()
    with pytest.raises(OSError, match="Connect"):
        await BrokerQueries(server.host, server.port).metadata()
    with pytest.raises(OSError, match="Connect"):
        await server.topics()
    await server.aclose()
