"""Clients that must leave nothing behind, and independent queries to the server.

Time limits are those that a test checks, plus `slack()`.
"""

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from resilient_io import Change, HealthSettings, RetryPolicy, State
from resilient_io.health import Dependency
from resilient_io.redis import ResilientRedis
from resilient_io.testing import RedisServer, ServerDidNotStartError
from resilient_io.testing.leaks import open_sockets

_SETTLE = 2.0


@pytest.fixture
def quick() -> RetryPolicy:
    """Return the default policy with timeouts four times as short."""
    return RetryPolicy(response_timeout=0.5, connect_timeout=0.25, deadline=1.25)


@pytest.fixture
def patient(quick: RetryPolicy) -> RetryPolicy:
    """Return the same with a long deadline, for calls that must succeed on a busy machine."""
    return quick.replace(deadline=5.0, connect_timeout=3.0)


class Transitions:
    """Records every transition of a dependency, and when its callback was called."""

    def __init__(self, health: Dependency) -> None:
        self.changes: list[Change] = []
        self.heard: list[float] = []
        self._health = health
        self._new = asyncio.Event()
        self._handle = health.on_change(self._record)

    def _record(self, change: Change) -> None:
        self.changes.append(change)
        self.heard.append(asyncio.get_running_loop().time())
        self._new.set()

    @property
    def states(self) -> list[State]:
        return [change.state for change in self.changes]

    def count(self, state: State) -> int:
        return self.states.count(state)

    async def until_recovered(self, *, within: float) -> None:
        """Wait for UP after one outage.

        Before UP, the client may be DEGRADED: of its connections, some come back later than others.
        """
        async with asyncio.timeout(within):
            while self.states[-1:] != [State.UP]:
                self._new.clear()
                await self._new.wait()
        assert self.states[0] is State.DOWN, self.states
        assert self.count(State.DOWN) == 1, self.states

    async def until(self, state: State, *, within: float) -> float:
        """Wait for the next transition to `state`. Return the time of its callback."""
        seen = len(self.changes)
        async with asyncio.timeout(within):
            while True:
                for place in range(seen, len(self.changes)):
                    if self.changes[place].state is state:
                        return self.heard[place]
                self._new.clear()
                await self._new.wait()


async def _accepting(port: int) -> float:
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            return loop.time()
        await asyncio.sleep(0.002)


@pytest.fixture
def accepting() -> Callable[[int], Awaitable[float]]:
    """Return a function that waits until a port accepts a connection and returns the time."""
    return _accepting


Watch = Callable[[ResilientRedis], Transitions]
Stranger = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[..., Awaitable[ResilientRedis]]


@pytest.fixture
def watch() -> Watch:
    """Return a function that records the transitions of a client."""
    return lambda redis: Transitions(redis.health)


def _connections_to(ports: list[int]) -> list[str]:
    """Return this process's sockets that are connected to one of these ports."""
    found = []
    for number, _ in sorted(open_sockets()):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as sock:
            peer = sock.getpeername()
            if isinstance(peer, tuple) and peer[1] in ports:
                found.append(f"descriptor {number} to {peer}")
    return found


@pytest_asyncio.fixture
async def connect(
    slack: Callable[[], float], until_complete: Callable[..., Awaitable[None]]
) -> AsyncIterator[Connect]:
    """Create clients. At the end of the test they are closed and must leave no task or socket."""
    before = asyncio.all_tasks()
    clients: list[ResilientRedis] = []
    ports: list[int] = []

    async def make(
        server: Any, *, up: bool = True, health: HealthSettings | None = None, **options: Any
    ) -> ResilientRedis:
        dependency = None
        if health is not None:
            dependency = Dependency("redis", settings=health)
        url = server if isinstance(server, str) else server.url
        redis = ResilientRedis.from_url(url, health=dependency, **options)
        ports.append(int(redis.connection_pool.connection_kwargs.get("port", 0)))
        clients.append(redis)
        await redis.initialize()
        if up:
            await redis.health.until_up(10)
            await until_complete(redis)
        return redis

    yield make
    loop = asyncio.get_running_loop()
    began = loop.time()
    for redis in clients:
        await redis.aclose()
        await redis.health.aclose()
    assert loop.time() - began < _SETTLE + slack(), "aclose() took too long"
    until = loop.time() + _SETTLE
    while loop.time() < until + slack() and (_connections_to(ports) or _ours(before)):  # noqa: ASYNC110 - nothing notifies of it
        await asyncio.sleep(0.005)
    assert not _connections_to(ports)
    assert not _ours(before)


