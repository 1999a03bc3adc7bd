"""A pytest plugin: fixtures with servers and a proxy, virtual time, and a check for leaked tasks.

The plugin is active wherever resilient-io is installed (`-p no:resilient_io` disables it), but its
fixtures need `resilient-io[testing]`. Tests marked `@pytest.mark.virtual_time` run on a
`VirtualTimeLoop`. A test that raises `NoServerError`, or whose fixture does, is skipped with that
reason; if RESILIENT_IO_REQUIRE_SERVERS is 1, it fails.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from .. import testing

try:
    from pytest_asyncio import fixture as async_fixture
except ModuleNotFoundError:  # its async fixtures may be of use with another plugin, such as anyio's
    async_fixture = pytest.fixture  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

REQUIRE_VARIABLE: Final = "RESILIENT_IO_REQUIRE_SERVERS"

_STEPS_TO_END: Final = 20
_FAILED: Final = pytest.StashKey[bool]()
_T = TypeVar("_T")
_Server = TypeVar(
    "_Server", "testing.RedisServer", "testing.RedisServerCluster", "testing.KafkaServer"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", "virtual_time: run the test on an event loop whose time jumps to the next timer"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Skip a test that raised `NoServerError`, or whose fixture did, and remember failures."""
    report = yield
    process = sys.modules.get("resilient_io.testing.process")
    if process is not None and call.excinfo and call.excinfo.errisinstance(process.NoServerError):
        reason = str(call.excinfo.value)
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            report.longrepr = f"{REQUIRE_VARIABLE}=1, but {reason}"
        else:
            path, line, _ = item.reportinfo()
            report.outcome = "skipped"
            report.longrepr = (str(path), (line or 0) + 1, f"Skipped: NEEDS A SERVER: {reason}")
    item.stash[_FAILED] = report.failed or item.stash.get(_FAILED, False)
    return report


# Virtual time


