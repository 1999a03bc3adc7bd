"""The part about the service, in its order: the servers, the service, the faults, the report."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from resilient_io.demo.screen import Line
from resilient_io.demo.service.frame import frame, status_line
from resilient_io.demo.service.ledger import Ledger
from resilient_io.demo.service.reader import read_stores, read_topic
from resilient_io.demo.service.report import report
from resilient_io.demo.service.run import LogTap, Run
from resilient_io.demo.service.script import Place, play
from resilient_io.demo.service.service import DEAD_LETTERS, PARTITIONS, TOPIC, Service
from resilient_io.demo.service.workload import Workload
from resilient_io.demo.showing import shown
from resilient_io.demo.timeline import event_line
from resilient_io.testing import FaultProxy, KafkaServer, RedisServer, TansuServer, find_kafka
from resilient_io.testing.kafka.distribution import Tansu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resilient_io.demo.screen import Screen
    from resilient_io.demo.service.script import Script
    from resilient_io.demo.timeline import Event
    from resilient_io.testing import ApacheKafka, KafkaBroker

_BEGIN: Final = 15.0
_CATCH_UP: Final = 20.0
_LOOK_AGAIN: Final = 0.05


async def perform(script: Script, screen: Screen) -> bool:
    """Show this part; return whether the service's ledger balances.

    Failing or cancelled, it leaves no process and no folder.

    Raises:
        NoServerError: There is no Redis, or no Kafka, on this machine.
        ServerDidNotStartError: One of them does not start.
    """
    found = find_kafka()
    idempotent = not isinstance(found, Tansu)
    screen.say(Line(), Line(f"Broker: {found}"))
    if not idempotent:
        script = script.for_memory_only()
        screen.say(
            Line("It keeps nothing on disk, so it is not killed here; and it knows no idempotent"),
            Line("producers, so the producer is made without, and may repeat itself in Kafka."),
        )
    screen.say(
        Line("Orders are sent to Kafka, taken from there and booked in Redis under their ids,"),
        Line(f"while Redis and Kafka are taken away in turn: {len(script.scenes)} faults."),
    )
    screen.draw([Line(), Line("The servers start ...")])
    async with _servers(found) as (redis, kafka):
        stage = Stage(script, redis, kafka, screen)
        return await stage.go_through(idempotent=idempotent)


class Stage:
    """What the service meets.

    Args:
        script: The faults.
        redis: Redis, and the network before it.
        kafka: Kafka, and the network before it.
        screen: Shows what happens.
    """

    def __init__(
        self, script: Script, redis: Place[RedisServer], kafka: Place[KafkaBroker], screen: Screen
    ) -> None:
        self._script = script
        self._redis = redis
        self._kafka = kafka
        self._screen = screen

    async def go_through(self, *, idempotent: bool) -> bool:
        """Let a service go through the script, close it, and check its ledger.

        Args:
            idempotent: Whether the broker knows idempotent producers.
        """
        screen = self._screen

        def show(event: Event) -> None:
            if not screen.live:
                screen.say(event_line(event))

        ledger = Ledger()
        run = Run(ledger, self._script.seconds, show)
        service = Service(
            redis_port=self._redis.proxy.port,
            bootstrap_servers=self._kafka.server.bootstrap_servers,
            idempotence=idempotent,
            run=run,
        )
        service.redis.health.on_change(run.changed)
        service.kafka.on_change(run.changed)
        with LogTap(run.log):
            async with (
                service,
                shown(
                    screen,
                    lambda: frame(run, service, screen.blocks),
                    lambda: status_line(run, service),
                ),
                _serving(service, run),
            ):
                try:
                    async with Workload(service, run):
                        await run.handles(_BEGIN)
                        await play(self._script, run, self._redis, self._kafka)
                    await self._caught_up(ledger)
                finally:
                    run.ended()
        stats = service.consumer.stats()
        audit = ledger.audit(
            await read_stores(self._redis.server, self._kafka.server), idempotent=idempotent
        )
        screen.say(*report(run, audit, stats, screen.blocks))
        return audit.balanced

    async def _caught_up(self, ledger: Ledger) -> None:
        """Wait until all that is in Kafka is handled; the ledger tells when that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP):
                orders = await read_topic(self._kafka.server, TOPIC)
                while not all(map(ledger.handled, orders.numbers)):  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(_LOOK_AGAIN)


@contextlib.asynccontextmanager
async def _servers(
    found: ApacheKafka | Tansu,
) -> AsyncIterator[tuple[Place[RedisServer], Place[KafkaBroker]]]:
    """Start both, each behind a proxy that stays while the server goes."""
    async with contextlib.AsyncExitStack() as stack:
        # Written to disk before it is answered: what is acknowledged must be found again.
        redis = await stack.enter_async_context(RedisServer(persist=True))
        before_redis = await stack.enter_async_context(FaultProxy(redis.port))
        broker = (
            KafkaServer(kafka=found) if not isinstance(found, Tansu) else TansuServer(binary=found)
        )
        before_kafka = await stack.enter_async_context(FaultProxy(broker.port, protocol=None))
        broker.advertised_port = before_kafka.port
        kafka: KafkaBroker = await stack.enter_async_context(broker)
        before_kafka.target = (kafka.host, kafka.port)
        for topic in (TOPIC, DEAD_LETTERS):
            await kafka.create_topic(topic, partitions=PARTITIONS)
        yield (
            Place(server=redis, proxy=before_redis),
            Place(server=kafka, proxy=before_kafka),
        )


@contextlib.asynccontextmanager
async def _serving(service: Service, run: Run) -> AsyncIterator[None]:
    """Run the service; that it ends by itself is noted."""
    task = asyncio.create_task(service.serve(), name="demo service")
    over = False

    def ended(task: asyncio.Task[None]) -> None:
        if not over and not task.cancelled() and (error := task.exception()) is not None:
            run.died(error)

    task.add_done_callback(ended)
    try:
        yield
        over = True
        await service.consumer.aclose()
    finally:
        over = True
        task.cancel()  # nothing, if it has ended with its consumer
        await asyncio.wait([task])
