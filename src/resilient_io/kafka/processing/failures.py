"""What happens to a record whose handler failed: retry, dead letter, callback, skip or stop."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from resilient_io.deadlines import deadline
from resilient_io.errors import ConfigurationError, DependencyUnavailable
from resilient_io.retry import Backoff, backoff_bound
from resilient_io.text import clean_text

from ..record import place_of
from .dependencies import has_unknown_outcome
from .options import Failure, Verdict, half_jitter
from .scheduler import Action, RetryState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from ..producer import ResilientKafkaProducer
    from ..record import Record
    from ..stats import RunCounters
    from .dependencies import DependencyGate
    from .options import DeadLetter, RunPlan
    from .scheduler import Item, PartitionState, Scheduler

_log = logging.getLogger("resilient_io.kafka")

UNKNOWN_HEADER = ("x-outcome-unknown", b"1")
"""Header of a record whose handler is called again after it raised `OutcomeUnknown`."""

_BACKOFF = 0.1  # of a dead letter, and of a retry that does not count as an attempt, in seconds
_BACKOFF_CAP = 10.0
_ACTIONS = {"dead_letter": Action.DEAD_LETTER, "stop": Action.STOP, "skip": Action.SKIP}
_LOG_INTERVAL = 30.0
_MESSAGE_LIMIT = 1_000

_WRITE_TIMEOUT = 5.0
"""Seconds for one write; then it is retried later, because it occupies a handler's place."""

CLOSE_TIMEOUT = 2.0
"""Seconds to close the producer that this module created."""


