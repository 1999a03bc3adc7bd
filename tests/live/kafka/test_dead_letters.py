"""Dead letters are read, and replayed once each, however often a replay is interrupted."""

import asyncio
import contextlib
import json
import random
import re
from datetime import UTC, datetime, timedelta

import pytest

from resilient_io.cli.app import run
from resilient_io.errors import ConfigurationError
from resilient_io.kafka import (
    DeadLetterFilter,
    HandlerPolicy,
    ResilientKafkaProducer,
    read_dead_letters,
    replay_dead_letters,
)

RECORDS = 60
EARLY = 1_700_000_000_000  # milliseconds since 1970


@pytest.fixture
async def dead(shared_kafka, name, consumer_of):
    """Return the topic of the dead letters of a topic of which every record has failed."""
    topic = f"{name}.dead"
    await shared_kafka.create_topic(name, partitions=2)
    await shared_kafka.create_topic(topic, partitions=2)
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        for number in range(RECORDS):
            await producer.send(
                name,
                b"%d" % number,
                key=b"k%d" % (number % 5),
                partition=number % 2,
                timestamp_ms=EARLY + number,
                headers=[("trace", b"t%d" % number)],
            )

    async def handle(record):
        raise (ValueError if int(record.value) % 3 else KeyError)("no such customer")

    async with consumer_of(shared_kafka, name) as consumer:
        policy = HandlerPolicy(attempts=1)
        running = asyncio.create_task(
            consumer.run(handle, handler_policy=policy, dead_letter=topic)
        )
        async with asyncio.timeout(30):
            while (consumer.run_stats() is None) or consumer.run_stats().dead_lettered < RECORDS:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    await running
    return topic


@pytest.fixture
def url(shared_kafka):
    return f"kafka://{shared_kafka.bootstrap_servers}"


async def replays_in(read_all, kafka, topic):
    """Return the records of a topic after the first ones, as consumers of transactions see them."""
    records = await read_all(kafka, topic, "read_committed")
    return [record for record in records if dict(record.headers).get("x-replays")]


async def test_a_replay_sends_each_dead_letter_as_it_was(dead, url, name, shared_kafka, read_all):
    report = await replay_dead_letters(url, dead, rate=10_000)
    assert (report.replayed, report.not_selected) == (RECORDS, 0)
    found = await replays_in(read_all, shared_kafka, name)
    assert sorted(int(record.value) for record in found) == list(range(RECORDS))
    for record in found:
        number = int(record.value)
        assert record.key == b"k%d" % (number % 5)
        assert record.partition == number % 2
        assert record.timestamp == EARLY + number
        assert dict(record.headers) == {"trace": b"t%d" % number, "x-replays": b"1"}
    assert (await replay_dead_letters(url, dead)).replayed == 0


async def test_a_selection_is_replayed_and_the_rest_later(dead, url, name, shared_kafka, read_all):
    chosen = DeadLetterFilter(error="KeyError", key="k0")
    dry = await replay_dead_letters(url, dead, select=chosen, dry_run=True)
    expected = [number for number in range(RECORDS) if not number % 15]
    assert dry.replayed == len(expected)
    assert not await replays_in(read_all, shared_kafka, name)
    report = await replay_dead_letters(url, dead, select=chosen, rate=10_000)
    assert report.replayed == len(expected)
    found = await replays_in(read_all, shared_kafka, name)
    assert sorted(int(record.value) for record in found) == expected

    report = await replay_dead_letters(url, dead, rate=10_000)
    assert report.replayed == RECORDS - len(expected), "those that are marked are not sent again"
    found = await replays_in(read_all, shared_kafka, name)
    assert sorted(int(record.value) for record in found) == list(range(RECORDS))


async def test_interrupted_replays_send_each_dead_letter_once(
    dead, url, name, shared_kafka, read_all
):
    rng, replayed, interruptions = random.Random(5), 0, 0
    while replayed < RECORDS:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.2, 1.5)):
                await replay_dead_letters(url, dead, rate=200)
        found = await replays_in(read_all, shared_kafka, name)
        replayed = len(found)
        interruptions += 1
        assert interruptions < 60
    assert sorted(int(record.value) for record in found) == list(range(RECORDS))


