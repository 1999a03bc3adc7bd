"""What the status page shows, as data."""

import asyncio
import itertools
import json
import math

import pytest

from resilient_io import RetryPolicy
from resilient_io.health import Cause, Dependency, HealthMonitor, HealthSettings
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer, TopicPartition
from resilient_io.redis import ResilientRedis
from resilient_io.serve._status import CONTENT_SECURITY_POLICY, status_of, status_page

MINUTE = 60.0
CALM = 61.0
"""Seconds after which a fall is not held against a dependency any more."""


@pytest.fixture
async def redis():
    await asyncio.sleep(1000.0)  # the loop's time says nothing about this service
    return Dependency("redis")


@pytest.fixture
async def monitor(redis):
    async with HealthMonitor(redis) as made:
        yield made


def go_down(dependency):
    dependency.failed(Cause.REFUSED, "nobody listens", definite=True)


def timeline_of(monitor):
    (row,) = status_of(monitor)["dependencies"]
    return [
        (span["state"], round(span["ago"], 3), round(span["lasted"], 3)) for span in row["timeline"]
    ]


async def test_each_dependency_says_what_it_is_to_the_service(monitor):
    shared, optional = Dependency("kafka"), Dependency("cache")
    async with HealthMonitor(*monitor.critical, shared=[shared], optional=[optional]) as all_three:
        rows = status_of(all_three)["dependencies"]
    roles = [(row["name"], row["role"]) for row in rows]
    assert roles == [("redis", "critical"), ("kafka", "shared"), ("cache", "optional")]


async def test_the_verdict_is_the_monitors_with_its_reasons(monitor, redis):
    redis.succeeded(0.002)
    status = status_of(monitor, name="orders")
    assert (status["service"], status["state"]) == ("orders", "up")
    assert (status["ready"], status["started"], status["alive"]) == (True, True, True)
    assert (status["because"], status["stuck"], status["draining"]) == ([], [], False)
    go_down(redis)
    status = status_of(monitor)
    assert (status["ready"], status["alive"], status["state"]) == (False, True, "down")
    assert status["because"] == ["redis is down: nobody listens"]
    (row,) = status["dependencies"]
    assert (row["cause"], row["detail"], row["latency"]) == ("refused", "nobody listens", 0.002)
    monitor.drain()
    assert status_of(monitor)["draining"] is True


async def test_what_is_stuck_is_told_with_its_reason(redis):
    class Stuck:
        def liveness_failure(self):
            return "its supervisor died"

    async with HealthMonitor(redis, liveness=[Stuck()]) as monitor:
        status = status_of(monitor)
    assert (status["alive"], status["stuck"]) == (False, ["its supervisor died"])


async def test_what_nobody_watched_yet_has_no_past(monitor):
    assert timeline_of(monitor) == []


async def test_the_timeline_tells_every_state_and_how_long_it_lasted(monitor, redis):
    redis.refused(Cause.READ_ONLY)  # the first word of it; unknown until an answer
    await asyncio.sleep(1.0)
    redis.succeeded()
    redis.accepted()
    await asyncio.sleep(10 * MINUTE)
    go_down(redis)
    await asyncio.sleep(5.0)
    redis.succeeded()
    await asyncio.sleep(2 * MINUTE)
    (row,) = status_of(monitor)["dependencies"]
    spans = row["timeline"]
    assert [span["state"] for span in spans][-3:] == ["up", "down", "up"]
    assert [span["lasted"] for span in spans][-3:] == pytest.approx([600.0, 5.0, 120.0])
    assert [span["ago"] for span in spans][-3:] == pytest.approx([725.0, 125.0, 120.0])
    assert (spans[-2]["cause"], spans[-2]["detail"]) == ("refused", "nobody listens")
    assert spans[-1]["cause"] is None


async def test_the_timeline_has_no_gaps(monitor, redis):
    for turn in range(10):
        go_down(redis) if turn % 2 else redis.succeeded()
        await asyncio.sleep(CALM + turn)
    spans = timeline_of(monitor)
    assert len(spans) > 5
    for (_, ago, lasted), (_, next_ago, _) in itertools.pairwise(spans):
        assert ago - lasted == pytest.approx(next_ago)
    assert spans[-1][1] == spans[-1][2]


async def test_what_ended_over_an_hour_ago_is_left_out_and_what_still_lasts_is_not_cut(
    monitor, redis
):
    redis.succeeded()
    go_down(redis)
    redis.succeeded()
    await asyncio.sleep(3 * 60 * MINUTE)
    assert timeline_of(monitor) == [("up", 10800.0, 10800.0)]


async def test_a_cause_that_came_later_is_told_with_the_state_that_lasts(monitor, redis):
    go_down(redis)
    await asyncio.sleep(1.0)
    redis.failed(Cause.DNS, "no such name", definite=True)
    (row,) = status_of(monitor)["dependencies"]
    assert row["timeline"][-1]["cause"] == row["cause"] == "DNS"


