"""Runs the clients in turn on one broker: one worker process each, one active at a time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from benchmarks.statistics import turn
from benchmarks.worker import Worker, WorkerFailedError
from resilient_io.testing import KafkaServer

from .plan import AIOKAFKA, BARE, CLIENTS, IDLE, client_of
from .topics import fill, written

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.suite import Rounds, Say

    from .plan import Work

_WARM_UP = 0.3
_MOST_PER_SECOND = 450_000
"""Records written in advance for each second of reading, if handlers do nothing."""
_MOST_SLOW = 120_000
"""The same for slow handlers: with many at once, they approach what one core can do."""


class Arena:
    """A broker and a worker for each client, on one kind of event loop."""

    def __init__(self, loop: str, say: Say) -> None:
        self._loop = loop
        self._say = say
        self._stack = AsyncExitStack()
        self._workers: dict[str, Worker] = {}
        self._server = KafkaServer(quick=False, heap="768m")
        self._groups = 0

    async def __aenter__(self) -> Self:
        """Start the broker and the workers."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._server)
            for client in (*CLIENTS, BARE):
                worker = self._worker(client)
                self._workers[client] = await stack.enter_async_context(worker)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the workers and the broker."""
        await self._stack.aclose()

    def _worker(self, client: str) -> Worker:
        servers = self._server.bootstrap_servers
        return Worker("benchmarks.kafka.worker", client, servers, self._loop)

    async def warm(self, seconds: float) -> None:
        """Warm up the broker's JVM, so that the first and the last work run at the same speed.

        Requests count more than records, so send as many small ones as possible.
        """
        self._say("warming up the broker")
        topic = "warm-up"
        await self._server.create_topic(topic, partitions=4)
        worker = self._workers[AIOKAFKA]
        await worker.do("open", keyed=True, setting={"max_batch_size": 1024})
        await worker.do("produce", kind="wait", topic=topic, seconds=seconds)
        await worker.do("close")
        await self._server.delete_topic(topic)

    async def compete(self, work: Work, rounds: int, seconds: float) -> Rounds:
        """Have clients do a work, `rounds` times each, in rotating order.

        Raises:
            WorkerFailedError: A client failed, or acknowledged records are missing.
        """
        results = await (self._read if work.reads else self._write)(work, rounds, seconds)
        await self._server.delete_topic(work.name)
        return results

    async def _write(self, work: Work, rounds: int, seconds: float) -> Rounds:
        topic = work.name
        await self._server.create_topic(topic, partitions=work.partitions)
        acknowledged = 0.0
        results: Rounds = {client: [] for client in work.clients}
        for client, kind in work.clients.items():
            self._say(f"{work.title}: warming up {client}")
            await self._workers[client].do("open", keyed=work.keyed)
            warm = await self._workers[client].do(
                "produce", kind=kind, topic=topic, seconds=_WARM_UP
            )
            acknowledged += 0 if client == BARE else warm["count"]
        for number in range(rounds):
            for client in turn([*work.clients], number):
                self._say(f"{work.title}: round {number + 1}, {client}")
                result = await self._workers[client].do(
                    "produce", kind=work.clients[client], topic=topic, seconds=seconds
                )
                acknowledged += 0 if client == BARE else result["count"]
                results[client].append(result)
        for client in work.clients:
            await self._workers[client].do("close")
        there = await written(self._server, topic, work.partitions)
        if there < acknowledged:
            raise WorkerFailedError(
                f"{work.name}: {acknowledged:.0f} records were acknowledged, {there} were found"
            )
        return results

    async def _read(self, work: Work, rounds: int, seconds: float) -> Rounds:
        most = _MOST_SLOW if work.handler else _MOST_PER_SECOND
        total = int(most * max(seconds, _WARM_UP))
        self._say(f"{work.title}: writing {total:,} records")
        await fill(self._server, work.name, work.partitions, total)
        results: Rounds = {contestant: [] for contestant in work.clients}
        for contestant in work.clients:
            self._say(f"{work.title}: warming up {contestant}")
            await self._consume(work, contestant, _WARM_UP, total)
        for number in range(rounds):
            for contestant in turn([*work.clients], number):
                self._say(f"{work.title}: round {number + 1}, {contestant}")
                results[contestant].append(await self._consume(work, contestant, seconds, total))
        return results

    async def _consume(
        self, work: Work, contestant: str, seconds: float, total: int
    ) -> dict[str, float]:
        self._groups += 1
        details: dict[str, Any] = {
            "handler": work.handler,
            "varied": work.varied,
            "concurrency": work.concurrency,
        }
        return await self._workers[client_of(contestant)].do(
            "consume",
            kind=work.clients[contestant],
            topic=work.name,
            group=f"group-{self._groups}",
            seconds=seconds,
            total=total,
            **details,
        )

    async def idle(self, role: str, rounds: int, seconds: float) -> Rounds:
        """Measure what an idle client costs; all clients run together, since none needs a core."""
        title = IDLE[role].title
        clients = IDLE[role].clients
        results: Rounds = {client: [] for client in clients}
        for number in range(rounds):
            self._say(f"{title}: round {number + 1}")
            topic = f"{role}-{number}"
            await fill(self._server, topic, 1, 1)
            async with asyncio.TaskGroup() as group:
                tasks = {
                    client: group.create_task(
                        self._workers[client].do(
                            "idle",
                            role=role,
                            topic=topic,
                            group=f"{topic}-{place}",
                            seconds=seconds,
                        )
                    )
                    for place, client in enumerate(clients)
                }
            for client, task in tasks.items():
                results[client].append(task.result())
        return results
