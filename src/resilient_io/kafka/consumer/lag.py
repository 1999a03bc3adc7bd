"""How far a consumer is behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from resilient_io.deadlines import current_deadline
from resilient_io.kafka.classification import meaning_of
from resilient_io.kafka.errors import KafkaDeadlineExceeded, KafkaUnavailable
from resilient_io.kafka.quiet import quietly

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from .engine import Engine

__all__ = ["ask_lag"]

_LAG = "lag"


async def ask_lag(engine: Engine, timeout: float | None) -> dict[TopicPartition, int]:
    """Ask for the end of each partition that is ours; see `ResilientKafkaConsumer.lag`."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    until = None if timeout is None else began + timeout
    instance = await engine.supervisor.ready(until, _LAG)
    outer = current_deadline()
    if outer is not None and (until is None or outer < until):
        until = outer
    held = engine.holdings.all
    try:
        async with asyncio.timeout_at(until):
            with quietly(engine.supervisor.tally):
                ends = await instance.end_offsets([holding.partition for holding in held])
    except TimeoutError as error:
        raise KafkaDeadlineExceeded(
            "the end offsets were not answered in time",
            dependency=engine.health.name,
            operation=_LAG,
            attempts=1,
            elapsed=loop.time() - began,
        ) from error
    except KafkaError as error:
        if meaning_of(error).kind == "permanent":
            raise
        raise KafkaUnavailable(
            "the end offsets could not be asked for",
            dependency=engine.health.name,
            operation=_LAG,
            attempts=1,
            elapsed=loop.time() - began,
        ) from error
    return {
        holding.partition: max(0, ends[holding.partition] - at)
        for holding in held
        if holding.partition in ends and (at := holding.counted) is not None
    }
