"""Supervised drivers on real brokers and their faults."""

import asyncio
import logging

import pytest
from aiokafka.errors import AuthenticationFailedError

from resilient_io import Cause, HealthSettings, RetryPolicy, State
from resilient_io.kafka import KafkaAuthenticationFailed, KafkaDeadlineExceeded, KafkaUnavailable
from resilient_io.testing import FaultProxy, KafkaServer

PATIENT = RetryPolicy(while_down="wait", deadline=None)
SOON = 30.0


async def _send(supervised, topic, value=b"x"):
    loop = asyncio.get_running_loop()
    instance = await supervised.supervisor.ready(loop.time() + SOON, "send")
    batch = instance.create_batch()
    batch.append(timestamp=None, key=None, value=value)
    return await (await instance.send_batch(batch, topic, partition=0))


async def _until(reached, what):
    try:
        async with asyncio.timeout(SOON):
            while not reached():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"it took over {SOON} s until {what}")


def _own_task(supervised, action):
    """Call the driver as our own clients do: with its log filtered."""
    return asyncio.create_task(action, context=supervised.supervisor.context())


async def test_service_starts_while_kafka_is_down_and_works_once_it_is_up(
    kafka_server, name, supervise, caplog
):
    await kafka_server.create_topic(name)
    kafka_server.kill()
    caplog.set_level(logging.INFO)
    producer = await supervise("producer", kafka_server.bootstrap_servers, policy=PATIENT)
    consumer = await supervise(
        "consumer",
        kafka_server.bootstrap_servers,
        health=producer.health,
        topics=[name],
        group_id=name,
        auto_offset_reset="earliest",
    )
    await _until(lambda: producer.health.state is State.DOWN, "it was down")
    with pytest.raises(KafkaUnavailable, match="refused"):
        await consumer.supervisor.ready(None, "fetch")
    assert producer.supervisor.driver is consumer.supervisor.driver is None
    await kafka_server.start()
    assert (await _send(producer, name)).offset == 0
    instance = await consumer.supervisor.ready(asyncio.get_running_loop().time() + SOON, "fetch")
    async with asyncio.timeout(SOON):
        while not (found := await instance.getmany(timeout_ms=500)):
            pass
    assert [record.value for records in found.values() for record in records] == [b"x"]
    assert len(caplog.records) <= 4, caplog.text


@pytest.mark.parametrize("role", ["producer", "consumer"])
async def test_stopped_broker_is_down_before_a_call_fails(kafka_server, name, supervise, role):
    await kafka_server.create_topic(name)
    options = {"topics": [name], "group_id": name} if role == "consumer" else {}
    seldom = HealthSettings(interval=60.0)  # so that no periodic probe detects it
    client = await supervise(role, kafka_server.bootstrap_servers, settings=seldom, **options)
    await client.supervisor.ready(asyncio.get_running_loop().time() + SOON, "start")
    await _until(lambda: client.health.state is State.UP, "it was up")
    kafka_server.kill()
    await _until(lambda: client.health.state is State.DOWN, "it was down")
    assert client.health.cause is Cause.REFUSED


async def test_wrong_credentials_are_reported_and_tried_rarely(supervise, name, caplog):
    caplog.set_level(logging.INFO)
    async with KafkaServer(users={"service": "right"}) as server:
        login = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_plain_username": "service",
            "sasl_plain_password": "wrong-and-secret",
        }
        bad = await supervise("producer", server.bootstrap_servers, cluster=login)
        with pytest.raises(KafkaAuthenticationFailed) as caught:
            await bad.supervisor.ready(None, "send")
        assert isinstance(caught.value, AuthenticationFailedError)
        assert bad.health.cause is Cause.AUTH
        # A call that would wait for a broker does not wait for a password.
        waiting = await supervise(
            "producer",
            server.bootstrap_servers,
            cluster=login,
            policy=RetryPolicy(while_down="fail"),
            health=bad.health,
        )
        with pytest.raises(KafkaAuthenticationFailed):
            await waiting.supervisor.ready(None, "send")
        await asyncio.sleep(1.0)
        assert bad.supervisor.generation == 0
        assert bad.health.snapshot()["probes"]["failed"] < 10
        logged = [record.getMessage() for record in caplog.records]
        assert len(logged) <= 2, logged
        assert not any("secret" in text for text in (*logged, str(caught.value), repr(bad.target)))
        good = await supervise(
            "producer",
            server.bootstrap_servers,
            cluster=login | {"sasl_plain_password": "right"},
        )
        assert (await _send(good, name)).offset == 0