@dataclass(kw_only=True, eq=False, repr=False)
class FailureHandler:
    """Decides what to do with a record that failed, and does it."""

    plan: RunPlan
    scheduler: Scheduler
    gate: DependencyGate
    dead_letters: DeadLetterWriter | None
    counters: RunCounters
    rng: random.Random
    ready: Callable[[], None]  # called when a record has become ready
    stop: Callable[[Exception], None]  # called with the exception that ends `run`
    note: Callable[..., None]

    def __post_init__(self) -> None:
        self._dead_letter_log = RateLimitedLog(
            "dead_lettered", "records sent to the dead-letter topic"
        )
        self._skip_log = RateLimitedLog("skipped", "records skipped")
        self._delay_log = RateLimitedLog(
            "verdict_delayed", "failures of dead letters or on_failure, retrying"
        )

    def close(self) -> None:
        """Log what has not been logged yet."""
        for log in (self._dead_letter_log, self._skip_log, self._delay_log):
            log.close()

    # --- decisions

    def unreadable(self, state: PartitionState, record: Record, error: Exception) -> None:
        """Handle a record that could not be deserialized, without calling the handler."""
        self.counters.failed += 1
        now = asyncio.get_running_loop().time()
        retry_state = RetryState(now, now, error)
        retry_state.action = self._action_on_failure()
        self._do_next((state, record, retry_state))

    def handler_failed(self, item: Item, error: Exception, began: float) -> None:
        """Decide what to do after a handler raised."""
        state, record, before = item
        if before is not None and before.action is not Action.HANDLE:
            self._action_failed(item, before, error)  # on_failure cancelled the task that ran it
            return
        retry_state = self._record_failure(before, record, error)
        item = (state, record, retry_state)
        if retry_state.action is not Action.HANDLE:
            self._do_next(item)
        elif self.gate.caused(error, began):
            self._do_not_count(retry_state)
            self._back_off(item, self._backoff_without_attempt(retry_state.not_counted))
        else:
            retry_state.attempts += 1
            if retry_state.attempts < self.plan.handler_policy.attempts:
                self._back_off(
                    item, self.plan.handler_policy.backoff_before(retry_state.attempts, self.rng)
                )
            else:
                retry_state.action = self._action_on_failure()
                self._do_next(item)

    def batch_failed(self, items: Sequence[Item], error: Exception, began: float) -> None:
        """Decide what to do with the records of one key after their batch failed."""
        # This does not count as an attempt: each record is retried alone, in order. Only if a
        # required dependency caused the failure may they be in a batch again.
        caused_by_dependency = self.gate.caused(error, began)
        failed: list[Item] = []
        for state, record, before in items:
            retry_state = self._record_failure(before, record, error)
            failed.append((state, record, retry_state))
            if caused_by_dependency:
                self._do_not_count(retry_state)
            else:
                retry_state.alone = True
        head, *followers = failed
        state, record, first = head
        if state.revoked:
            for _, dropped, _ in failed:
                self.scheduler.forget(dropped)
            return
        self.scheduler.put_behind(state, record, followers)
        if first is not None and first.action is Action.HANDLE:
            self._back_off(head, self._backoff_without_attempt(max(1, first.not_counted)))
        else:
            self._do_next(head)

    def _record_failure(
        self, retry_state: RetryState | None, record: Record, error: Exception
    ) -> RetryState:
        self.counters.failed += 1
        now = asyncio.get_running_loop().time()
        if retry_state is None:
            retry_state = RetryState(now, now, error)
        retry_state.error = error
        retry_state.last_failure = now
        if has_unknown_outcome(error):
            retry_state.outcome_unknown += 1
            if UNKNOWN_HEADER not in record.headers:
                record.headers = (*record.headers, UNKNOWN_HEADER)
            if self.plan.on_outcome_unknown != "retry":
                retry_state.attempts += 1
                retry_state.action = _ACTIONS[self.plan.on_outcome_unknown]
        return retry_state

    def _do_not_count(self, retry_state: RetryState) -> None:
        retry_state.not_counted += 1
        self.counters.not_counted += 1

    def _action_on_failure(self) -> Action:
        return Action.CALLBACK if callable(self.plan.on_failure) else _ACTIONS[self.plan.on_failure]

    def _backoff_without_attempt(self, retry: int) -> float:
        return half_jitter(backoff_bound(_BACKOFF, _BACKOFF_CAP, retry), self.rng)

    # --- actions

    async def proceed(self, item: Item) -> None:
        """Do what is next for a record that is given up; if that fails, do it again later."""
        # Until then, its offset is not committed. Cancelling leaves the record as it was.
        state, record, retry_state = item
        if retry_state is None:  # pragma: no cover - only records that have failed come here
            return
        try:
            if retry_state.action is Action.CALLBACK:
                retry_state.action = await self._call_on_failure(record, retry_state)
            if retry_state.action is Action.DEAD_LETTER:
                if self.dead_letters is not None and self.dead_letters.busy_retrying:
                    delay = min(_BACKOFF + len(state.backing_off) / 100, _BACKOFF_CAP)
                    self._back_off(item, delay)
                    return
                await self._write_dead_letter(record, retry_state)
        # The boundary to the producer and to the application's function: whatever they raise, the
        # record stays uncommitted, and the action is retried.
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the task itself was cancelled
            self._action_failed(item, retry_state, error)
            return
        if retry_state.action is Action.STOP:
            retry_state.error.add_note(
                f"run() stopped at {place_of(record)}, attempt {retry_state.attempts}"
            )
            self.scheduler.forget(record)  # not finished, so its offset is not committed
            self.stop(retry_state.error)
            return
        if retry_state.action is Action.SKIP:
            self.counters.skipped += 1
            name = type(retry_state.error).__name__
            self.note("record skipped", topic=record.topic, error=name)
            self._skip_log.add(f"{place_of(record)}: {name}")
        self.scheduler.finish(state, record)

    async def _write_dead_letter(self, record: Record, retry_state: RetryState) -> None:
        if self.dead_letters is None:
            raise ConfigurationError(
                'on_failure returned "dead_letter", but there is no topic for dead letters: '
                'use run(..., dead_letter="orders.dead")'
            )
        await self.dead_letters.write(record, retry_state)
        self.counters.dead_lettered += 1
        name = type(retry_state.error).__name__
        self.note("dead letter written", topic=record.topic, error=name)
        self._dead_letter_log.add(f"{place_of(record)}: {name}")

    async def _call_on_failure(self, record: Record, retry_state: RetryState) -> Action:
        if not callable(self.plan.on_failure):  # pragma: no cover - CALLBACK only with a function
            return self._action_on_failure()
        verdict = self.plan.on_failure(
            Failure(
                record=record,
                error=retry_state.error,
                attempts=retry_state.attempts,
                outcome_unknown=retry_state.outcome_unknown,
                seconds=retry_state.last_failure - retry_state.first_failure,
            )
        )
        if inspect.isawaitable(verdict):
            verdict = await verdict
        if verdict is None:
            return Action.SKIP
        if verdict not in get_args(Verdict):
            raise ConfigurationError(
                f'on_failure returned {verdict!r}: return "dead_letter", "stop", "skip" or None'
            )
        return _ACTIONS[str(verdict)]

    def _action_failed(self, item: Item, retry_state: RetryState, error: BaseException) -> None:
        retry_state.action_failures += 1
        self.note("verdict delayed", stage=retry_state.action.name, error=type(error).__name__)
        action = "dead letter" if retry_state.action is Action.DEAD_LETTER else "on_failure"
        self._delay_log.add(f"{action} of {place_of(item[1])} raised {describe_failure(error)}")
        self._back_off(item, self._backoff_without_attempt(retry_state.action_failures))

    def _do_next(self, item: Item) -> None:
        if item[0].revoked:
            self.scheduler.forget(item[1])
        else:
            self.scheduler.ready.appendleft(item)
            self.ready()

    def _back_off(self, item: Item, seconds: float) -> None:
        """Delay a record; only the records behind it in its key queue wait with it."""
        state, record, retry_state = item
        if state.revoked or retry_state is None:
            self.scheduler.forget(record)
            return
        state.backing_off[record.offset] = item
        retry_state.timer = asyncio.get_running_loop().call_later(
            seconds, self._backoff_ended, item
        )

    def _backoff_ended(self, item: Item) -> None:
        state, record, retry_state = item
        del state.backing_off[record.offset]
        if retry_state is not None and retry_state.action is Action.HANDLE:
            self.counters.retried += 1
        self.scheduler.ready.append(item)
        self.ready()


