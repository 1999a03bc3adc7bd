"""Compares settings of the peers, so that each competes at its best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.worker import Worker
from resilient_io.testing import KafkaServer

from .plan import AIOKAFKA, CONFLUENT
from .topics import fill

if TYPE_CHECKING:
    from benchmarks.suite import Say

_ROUNDS = 3
_SECONDS = 0.7
_TOTAL = 400_000

_PRODUCERS: dict[str, list[dict[str, Any]]] = {
    AIOKAFKA: [
        {"max_batch_size": size * 1024, "linger_ms": linger}
        for size in (16, 64, 128, 256)
        for linger in (0, 5)
    ],
    CONFLUENT: [
        {"batch_size": size, "linger.ms": linger}
        for size in (500, 1000, 5000, 10_000)
        for linger in (0, 5, 20)
    ],
}
_CONSUMERS: dict[str, list[dict[str, Any]]] = {
    AIOKAFKA: [{"max_partition_fetch_bytes": size * 1024} for size in (256, 1024, 4096)],
    CONFLUENT: [{"consume": count} for count in (100, 500, 1000, 5000)],
}


async def tune(say: Say) -> None:
    """Print how fast the peers are at several settings."""
    async with KafkaServer(quick=False, heap="768m") as server:
        await server.create_topic("written", partitions=4)
        await fill(server, "read", 4, _TOTAL)
        for client, settings in _PRODUCERS.items():
            async with _worker(client, server) as worker:
                for setting in settings:
                    await worker.do("open", keyed=True, setting=setting)
                    found = [
                        await worker.do("produce", kind="send", topic="written", seconds=_SECONDS)
                        for _ in range(_ROUNDS)
                    ]
                    say(f"{client}, send, {setting}: {_middle(found)}")
        for client, settings in _CONSUMERS.items():
            async with _worker(client, server) as worker:
                for setting in settings:
                    found = [
                        await worker.do(
                            "consume",
                            kind="iterate",
                            topic="read",
                            group=f"{setting}-{number}",
                            seconds=_SECONDS,
                            total=_TOTAL,
                            handler=0.0,
                            concurrency=1,
                            setting=setting,
                        )
                        for number in range(_ROUNDS)
                    ]
                    say(f"{client}, async for, {setting}: {_middle(found)}")


def _worker(client: str, server: KafkaServer) -> Worker:
    return Worker("benchmarks.kafka.worker", client, server.bootstrap_servers, "asyncio")


def _middle(found: list[dict[str, float]]) -> str:
    result = sorted(found, key=lambda measured: measured["rate"])[len(found) // 2]
    return f"{result['rate']:,.0f} a second, {result['cpu']:.1f} µs"
