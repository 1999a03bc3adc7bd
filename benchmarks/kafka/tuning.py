"""Compares settings of the other clients, to find the fastest ones."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.worker import Worker
from resilient_io.testing import KafkaServer

from .plan import AIOKAFKA, CONFLUENT
from .topics import fill

if TYPE_CHECKING:
    from benchmarks.suite import Say

_ROUNDS = 5
_WARM_UP = 0.1
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
    """Print the rates of the other clients at several settings, measured in turn."""
    async with KafkaServer(quick=False, heap="768m") as server:
        await server.create_topic("written", partitions=4)
        await fill(server, "read", 4, _TOTAL)
        for client, settings in _PRODUCERS.items():
            async with _worker(client, server) as worker:
                found: list[list[dict[str, float]]] = [[] for _ in settings]
                for place in [*range(len(settings))] * _ROUNDS:
                    found[place].append(await _produce(worker, settings[place]))
                _report(say, f"{client}, send", settings, found)
        for client, settings in _CONSUMERS.items():
            async with _worker(client, server) as worker:
                found = [[] for _ in settings]
                for number, place in enumerate([*range(len(settings))] * _ROUNDS):
                    group = f"{client}-{number}"
                    found[place].append(await _consume(worker, settings[place], group))
                _report(say, f"{client}, async for", settings, found)


async def _produce(worker: Worker, setting: dict[str, Any]) -> dict[str, float]:
    await worker.do("open", keyed=True, setting=setting)
    await worker.do("produce", kind="send", topic="written", seconds=_WARM_UP)
    return await worker.do("produce", kind="send", topic="written", seconds=_SECONDS)


async def _consume(worker: Worker, setting: dict[str, Any], group: str) -> dict[str, float]:
    return await worker.do(
        "consume",
        kind="iterate",
        topic="read",
        group=group,
        seconds=_SECONDS,
        total=_TOTAL,
        handler=0.0,
        varied=False,
        concurrency=1,
        setting=setting,
    )


def _report(
    say: Say, what: str, settings: list[dict[str, Any]], found: list[list[dict[str, float]]]
) -> None:
    for setting, rounds in zip(settings, found, strict=True):
        rate, cpu = (median([measured[key] for measured in rounds]) for key in ("rate", "cpu"))
        say(f"{what}, {setting}: {rate:,.0f} a second, {cpu:.1f} µs")


def _worker(client: str, server: KafkaServer) -> Worker:
    return Worker("benchmarks.kafka.worker", client, server.bootstrap_servers, "asyncio")
