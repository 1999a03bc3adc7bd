"""`run`: its parts put together, and every way to end."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilient_io.deadlines import context_without_deadline

from .dead_letter import CLOSING, DeadLetters
from .dependencies import Gate
from .fetch_loop import Intake
from .retries import Failures
from .scheduler import Backlog
from .watchdog import Movement, Patience
from .workers import EVICTION_GRACE, Batches, Singles, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ..consumer.record import TopicPartition
    from ..consumer.source import Source
    from .dead_letter import DeadLetterProducer
    from .options import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """Counters of one `run`.

    Attributes:
        handled: Records that a handler took without raising.
        failed: Records whose handler raised, each time.
        excused: Those among them that did not count, for a required dependency was to blame.
        retried: Calls of a handler beyond the first of a record.
        dead_lettered: Records written to the dead-letter topic.
        skipped: Records given up without one.
        cancelled: Handlers that were cancelled because a rebalance, or the end, did not wait.
        in_flight: Records in memory now: being handled, or waiting for it.
        in_flight_bytes: Bytes of their keys and values.
        ready: Records among them that wait for nothing but a free handler.
        resting: Records among them that wait for their backoff to end.
        handlers: Handlers that are running now.
        allowed: Handlers that may run now; 0 while a required dependency is down, and while nobody
            knows whether the partitions are still ours.
        pauses: How often a required dependency was down.
    """

    handled: int
    failed: int
    excused: int
    retried: int
    dead_lettered: int
    skipped: int
    cancelled: int
    in_flight: int
    in_flight_bytes: int
    ready: int
    resting: int
    handlers: int
    allowed: int
    pauses: int


_FEEDER_GRACE = 1.0
_FORCE = 1.0
_SHARE_FOR_DRAIN = 0.8  # of the time that the group waits; the rest is for the commit and the way


class Processor:
    """One `run` of a consumer; made in its event loop.

    Cancelling `run()` leaves it at once. What is left to do then (draining, committing) is done by
    a task of its own, for which `aclose()` waits.

    Args:
        source: Where the records come from.
        plan: What was asked for.
        max_poll_interval: The consumer's `max_poll_interval_ms`, in seconds.
        make_producer: Makes the producer for dead letters, when the plan names none.
        rng: Source of the jitter.
        commit_timeout: Seconds for the last commit.
        rebalance_timeout: Seconds that the group waits for a member when partitions move; the
            drain is kept below it.
        ended: Called once when nothing of it runs any more.
        note: Told what the flight recorder is to remember.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        *,
        max_poll_interval: float,
        make_producer: Callable[[], DeadLetterProducer],
        rng: random.Random | None = None,
        commit_timeout: float = 3.0,
        rebalance_timeout: float = 10.0,
        ended: Callable[[], None] | None = None,
        note: Callable[..., None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._limits = plan.limits
        self._commit_timeout = commit_timeout
        self._ended = ended
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._error: BaseException | None = None
        self._feeder: asyncio.Task[None] | None = None
        self._winding_down: asyncio.Task[None] | None = None
        self._drain_timeout = plan.limits.drain_timeout
        self._asking: asyncio.Task[Any] | None = None
        self._longest_drain = max(0.0, _SHARE_FOR_DRAIN * rebalance_timeout - EVICTION_GRACE)
        self._cancelled = 0
        self._held = False
        letter = plan.dead_letter
        self._dead_letters = (
            DeadLetters(letter.topic, producer=letter.producer, make=make_producer)
            if letter is not None
            else None
        )
        self._gate = Gate(
            plan.requires,
            concurrency=plan.concurrency,
            slow_start=plan.limits.slow_start,
            moved=self._gate_moved,
            judged=lambda: self._work.handled + self._failures.failed - self._failures.excused,
        )
        self._backlog = Backlog(plan.order, plan.limits, self._make_room)
        self._failures = Failures(
            self._backlog,
            policy=plan.policy,
            gate=self._gate,
            dead_letters=self._dead_letters,
            on_failure=plan.on_failure,
            on_outcome_unknown=plan.on_outcome_unknown,
            rng=rng or random.Random(),
            ready=self._wake,
            stop=self._stop,
            note=note,
        )
        self._work = self._work_of(plan)
        self._workers = Workers(
            self._work,
            self._backlog,
            plan.concurrency,
            stop=self._stop,
            ending=self._loop_is_ending,
        )
        self._intake = Intake(source, self._backlog, self._gate, self._wake)
        self._movement = Movement(
            self._workers,
            self._backlog,
            self._gate,
            requires=plan.requires,
            ended=self._ended_calls,
            longest=max(max_poll_interval, plan.policy.timeout or 0.0),
        )
        self._patience = Patience(
            self._workers,
            self._movement,
            longest=max_poll_interval,
            drain=plan.limits.drain_timeout,
        )

    async def run(self) -> None:
        """Handle records until `aclose()`; see `ResilientKafkaConsumer.run`.

        Raises:
            Exception: What ended it: the error of a handler with `on_failure="stop"`, or what
                Kafka refuses for good.
        """
        if not self._over.done():
            self._start()
        try:
            await asyncio.wait([self._over])
        finally:
            if self._loop_is_ending():
                self._let_go()
            else:
                self._wind_down_soon()
        if self._winding_down is not None:
            await asyncio.wait([self._winding_down])
        if self._error is not None:
            raise self._error

    async def aclose(
        self, timeout: float | None = None, asking: asyncio.Task[Any] | None = None
    ) -> None:
        """End: fetch no more, drain, commit; `run()` returns then.

        Twice is fine. Cancelling it leaves at once; what it began ends by itself.

        Args:
            timeout: Seconds for all of it; None for what the limits of `run` say.
            asking: The task that wants it to end. When a handler runs in it, that handler is
                cancelled without a wait for it, and its record is not handled.
        """
        if timeout is not None:
            self._drain_timeout = min(self._drain_timeout, max(0.0, timeout - EVICTION_GRACE))
        self._asking = asking
        self._end()
        winding_down = self._wind_down_soon()
        await asyncio.wait([winding_down], timeout=timeout)
        if not winding_down.done():
            winding_down.cancel()
            await asyncio.wait([winding_down], timeout=_FORCE)

    def hold(self, *, held: bool) -> None:
        """Call the handler for no further record until it is called again with False."""
        self._held = held
        if not self._over.done():
            self._workers.allow(self._allowed)

    def stats(self) -> RunStats:
        """Return the counters."""
        backlog, failures = self._backlog, self._failures
        return RunStats(
            handled=self._work.handled,
            failed=failures.failed,
            excused=failures.excused,
            retried=failures.retried,
            dead_lettered=failures.dead_lettered,
            skipped=failures.skipped,
            cancelled=self._cancelled,
            in_flight=backlog.records,
            in_flight_bytes=backlog.bytes,
            ready=len(backlog.ready),
            resting=backlog.resting,
            handlers=len(self._workers.busy()),
            allowed=self._workers.allowed,
            pauses=self._gate.closed,
        )

    def liveness_failure(self, since: float) -> str | None:
        """Say that nothing has moved for too long; None while it does, and once it ends.

        Args:
            since: Loop time before which a standstill does not count.
        """
        return None if self._over.done() else self._movement.liveness_failure(since)

    # --- wiring

    def _work_of(self, plan: Plan) -> Singles | Batches:
        rest: dict[str, Any] = {
            "timeout": plan.policy.timeout,
            "backlog": self._backlog,
            "failures": self._failures,
            "stop": self._stop,
        }
        if plan.batch_size is None:
            return Singles(plan.handler, **rest)
        return Batches(plan.handler, plan.batch_size, **rest)

    def _make_room(self) -> None:
        self._intake.change()

    def _wake(self) -> None:
        self._workers.wake()

    def _ended_calls(self) -> int:
        failures = self._failures
        return self._work.handled + failures.failed + failures.dead_lettered + failures.skipped

    @property
    def _allowed(self) -> int:
        return 0 if self._held else self._gate.allowed

    def _gate_moved(self) -> None:
        if self._over.done():
            return
        self._workers.allow(self._allowed)
        self._intake.change()

    def _start(self) -> None:
        self._source.on_revoked(self._drain)
        self._source.on_assigned(self._intake.assigned)
        self._gate.start()
        self._patience.start()
        self._feeder = self._task(self._intake.feed(), "run")
        self._feeder.add_done_callback(self._feeder_ended)

    def _feeder_ended(self, feeder: asyncio.Task[None]) -> None:
        if not feeder.cancelled() and (error := feeder.exception()) is not None:
            self._stop(error)
        else:
            self._end()

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(
            work, name=f"resilient-io {name}", context=context_without_deadline()
        )

    # --- ending

    def _stop(self, error: BaseException) -> None:
        if not self._over.done():
            self._error = error
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)
            self._workers.allow(0)

    async def _drain(self, partitions: tuple[TopicPartition, ...]) -> None:
        """Partitions are taken away: drop what waits, let what is in hand end, then cancel it."""
        flows = self._backlog.flows
        self._intake.revoked(partitions)
        self._backlog.withdraw([flows[each] for each in partitions if each in flows])
        timeout = min(self._drain_timeout, self._longest_drain)
        self._cancelled += await self._workers.empty_hands(partitions, timeout)

    def _wind_down_soon(self) -> asyncio.Task[None]:
        self._end()
        if self._winding_down is None:
            self._winding_down = self._task(self._wind_down(), "run winding down")
        return self._winding_down

    def _loop_is_ending(self) -> bool:
        """Whether somebody cancels all tasks, as `asyncio.run` does: a new one would never end."""
        feeder = self._feeder
        return self._winding_down is None and feeder is not None and feeder.cancelling() > 0

    def _let_go(self) -> list[asyncio.Task[None]]:
        """Stop everything at once; return the tasks that are ending."""
        self._end()
        self._gate.stop()
        self._patience.stop()
        leaving = self._workers.dismiss()
        self._backlog.withdraw(list(self._backlog.flows.values()))
        self._intake.revoked(self._source.assignment())
        self._source.on_revoked(None)
        self._source.on_assigned(None)
        self._failures.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()
        return leaving

    async def _wind_down(self) -> None:
        closing = 0.0
        try:
            if self._feeder is not None:
                self._feeder.cancel()
                await asyncio.wait([self._feeder], timeout=_FEEDER_GRACE)
            self._gate.stop()
            self._patience.stop()
            self._backlog.withdraw(list(self._backlog.flows.values()))
            self._cancelled += await self._workers.empty_hands(
                None, self._drain_timeout, self._asking
            )
            await self._source.commit(self._commit_timeout)
            closing = CLOSING
        finally:
            leaving = self._let_go()  # also when it is cut short: nothing of it may go on
            if self._dead_letters is not None:
                await self._dead_letters.aclose(closing)
        if leaving:
            await asyncio.wait(leaving, timeout=EVICTION_GRACE)
