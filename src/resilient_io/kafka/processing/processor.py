"""One `run`: creates and connects its components, and ends them in order."""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from resilient_io.deadlines import context_without_deadline

from ..stats import RunCounters, RunStats
from .dependencies import DependencyGate
from .failed_records import CLOSE_TIMEOUT, FailedRecordWriter
from .failures import FailureHandler
from .fetch_loop import FetchLoop
from .scheduler import Scheduler
from .watchdog import Watchdog
from .workers import CANCEL_GRACE, HandlerLoop, WorkerPool

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Coroutine

    from aiokafka import TopicPartition

    from ..producer import ResilientKafkaProducer
    from .fetch_loop import RecordSource
    from .options import RunPlan

_FETCH_LOOP_GRACE = 1.0
_FORCED_END_TIMEOUT = 1.0
_DRAIN_SHARE = 0.8  # of the time that the group waits; the rest is for the commit and the network


@dataclass(kw_only=True, eq=False, repr=False)
class Processor:
    """One `run` of a consumer. If it is cancelled, a separate task drains and commits."""

    activity: ClassVar = "running"
    """What the consumer is doing meanwhile, for errors."""

    source: RecordSource
    plan: RunPlan
    commit: Callable[[float], Awaitable[None]]  # commits what is handled, within a timeout
    commit_timeout: float
    drain_timeout: float  # seconds that handlers get to end before they are cancelled
    max_poll_interval: float
    rebalance_timeout: float  # seconds that the group waits for a member
    make_producer: Callable[[], ResilientKafkaProducer]
    rng: random.Random
    ended: Callable[[RunStats], None]  # called once, when nothing of the run is active any more
    note: Callable[..., None]

    def __post_init__(self) -> None:
        plan = self.plan
        self._loop = asyncio.get_running_loop()
        self._longest_drain = max(0.0, _DRAIN_SHARE * self.rebalance_timeout - CANCEL_GRACE)
        self._notify_ended: Callable[[RunStats], None] | None = self.ended
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._error: BaseException | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._winding_down: asyncio.Task[None] | None = None
        self._closed_by: asyncio.Task[Any] | None = None
        self._held = False
        self._cancel_grace = CANCEL_GRACE
        self._until = math.inf  # loop time at which a close must be over
        self._counters = RunCounters()
        self._writer = FailedRecordWriter(plan.dead_letter, self.make_producer)
        self._gate = DependencyGate(
            requires=plan.requires,
            concurrency=plan.concurrency,
            slow_start=plan.limits.slow_start,
            changed=self._gate_changed,
            counters=self._counters,
        )
        self._scheduler = Scheduler(plan.order, plan.limits, self._room_available)
        self._failures = FailureHandler(
            plan=plan,
            scheduler=self._scheduler,
            gate=self._gate,
            writer=self._writer,
            counters=self._counters,
            rng=self.rng,
            ready=self._records_ready,
            stop=self._stop,
            note=self.note,
        )
        self._workers = WorkerPool(
            loop_body=HandlerLoop(
                handler=plan.handler,
                batch_size=plan.batch_size,
                timeout=plan.handler_policy.timeout,
                scheduler=self._scheduler,
                failures=self._failures,
                counters=self._counters,
            ),
            scheduler=self._scheduler,
            concurrency=plan.concurrency,
            stop=self._stop,
            shutting_down=self._loop_is_shutting_down,
            check_membership=self.source.check_membership,
        )
        self._fetch_loop = FetchLoop(
            self.source, self._scheduler, self._gate, plan.retry_topics, self._workers.wake
        )
        self._watchdog = Watchdog(
            plan=plan,
            workers=self._workers,
            scheduler=self._scheduler,
            gate=self._gate,
            counters=self._counters,
            max_poll_interval=self.max_poll_interval,
            drain_timeout=self.drain_timeout,
        )

    @property
    def retry_topics(self) -> tuple[str, ...]:
        """The topics to read in addition to those of the consumer."""
        return self.plan.retry_topics.names

    async def run(self) -> None:
        """Handle records until `aclose()`; see `ResilientKafkaConsumer.run`."""
        if not self._over.done():
            self._start()
        try:
            await asyncio.wait([self._over])
        finally:
            if self._loop_is_shutting_down():
                self._let_go()
            else:
                self._begin_winding_down()
        if self._winding_down is not None:
            await asyncio.wait([self._winding_down])
        if self._error is not None:
            raise self._error

    async def aclose(
        self,
        timeout: float | None = None,
        reserved: float = CANCEL_GRACE,
        caller: asyncio.Task[Any] | None = None,
    ) -> None:
        """Stop fetching, drain and commit, in the background if cancelled; then `run()` returns.

        Handlers get `timeout` without the `reserved` seconds, of which those that are then
        cancelled get half.
        """
        if timeout is not None:
            self.drain_timeout = min(self.drain_timeout, max(0.0, timeout - reserved))
            self._cancel_grace = min(CANCEL_GRACE, reserved / 2)
            self._until = self._loop.time() + timeout
        self._closed_by = caller
        self._end()
        winding_down = self._begin_winding_down()
        await asyncio.wait([winding_down], timeout=timeout)
        if not winding_down.done():
            winding_down.cancel()
            await asyncio.wait([winding_down], timeout=_FORCED_END_TIMEOUT)

    # --- for the consumer

    def hold(self, *, held: bool) -> None:
        """Call no handler for another record until this is called again with False."""
        self._held = held
        if not self._over.done():
            self._workers.allow(self._allowed)

    def assigned(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Note that partitions were assigned."""
        self._fetch_loop.assigned(partitions)

    async def drain(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Drop waiting records of revoked partitions; wait for their handlers, or cancel them."""
        states = self._scheduler.partitions
        self._fetch_loop.revoked(partitions)
        self._scheduler.withdraw([states[each] for each in partitions if each in states])
        timeout = min(self.drain_timeout, self._longest_drain)
        self._counters.cancelled += await self._workers.empty_hands(partitions, timeout)

    def stats(self) -> RunStats:
        """Return the counters."""
        scheduler = self._scheduler
        return RunStats(
            **asdict(self._counters),
            in_flight=scheduler.records,
            in_flight_bytes=scheduler.bytes,
            ready=len(scheduler.ready),
            backing_off=scheduler.backing_off,
            handlers=len(self._workers.busy()),
            allowed=self._workers.allowed,
        )

    def liveness_failure(self, since: float) -> str | None:
        """See `Watchdog.liveness_failure`."""
        return None if self._over.done() else self._watchdog.liveness_failure(since)

    # --- called by the components

    def _room_available(self) -> None:
        self._fetch_loop.check_again()

    def _records_ready(self) -> None:
        self._workers.wake()

    @property
    def _allowed(self) -> int:
        return 0 if self._held else self._gate.allowed

    def _gate_changed(self) -> None:
        if self._over.done():
            return
        self._workers.allow(self._allowed)
        self._fetch_loop.check_again()

    # --- start and end

    def _start(self) -> None:
        self._gate.start()
        self._watchdog.start()
        self._fetching = self._create_task(self._fetch_loop.run(), "run")
        self._fetching.add_done_callback(self._fetching_ended)

    def _fetching_ended(self, fetching: asyncio.Task[None]) -> None:
        if not fetching.cancelled() and (error := fetching.exception()) is not None:
            self._stop(error)
        else:
            self._end()

    def _create_task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(
            work, name=f"resilient-io {name}", context=context_without_deadline()
        )

    def _stop(self, error: BaseException) -> None:
        if not self._over.done():
            self._error = error
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
            self._workers.allow(0)

    def _begin_winding_down(self) -> asyncio.Task[None]:
        self._end()
        if self._winding_down is None:
            self._winding_down = self._create_task(self._wind_down(), "run winding down")
        return self._winding_down

    def _loop_is_shutting_down(self) -> bool:
        """Return whether all tasks are being cancelled, as `asyncio.run` does at its end."""
        # A task that was created then would never end.
        fetching = self._fetching
        return self._winding_down is None and fetching is not None and fetching.cancelling() > 0

    def _let_go(self) -> list[asyncio.Task[None]]:
        """Stop everything immediately, and return the tasks that are ending."""
        self._end()
        self._gate.stop()
        self._watchdog.stop()
        ending = self._workers.dismiss()
        self._scheduler.withdraw(list(self._scheduler.partitions.values()))
        self._fetch_loop.revoked(self.source.assignment())
        self._failures.close()
        notify, self._notify_ended = self._notify_ended, None
        if notify is not None:
            notify(self.stats())
        return ending

    async def _wind_down(self) -> None:
        close_timeout = 0.0
        try:
            if self._fetching is not None:
                self._fetching.cancel()
                await asyncio.wait([self._fetching], timeout=_FETCH_LOOP_GRACE)
            self._gate.stop()
            self._watchdog.stop()
            self._scheduler.withdraw(list(self._scheduler.partitions.values()))
            self._counters.cancelled += await self._workers.empty_hands(
                None, self.drain_timeout, self._closed_by, grace=self._cancel_grace
            )
            left = max(0.0, self._until - self._loop.time())
            await self.commit(min(self.commit_timeout, left))
            close_timeout = CLOSE_TIMEOUT
        finally:
            ending = self._let_go()  # also if this task is cancelled: nothing may continue
            await self._writer.aclose(close_timeout)
        if ending:
            await asyncio.wait(ending, timeout=CANCEL_GRACE)
