"""The dependencies of a service together."""

import asyncio
import json

import pytest

from resilient_io import ResilientRedis
from resilient_io.errors import Closed, ConfigurationError, DeadlineExceeded
from resilient_io.health import Cause, Dependency, HealthMonitor, State

UP, DOWN, DEGRADED, UNKNOWN = State.UP, State.DOWN, State.DEGRADED, State.UNKNOWN


@pytest.fixture
def redis():
    return Dependency("redis")


@pytest.fixture
def cache():
    return Dependency("cache")


@pytest.fixture
async def monitor(redis, cache):
    async with HealthMonitor(redis, optional=[cache]) as made:
        yield made


def put(dependency, state):
    if state is DOWN:
        dependency.failed(Cause.REFUSED, definite=True)
    elif state is not UNKNOWN:
        dependency.succeeded()
        if state is DEGRADED:
            dependency.refused(Cause.READ_ONLY)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("critical", "optional", "state", "ready"),
    [
        (UP, UP, UP, True),
        (UP, UNKNOWN, UP, True),
        (UP, DEGRADED, DEGRADED, True),
        (UP, DOWN, DEGRADED, True),
        (DEGRADED, UP, DEGRADED, True),
        (UNKNOWN, UP, UNKNOWN, False),
        (UNKNOWN, DOWN, UNKNOWN, False),
        (DOWN, UP, DOWN, False),
        (DOWN, DOWN, DOWN, False),
    ],
)
async def test_critical_dependencies_decide_and_optional_ones_only_degrade(
    monitor, redis, cache, critical, optional, state, ready
):
    put(redis, critical)
    put(cache, optional)
    assert (monitor.state, monitor.ready) == (state, ready)


async def test_one_down_critical_dependency_takes_precedence_over_unknown_ones(redis, cache):
    monitor = HealthMonitor(redis, cache)
    put(cache, DOWN)
    assert monitor.state is DOWN


async def test_service_with_only_optional_dependencies_is_always_ready(cache):
    monitor = HealthMonitor(optional=[cache])
    put(cache, DOWN)
    assert (monitor.ready, monitor.state) == (True, DEGRADED)


async def test_callback_gets_the_changes_of_every_dependency_and_the_state_of_the_service(
    monitor, redis, cache
):
    seen = []
    subscription = monitor.on_change(seen.append)
    put(redis, UP)
    await settle()
    put(cache, DOWN)
    await settle()
    assert [(news.change.dependency, news.state, news.previous, news.ready) for news in seen] == [
        ("redis", UP, UNKNOWN, True),
        ("cache", DEGRADED, UP, True),
    ]
    subscription.remove()
    put(redis, DOWN)
    await settle()
    assert len(seen) == 2


async def test_slow_watcher_sees_the_current_state_of_the_service(monitor, redis, cache):
    watch = monitor.watch()
    first = await anext(watch)
    assert (first.state, first.ready, first.change) == (UNKNOWN, False, None)
    put(redis, DOWN)
    await settle()
    put(cache, UP)
    await settle()
    news = await anext(watch)
    assert (news.change.dependency, news.ready, news.state) == ("cache", False, DOWN)


async def test_until_ready_returns_when_the_service_is_ready(monitor, redis):
    await_it = asyncio.create_task(monitor.until_ready(10))
    asyncio.get_running_loop().call_later(3.0, put, redis, UP)
    await await_it
    assert asyncio.get_running_loop().time() == 3.0


async def test_until_ready_names_the_missing_dependency(monitor, redis, cache):
    put(redis, DOWN)
    with pytest.raises(DeadlineExceeded, match=r"redis is down: refused \(not sent"):
        await monitor.until_ready(1)


async def test_closing_ends_watches_and_waits_and_detaches_from_the_dependencies(redis, cache):
    monitor = HealthMonitor(redis, optional=[cache])
    seen = []
    monitor.on_change(seen.append)

    async def watch():
        return [news.state async for news in monitor.watch()]

    watching = asyncio.create_task(watch())
    waiting = asyncio.create_task(monitor.until_ready())
    await settle()
    await monitor.aclose()
    await monitor.aclose()
    assert await watching == [UNKNOWN]
    with pytest.raises(Closed):
        await waiting
    put(redis, UP)
    await settle()
    assert seen == []
    assert redis._subscriptions._all == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_monitor_can_be_entered_again_after_it_was_closed(redis):
    monitor = HealthMonitor(redis)
    seen = []
    monitor.on_change(lambda change: seen.append(change.ready))
    for _ in range(2):
        async with monitor:
            assert not monitor.draining
            put(redis, UP)
            assert monitor.started
            await settle()
            monitor.drain()
            await settle()
            put(redis, DOWN)
            await settle()
        assert redis.recorders == ()
    assert seen == [True, False, False] * 2