class RateLimitedLog:
    """Logs the first event at once, and then the number of events at most every 30 seconds."""

    def __init__(self, event: str, subject: str) -> None:
        self._event = event
        self._subject = subject
        self._logged_at: float | None = None
        self._count = 0
        self._latest = ""

    def add(self, detail: str) -> None:
        """Count an event, and log it unless the last message was too recent."""
        now = asyncio.get_running_loop().time()
        self._count += 1
        self._latest = detail
        if self._logged_at is None or now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            self._write()

    def close(self) -> None:
        """Log the events that have not been logged yet."""
        if self._count:
            self._write()

    def _write(self) -> None:
        _log.warning(
            "%s: %d (latest: %s)",
            self._subject,
            self._count,
            self._latest,
            extra={"event": self._event, "count": self._count, "latest": self._latest},
        )
        self._count = 0


class DeadLetterWriter:
    """Writes dead letters, through the application's producer or one that it creates."""

    def __init__(
        self, options: DeadLetter, make_producer: Callable[[], ResilientKafkaProducer]
    ) -> None:
        self._topic = options.topic
        self._given_producer = options.producer
        self._make_producer = make_producer
        self._own_producer: ResilientKafkaProducer | None = None
        self._advised = False
        self._writing = 0
        self._backoff = Backoff(_BACKOFF, _BACKOFF_CAP)
        self._retry_at = 0.0

    @property
    def busy_retrying(self) -> bool:
        """Whether writing fails, and another record is testing whether it works again."""
        # Otherwise all failed records would wait for that, each in the place of a handler.
        now = asyncio.get_running_loop().time()
        return self._backoff.failures > 0 and (self._writing > 0 or now < self._retry_at)

    async def write(self, record: Record, state: RetryState) -> None:
        """Write a dead letter, again after an unknown outcome, and wait until it is stored."""
        producer = self._given_producer or self._own_producer
        if producer is None:
            producer = self._own_producer = self._make_producer()
        loop = asyncio.get_running_loop()
        self._writing += 1
        try:
            with deadline(_WRITE_TIMEOUT):
                await producer.send_and_wait(
                    self._topic,
                    value=record.raw_value,
                    key=record.raw_key,
                    headers=dead_letter_headers(record, state, loop.time()),
                )
        except Exception as error:
            self._retry_at = loop.time() + self._backoff.next()
            if producer is self._own_producer:
                self._advise(error)
            raise
        finally:
            self._writing -= 1
        self._backoff.reset()

    async def aclose(self, timeout: float) -> None:
        """Close the producer that this object created, if there is one."""
        producer, self._own_producer = self._own_producer, None
        if producer is not None:
            await producer.aclose(timeout)

    def _advise(self, error: Exception) -> None:
        """Log once how to pass a producer: the default one may not suit this cluster."""
        if self._advised or isinstance(error, DependencyUnavailable):
            return
        self._advised = True
        _log.warning(
            "the producer that run() created could not write a dead letter to %s (%s); retrying. "
            "If the cluster needs other options than aiokafka's defaults with idempotence, use "
            'DeadLetter(topic="%s", producer=ResilientKafkaProducer(..., '
            "enable_idempotence=False)), for example, or a larger max_request_size",
            self._topic,
            describe_failure(error),
            self._topic,
            extra={
                "event": "dead_letter_refused",
                "topic": self._topic,
                "error": type(error).__name__,
            },
        )