async def test_a_history_that_is_full_begins_with_the_state_before_its_oldest_change():
    await asyncio.sleep(1000.0)
    redis = Dependency("redis", settings=HealthSettings(history=2))
    async with HealthMonitor(redis) as monitor:
        for _ in range(5):
            redis.succeeded()
            await asyncio.sleep(CALM)
            go_down(redis)
            await asyncio.sleep(1.0)
        assert timeline_of(monitor) == [
            ("down", CALM + 2.0, 1.0),
            ("up", CALM + 1.0, CALM),
            ("down", 1.0, 1.0),
        ]


async def test_clients_are_shown_with_their_counters_and_never_asked_over_the_network(monitor):
    redis = ResilientRedis(host="cache.example", password="s3cret")
    producer = ResilientKafkaProducer(bootstrap_servers="kafka.example:9092")
    consumer = ResilientKafkaConsumer(
        "orders", bootstrap_servers="kafka.example:9092", group_id="billing"
    )
    status = status_of(monitor, [redis, producer, consumer])
    kinds = [(client["kind"], client["name"]) for client in status["clients"]]
    assert kinds == [
        ("redis", "redis cache.example:6379/0"),
        ("producer", "kafka kafka.example:9092"),
        ("consumer", "kafka kafka.example:9092"),
    ]
    counters = [client["stats"] for client in status["clients"]]
    assert (counters[0]["replies"], counters[0]["latency"]["p99"]) == (0, None)
    assert not {"latency_counts", "latency_total"} & set(counters[0])
    assert (counters[1]["delivered"], counters[1]["ended"]) == (0, {})
    assert counters[2]["records"] == 0
    assert (status["clients"][2]["group"], status["clients"][2]["run"]) == ("billing", None)
    assert "group" not in status["clients"][0]
    assert "s3cret" not in json.dumps(status)
    await redis.aclose()


async def test_lag_is_told_by_partition_in_order(monitor):
    class Behind(ResilientKafkaConsumer):
        def known_lag(self):
            return {
                TopicPartition("orders", 10): 3,
                TopicPartition("orders", 2): 0,
                TopicPartition("audit", 0): 12,
            }

    grouped = Behind("orders", group_id="billing")
    alone = Behind("orders", bootstrap_servers="kafka.example:9092")
    rows = status_of(monitor, [grouped, alone])["lag"]
    told = [tuple(row.values()) for row in rows]
    assert told[:3] == [
        ("billing", "audit", 0, 12),
        ("billing", "orders", 2, 0),
        ("billing", "orders", 10, 3),
    ]
    assert {row["client"] for row in rows[3:]} == {"kafka kafka.example:9092"}


async def test_numbers_that_json_does_not_know_become_null(monitor, redis):
    client = ResilientRedis(policy=RetryPolicy(retry_budget=math.inf))
    redis.note("strange", number=math.nan, thing=Cause.DNS, path=[b"raw"])
    status = status_of(monitor, [client])
    said = json.loads(json.dumps(status, allow_nan=False))
    assert said["clients"][0]["stats"]["budget"] is None
    assert said["events"][-1]["number"] is None
    assert said["events"][-1]["path"] == ["b'raw'"]
    await client.aclose()


async def test_only_the_latest_events_are_shown_oldest_first(monitor, redis):
    for number in range(80):
        redis.note(f"event {number}", number=number)
    await asyncio.sleep(2.0)
    events = status_of(monitor)["events"]
    assert [event["number"] for event in events] == list(range(30, 80))
    assert {event["ago"] for event in events} == {2.0}


async def test_the_loop_s_stalls_are_told_while_somebody_is_watched(monitor, redis):
    async def probe(_):
        return 0.001

    assert status_of(monitor)["loop_lag"] is None
    attachment = redis.start(probe, last_reply=lambda: -math.inf)
    assert set(status_of(monitor)["loop_lag"]) == {"current", "worst", "stalled"}
    await attachment.detach()


def test_the_page_is_one_file_that_takes_nothing_from_elsewhere():
    page = status_page()
    assert page.startswith("<!doctype html>")
    said = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    for outside in ("http:", "https:", 'src="', "@import", "url("):
        assert outside not in said, outside
    for unsafe in ("insertAdjacentHTML", "outerHTML", "document.write", "eval(", ".innerHTML ="):
        assert unsafe not in page, unsafe


def test_a_browser_may_ask_nobody_but_the_service():
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"


async def test_of_very_many_partitions_the_most_behind_have_rows_and_the_others_share_one(monitor):
    class Wide(ResilientKafkaConsumer):
        def known_lag(self):
            return {TopicPartition("orders", number): number for number in range(1_000)}

    rows = status_of(monitor, [Wide("orders", group_id="billing")])["lag"]
    assert len(rows) == 201
    assert [row["partition"] for row in rows] == [*range(800, 1_000), "others"]
    assert rows[-1]["partitions"] == 800
    assert sum(row["lag"] for row in rows) == sum(range(1_000))