async def test_snapshot_is_plain_data(monitor, redis):
    put(redis, UP)
    snapshot = json.loads(json.dumps(monitor.snapshot()))
    assert (snapshot["ready"], snapshot["state"]) == (True, "up")
    assert [entry["name"] for entry in snapshot["critical"] + snapshot["optional"]] == [
        "redis",
        "cache",
    ]


def test_monitor_can_be_created_without_a_loop(redis, cache):
    monitor = HealthMonitor(redis, optional=[cache])
    assert repr(monitor) == "<HealthMonitor unknown: redis is unknown, cache is unknown>"
    assert monitor.dependencies == (redis, cache)


def test_invalid_and_repeated_dependencies_are_refused(redis):
    with pytest.raises(ConfigurationError, match=r"use HealthMonitor\(redis.health\)"):
        HealthMonitor()
    with pytest.raises(TypeError, match="dependency must be a Dependency, not str"):
        HealthMonitor("redis")
    with pytest.raises(ConfigurationError, match="'redis' is passed twice"):
        HealthMonitor(redis, optional=[redis])
    for name, use in (("shared", "redis.health"), ("optional", "redis.health")):
        with pytest.raises(
            TypeError, match=rf"{name} must be a list, not Dependency: use {name}=\[{use}\]"
        ):
            HealthMonitor(redis, **{name: Dependency("cache")})
    assert redis._subscriptions._all == []
    assert redis.recorders == ()


async def test_client_passed_as_a_list_is_refused(redis):
    client = ResilientRedis.from_url("redis://localhost")
    with pytest.raises(
        TypeError, match=r"liveness must be a list, not .*: use liveness=\[consumer\]"
    ):
        HealthMonitor(redis, liveness=client)


async def test_callback_that_is_not_callable_is_refused(monitor):
    with pytest.raises(TypeError, match=r"use on_change\(print\)"):
        monitor.on_change("ready")


@pytest.mark.parametrize(
    ("critical", "shared", "state", "ready"),
    [
        (UP, UP, UP, True),
        (UP, DOWN, DEGRADED, True),
        (UP, DEGRADED, DEGRADED, True),
        (UP, UNKNOWN, UNKNOWN, False),
        (DOWN, UNKNOWN, DOWN, False),
        (DOWN, DOWN, DOWN, False),
        (UNKNOWN, DOWN, UNKNOWN, False),
    ],
)
async def test_shared_dependency_degrades_the_service_once_its_state_is_known(
    redis, cache, critical, shared, state, ready
):
    async with HealthMonitor(redis, shared=[cache]) as monitor:
        put(redis, critical)
        put(cache, shared)
        assert (monitor.state, monitor.ready) == (state, ready)
        assert bool(monitor.unready_reasons) is not ready


async def test_each_dependency_has_a_role(redis, cache):
    other = Dependency("other")
    async with HealthMonitor(redis, shared=[cache], optional=[other]) as monitor:
        roles = [monitor.role_of(each) for each in monitor.dependencies]
        assert roles == ["critical", "shared", "optional"]
        with pytest.raises(ValueError, match="not a dependency of this monitor"):
            monitor.role_of(Dependency("redis"))


async def test_unready_reasons_describe_the_dependencies(redis, monitor):
    redis.failed(Cause.REFUSED, "connection refused", definite=True)
    assert monitor.unready_reasons == ("redis is down: connection refused",)
    monitor.drain()
    assert monitor.unready_reasons[0] == "draining"


async def test_draining_makes_the_service_unready_permanently_and_notifies(redis, monitor):
    put(redis, UP)
    await settle()
    seen = []
    monitor.on_change(seen.append)
    news = monitor.watch()
    assert (await anext(news)).ready
    monitor.drain()
    monitor.drain()
    last = await anext(news)
    assert (last.ready, last.draining, last.change, last.state) == (False, True, None, UP)
    await settle()
    assert seen == [last]
    assert not monitor.ready
    with pytest.raises(DeadlineExceeded, match="draining"):
        await monitor.until_ready(1)


async def test_started_never_becomes_false_again(redis, monitor):
    assert not monitor.started
    put(redis, UP)
    await settle()
    put(redis, DOWN)
    monitor.drain()
    assert monitor.started


async def test_service_that_drains_before_it_was_ready_has_not_started(monitor):
    monitor.drain()
    assert not monitor.started