ORIGIN_HEADERS = (
    "x-original-topic",
    "x-original-partition",
    "x-original-offset",
    "x-original-timestamp",
)
FAILURE_HEADERS = (
    "x-error-type",
    "x-error-message",
    "x-attempts",
    "x-attempts-not-counted",
    "x-first-failure-ago",
    "x-last-failure-ago",
    "x-outcome-unknown",
)
"""The headers that a dead letter has in addition to those of its record."""


def dead_letter_headers(record: Record, state: RetryState, now: float) -> list[tuple[str, bytes]]:
    """Return the headers of a record's dead letter."""
    # If the record is a dead letter itself, its headers about the failure are replaced, and those
    # about its origin are kept.
    origin = {
        "x-original-topic": record.topic.encode(),
        "x-original-partition": b"%d" % record.partition,
        "x-original-offset": b"%d" % record.offset,
        "x-original-timestamp": b"%d" % record.timestamp,
    }
    error = state.error
    failure = {
        "x-error-type": f"{type(error).__module__}.{type(error).__qualname__}".encode(),
        "x-error-message": _message_of(error, _MESSAGE_LIMIT).encode(errors="replace"),
        "x-attempts": b"%d" % state.attempts,
        "x-first-failure-ago": f"{now - state.first_failure:.3f}".encode(),
        "x-last-failure-ago": f"{now - state.last_failure:.3f}".encode(),
    }
    if state.not_counted:
        failure["x-attempts-not-counted"] = b"%d" % state.not_counted
    if state.outcome_unknown:
        failure["x-outcome-unknown"] = b"%d" % state.outcome_unknown
    earlier_origin = {name: value for name, value in record.headers if name in origin}
    kept = [
        (name, value)
        for name, value in record.headers
        if name not in ORIGIN_HEADERS and name not in FAILURE_HEADERS
    ]
    return [*kept, *{**origin, **earlier_origin}.items(), *failure.items()]


def describe_failure(error: BaseException) -> str:
    """Return the type and the message of an exception, in one clean line, for the log."""
    name, message = type(error).__name__, _message_of(error)
    if message.startswith(name):
        return message
    return f"{name}: {message}" if message else name


def _message_of(error: BaseException, limit: int = 300) -> str:
    try:
        message = str(error)
    # The boundary to an exception class of the application: its __str__ may raise anything.
    except Exception as failure:  # noqa: BLE001
        message = f"(no message: str() raised {type(failure).__name__})"
    return clean_text(message, limit=limit)