async def test_missing_credentials_cause_a_hint(supervise):
    async with KafkaServer(users={"service": "right"}) as server:
        plain = await supervise("producer", server.bootstrap_servers)
        with pytest.raises(KafkaUnavailable, match="does it require SASL authentication"):
            await plain.supervisor.ready(None, "send")


@pytest.mark.parametrize("mechanism", ["PLAIN", "OAUTHBEARER"])
async def test_debug_log_of_the_driver_contains_no_credentials(supervise, name, caplog, mechanism):
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(0)
    options = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        **(
            {"sasl_plain_username": "service", "sasl_plain_password": "canary-passw0rd"}
            if mechanism == "PLAIN"
            else {"sasl_oauth_token_provider": tokens}
        ),
    }
    users = {"service": "canary-passw0rd"} if mechanism == "PLAIN" else None
    async with KafkaServer(users=users, oauth=mechanism == "OAUTHBEARER") as server:
        producer = await supervise("producer", server.bootstrap_servers, cluster=options)
        assert (await _send(producer, name)).offset == 0
    secret = "canary-passw0rd" if users else await tokens.token()
    assert producer.target.secrets() == (secret,)
    assert "MetadataRe" in caplog.text  # the other records of aiokafka are kept
    assert secret not in caplog.text
    assert "SaslAuthenticate" not in caplog.text


class Tokens:
    """Raises a number of times, then returns tokens."""

    def __init__(self, failures):
        self.failures = failures
        self.asked = 0

    async def token(self):
        self.asked += 1
        if self.asked <= self.failures:
            raise ValueError("no token: the identity provider said secret-reason")
        header = "eyJhbGciOiJub25lIn0"
        claims = "eyJzdWIiOiJzZXJ2aWNlIiwiaWF0IjoxLCJleHAiOjk5OTk5OTk5OTl9"
        return f"{header}.{claims}."


@pytest.mark.soak(seconds=25)
async def test_token_provider_that_raises_ten_times_needs_no_restart(supervise, name, caplog):
    caplog.set_level(logging.INFO)
    tokens = Tokens(10)
    async with KafkaServer(oauth=True) as server:
        producer = await supervise(
            "producer",
            server.bootstrap_servers,
            policy=PATIENT,
            settings=HealthSettings(reconnect_interval_cap=0.2),
            cluster={
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "OAUTHBEARER",
                "sasl_oauth_token_provider": tokens,
            },
        )
        assert (await _send(producer, name)).offset == 0
        assert tokens.asked > 10
        # Again, on living connections: those are lost, and new ones need tokens.
        tokens.failures = tokens.asked + 10
        server.kill()
        await server.start()
        assert (await _send(producer, name)).offset == 1
        assert tokens.asked > tokens.failures
        assert "secret-reason" not in caplog.text
        assert len(caplog.records) <= 10, caplog.text


@pytest.mark.soak
async def test_supervisor_returns_to_the_bootstrap_servers_when_every_broker_has_a_new_address(
    supervise, name
):
    server = KafkaServer()
    first, second, entrance = (FaultProxy(server.port, protocol="kafka") for _ in range(3))
    async with first, second, entrance:
        server.advertised_port = first.port
        async with server:
            producer = await supervise("producer", f"127.0.0.1:{entrance.port}", policy=PATIENT)
            assert (await _send(producer, name)).offset == 0
            old = producer.supervisor.driver
            server.kill()
            first.refuse()
            server.advertised_port = second.port
            await server.start()
            await _until(lambda: producer.supervisor.generation > 1, "it was replaced")
            assert (await _send(producer, name)).offset == 1
            assert producer.supervisor.driver is not old
            assert "none of its brokers" in str(producer.detached[0][1])


