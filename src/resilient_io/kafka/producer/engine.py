"""What a producer has in one event loop: instance, lines, buffer, timers; wired and closed here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from resilient_io.binding import LoopBinding
from resilient_io.deadlines import context_without_deadline

from ..probe import TRANSACTION, KafkaProbe
from ..supervisor import Supervisor
from .accumulator import Accumulator
from .buffer import Room
from .closing import drop_travelling, drop_waiting
from .errors import Verdicts
from .metadata import Topics
from .reports import DeliveryReport, ProducerStats
from .sender import Courier
from .transactions import Transactions, fenced

if TYPE_CHECKING:
    import random

    from resilient_io.health import Attachment, Change, Dependency, Subscription
    from resilient_io.kafka.protocols import ProducerDriver
    from resilient_io.retry import RetryPolicy

    from ..connect import Target
    from .options import DeliverySettings
    from .partitioner import Partitioner

__all__ = ["Engine"]

_BURST = 256 * 1024
"""Bytes taken in before the loop gets a turn."""

_MOST_GRACE = 1.0
"""Seconds of good order for an instance that has nothing travelling."""


class Engine:
    """Runs in the event loop it is made in, from its making to `aclose()`."""

    def __init__(
        self,
        *,
        target: Target,
        options: dict[str, Any],
        policy: RetryPolicy,
        health: Dependency,
        owns_health: bool,
        settings: DeliverySettings,
        partitioner: Partitioner | None,
        rng: random.Random,
    ) -> None:
        """Start; never waits for Kafka.

        Raises:
            RuntimeError: The health is in use in another living event loop.
        """
        self.residence = LoopBinding()
        self.loop = asyncio.get_running_loop()
        self.health = health
        self.settings = settings
        self._target = target
        self._options = options
        self._owns_health = owns_health
        self._closing: asyncio.Task[DeliveryReport] | None = None
        transactional_id = options.get("transactional_id")
        self._probe = KafkaProbe(
            target=target,
            timeout=policy.connect_timeout,
            topics=lambda: self.topics.known,
            coordinator=None if transactional_id is None else (TRANSACTION, transactional_id),
        )
        self.verdicts = Verdicts(health, self.loop)
        self.supervisor: Supervisor[ProducerDriver] = Supervisor(
            role="producer",
            build=self._build,
            health=health,
            policy=policy,
            rng=rng,
            entered=self._entered,
            retired=self._retired,
            halts=None if transactional_id is None else fenced,
        )
        self.verdicts.refusal = lambda: self.supervisor.refusal
        self.room = Room(settings.buffer_bytes, _BURST)
        self.topics = Topics(
            rng=rng,
            partitioner=partitioner,
            full=2 * options["max_batch_size"],  # what is held counts about twice as much
            ready=lambda: self.supervisor.ready(None, "metadata"),
            context=self.supervisor.context(),
        )
        self.courier = Courier(
            supervisor=self.supervisor,
            topics=self.topics,
            room=self.room,
            health=health,
            verdicts=self.verdicts,
            heard=self._probe.heard,
            progressed=self._progressed,
        )
        self.accumulator = Accumulator(
            topics=self.topics,
            room=self.room,
            courier=self.courier,
            health=health,
            verdicts=self.verdicts,
            policy=policy,
            settings=settings,
            max_request_size=options["max_request_size"],
            full=options["max_batch_size"],
        )
        self.transactions = Transactions(
            transactional_id=transactional_id,
            supervisor=self.supervisor,
            accumulator=self.accumulator,
            courier=self.courier,
            verdicts=self.verdicts,
            policy=policy,
        )
        self._attachment: Attachment | None = health.start(
            self._probe, last_reply=self._probe.last_reply
        )
        self._subscription: Subscription[Change] | None = health.on_change(self._health_changed)
        self.supervisor.start()

    # --- instances

    def _build(self) -> ProducerDriver:
        producer: ProducerDriver = AIOKafkaProducer(  # type: ignore[no-untyped-call]
            **self._target.client_options(), **self._options
        )
        return producer

    def _entered(self, instance: ProducerDriver) -> None:
        self.topics.attach(instance)
        self.courier.wake()

    def _retired(self, instance: ProducerDriver, error: BaseException | None) -> None:
        self.topics.detach()
        self.courier.retired(instance, error)
        self.transactions.lost(instance, error)

    def _progressed(self) -> None:
        self.accumulator.progressed()

    def _health_changed(self, _change: Change) -> None:
        if self.health.available:
            self.courier.wake()

    # --- for the client

    def stats(self) -> ProducerStats:
        """Read the counters."""
        return ProducerStats(
            delivered=self.verdicts.delivered,
            ended=dict(self.verdicts.ended),
            batches=self.courier.batches,
            travelling=len(self.courier.travelling),
            waiting=sum(len(line.records) for line in self.topics.lines),
            buffered=self.room.used,
            callers_waiting=self.room.waiting,
            instances=self.supervisor.generation,
            log_records_dropped=self.supervisor.tally.dropped + self._target.tally.dropped,
            latency=self.courier.latencies.quantiles,
            latency_total=self.courier.latencies.total,
            latency_counts=self.courier.latencies.counts,
        )

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps; None while all is well."""
        return self.supervisor.liveness_failure()

    async def aclose(self, timeout: float) -> DeliveryReport:
        """Deliver what there is time for, fail the rest, end everything.

        Cancelling leaves at once; the closing goes on by itself.
        """
        if self._closing is None:
            self.accumulator.close()
            self._closing = self.loop.create_task(
                self._close(timeout),
                name="resilient-io kafka close",
                context=context_without_deadline(),
            )
        closing = self._closing
        await asyncio.wait([closing])
        return closing.result()

    async def _close(self, timeout: float) -> DeliveryReport:
        until = self.loop.time() + timeout
        before = self.verdicts.delivered
        await self.topics.aclose()
        try:
            async with asyncio.timeout_at(until):
                await self.transactions.aclose()
                await self.accumulator.flushed()
        except TimeoutError:
            pass
        if self._subscription is not None:
            self._subscription.remove()
        failures = drop_travelling(self.topics.lines, self.verdicts)
        failures += drop_waiting(self.topics.lines, self.verdicts, self.room, self.verdicts.closed)
        # What still travels was just told; there is nothing left to be graceful about.
        left = max(until - self.loop.time(), 0.0)
        await self.supervisor.aclose(min(left, _MOST_GRACE), graceful=not self.courier.travelling)
        self.topics.detach()
        await self.courier.aclose()
        self.accumulator.finish()
        if self._attachment is not None:
            await self._attachment.detach()
        self._probe.close()
        if self._owns_health:
            await self.health.aclose()
        self._attachment = self._subscription = None
        return DeliveryReport(
            delivered=self.verdicts.delivered - before,
            failures=tuple(failures),
            taken=self.verdicts.delivered - before + len(failures),
        )
