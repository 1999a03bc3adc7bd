import asyncio
import gc
import logging
import os
import random
import secrets
import subprocess
import sys
import time
import uuid
import warnings
from pathlib import Path
from random import Random

import pytest
import redis.asyncio

from resilient_io.redis import ResilientRedis
from tests.simulation.environment import NORMAL, simulated
from tests.simulation.loop import SimulationEscape
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

    def lost(self, *, reset=False):
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


def draw_everything():
    return (
        time.time(),
        time.monotonic_ns(),
        os.urandom(4),
        random.random(),
        random.Random().random(),
        random.SystemRandom().random(),
        uuid.uuid1(),
        uuid.uuid4(),
        secrets.token_hex(4),
    )


def test_time_and_randomness_come_from_the_seed():
    drawn = []
    for seed in (1, 1, 2):
        with simulated(seed):
            drawn.append(draw_everything())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0][2:], drawn[2][2:], strict=True))
    assert all(one != other for one, other in zip(drawn[0], draw_everything(), strict=True))


def test_everything_is_restored_after_an_error():
    replaced = (
        *((time, name) for name in ("time", "monotonic", "perf_counter_ns", "sleep")),
        *((os, "urandom"), (random, "_urandom"), (uuid, "uuid1")),
        *((sys, "unraisablehook"), (warnings, "showwarning")),
    )
    before = [getattr(owner, name) for owner, name in replaced]
    logger = logging.getLogger("redis")
    state = random.getstate()
    with pytest.raises(ValueError, match="escapes"), simulated(1) as simulation:
        assert not gc.isenabled()
        assert all(
            getattr(owner, name) is not old
            for (owner, name), old in zip(replaced, before, strict=True)
        )
        raise ValueError("escapes")
    assert [getattr(owner, name) for owner, name in replaced] == before
    assert simulation.loop.is_closed()
    assert gc.isenabled()
    assert logger.propagate
    assert not logger.handlers
    assert random.getstate() == state


def test_errors_are_collected():
    async def never():
        pass

    class Failing:
        def __del__(self):
            raise ValueError("in the end")

    with simulated(1) as simulation:
        logging.getLogger("resilient_io.part").error("it %s", "broke")
        logging.getLogger("resilient_io.part").warning("not this")
        never()
        Failing()
    errors = simulation.log_errors
    assert len(errors) == 3
    assert errors[0] == "resilient_io.part: it broke"
    assert "never awaited" in errors[1]
    assert "in the end" in errors[2]


def test_sleeping_is_an_escape():
    async def main():
        time.sleep(1.0)

    with simulated(1) as simulation, pytest.raises(SimulationEscape, match=r"time\.sleep"):
        simulation.loop.run_until_complete(main())


def test_all_tasks_are_those_of_the_run():
    async def main():
        waiting = asyncio.create_task(asyncio.sleep(1.0))
        assert asyncio.all_tasks() == {asyncio.current_task(), waiting}
        await waiting
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def outside():
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with simulated(1) as simulation:
        simulation.loop.run_until_complete(main())
    asyncio.run(outside())


def test_leftover_tasks_end_inside_the_loop():
    ended = []

    async def stay(name):
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(1.0)
            ended.append(name)

    async def wait_forever():
        await asyncio.get_running_loop().create_future()

    async def main():
        loop = asyncio.get_running_loop()
        main.tasks = [loop.create_task(stay(name), name=name) for name in "ab"]
        await wait_forever()

    with simulated(1) as simulation:
        task = simulation.loop.create_task(main(), name="main")
        simulation.loop.call_later(5.0, simulation.loop.stop)
        simulation.loop.run_forever()
    assert task.cancelled()
    assert ended == ["a", "b"]
    assert simulation.leftover_tasks == ["main", "a", "b"]
    assert simulation.loop.errors == []
