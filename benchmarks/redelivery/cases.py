"""The faults and shutdowns: what a consumer leaves behind, and what its successor gets again."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import uuid
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition

from resilient_io.kafka import OutgoingRecord, ResilientKafkaProducer

from .ledger import Ledger
from .worker import SESSION, Order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from resilient_io.testing import KafkaServer

_SLOW = 7
_PARTITIONS = 4
_KEYS = 1_000
_LONGEST = 90.0
_PAUSE = 0.001
_QUIET = 1.5  # seconds without a delivery after which nothing more comes


@dataclass(frozen=True, slots=True)
class Scene:
    """A topic with records, and the deliveries so far."""

    server: KafkaServer
    order: Order
    ledger: Ledger
    stack: AsyncExitStack

    async def start(self, **changes: object) -> asyncio.subprocess.Process:
        """Start a consumer of the group in a process of its own."""
        order = replace(self.order, **changes)  # type: ignore[arg-type]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.redelivery.worker", stdin=asyncio.subprocess.PIPE
        )
        self.stack.push_async_callback(_end, process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        await process.stdin.drain()
        return process

    async def until_missing(self, most: int) -> None:
        """Wait until at most this many records have never been delivered."""
        async with asyncio.timeout(_LONGEST):
            while self.ledger.missing() > most:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(0.005)

    async def until_quiet(self) -> None:
        """Wait until the group has committed all records, and none has been delivered lately."""
        await self.until_missing(0)
        async with asyncio.timeout(_LONGEST):
            while await self._uncommitted():  # noqa: ASYNC110 - the broker does not tell
                await asyncio.sleep(0.2)
        loop = asyncio.get_running_loop()
        before, since = self.ledger.redelivered(), loop.time()
        while loop.time() - since < _QUIET:
            await asyncio.sleep(0.05)
            if (now := self.ledger.redelivered()) != before:
                before, since = now, loop.time()

    async def _uncommitted(self) -> int:
        topic, found = self.order.topic, 0
        consumer = AIOKafkaConsumer(bootstrap_servers=self.order.servers, group_id=topic)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, n) for n in range(self.order.partitions)]
            ends = await consumer.end_offsets(partitions)
            for partition, end in ends.items():
                found += end - (await consumer.committed(partition) or 0)
        finally:
            await consumer.stop()
        return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@contextmanager
def _ledger(count: int) -> Iterator[tuple[Path, Ledger]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deliveries"
        with Ledger(path, count) as ledger:
            yield path, ledger


async def measure(
    server: KafkaServer,
    act: Callable[[Scene], Awaitable[None]],
    *,
    count: int,
    slow: bool = False,
    kind: str = "run",
) -> int:
    """Return how many records were delivered again.

    Raises:
        TimeoutError: A record was not delivered at all.
    """
    topic = f"t{uuid.uuid4().hex[:8]}"
    partitions = 1 if slow else _PARTITIONS
    await server.create_topic(topic, partitions=partitions)
    async with ResilientKafkaProducer(server.bootstrap_servers) as producer:
        # A record waits for earlier ones of its key, so those behind a slow one have none.
        records = [
            OutgoingRecord(
                b"%d" % number,
                key=None if slow else b"%d" % (number % _KEYS),
                partition=number % partitions,
            )
            for number in range(count)
        ]
        (await producer.send_many(topic, records)).check()
    with _ledger(count) as (path, ledger):
        order = Order(
            servers=server.bootstrap_servers,
            topic=topic,
            path=str(path),
            count=count,
            partitions=partitions,
            kind="run" if kind == "run" else "iterate",
            slow=_SLOW if slow else -1,
        )
        async with AsyncExitStack() as stack:
            scene = Scene(server, order, ledger, stack)
            await act(scene)
            await scene.until_quiet()
            redelivered = ledger.redelivered()
    await server.delete_topic(topic)
    return redelivered


# --- at the highest rate


async def kill(scene: Scene) -> None:
    """Kill a consumer; the next one continues."""
    first = await scene.start()
    await scene.until_missing(scene.order.count // 2)
    first.kill()
    await first.wait()
    await scene.start()


async def terminate(scene: Scene) -> None:
    """Close a consumer gracefully; the next one continues."""
    first = await scene.start()
    await scene.until_missing(scene.order.count // 2)
    first.terminate()
    await first.wait()
    await scene.start()


async def join(scene: Scene) -> None:
    """Have a second member join, which takes two seconds, while there is enough to read."""
    await scene.start(pause=_PAUSE)
    await scene.until_missing(scene.order.count - 1)
    await scene.start(pause=_PAUSE)


async def freeze(scene: Scene) -> None:
    """Stop a consumer's process for longer than its session; another one takes over."""
    first = await scene.start()
    await scene.until_missing(scene.order.count // 2)
    first.send_signal(signal.SIGSTOP)
    try:
        await scene.start()
        await asyncio.sleep(SESSION + 3.0)
    finally:
        first.send_signal(signal.SIGCONT)


async def fail(scene: Scene) -> None:
    """Have a handler raise, which ends `run`; the next consumer continues."""
    first = await scene.start(failing=scene.order.count // 2)
    await first.wait()
    await scene.start()


# --- with one handler that takes 10 s


async def _all_but_the_slow_one(scene: Scene) -> asyncio.subprocess.Process:
    first = await scene.start()
    await scene.until_missing(0)  # the slow one has begun
    await asyncio.sleep(1.5)  # longer than commit_interval
    return first


async def kill_slow(scene: Scene) -> None:
    """Kill a consumer that has handled all records but one."""
    first = await _all_but_the_slow_one(scene)
    first.kill()
    await first.wait()
    await scene.start()


async def terminate_slow(scene: Scene) -> None:
    """Close a consumer that has handled all records but one."""
    first = await _all_but_the_slow_one(scene)
    first.terminate()
    await first.wait()
    await scene.start()


async def join_slow(scene: Scene) -> None:
    """Have a second member join a consumer that has handled all records but one."""
    first = await _all_but_the_slow_one(scene)
    await scene.start()
    await asyncio.sleep(8.0)  # the handlers get 5 s to end
    first.terminate()
    await first.wait()


async def plain_client(scene: Scene) -> None:
    """Have aiokafka's consumer, which does not know the metadata, continue."""
    first = await _all_but_the_slow_one(scene)
    first.terminate()
    await first.wait()
    consumer = AIOKafkaConsumer(
        scene.order.topic,
        bootstrap_servers=scene.order.servers,
        group_id=scene.order.topic,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        while found := await consumer.getmany(timeout_ms=3000):
            for records in found.values():
                for record in records:
                    scene.ledger.delivered(int(record.value or b"0"))
    finally:
        await consumer.stop()