@pytest.mark.soak
async def test_batch_in_flight_on_a_silent_connection_is_sent_again_after_the_outage(
    supervise, name
):
    server = KafkaServer()
    async with FaultProxy(server.port, protocol="kafka") as proxy:
        server.advertised_port = proxy.port
        async with server:
            producer = await supervise("producer", f"127.0.0.1:{proxy.port}", policy=PATIENT)
            await _send(producer, name)
            proxy.stall(new=False)
            proxy.accept_silently()
            sending = _own_task(producer, _send(producer, name))
            await _until(lambda: producer.health.state is State.DOWN, "it was down")
            # The old connections stay silent forever, as behind a firewall that forgot them.
            proxy.accept()
            await _until(lambda: producer.health.state is State.UP, "it was up")
            async with asyncio.timeout(SOON):
                assert (await sending).offset == 1
            assert producer.supervisor.generation == 1


async def test_topic_created_after_the_subscription_is_read_soon(shared_kafka, name, supervise):
    consumer = await supervise(
        "consumer",
        shared_kafka.bootstrap_servers,
        topics=[name],
        group_id=name,
        auto_offset_reset="earliest",
    )
    producer = await supervise("producer", shared_kafka.bootstrap_servers)
    instance = await consumer.supervisor.ready(asyncio.get_running_loop().time() + SOON, "fetch")
    await _until(lambda: instance._coordinator.generation > 0, "it had joined without the topic")
    await _send(producer, name)
    async with asyncio.timeout(SOON):
        while not (found := await instance.getmany(timeout_ms=500)):
            pass
    assert [record.value for records in found.values() for record in records] == [b"x"]


async def test_call_keeps_its_deadline_while_nothing_answers(kafka_server, supervise):
    kafka_server.freeze()
    producer = await supervise("producer", kafka_server.bootstrap_servers, policy=PATIENT)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(KafkaDeadlineExceeded):
        await producer.supervisor.ready(began + 1.0, "send")
    assert loop.time() - began < 1.5
    kafka_server.thaw()


async def _producer_and_consumer_at_work(server, name, supervise):
    """Start a producer and a consumer that work continuously, also during an outage."""
    await server.create_topic(name)
    producer = await supervise("producer", server.bootstrap_servers, policy=PATIENT)
    consumer = await supervise(
        "consumer",
        server.bootstrap_servers,
        health=producer.health,
        policy=PATIENT,
        topics=[name],
        group_id=name,
    )
    sent = []

    async def send():
        while True:
            sent.append(await _send(producer, name))
            await asyncio.sleep(0.05)

    async def fetch():
        while True:
            instance = await consumer.supervisor.ready(None, "fetch")
            await instance.getmany(timeout_ms=200)
            await asyncio.sleep(0.01)

    tasks = [_own_task(producer, send()), _own_task(consumer, fetch())]
    await _until(lambda: len(sent) > 2, "something was sent")
    return producer, consumer, sent, tasks


async def _stop(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize(
    ("fault", "seconds", "most"),
    [
        ("kill", 4.0, 10),
        ("freeze", 4.0, 5),
        pytest.param("freeze", 30.0, 5, marks=pytest.mark.soak(seconds=35)),
    ],
)
async def test_outage_causes_few_log_records(
    kafka_server, name, supervise, caplog, fault, seconds, most
):
    producer, _, sent, tasks = await _producer_and_consumer_at_work(kafka_server, name, supervise)
    caplog.set_level(logging.INFO)
    caplog.clear()
    getattr(kafka_server, fault)()
    await _until(lambda: producer.health.state is State.DOWN, "it was down")
    await asyncio.sleep(seconds)
    if fault == "kill":
        await kafka_server.start()
    else:
        kafka_server.thaw()
    await _until(lambda: producer.health.state is State.UP, "it was up")
    before = len(sent)
    await _until(lambda: len(sent) > before + 5, "sending went on")
    await _stop(tasks)
    assert len(caplog.records) <= most, caplog.text
    assert producer.supervisor.generation == 1
