"""What happens to a record whose handler failed.

It is retried in memory, then in the retry topics; then it becomes a dead letter, is given to a
callback or skipped, or ends the run.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from resilient_io.errors import ConfigurationError
from resilient_io.retry import backoff_bound

from ..record import place_of
from .dependencies import has_unknown_outcome
from .failed_records import BACKOFF, BACKOFF_CAP, describe_failure, failure_headers
from .headers import UNKNOWN_HEADER
from .options import Failure, Verdict, half_jitter
from .scheduler import Action, RetryState

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from ..record import Record
    from ..stats import RunCounters
    from .dependencies import DependencyGate
    from .failed_records import FailedRecordWriter
    from .options import RunPlan
    from .scheduler import Item, PartitionState, Scheduler

_log = logging.getLogger("resilient_io.kafka")

_ACTIONS = {"dead_letter": Action.DEAD_LETTER, "stop": Action.STOP, "skip": Action.SKIP}
_LOG_INTERVAL = 30.0


@dataclass(kw_only=True, eq=False, repr=False)
class FailureHandler:
    """Decides what to do with a record that failed, and does it."""

    plan: RunPlan
    scheduler: Scheduler
    gate: DependencyGate
    writer: FailedRecordWriter
    counters: RunCounters
    rng: random.Random
    ready: Callable[[], None]  # called when a record has become ready
    stop: Callable[[Exception], None]  # called with the exception that ends `run`
    note: Callable[..., None]

    def __post_init__(self) -> None:
        self._dead_letter_log = RateLimitedLog(
            "dead_lettered", "records sent to the dead-letter topic"
        )
        self._retry_topic_log = RateLimitedLog(
            "sent_to_retry_topic", "records sent to a retry topic"
        )
        self._skip_log = RateLimitedLog("skipped", "records skipped")
        self._delay_log = RateLimitedLog(
            "verdict_delayed", "failures of dead letters, retry topics or on_failure, retrying"
        )

    def close(self) -> None:
        """Log what has not been logged yet."""
        for log in (
            self._dead_letter_log,
            self._retry_topic_log,
            self._skip_log,
            self._delay_log,
        ):
            log.close()

    # --- decisions

    def unreadable(self, state: PartitionState, record: Record, error: Exception) -> None:
        """Handle a record that could not be deserialized, without calling the handler."""
        self.counters.failed += 1
        retry_state = self._first_failure(record, error)
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
                retry_state.action = self._action_after_attempts(record)
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
        if retry_state is None:
            retry_state = self._first_failure(record, error)
        retry_state.error = error
        retry_state.last_failure = asyncio.get_running_loop().time()
        if has_unknown_outcome(error):
            retry_state.outcome_unknown += 1
            if UNKNOWN_HEADER not in record.headers:
                record.headers = (*record.headers, UNKNOWN_HEADER)
            if self.plan.on_outcome_unknown != "retry":
                retry_state.attempts += 1
                retry_state.action = _ACTIONS[self.plan.on_outcome_unknown]
        return retry_state

    def _first_failure(self, record: Record, error: Exception) -> RetryState:
        now = asyncio.get_running_loop().time()
        return RetryState(now, now, error, self.plan.retry_topics.past_failures(record))

    def _do_not_count(self, retry_state: RetryState) -> None:
        retry_state.not_counted += 1
        self.counters.not_counted += 1

    def _action_after_attempts(self, record: Record) -> Action:
        if self.plan.retry_topics.next_of(record) is not None:
            return Action.RETRY_TOPIC
        return self._action_on_failure()

    def _action_on_failure(self) -> Action:
        return Action.CALLBACK if callable(self.plan.on_failure) else _ACTIONS[self.plan.on_failure]

    def _backoff_without_attempt(self, retry: int) -> float:
        return half_jitter(backoff_bound(BACKOFF, BACKOFF_CAP, retry), self.rng)

    # --- actions

    async def proceed(self, item: Item) -> None:
        """Carry out the next action for a record that is given up. If it fails, try again later."""
        # Until then, its offset is not committed. Cancelling leaves the record as it was.
        state, record, retry_state = item
        if retry_state is None:  # pragma: no cover - only records that have failed come here
            return
        try:
            if retry_state.action is Action.CALLBACK:
                retry_state.action = await self._call_on_failure(record, retry_state)
            if retry_state.action in (Action.DEAD_LETTER, Action.RETRY_TOPIC):
                topic, added = self._destination(record, retry_state.action)
                if self.writer.busy_retrying(topic):
                    delay = min(BACKOFF + len(state.backing_off) / 100, BACKOFF_CAP)
                    self._back_off(item, delay)
                    return
                now = asyncio.get_running_loop().time()
                headers = failure_headers(record, retry_state, now) + added
                await self.writer.write(topic, record, headers)
                self._note_written(record, retry_state, topic)
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

    def _destination(self, record: Record, action: Action) -> tuple[str, list[tuple[str, bytes]]]:
        """Return the topic to which a failed record is written, and further headers."""
        topic = self.plan.retry_topics.next_of(record)
        if action is Action.RETRY_TOPIC and topic is not None:
            return topic.name, self.plan.retry_topics.headers_for(record, topic)
        if self.plan.dead_letter is None:
            raise ConfigurationError(
                'on_failure returned "dead_letter", but there is no topic for dead letters: '
                'use run(..., dead_letter="orders.dead")'
            )
        return self.plan.dead_letter.topic, []

    def _note_written(self, record: Record, retry_state: RetryState, topic: str) -> None:
        name = type(retry_state.error).__name__
        if retry_state.action is Action.RETRY_TOPIC:
            self.counters.sent_to_retry += 1
            self.note("record sent to retry topic", topic=topic, error=name)
            self._retry_topic_log.add(f"{place_of(record)} to {topic}: {name}")
        else:
            self.counters.dead_lettered += 1
            self.note("dead letter written", topic=record.topic, error=name)
            self._dead_letter_log.add(f"{place_of(record)}: {name}")

    async def _call_on_failure(self, record: Record, retry_state: RetryState) -> Action:
        if not callable(self.plan.on_failure):  # pragma: no cover - CALLBACK only with a function
            return self._action_on_failure()
        past = retry_state.past
        verdict = self.plan.on_failure(
            Failure(
                record=self.plan.retry_topics.original(record),
                error=retry_state.error,
                attempts=past.attempts + retry_state.attempts,
                outcome_unknown=past.outcome_unknown + retry_state.outcome_unknown,
                seconds=past.seconds + retry_state.last_failure - retry_state.first_failure,
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
        action = "on_failure" if retry_state.action is Action.CALLBACK else retry_state.action.value
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