class _VirtualTime:
    """The hook of pytest-asyncio 1.4 that chooses the event loop of each test."""

    @pytest.hookimpl(wrapper=True)
    def pytest_asyncio_loop_factories(
        self, item: pytest.Item
    ) -> Generator[
        None,
        Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None,
        Mapping[str, Callable[[], asyncio.AbstractEventLoop]],
    ]:
        """Return the loop with virtual time for marked tests, and no other loop for the others."""
        chosen = yield
        if item.get_closest_marker("virtual_time") is not None:
            return {"virtual": testing.new_virtual_loop}
        return chosen or {"asyncio": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> Generator[None, _T, _T]:
    """Register the hook for the first marked test.

    pytest-asyncio parametrizes all tests as soon as the hook is registered. Projects without the
    marker are not affected.
    """
    plugins = metafunc.config.pluginmanager
    if (
        metafunc.definition.get_closest_marker("virtual_time") is not None
        and plugins.has_plugin("asyncio")
        and not plugins.has_plugin("resilient_io.virtual_time")
    ):
        plugins.register(_VirtualTime(), "resilient_io.virtual_time")
    return (yield)


# Servers


def _run_for_session(server: _Server) -> Iterator[_Server]:
    # A loop for the session: the loops of the tests end earlier.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(server.start())
        yield server
        runner.run(server.aclose())


@pytest.fixture(scope="session")
def _server_of_session() -> Iterator[testing.RedisServer]:
    yield from _run_for_session(testing.RedisServer())


@pytest.fixture(scope="session")
def _cluster_of_session() -> Iterator[testing.RedisServerCluster]:
    yield from _run_for_session(testing.RedisServerCluster())


@pytest.fixture(scope="session")
def _kafka_of_session() -> Iterator[testing.KafkaServer]:
    yield from _run_for_session(testing.KafkaServer())


@async_fixture
async def redis_server() -> AsyncIterator[testing.RedisServer]:
    """A Redis server for this test, to kill and freeze; it starts in about 20 ms."""
    _require_real_time("redis_server")
    async with testing.RedisServer() as server:
        yield server


@async_fixture
async def shared_redis(_server_of_session: testing.RedisServer) -> testing.RedisServer:
    """A Redis server that all tests share; its data and scripts are flushed before each test.

    A test that changes the server's configuration has to restore it.
    """
    _require_real_time("shared_redis")
    await _server_of_session.query("FLUSHALL")
    await _server_of_session.query("SCRIPT", "FLUSH")
    return _server_of_session


@async_fixture
async def sentinel_setup() -> AsyncIterator[testing.SentinelSetup]:
    """A master with two replicas and three Sentinels for this test."""
    _require_real_time("sentinel_setup")
    async with testing.SentinelSetup() as setup:
        yield setup


@async_fixture
async def redis_cluster() -> AsyncIterator[testing.RedisServerCluster]:
    """A cluster of three masters with a replica each, to kill and freeze; it starts in about 4 s.

    A node counts as failed after half a second.
    """
    _require_real_time("redis_cluster")
    async with testing.RedisServerCluster(replicas=1, node_timeout=0.5) as cluster:
        yield cluster


@async_fixture
async def shared_redis_cluster(
    _cluster_of_session: testing.RedisServerCluster,
) -> testing.RedisServerCluster:
    """A cluster of three masters that all tests share; its data is flushed before each test.

    A test that changes the cluster has to restore it.
    """
    _require_real_time("shared_redis_cluster")
    for node in _cluster_of_session.nodes:
        await node.query("FLUSHALL")
        await node.query("SCRIPT", "FLUSH")
    return _cluster_of_session


@async_fixture
async def kafka_server() -> AsyncIterator[testing.KafkaServer]:
    """A broker of Apache Kafka for this test, to kill and freeze; it starts in about 3 s."""
    _require_real_time("kafka_server")
    async with testing.KafkaServer() as server:
        yield server


@async_fixture
async def kafka_cluster() -> AsyncIterator[testing.KafkaCluster]:
    """A cluster of three brokers for this test; it starts in about 6 s."""
    _require_real_time("kafka_cluster")
    async with testing.KafkaCluster() as cluster:
        yield cluster


@async_fixture
async def shared_kafka(_kafka_of_session: testing.KafkaServer) -> testing.KafkaServer:
    """A broker of Apache Kafka that all tests share.

    Nothing is deleted between tests: use names of topics, groups and transactional ids that are
    unique to the test.
    """
    _require_real_time("shared_kafka")
    return _kafka_of_session


@async_fixture
async def embedded_kafka() -> AsyncIterator[testing.TansuServer]:
    """The broker from a wheel for this test: it starts immediately and needs no Java.

    It supports neither idempotence nor transactions, and a restart loses its data.
    """
    _require_real_time("embedded_kafka")
    async with testing.embedded_kafka() as server:
        yield server


@async_fixture
async def fault_proxy(
    request: pytest.FixtureRequest, redis_server: testing.RedisServer
) -> AsyncIterator[testing.FaultProxy]:
    """A proxy in front of `redis_server`. A fault that never hit a request fails the test."""
    async with testing.FaultProxy(redis_server.port, allow_unused_faults=True) as proxy:
        yield proxy
        if not request.node.stash.get(_FAILED, False):
            proxy.assert_faults_used()


# Leaks


@async_fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fail the test if it leaves tasks that do not end within a few steps of the loop.

    To check all tests, set `usefixtures = ["no_leaks"]` in the configuration of pytest.
    """
    before = asyncio.all_tasks()
    yield
    this = asyncio.current_task()
    for _ in range(_STEPS_TO_END):
        if asyncio.all_tasks() <= before | {this}:
            return
        await asyncio.sleep(0)
    left = sorted(map(repr, asyncio.all_tasks() - before - {this}))
    pytest.fail("the test left tasks behind:\n  " + "\n  ".join(left))


def _require_real_time(fixture: str) -> None:
    if "resilient_io.testing.virtual_time" in sys.modules and isinstance(
        asyncio.get_running_loop(), testing.VirtualTimeLoop
    ):
        pytest.fail(
            f"{fixture} needs real time: remove the marker virtual_time from this test",
            pytrace=False,
        )
