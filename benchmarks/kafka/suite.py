"""The benchmark suite of Kafka clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.suite import Suite
from resilient_io.testing import find_apache_kafka

from .arena import Arena
from .plan import IDLE, WORKS
from .tables import speed_table
from .tuning import tune

if TYPE_CHECKING:
    from benchmarks.suite import Effort, Results, Say

_WARMING_STRETCH = 10
"""Length of the broker's warm-up, in rounds."""
_IDLE_STRETCH = 5
"""Length of a round of idling, in usual rounds."""


def _server() -> str:
    # Without the folder, which differs between machines.
    return str(find_apache_kafka()).partition(" (")[0]


async def _measure(loop: str, effort: Effort, say: Say) -> Results:
    wanted, rounds, seconds = effort.wanted, effort.rounds, effort.seconds
    results: Results = {}
    async with Arena(loop, say) as arena:
        await arena.warm(seconds * _WARMING_STRETCH)
        for work in WORKS:
            if work.name in wanted:
                results[work.name] = await arena.compete(work, rounds, seconds)
        for name in IDLE:
            if name in wanted:
                results[name] = await arena.idle(name, rounds, seconds * _IDLE_STRETCH)
    return results


SUITE = Suite(
    name="kafka",
    names=(*(work.name for work in WORKS), *IDLE),
    loops=("asyncio",),
    packages=("aiokafka", "confluent-kafka", "faststream"),
    seconds=1.0,
    server=_server,
    measure=_measure,
    tables=speed_table,
    tune=tune,
)