def _ours(before: set[asyncio.Task[Any]]) -> list[str]:
    """Return the names of the library's new tasks."""
    new = asyncio.all_tasks() - before
    return sorted(task.get_name() for task in new if task.get_name().startswith("resilient-io"))


class SlowServer:
    """A server behind a proxy in a separate process.

    In this process, thousands of callers would starve the proxy.
    """

    def __init__(self, server: RedisServer, process: subprocess.Popen[str]) -> None:
        self.query = server.query
        self._process = process
        self.url = f"redis://127.0.0.1:{self._said()}/0"

    def slow_down(self, latency: float) -> None:
        """Delay each request and each reply by `latency` seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{latency}\n")
        self._process.stdin.flush()
        assert self._said() == "slow"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


_PROXY = """
import asyncio
import sys
from resilient_io.testing import FaultProxy

async def main():
    async with FaultProxy(int(sys.argv[1])) as proxy:
        print(proxy.port, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            proxy.latency(requests=float(line), replies=float(line))
            print("slow", flush=True)

asyncio.run(main())
"""


@pytest.fixture
def slow_server(redis_server: RedisServer) -> Iterator[SlowServer]:
    """Start a server that can be slowed down."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROXY, str(redis_server.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield SlowServer(redis_server, process)
        process.kill()


class SlowScript:
    """A script that keeps the server busy for 1.5 s."""

    # TIME advances within a script only before Redis 7.2; `os` exists only since then.
    text = """
    local has_os, clock = pcall(function() return os.clock end)
    local function now()
      if has_os and clock then return clock() end
      local time = redis.call('TIME')
      return time[1] + time[2] / 1000000
    end
    local began = now()
    while now() - began < 1.5 do end
    return 'done'
    """

    async def check_duration(self, redis: ResilientRedis) -> None:
        """Skip the test if the server needed much longer: since Redis 7.2, CPU time counts."""
        stats: Any = await redis.info("commandstats")
        took = stats["cmdstat_eval"]["usec_per_call"] / 1e6
        if took > 1.8:
            pytest.skip(f"the machine is too busy: a script of 1.5 s of CPU time took {took:.1f} s")


@pytest.fixture
def slow_script() -> SlowScript:
    """Return a script that takes 1.5 s, and a check of how long it took."""
    return SlowScript()


@pytest.fixture
def executed() -> Callable[[RedisServer, str], Awaitable[int]]:
    """Return a function that asks the server how often it executed a command."""

    async def ask(server: RedisServer, command: str) -> int:
        said = await server.query("INFO", "commandstats")
        assert isinstance(said, bytes)
        found = re.search(rb"cmdstat_%b:calls=(\d+)" % command.lower().encode(), said)
        return int(found[1]) if found else 0

    return ask


@pytest.fixture
def connections_made() -> Callable[[RedisServer], Awaitable[int]]:
    """Return a function that asks the server how many connections it has accepted so far."""

    async def ask(server: RedisServer) -> int:
        said = await server.query("INFO", "stats")
        assert isinstance(said, bytes)
        found = re.search(rb"total_connections_received:(\d+)", said)
        assert found is not None
        return int(found[1])

    return ask


@pytest_asyncio.fixture
async def stranger() -> AsyncIterator[Callable[[int], Awaitable[Stranger]]]:
    """Return a function that opens plain connections. Request it after `connect`."""
    writers: list[asyncio.StreamWriter] = []

    async def meet(port: int) -> Stranger:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        return reader, writer

    yield meet
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest_asyncio.fixture
async def tls_server() -> AsyncIterator[RedisServer]:
    """Start a server that also listens for TLS."""
    try:
        async with RedisServer(tls=True) as server:
            yield server
    except ServerDidNotStartError as error:
        if "TLS" not in str(error) and "tls-port" not in str(error):
            raise
        pytest.skip("this server was built without TLS")


@pytest.fixture
def until_blocked() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until so many clients of a server are blocked."""

    async def wait(server: RedisServer, count: int = 1) -> None:
        expected = b"blocked_clients:%d\r" % count
        async with asyncio.timeout(20):
            while expected not in bytes(await server.query("INFO", "clients")):  # type: ignore[arg-type]  # noqa: ASYNC110 - nothing notifies of it
                await asyncio.sleep(0.01)

    return wait
