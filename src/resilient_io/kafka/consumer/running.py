"""`run`: hands the consumer's records over to the processing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..processing.processor import Processor

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from resilient_io.kafka.processing.dead_letter import DeadLetterProducer

    from ..processing.options import Plan
    from .engine import Engine

__all__ = ["run"]


async def run(
    engine: Engine,
    plan: Plan,
    *,
    max_poll_interval: float,
    rebalance_timeout: float,
    make_producer: Callable[[], DeadLetterProducer],
    rng: random.Random,
) -> None:
    """Process records until the consumer is closed; see `ResilientKafkaConsumer.run`."""
    await engine.take_turn("running")

    def ended() -> None:
        # What was handed out and not handled is read again by whoever takes records next.
        engine.processor, engine.last_run = None, processor.stats()
        engine.rewind()
        engine.turn.give_back()

    processor = Processor(
        engine,
        plan,
        max_poll_interval=max_poll_interval,
        rebalance_timeout=rebalance_timeout,
        make_producer=make_producer,
        rng=rng,
        commit_timeout=engine.settings.commit_timeout,
        ended=ended,
        note=engine.health.note,
    )
    engine.processor = processor
    try:
        await processor.run()
    finally:
        if engine.processor is processor:  # cancelled: it drains and commits by itself
            engine.turn.ending()
