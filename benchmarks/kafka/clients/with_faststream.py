"""FastStream on aiokafka, reduced to calling a handler with bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from faststream.kafka import KafkaBroker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.kafka.meter import Meter


async def _decode(message: Any) -> Any:
    """Return the body as it is: the default decoder tries to parse JSON."""
    return message.body


class Consumer:
    """Uses the default policy `ACK_FIRST`, the only one that handles a partition concurrently."""

    def __init__(self, servers: str, topic: str, group: str, setting: dict[str, Any]) -> None:
        # No validation of arguments by pydantic, and no logger.
        self._broker = KafkaBroker(servers, apply_types=False, decoder=_decode, logger=None)
        self._topic = topic
        self._options = {"group_id": group, "auto_offset_reset": "earliest"} | setting

    async def run(
        self, meter: Meter, handler: Callable[[], Awaitable[None]] | None, concurrency: int
    ) -> None:
        workers = concurrency if concurrency > 1 else None
        subscriber = self._broker.subscriber(self._topic, max_workers=workers, **self._options)

        @subscriber
        async def _(message: bytes) -> None:  # noqa: ARG001 (not needed by the handler)
            if handler is not None:
                await handler()
            if meter.handled():
                await asyncio.sleep(0)  # it does not yield while it has records

        await self._broker.start()
        await meter.result

    async def aclose(self) -> None:
        await self._broker.stop()


async def open_consumer(servers: str, topic: str, group: str, **setting: Any) -> Consumer:
    return Consumer(servers, topic, group, setting)