async def test_a_record_that_failed_too_often_is_left(url, name, shared_kafka):
    await shared_kafka.create_topic(name)
    origin = [
        ("x-original-topic", b"orders"),
        ("x-original-partition", b"0"),
        ("x-original-offset", b"7"),
        ("x-original-timestamp", b"1"),
        ("x-replays", b"3"),
    ]
    async with ResilientKafkaProducer(shared_kafka.bootstrap_servers) as producer:
        await producer.send_and_wait(name, b"again", headers=origin)
        await producer.send_and_wait(name, b"of another program")
    report = await replay_dead_letters(url, name)
    assert (report.replayed, report.over_limit, report.without_origin) == (0, 1, 1)


async def test_dead_letters_are_read_by_time_and_topic(dead, url, name):
    now = datetime.now(UTC)
    recent = DeadLetterFilter(since=now - timedelta(minutes=5), topic=name)
    async with contextlib.aclosing(read_dead_letters(url, dead, select=recent)) as letters:
        found = [letter async for letter in letters]
    assert len(found) == RECORDS
    assert {(each.topic, each.attempts, each.replays) for each in found} == {(name, 1, 0)}
    assert {each.error for each in found} == {"builtins.KeyError", "builtins.ValueError"}
    old = DeadLetterFilter(until=now - timedelta(minutes=5))
    async with contextlib.aclosing(read_dead_letters(url, dead, select=old)) as letters:
        assert [letter async for letter in letters] == []


async def test_bad_input_is_named():
    with pytest.raises(ConfigurationError, match=re.escape("has no time zone")):
        DeadLetterFilter(since=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="name a Kafka cluster"):
        await replay_dead_letters("redis://one:1", "orders.dead")


async def test_a_topic_that_does_not_exist_is_named_and_not_created(url, name, shared_kafka):
    with pytest.raises(ConfigurationError, match=f"'{name}' does not exist in kafka 127.0.0.1"):
        async for _ in read_dead_letters(url, name):
            pass
    with pytest.raises(ConfigurationError, match="use the name of a topic of dead letters"):
        await replay_dead_letters(url, name)
    assert name not in await shared_kafka.topics()


async def test_an_outage_is_one_error_without_a_count(capsys):
    arguments = ("dlq", "list", "orders.dead", "--url", "kafka://127.0.0.1:1")
    code, out = await command(capsys, *arguments)
    assert (code, out) == (1, "")


async def command(capsys, *arguments):
    """Run a command in a thread, because it has its own loop and signal handlers."""
    code = await asyncio.to_thread(run_without_signals, arguments)
    return code, capsys.readouterr().out


def run_without_signals(arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resilient_io.cli.terminal._SIGNALS", ())
        return run(arguments)


async def test_commands_list_show_and_replay(dead, url, name, shared_kafka, read_all, capsys):
    at = ("--url", url)
    code, out = await command(capsys, "dlq", "list", dead, *at, "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert {(row["error"], row["count"]) for row in rows} == {
        ("builtins.KeyError", 20),
        ("builtins.ValueError", 40),
    }
    code, out = await command(capsys, "dlq", "show", dead, *at, "--key", "k1", "--limit", "2")
    assert code == 0
    assert out.count("no such customer") == 2
    assert "x-error" not in out
    code, out = await command(capsys, "dlq", "replay", dead, *at, "--dry-run")
    assert (
        out
        == "60 would be replayed, 0 not selected, 0 replayed 3 times before, 0 without an origin\n"
    )
    code, out = await command(
        capsys, "dlq", "replay", dead, *at, "--rate", "9999", "--error", "Key"
    )
    assert out.startswith("20 replayed, 40 not selected")
    assert len(await replays_in(read_all, shared_kafka, name)) == 20
    code, _ = await command(capsys, "dlq", "list", dead, "--url", "redis://one:1")
    assert code == 2
