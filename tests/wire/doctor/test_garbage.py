"""The doctor raises no error, ends in time and leaves nothing open, whatever the port answers."""

import asyncio
import contextlib
import random
import struct

import pytest

from resilient_io.doctor import Status, examine
from resilient_io.testing.resp import encode

WELL = {
    b"HELLO": b"%1\r\n$5\r\nproto\r\n:3\r\n",
    b"ACL": b"$7\r\ndefault\r\n",
    b"PING": b"+PONG\r\n",
}
ODD = [
    b"+OK\r\n",
    b":-1\r\n",
    b"_\r\n",
    b"*0\r\n",
    b"*1\r\n_\r\n",
    b"*4\r\n:1\r\n:2\r\n$1\r\nx\r\n*0\r\n",
    b"*1\r\n*4\r\n$1\r\nx\r\n:2\r\n:3\r\n*1\r\n_\r\n",
    b"%1\r\n+a\r\n+b\r\n",
    b"-ERR hunter2\r\n",
    b"-NOPERM no\r\n",
    b"$-1\r\n",
    b"$3\r\n\xff\xfe\xfd\r\n",
    b"$40\r\nused_memory:x\r\nmaxmemory:1\r\nrole:slave\r\n\r\n",
    b"#t\r\n",
    b",nan\r\n",
    b"?\r\n",
]


async def steps_of(url, timeout=0.6):
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with contextlib.aclosing(examine(url, timeout=timeout)) as look:
        steps = [step async for step in look]
    assert steps
    assert all(step.status in Status for step in steps)
    assert sum(step.seconds for step in steps) <= loop.time() - began + 0.01
    return steps


@contextlib.asynccontextmanager
async def serving(answer):
    """Serve each connection with `answer(reader, writer)`; return the port."""

    serving = []

    async def serve(reader, writer):
        serving.append(asyncio.current_task())
        try:
            await answer(reader, writer)
        except (OSError, EOFError):
            pass  # the doctor hung up
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    if serving:
        await asyncio.wait(serving, timeout=5)


async def words(reader):
    """Read one command."""
    line = await reader.readline()
    if not line:
        raise EOFError
    count = int(line[1:])
    found = []
    for _ in range(count):
        size = int((await reader.readline())[1:])
        found.append((await reader.readexactly(size + 2))[:-2])
    return found


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("at", [b"HELLO", b"ACL", b"PING"])
async def test_odd_reply_to_one_command_of_redis(at, odd):
    async def answer(reader, writer):
        while True:
            command = (await words(reader))[0].upper()
            reply = odd if command == at else WELL.get(command, b"+OK\r\n")
            writer.write(reply)

    async with serving(answer) as port:
        steps = await steps_of(f"redis://127.0.0.1:{port}", timeout=0.9)
    assert steps[1].status is Status.OK


FACTS = (
    b"*6\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n$4\r\nport\r\n$1\r\n1\r\n$5\r\nflags\r\n$6\r\nmaster\r\n"
)
SENTINEL = {
    b"MASTER": FACTS,
    b"SENTINELS": b"*1\r\n" + FACTS,
    b"REPLICAS": b"*1\r\n" + FACTS,
    b"CKQUORUM": b"+OK\r\n",
    b"MYID": b"$2\r\nid\r\n",
    b"MASTERS": b"*1\r\n" + FACTS,
}
NODES = b"id 127.0.0.1:1@2 myself,master - 0 0 1 connected 0-16383\n"
CLUSTER = {
    b"MYID": b"$2\r\nid\r\n",
    b"NODES": b"$%d\r\n%s\r\n" % (len(NODES), NODES),
    b"INFO": b"$18\r\ncluster_state:ok\r\n\r\n",
    b"SLOTS": b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:1\r\n$2\r\nid\r\n",
}
IN_CLUSTER = b"%1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n"


def answering(kind, well, at, odd):
    """Return the answers of a server, of which the one to a command with two words is odd."""

    async def answer(reader, writer):
        while True:
            name, *arguments = [word.upper() for word in await words(reader)]
            reply = WELL.get(name, b"+OK\r\n")
            if kind == b"CLUSTER" and name == b"HELLO":
                reply = IN_CLUSTER
            if name == kind:
                reply = odd if arguments[0] == at else well[arguments[0]]
            writer.write(reply)

    return answer


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("at", SENTINEL)
async def test_odd_reply_to_one_question_to_a_sentinel(at, odd):
    async with serving(answering(b"SENTINEL", SENTINEL, at, odd)) as port:
        steps = await steps_of(f"redis+sentinel://127.0.0.1:{port}/mymaster", timeout=0.9)
    assert [step.name for step in steps[:3]] == ["name", "TCP", "Sentinels"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("at", CLUSTER)
async def test_odd_reply_to_one_question_to_a_node_of_a_cluster(at, odd):
    async with serving(answering(b"CLUSTER", CLUSTER, at, odd)) as port:
        steps = await steps_of(f"redis://127.0.0.1:{port}", timeout=0.9)
    assert "nodes" in [step.name for step in steps]


@pytest.mark.parametrize("scheme", ["redis", "rediss", "kafka", "kafkas", "kafka://me:hunter2@"])
@pytest.mark.parametrize("seed", range(2))
async def test_noise_instead_of_a_protocol(scheme, seed):
    rng = random.Random(seed)

    async def answer(reader, writer):
        await reader.read(1)
        for _ in range(rng.randrange(4)):
            writer.write(rng.randbytes(rng.randrange(1, 200)))
            await writer.drain()
            await asyncio.sleep(0.01)

    url = scheme if "://" in scheme else f"{scheme}://"
    async with serving(answer) as port:
        steps = await steps_of(f"{url}127.0.0.1:{port}")
    assert steps[-1].status in (Status.PROBLEM, Status.UNKNOWN)
    assert "hunter2" not in repr(steps)


@pytest.mark.parametrize("seed", range(6))
async def test_broker_with_random_response_bodies(seed):
    """The frame and the correlation id are right, so that what is in it has to be read."""
    rng = random.Random(seed)
    versions = b"\0\0" + struct.pack(">i", 30) + b"".join(
        struct.pack(">hhh", key, 0, 5) for key in range(30)
    )  # fmt: skip

    async def answer(reader, writer):
        asked = 0
        while True:
            (size,) = struct.unpack(">i", await reader.readexactly(4))
            frame = await reader.readexactly(size)
            key = struct.unpack_from(">h", frame)[0]
            asked += 1
            body = versions if key == 18 else rng.randbytes(rng.randrange(120))
            if key == 3 and seed % 2:
                # No brokers, no cluster, no controller, no topics.
                body = struct.pack(">ii", 0, 0) + struct.pack(">hii", -1, -1, 0)
            reply = frame[4:8] + body
            writer.write(struct.pack(">i", len(reply)) + reply)

    async with serving(answer) as port:
        steps = await steps_of(f"kafka://127.0.0.1:{port}", timeout=1.0)
    assert steps[-1].name in ("login", "reply", "listeners")
    assert {step.status for step in steps} - {Status.OK}


def test_testing_kit_encodes_what_these_servers_read():
    assert encode("PING") == b"*1\r\n$4\r\nPING\r\n"
