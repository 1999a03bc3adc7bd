"""The data of the status page."""

import asyncio
import base64
import functools
import hashlib
import itertools
import json
import math
import re

import pytest

from resilient_io import RetryPolicy
from resilient_io.health import (
    Cause,
    Dependency,
    HealthMonitor,
    HealthSettings,
    Topology,
    TopologyServer,
)
from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer, TopicPartition
from resilient_io.redis import ResilientRedis
from resilient_io.serve.status import build_status, content_security_policy, status_page

MINUTE = 60.0
CALM = 61.0
"""Seconds after which an outage no longer makes the next recovery slower."""


@pytest.fixture
async def redis():
    await asyncio.sleep(1000.0)  # the event loop is older than the service
    return Dependency("redis")


@pytest.fixture
async def monitor(redis):
    async with HealthMonitor(redis) as made:
        yield made


def go_down(dependency):
    dependency.failed(Cause.REFUSED, "connection refused", definite=True)


def timeline_of(monitor):
    (row,) = build_status(monitor)["dependencies"]
    return [
        (span["state"], round(span["ago"], 3), round(span["lasted"], 3)) for span in row["timeline"]
    ]


async def test_dependencies_are_shown_with_their_roles(monitor):
    shared, optional = Dependency("kafka"), Dependency("cache")
    async with HealthMonitor(*monitor.critical, shared=[shared], optional=[optional]) as all_three:
        rows = build_status(all_three)["dependencies"]
    roles = [(row["name"], row["role"]) for row in rows]
    assert roles == [("redis", "critical"), ("kafka", "shared"), ("cache", "optional")]


async def test_status_contains_the_state_of_the_monitor_and_its_reasons(monitor, redis):
    redis.succeeded(0.002)
    status = build_status(monitor, name="orders")
    assert (status["service"], status["state"]) == ("orders", "up")
    assert (status["ready"], status["started"], status["alive"]) == (True, True, True)
    assert (status["unready_reasons"], status["liveness_failures"], status["draining"]) == (
        [],
        [],
        False,
    )
    go_down(redis)
    status = build_status(monitor)
    assert (status["ready"], status["alive"], status["state"]) == (False, True, "down")
    assert status["unready_reasons"] == ["redis is down: connection refused"]
    (row,) = status["dependencies"]
    assert (row["cause"], row["detail"], row["latency"]) == ("refused", "connection refused", 0.002)
    monitor.drain()
    assert build_status(monitor)["draining"] is True


async def test_servers_of_a_large_cluster_are_bounded_and_those_that_are_down_come_first(
    monitor, redis
):
    async def answers(_suspicious):
        return 0.001

    servers = [
        TopologyServer(
            address=f"n{number}:1", role="master", state="down" if number == 90 else "up"
        )
        for number in range(100)
    ]
    topology = Topology(servers=tuple(servers), slots=16384, slots_served=16000)
    start = functools.partial(redis.start, answers, last_reply=lambda: -math.inf)
    attachment = start(topology=lambda: topology)
    (row,) = build_status(monitor)["dependencies"]
    shown = row["topology"]["servers"]
    assert (len(shown), row["topology"]["servers_omitted"]) == (60, 40)
    assert [each["address"] for each in shown[:2]] == ["n90:1", "n0:1"]
    await attachment.detach()
    (row,) = build_status(monitor)["dependencies"]
    assert row["topology"] is None


async def test_liveness_failure_is_shown(redis):
    class Stuck:
        def liveness_failure(self):
            return "its supervisor died"

    async with HealthMonitor(redis, liveness=[Stuck()]) as monitor:
        status = build_status(monitor)
    assert (status["alive"], status["liveness_failures"]) == (False, ["its supervisor died"])


async def test_timeline_is_empty_before_the_dependency_is_watched(monitor):
    assert timeline_of(monitor) == []


async def test_timeline_contains_every_state_and_its_duration(monitor, redis):
    redis.refused(Cause.READ_ONLY)  # still unknown: this was not a reply
    await asyncio.sleep(1.0)
    redis.succeeded()
    redis.accepted()
    await asyncio.sleep(10 * MINUTE)
    go_down(redis)
    await asyncio.sleep(5.0)
    redis.succeeded()
    await asyncio.sleep(2 * MINUTE)
    (row,) = build_status(monitor)["dependencies"]
    spans = row["timeline"]
    assert [span["state"] for span in spans][-3:] == ["up", "down", "up"]
    assert [span["lasted"] for span in spans][-3:] == pytest.approx([600.0, 5.0, 120.0])
    assert [span["ago"] for span in spans][-3:] == pytest.approx([725.0, 125.0, 120.0])
    assert (spans[-2]["cause"], spans[-2]["detail"]) == ("refused", "connection refused")
    assert spans[-1]["cause"] is None


async def test_timeline_has_no_gaps(monitor, redis):
    for turn in range(10):
        go_down(redis) if turn % 2 else redis.succeeded()
        await asyncio.sleep(CALM + turn)
    spans = timeline_of(monitor)
    assert len(spans) > 5
    for (_, ago, lasted), (_, next_ago, _) in itertools.pairwise(spans):
        assert ago - lasted == pytest.approx(next_ago)
    assert spans[-1][1] == spans[-1][2]


