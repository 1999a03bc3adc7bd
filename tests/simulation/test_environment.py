import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import redis.asyncio

from resilient_io.redis import ResilientRedis
from tests.simulation.environment import NORMAL, simulated
from tests.simulation.network import Network

ROOT = Path(__file__).parents[2]


class StubServer:
    """Knows PING, GET and SET, and says OK to everything else."""

    name = "stub"

    def __init__(self):
        self.data = {}
        self.peers = []

    def accept(self, peer):
        self.peers.append(peer)
        return StubSession(self, peer)


class StubSession:
    def __init__(self, server, peer):
        self.server, self.peer, self.buffer, self.gone = server, peer, b"", False

    def receive(self, data):
        self.buffer += data
        while (command := self.take()) is not None:
            self.peer.send(self.reply(*command))

    def take(self):
        head, newline, rest = self.buffer.partition(b"\r\n")
        if not newline:
            return None
        words = []
        for _ in range(int(head[1:])):
            size, newline, rest = rest.partition(b"\r\n")
            if not newline or len(rest) < int(size[1:]) + 2:
                return None
            words.append(rest[: int(size[1:])])
            rest = rest[int(size[1:]) + 2 :]
        self.buffer = rest
        return words

    def reply(self, name, *words):
        if name == b"PING":
            return b"+PONG\r\n"
        if name == b"HELLO":
            return b"%1\r\n$5\r\nproto\r\n:3\r\n"
        if name == b"CLIENT" and words[0] == b"ID":
            return b":7\r\n"
        if name == b"GET":
            value = self.server.data.get(words[0])
            return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
        if name == b"SET":
            self.server.data[words[0]] = words[1]
        return b"+OK\r\n"

    def lost(self):
        self.gone = True


def run_clients(seed, work, settings=NORMAL, *, client="resilient"):
    """Return the history of a run."""
    with simulated(seed, settings) as simulation:
        network = Network(simulation.loop, Random(f"network/{seed}"), simulation.history, settings)
        server = StubServer()
        network.listen("10.0.0.1", 6379, server)
        network.names["redis.test"] = ["10.0.0.1"]

        async def main():
            if client == "resilient":
                made = ResilientRedis(host="redis.test", protocol=3)
            else:
                made = redis.asyncio.Redis(host="redis.test", protocol=3)
            try:
                await work(made)
            finally:
                await made.aclose()

        simulation.loop.run_until_complete(main())
        history = simulation.history
        history.ending.loop_errors = list(simulation.loop.errors)
        history.ending.log_errors = list(simulation.log_errors)
        history.ending.tasks = list(simulation.leftover_tasks)
    return history


async def ping_set_get(client):
    for number in range(5):
        assert await client.ping() is True
        assert await client.set("key", str(number))
        assert await client.get("key") == str(number).encode()


def test_plain_client_works():
    history = run_clients(1, ping_set_get, client="plain")
    assert history.written
    assert not history.ending.loop_errors
    assert not history.ending.log_errors


def test_resilient_client_works():
    history = run_clients(1, ping_set_get)
    assert history.written
    assert not history.ending.loop_errors
    assert not history.ending.log_errors


async def many_at_once(client):
    await asyncio.gather(*(client.set(f"key {number}", "value") for number in range(20)))
    tasks = {asyncio.ensure_future(client.get(f"key {number}")) for number in range(20)}
    for task in list(tasks)[::3]:
        task.cancel()
    await asyncio.wait(tasks)


def digests():
    found = []
    for seed in range(5):
        found.append(run_clients(seed, many_at_once).digest())
        found.append(run_clients(seed, many_at_once, client="plain").digest())
    return found


def test_same_seed_has_the_same_digest_in_other_processes():
    expected = digests()
    assert expected == digests()
    assert len(set(expected)) == len(expected)
    for hash_seed in ("0", "1"):
        program = "from tests.simulation.test_environment import digests; print(*digests())"
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONPATH": "src:.", "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout.split() == expected
