"""What a producer runs in one event loop: its components, created together and closed together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import IncompatibleBrokerVersion, UnknownError

from resilient_io.binding import LoopBinding
from resilient_io.deadlines import context_without_deadline

from ..link import LinkWatch
from ..probe import TRANSACTION, KafkaProbe
from ..supervisor import Supervisor
from .accumulator import Accumulator
from .buffer import BufferMemory
from .errors import DeliveryErrors
from .metadata import ProducerMetadata
from .records import DeliveryReport, ProducerStats
from .sender import Sender
from .transaction_state import TransactionState
from .transactions import TransactionManager, correct_transactions, is_fenced

if TYPE_CHECKING:
    import random

    from resilient_io.health import Change, Dependency
    from resilient_io.retry import RetryPolicy

    from ..connect import KafkaTarget
    from ..driver import ProducerDriver
    from .metadata import Partitioner
    from .options import DeliverySettings

_BURST = 256 * 1024  # bytes accepted in one iteration of the event loop
_MAX_STOP = 1.0  # seconds for stopping an aiokafka producer that has nothing in flight


class ProducerCore:
    """The components of a producer, bound to the event loop in which they are created."""

    def __init__(
        self,
        *,
        target: KafkaTarget,
        options: dict[str, Any],
        policy: RetryPolicy,
        health: Dependency,
        settings: DeliverySettings,
        partitioner: Partitioner | None,
        rng: random.Random,
    ) -> None:
        self.binding = LoopBinding()
        self.loop = asyncio.get_running_loop()
        self._health = health
        self._target = target
        self._options = options
        self._unknown_answers: list[Exception] = []
        self._closing: asyncio.Task[DeliveryReport] | None = None
        transactional_id = options.get("transactional_id")
        self.supervisor: Supervisor[ProducerDriver] = Supervisor(
            role="producer",
            target=target,
            build=self._build,
            health=health,
            policy=policy,
            rng=rng,
            on_attached=self._driver_attached,
            on_detached=self._driver_detached,
            is_final=None if transactional_id is None else is_fenced,
        )
        self.transaction = TransactionState(transactional=transactional_id is not None)
        self.errors = DeliveryErrors(
            target=target,
            health=health,
            loop=self.loop,
            supervisor=self.supervisor,
            transaction=self.transaction,
        )
        self._buffer = BufferMemory(settings.buffer_bytes, _BURST)
        self._metadata = ProducerMetadata(
            supervisor=self.supervisor,
            rng=rng,
            partitioner=partitioner,
            sticky_bytes=2 * options["max_batch_size"],  # buffer memory counts about twice as much
        )
        self._probe = KafkaProbe(
            target=target,
            timeout=policy.connect_timeout,
            topics=self._metadata.topics.keys,
            coordinator=None if transactional_id is None else (TRANSACTION, transactional_id),
        )
        self._sender = Sender(
            supervisor=self.supervisor,
            metadata=self._metadata,
            buffer=self._buffer,
            health=health,
            errors=self.errors,
            probe=self._probe,
            transaction=self.transaction,
        )
        self.accumulator = Accumulator(
            metadata=self._metadata,
            buffer=self._buffer,
            sender=self._sender,
            health=health,
            errors=self.errors,
            transaction=self.transaction,
            policy=policy,
            settings=settings,
            max_request_size=options["max_request_size"],
            max_batch_size=options["max_batch_size"],
        )
        self.transactions = TransactionManager(self.accumulator, self.supervisor, policy)
        self._links = LinkWatch(
            health=health, probe=self._probe, driver=lambda: self.supervisor.driver
        )
        self._attachment = health.start(
            self._probe, last_reply=self._probe.last_reply, links=self._links.links
        )
        self._subscription = health.on_change(self._health_changed)
        self.supervisor.start()
        self._links.start()

    def _build(self) -> ProducerDriver:
        producer: ProducerDriver = _Producer(
            self._unknown_answers, **self._target.client_options(), **self._options
        )
        correct_transactions(producer)
        return producer

    def _driver_attached(self, driver: ProducerDriver) -> None:
        self._metadata.attach(driver)
        self._sender.resume()

    def _driver_detached(self, driver: ProducerDriver, error: BaseException | None) -> None:
        self._metadata.detach()
        self._sender.driver_closed(driver, error)
        self.transactions.driver_closed(driver, error)

    def _health_changed(self, _change: Change) -> None:
        if self._health.available:
            self._sender.resume()

    def stats(self) -> ProducerStats:
        """Return the counters."""
        sender = self._sender
        return ProducerStats(
            delivered=self.errors.delivered,
            ended=dict(self.errors.failed),
            batches=sender.batches,
            in_flight=len(sender.in_flight),
            waiting=sum(len(queue.entries) for queue in self._metadata.queues),
            buffered=self._buffer.used,
            callers_waiting=self._buffer.callers_waiting,
            instances=self.supervisor.generation,
            log_records_dropped=self._target.driver_log.log_records_dropped,
            latency=sender.latencies.quantiles,
            latency_total=sender.latencies.total,
            latency_counts=sender.latencies.counts,
        )

    async def aclose(self, timeout: float) -> DeliveryReport:
        """Deliver what there is time for, fail the rest, and close everything.

        If cancelled, return immediately; closing continues in the background.
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
        before = self.errors.delivered
        await self._metadata.aclose()
        try:
            async with asyncio.timeout_at(until):
                await self.transactions.aclose()
                await self.accumulator.flush()
        except TimeoutError:
            pass
        self._subscription.remove()
        await self._links.aclose()
        failures = self._sender.fail_in_flight()
        failures += self.accumulator.fail_waiting(self.errors.closed)
        # Batches in flight have just been failed, so waiting for their answers is useless.
        left = min(max(until - self.loop.time(), 0.0), _MAX_STOP)
        await self.supervisor.aclose(left, graceful=not self._sender.in_flight)
        self._metadata.detach()
        await self._sender.aclose()
        self.accumulator.cancel_timers()
        await self._attachment.detach()
        self._probe.close()
        await self._target.aclose()
        await self._health.release()
        delivered = self.errors.delivered - before
        return DeliveryReport(
            delivered=delivered, failures=tuple(failures), taken=delivered + len(failures)
        )


_UNKNOWN_ANSWERS = 2
"""After so many unknown errors in a row, a broker is taken for one without idempotence."""


class _Producer(AIOKafkaProducer):
    def __init__(self, unknown_answers: list[Exception], **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._unknown_answers = unknown_answers

    async def start(self) -> None:
        """Start; explain the error of a broker that cannot number batches.

        aiokafka 0.14 raises it in `Sender._maybe_wait_for_pid`: `IncompatibleBrokerVersion` if the
        broker does not know the request, and `UnknownError` if it answers with that (Tansu 0.6).
        Kafka may answer with the latter once, too, so one alone does not count.
        """
        try:
            await super().start()  # type: ignore[no-untyped-call]
            self._unknown_answers.clear()
        except (IncompatibleBrokerVersion, UnknownError) as error:
            manager: Any = self._txn_manager
            if manager is None or manager.has_pid():
                raise
            if isinstance(error, UnknownError):
                self._unknown_answers.append(error)
                if len(self._unknown_answers) < _UNKNOWN_ANSWERS:
                    raise
            if manager.transactional_id is not None:
                why = "the broker does not support transactions: leave transactional_id= out"
            else:
                why = (
                    "the broker does not support idempotent producers: use "
                    "enable_idempotence=False (a repeated request may then write a record twice)"
                )
            raise IncompatibleBrokerVersion(why) from error
