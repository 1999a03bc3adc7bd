"""The customers: each orders again and again, one order at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiokafka.errors import KafkaError

from resilient_io import deadline
from resilient_io.demo.service.service import TOPIC
from resilient_io.demo.told import Told, told_by

if TYPE_CHECKING:
    from resilient_io.demo.service.run import Run
    from resilient_io.demo.service.service import Service

_CUSTOMERS: Final = 8
_PAUSE: Final = 0.02
_PAUSE_AFTER_AN_ERROR: Final = 0.1
_PATIENCE: Final = 2.0
"""Seconds that a customer waits for the answer to an order."""


class Workload:
    """Orders steadily until the block ends; a context manager.

    Leaving it waits for the orders under way; each ends within its deadline.

    Args:
        service: Takes the orders.
        run: Is told what becomes of them.
    """

    def __init__(self, service: Service, run: Run) -> None:
        self._service = service
        self._run = run
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        for place in range(_CUSTOMERS):
            work = self._order(f"customer-{place}")
            self._tasks.append(asyncio.create_task(work, name=f"demo customer {place}"))

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stopping = True
        try:
            if kind is None:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        if kind is None:
            for task in self._tasks:
                task.result()

    async def _order(self, customer: str) -> None:
        loop = asyncio.get_running_loop()
        run, producer = self._run, self._service.producer
        count = 0
        while not self._stopping:
            count += 1
            number = f"{customer}-{count}"
            value = f"{number} {count % 100}".encode()
            run.order_began(number, loop.time())
            pause = _PAUSE
            try:
                with deadline(_PATIENCE):
                    await producer.send_and_wait(TOPIC, value, key=customer.encode())
            except KafkaError as error:
                run.order_ended(number, loop.time(), told_by(error), error)
                pause = _PAUSE_AFTER_AN_ERROR
            else:
                run.order_ended(number, loop.time(), Told.DONE, None)
            await asyncio.sleep(pause)
