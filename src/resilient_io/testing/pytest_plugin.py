"""Fixtures for pytest: servers, a proxy in front of them, virtual time, and a watch for leaks.

Name it in the `conftest.py` at the root of your tests:

```python
pytest_plugins = ["resilient_io.testing.pytest_plugin"]
```

Tests that are marked `@pytest.mark.virtual_time` run on a `VirtualTimeLoop`. Where there is no
server, tests that need one are skipped, or fail if RESILIENT_IO_REQUIRE_SERVERS is 1.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import pytest
import pytest_asyncio

from resilient_io.testing.binaries import NoServerError, find_redis
from resilient_io.testing.kafka.cluster import KafkaCluster
from resilient_io.testing.kafka.distribution import find_apache_kafka
from resilient_io.testing.kafka.server import KafkaServer
from resilient_io.testing.proxy import FaultProxy
from resilient_io.testing.servers import RedisServer
from resilient_io.testing.virtual_time import VirtualTimeLoop, new_virtual_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping

REQUIRE_VARIABLE: Final = "RESILIENT_IO_REQUIRE_SERVERS"

_STEPS_TO_END: Final = 20


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "virtual_time: the test runs on a loop whose time jumps instead of passing"
    )


@pytest.hookimpl(wrapper=True)
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Generator[
    None,
    Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None,
    Mapping[str, Callable[[], asyncio.AbstractEventLoop]],
]:
    """Give the marked tests a loop with virtual time, the others what they would have had."""
    chosen = yield
    if item.get_closest_marker("virtual_time") is not None:
        return {"virtual": new_virtual_loop}
    return chosen or {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def _server_of_session() -> Iterator[RedisServer]:
    _require_server()
    server = RedisServer()
    # A loop of its own, not the tests' loops, which do not live as long.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(server.start())
        yield server
        runner.run(server.aclose())


@pytest_asyncio.fixture
async def redis_server() -> AsyncIterator[RedisServer]:
    """A server of the test's own, to be killed and frozen; about 20 ms to start."""
    _require_server()
    _require_real_time("redis_server")
    async with RedisServer() as server:
        yield server


@pytest_asyncio.fixture
async def shared_redis(_server_of_session: RedisServer) -> RedisServer:
    """A server that all tests share; its data and scripts are flushed before each test.

    A test that changes its configuration has to change it back.
    """
    _require_real_time("shared_redis")
    await _server_of_session.query("FLUSHALL")
    await _server_of_session.query("SCRIPT", "FLUSH")
    return _server_of_session


@pytest.fixture(scope="session")
def _kafka_of_session() -> Iterator[KafkaServer]:
    _require_kafka()
    server = KafkaServer()
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # as for Redis
        runner.run(server.start())
        yield server
        runner.run(server.aclose())


@pytest_asyncio.fixture
async def kafka_server() -> AsyncIterator[KafkaServer]:
    """A broker of the test's own, to be killed and frozen; about 3 s to start."""
    _require_kafka()
    _require_real_time("kafka_server")
    async with KafkaServer() as server:
        yield server


@pytest_asyncio.fixture
async def kafka_cluster() -> AsyncIterator[KafkaCluster]:
    """Three brokers of the test's own; about 8 s to start."""
    _require_kafka()
    _require_real_time("kafka_cluster")
    async with KafkaCluster() as cluster:
        yield cluster


@pytest_asyncio.fixture
async def shared_kafka(_kafka_of_session: KafkaServer) -> KafkaServer:
    """A broker that all tests share.

    It is never emptied: each test uses topics, groups and transactional ids with names of its own.
    """
    _require_real_time("shared_kafka")
    return _kafka_of_session


@pytest_asyncio.fixture
async def fault_proxy(redis_server: RedisServer) -> AsyncIterator[FaultProxy]:
    """A proxy in front of `redis_server`."""
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fail the test if it leaves tasks that do not end by themselves at once.

    For all tests: `usefixtures = ["no_leaks"]` in pytest's configuration.
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


def _require_server() -> None:
    _require(find_redis, "A REDIS SERVER")


def _require_kafka() -> None:
    _require(find_apache_kafka, "APACHE KAFKA")


def _require(find: Callable[[], object], what: str) -> None:
    try:
        find()
    except NoServerError as error:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{REQUIRE_VARIABLE}=1, but {error}", pytrace=False)
        pytest.skip(f"NEEDS {what}: {error}")


def _require_real_time(fixture: str) -> None:
    if isinstance(asyncio.get_running_loop(), VirtualTimeLoop):
        pytest.fail(f"{fixture} needs real time: unmark virtual_time on this test", pytrace=False)