async def test_timeline_omits_what_ended_over_an_hour_ago_and_keeps_the_current_state_whole(
    monitor, redis
):
    redis.succeeded()
    go_down(redis)
    redis.succeeded()
    await asyncio.sleep(3 * 60 * MINUTE)
    assert timeline_of(monitor) == [("up", 10800.0, 10800.0)]


async def test_timeline_shows_the_latest_cause_of_the_current_state(monitor, redis):
    go_down(redis)
    await asyncio.sleep(1.0)
    redis.failed(Cause.DNS, "no such name", definite=True)
    (row,) = build_status(monitor)["dependencies"]
    assert row["timeline"][-1]["cause"] == row["cause"] == "DNS"


async def test_timeline_of_a_full_history_starts_with_the_state_before_its_oldest_change():
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


async def test_clients_are_shown_with_their_names_and_counters_without_network_access(monitor):
    redis = ResilientRedis(host="cache.example", password="s3cret")
    producer = ResilientKafkaProducer(bootstrap_servers="kafka.example:9092")
    consumer = ResilientKafkaConsumer(
        "orders", bootstrap_servers="kafka.example:9092", group_id="billing"
    )
    status = build_status(monitor, {"cache": redis, "orders out": producer, "orders in": consumer})
    kinds = [(client["kind"], client["name"], client["dependency"]) for client in status["clients"]]
    assert kinds == [
        ("redis", "cache", "redis cache.example:6379/0"),
        ("producer", "orders out", "kafka kafka.example:9092"),
        ("consumer", "orders in", "kafka kafka.example:9092"),
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


async def test_lag_is_shown_by_partition_in_order(monitor):
    class Behind(ResilientKafkaConsumer):
        def known_lag(self):
            return {
                TopicPartition("orders", 10): 3,
                TopicPartition("orders", 2): 0,
                TopicPartition("audit", 0): 12,
            }

    grouped = Behind("orders", group_id="billing")
    alone = Behind("orders", bootstrap_servers="kafka.example:9092")
    rows = build_status(monitor, {"grouped": grouped, "alone": alone})["lag"]
    found = [tuple(row.values()) for row in rows]
    assert found[:3] == [
        ("billing", "audit", 0, 12),
        ("billing", "orders", 2, 0),
        ("billing", "orders", 10, 3),
    ]
    assert {row["client"] for row in rows[3:]} == {"alone"}


async def test_numbers_that_json_cannot_hold_become_null(monitor, redis):
    client = ResilientRedis(policy=RetryPolicy(retry_budget=math.inf))
    redis.note("strange", number=math.nan, thing=Cause.DNS, path=[b"raw"])
    status = build_status(monitor, {"cache": client})
    parsed = json.loads(json.dumps(status, allow_nan=False))
    assert parsed["clients"][0]["stats"]["budget"] is None
    assert parsed["events"][-1]["number"] is None
    assert parsed["events"][-1]["path"] == ["b'raw'"]
    await client.aclose()


async def test_only_the_latest_events_are_shown_oldest_first(monitor, redis):
    for number in range(80):
        redis.note(f"event {number}", number=number)
    await asyncio.sleep(2.0)
    events = build_status(monitor)["events"]
    assert [event["number"] for event in events] == list(range(30, 80))
    assert {event["ago"] for event in events} == {2.0}


async def test_stalls_of_the_event_loop_are_shown_while_a_dependency_is_watched(monitor, redis):
    async def probe(_):
        return 0.001

    assert build_status(monitor)["loop_lag"] is None
    attachment = redis.start(probe, last_reply=lambda: -math.inf)
    assert set(build_status(monitor)["loop_lag"]) == {"current", "worst", "stalled"}
    await attachment.detach()


def test_page_is_one_file_that_loads_nothing_else():
    page = status_page()
    assert page.startswith("<!doctype html>")
    rest = page.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    for outside in ("http:", "https:", 'src="', "@import", "url("):
        assert outside not in rest, outside
    for unsafe in ("insertAdjacentHTML", "outerHTML", "document.write", "eval(", ".innerHTML ="):
        assert unsafe not in page, unsafe


def test_policy_allows_connections_to_the_service_only():
    rules = dict(rule.split(" ", 1) for rule in content_security_policy(status_page()).split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"


async def test_partitions_with_the_least_lag_share_a_row_if_there_are_very_many(monitor):
    class Wide(ResilientKafkaConsumer):
        def known_lag(self):
            return {TopicPartition("orders", number): number for number in range(1_000)}

    rows = build_status(monitor, {"orders": Wide("orders", group_id="billing")})["lag"]
    assert len(rows) == 201
    assert [row["partition"] for row in rows] == [*range(800, 1_000), "others"]
    assert rows[-1]["partitions"] == 800
    assert sum(row["lag"] for row in rows) == sum(range(1_000))


def test_policy_allows_exactly_the_style_and_the_script_of_the_page():
    page = status_page()
    policy = content_security_policy(page)
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
        assert page.count(f"<{tag}") == 1
    # What the policy would block: style attributes and event handlers in the markup.
    assert not re.search(r"<[^>]*\s(style|on[a-z]+)=", page)
    assert 'setAttribute("style"' not in page
