"""Two network namespaces, joined by a link that can be cut, delayed and made to lose packets."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import redis

from resilient_io.testing import local_kafka
from resilient_io.testing.servers import find_redis

from .forwarder import enter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from resilient_io.testing import KafkaBroker

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
PORT = 6379
_numbers = itertools.count()


class NotPermittedError(RuntimeError):
    """This machine does not permit network namespaces or TUN devices."""


def why_not_permitted() -> str | None:
    """Return why networks cannot be made on this machine, or None if they can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    try:
        with Network():
            return None
    except (OSError, NotPermittedError, subprocess.CalledProcessError) as error:
        return f"network namespaces are not permitted: {error}"


class Network:
    """A client's and a server's namespace, and the link between them. `with` creates them."""

    def __init__(self) -> None:
        number = next(_numbers)
        self.client = f"rio-{os.getpid()}-{number}c"
        self.server = f"rio-{os.getpid()}-{number}s"
        self._forwarder: subprocess.Popen[str] | None = None
        self._servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._create()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _create(self) -> None:
        for name in (self.client, self.server):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        program = Path(__file__).with_name("forwarder.py")
        self._forwarder = subprocess.Popen(
            [sys.executable, program, self.client, self.server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self._answer() != "ready":
            assert self._forwarder.stderr is not None
            raise NotPermittedError(self._forwarder.stderr.read().strip().rpartition("\n")[2])
        for name, address in ((self.client, CLIENT), (self.server, SERVER)):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "link0")
            _ip("-n", name, "link", "set", "link0", "up")

    def _remove(self) -> None:
        for server in self._servers:
            server.kill()
            server.wait()
        self._servers.clear()
        if self._forwarder is not None:
            with self._forwarder as forwarder:
                forwarder.kill()
            self._forwarder = None
        for name in (self.client, self.server):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def _answer(self) -> str:
        assert self._forwarder is not None
        assert self._forwarder.stdout is not None
        return self._forwarder.stdout.readline().strip()

    def _command(self, line: str) -> None:
        assert self._forwarder is not None
        assert self._forwarder.stdin is not None
        self._forwarder.stdin.write(f"{line}\n")
        self._forwarder.stdin.flush()
        self._answer()

    def cut(self) -> None:
        """Lose every packet from now on, without a reset."""
        self._command("cut")

    def restore(self) -> None:
        """End a cut."""
        self._command("restore")

    def lose(self, share: float) -> None:
        """Lose this share of the packets (0 to 1), in each direction."""
        self._command(f"loss {share}")

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Delay each packet by `seconds`, plus up to `jitter` seconds at random."""
        self._command(f"delay {seconds} {jitter}")

    def forget(self, port: int) -> None:
        """Lose the packets of the TCP connections from this port of either side, or to it."""
        self._command(f"forget {port}")

    def remember(self, port: int) -> None:
        """End what `forget` began."""
        self._command(f"remember {port}")

    @contextlib.contextmanager
    def inside(self, name: str | None = None) -> Iterator[None]:
        """Create the sockets of this thread in a namespace: the client's by default."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/run/netns/{name or self.client}").open() as wanted,
        ):
            enter(wanted.fileno())
            try:
                yield
            finally:
                enter(before.fileno())

    def start(self, *command: str | Path, **options: object) -> subprocess.Popen[bytes]:
        """Start a program in the server's namespace. It is killed with the network."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.server, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **options,  # type: ignore[call-overload]
        )
        self._servers.append(process)
        return process

    def start_redis(self, port: int = PORT, **options: str) -> NetworkRedis:
        """Start a Redis server in the server's namespace and wait until it answers."""
        settings = {"save": "", "appendonly": "no", "protected-mode": "no", "bind": SERVER}
        words = [
            word for item in (settings | options).items() for word in (f"--{item[0]}", item[1])
        ]
        process = self.start(find_redis().path, "--port", str(port), *words)
        redis = NetworkRedis(self, process, port)
        redis.wait()
        return redis


@contextlib.asynccontextmanager
async def kafka_in(network: Network) -> AsyncIterator[KafkaBroker]:
    """Start a Kafka broker in the server's namespace of a network."""
    broker = local_kafka()
    broker.host = SERVER  # type: ignore[misc]
    with network.inside(network.server):
        await broker.start()
    try:
        yield broker
    finally:
        await broker.aclose()


class NetworkRedis:
    """A Redis server in the server's namespace of a network."""

    def __init__(self, network: Network, process: subprocess.Popen[bytes], port: int) -> None:
        self._network = network
        self._process = process
        self.host, self.port = SERVER, port
        self.url = f"redis://{SERVER}:{port}/0"

    def wait(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + 15
        while self.run("PING") != "PONG":
            if time.monotonic() > until or self._process.poll() is not None:
                raise NotPermittedError("redis-server did not start in the namespace")
            time.sleep(0.02)

    def run(self, *words: str) -> str:
        """Run a command in the server's own namespace, whatever the link does.

        Return its reply as text, or an empty string if the server does not answer.
        """
        connection = redis.Connection(
            host=SERVER, port=self.port, protocol=2, decode_responses=True, socket_timeout=20
        )
        try:
            with self._network.inside(self._network.server):
                connection.connect()
            connection.send_command(*words)
            reply = connection.read_response()
        except redis.ConnectionError:
            return ""
        finally:
            connection.disconnect()
        return "\n".join(map(str, reply)) if isinstance(reply, list) else str(reply)

    def freeze(self) -> None:
        """Stop the process. Its host still acknowledges."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process."""
        self._process.send_signal(signal.SIGCONT)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
