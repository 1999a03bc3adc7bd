"""What becomes of a record whose handler failed: again, the dead letter, skip, or stop."""

from __future__ import annotations

import asyncio
import enum
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from resilient_io.errors import ConfigurationError

from .dead_letter import told
from .dependencies import outcome_unknown
from .rate_limited_log import Notices

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from ..consumer.record import Record
    from .dead_letter import DeadLetters
    from .dependencies import Gate
    from .options import HandlerPolicy, OnUnknown
    from .scheduler import Backlog, Flow, Item


class Stage(enum.Enum):
    """What has to be done for a record next."""

    HANDLE = "handle"
    """Call the handler again."""

    BURY = "bury"
    """Write it to the dead-letter topic."""

    TELL = "tell"
    """Ask the application's own `on_failure`."""

    SKIP = "skip"
    """Let it go, counted."""

    STOP = "stop"
    """End `run` because of it."""


class Case:
    """The history of one record.

    Attributes:
        stage: What has to be done next.
        attempts: Calls of the handler that count.
        excused: Calls that do not count, for a required dependency was away.
        stuck: Failures to bury it, or to tell of it, in a row.
        unknown: Calls that raised `OutcomeUnknown`.
        first_failure: Loop time of the first failure.
        last_failure: Loop time of the latest.
        error: The latest error of the handler, or what a deserialiser raised.
        alone: Whether it is given to a batch handler by itself, to find the culprit.
        timer: Ends the backoff, while there is one.
    """

    __slots__ = (
        "alone",
        "attempts",
        "error",
        "excused",
        "first_failure",
        "last_failure",
        "stage",
        "stuck",
        "timer",
        "unknown",
    )

    def __init__(self, now: float, error: Exception) -> None:
        self.stage = Stage.HANDLE
        self.attempts = 0
        self.excused = 0
        self.stuck = 0
        self.unknown = 0
        self.first_failure = now
        self.last_failure = now
        self.error = error
        self.alone = False
        self.timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a record was given up, for an `on_failure` of the application.

    Attributes:
        record: The record. When it could not be deserialised, `record.error` is the reason and
            `record.raw_value` has the bytes.
        error: What the handler raised last, or what the deserialiser raised.
        attempts: Calls of the handler that count; 0 when it could not be deserialised.
        outcome_unknown: How many of all calls raised `OutcomeUnknown`.
        seconds: Time from the first failure to the last.
    """

    record: Record
    error: Exception
    attempts: int
    outcome_unknown: int
    seconds: float


Verdict: TypeAlias = Literal["dead_letter", "stop", "skip"]
"""What becomes of a record that is given up."""

OnFailure: TypeAlias = "Verdict | Callable[[Failure], object]"
"""A verdict, or a function (sync or async) that returns one; None from it means "skip"."""

UNKNOWN_HEADER = ("x-outcome-unknown", b"1")
"""What a record's headers tell a handler that is called again after `OutcomeUnknown`."""

_FASTEST_REPEAT = 0.1  # of what does not count as an attempt
_SLOWEST_REPEAT = 10.0
_STAGES = {"dead_letter": Stage.BURY, "stop": Stage.STOP, "skip": Stage.SKIP}


class Failures:
    """Judges failures, and does for a record what is left to do.

    Args:
        backlog: Where the records are.
        policy: Attempts and backoff.
        gate: Knows whether a required dependency is to blame.
        dead_letters: Writes dead letters; None when there is no topic for them.
        on_failure: What becomes of a record whose attempts are used up.
        on_outcome_unknown: What becomes of one that was maybe applied.
        rng: Source of the jitter.
        ready: Called when a record became ready.
        stop: Called with the error that ends `run`.
        note: Told what the flight recorder is to remember.

    Attributes:
        failed: Records whose handler raised, each time.
        excused: Those among them that did not count as an attempt.
        retried: Calls beyond the first of a record.
        dead_lettered: Records written to the dead-letter topic.
        skipped: Records given up without one.
    """

    def __init__(
        self,
        backlog: Backlog,
        *,
        policy: HandlerPolicy,
        gate: Gate,
        dead_letters: DeadLetters | None,
        on_failure: OnFailure,
        on_outcome_unknown: OnUnknown,
        rng: random.Random,
        ready: Callable[[], None],
        stop: Callable[[Exception], None],
        note: Callable[..., None] | None = None,
    ) -> None:
        self._backlog = backlog
        self._policy = policy
        self._gate = gate
        self._dead_letters = dead_letters
        self._on_failure = on_failure
        self._on_unknown = on_outcome_unknown
        self._rng = rng
        self._ready = ready
        self._stop = stop
        self._note_event = note or _forget
        self._buried = Notices("dead_lettered", "records went to the dead-letter topic")
        self._skips = Notices("skipped", "records were skipped")
        self._delays = Notices(
            "verdict_delayed", "dead letters or on_failure did not succeed, and are tried again"
        )
        self.failed = 0
        self.excused = 0
        self.retried = 0
        self.dead_lettered = 0
        self.skipped = 0

    def close(self) -> None:
        """Say what has not been said yet."""
        for notices in (self._buried, self._skips, self._delays):
            notices.close()

    # --- judging

    def unreadable(self, flow: Flow, record: Record, error: Exception) -> None:
        """A record could not be deserialised: calling the handler makes no sense."""
        self.failed += 1
        case = Case(asyncio.get_running_loop().time(), error)
        case.stage = self._stage_of_failure()
        self._do_next((flow, record, case))

    def handler_failed(self, item: Item, error: Exception, began: float) -> None:
        """A handler raised; decide what is next, and see to it.

        Args:
            item: The record.
            error: What the handler raised.
            began: Loop time at which it was called.
        """
        flow, record, before = item
        if before is not None and before.stage is not Stage.HANDLE:
            self._stuck(item, before, error)  # its on_failure ended the task it ran in
            return
        case = self._note(before, record, error)
        item = (flow, record, case)
        if case.stage is not Stage.HANDLE:
            self._do_next(item)
        elif self._gate.excuses(error, began):
            self._excuse(case)
            self._rest(item, self._growing(case.excused))
        else:
            case.attempts += 1
            if case.attempts < self._policy.attempts:
                self._rest(item, self._policy.wait_before(case.attempts, self._rng))
            else:
                case.stage = self._stage_of_failure()
                self._do_next(item)

    def line_failed(self, line: Sequence[Item], error: Exception, began: float) -> None:
        """A handler raised for a batch; see to the records of one line in it.

        It counts as nobody's attempt: each is tried by itself, in its order. Only if a required
        dependency is to blame they may be in batches again.

        Args:
            line: The records of the line, in their order.
            error: What the handler raised.
            began: Loop time at which it was called.
        """
        excused = self._gate.excuses(error, began)
        items: list[Item] = []
        for flow, record, before in line:
            case = self._note(before, record, error)
            items.append((flow, record, case))
            if excused:
                self._excuse(case)
            else:
                case.alone = True
        head, *followers = items
        flow, record, first = head
        if flow.revoked:
            for _, gone, _ in items:
                self._backlog.forget(gone)
            return
        self._backlog.put_behind(flow, record, followers)
        if first is not None and first.stage is Stage.HANDLE:
            self._rest(head, self._growing(max(1, first.excused)))
        else:
            self._do_next(head)

    def _note(self, case: Case | None, record: Record, error: Exception) -> Case:
        """Enter a failure of the handler into the record's history."""
        self.failed += 1
        now = asyncio.get_running_loop().time()
        if case is None:
            case = Case(now, error)
        case.error = error
        case.last_failure = now
        if outcome_unknown(error):
            case.unknown += 1
            if UNKNOWN_HEADER not in record.headers:
                record.headers = (*record.headers, UNKNOWN_HEADER)
            if self._on_unknown != "retry":
                case.attempts += 1
                case.stage = _STAGES[self._on_unknown]
        return case

    def _excuse(self, case: Case) -> None:
        case.excused += 1
        self.excused += 1

    def _stage_of_failure(self) -> Stage:
        return Stage.TELL if callable(self._on_failure) else _STAGES[self._on_failure]

    def _growing(self, times: int) -> float:
        bound = min(_FASTEST_REPEAT * 2.0 ** min(times - 1, 10), _SLOWEST_REPEAT)
        return bound * (0.5 + 0.5 * self._rng.random())

    # --- doing

    async def go_on(self, item: Item) -> None:
        """Do what is next for a record that is given up.

        When that fails it is tried again later; until then its offset is not committed.
        Cancelling leaves the record as it was.
        """
        flow, record, case = item
        if case is None:  # pragma: no cover - only those with a history come here
            return
        try:
            if case.stage is Stage.TELL:
                case.stage = await self._tell(record, case)
            if case.stage is Stage.BURY:
                if self._dead_letters is not None and self._dead_letters.crowded:
                    self._rest(
                        item, min(_FASTEST_REPEAT + len(flow.resting) / 100, _SLOWEST_REPEAT)
                    )
                    return
                await self._bury(record, case)
        # The boundary to the producer and to the application's own function: whatever either
        # raises, the record stays ours, uncommitted, and is tried again.
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # meant for the task, not of their own making
            self._stuck(item, case, error)
            return
        if case.stage is Stage.STOP:
            case.error.add_note(f"run() stopped at {place_of(record)}, attempt {case.attempts}")
            self._backlog.forget(record)  # and is not finished: it is not committed
            self._stop(case.error)
            return
        if case.stage is Stage.SKIP:
            self.skipped += 1
            self._note_event("record skipped", topic=record.topic, error=type(case.error).__name__)
            self._skips.add(f"{place_of(record)}: {type(case.error).__name__}")
        self._backlog.finished(flow, record)

    def _stuck(self, item: Item, case: Case, error: BaseException) -> None:
        case.stuck += 1
        self._note_event("verdict delayed", stage=case.stage.name, error=type(error).__name__)
        doing = "the dead letter" if case.stage is Stage.BURY else "on_failure"
        self._delays.add(f"{doing} of {place_of(item[1])} raised {told(error)}")
        self._rest(item, self._growing(case.stuck))

    def _do_next(self, item: Item) -> None:
        if item[0].revoked:
            self._backlog.forget(item[1])
        else:
            self._backlog.ready.appendleft(item)
            self._ready()

    def _rest(self, item: Item, seconds: float) -> None:
        """Let a record wait; only those behind it in its line wait with it."""
        flow, record, case = item
        if flow.revoked or case is None:
            self._backlog.forget(record)
            return
        flow.resting[record.offset] = item
        case.timer = asyncio.get_running_loop().call_later(seconds, self._rested, item)

    def _rested(self, item: Item) -> None:
        flow, record, case = item
        del flow.resting[record.offset]
        if case is not None and case.stage is Stage.HANDLE:
            self.retried += 1
        self._backlog.ready.append(item)
        self._ready()

    async def _bury(self, record: Record, case: Case) -> None:
        if self._dead_letters is None:
            raise ConfigurationError(
                'on_failure returned "dead_letter", but there is no topic for dead letters: '
                'write run(..., dead_letter="orders.dead")'
            )
        await self._dead_letters.write(record, case)
        self.dead_lettered += 1
        self._note_event("dead letter written", topic=record.topic, error=type(case.error).__name__)
        self._buried.add(f"{place_of(record)}: {type(case.error).__name__}")

    async def _tell(self, record: Record, case: Case) -> Stage:
        if not callable(self._on_failure):  # pragma: no cover - TELL only where there is one
            return self._stage_of_failure()
        verdict = self._on_failure(
            Failure(
                record=record,
                error=case.error,
                attempts=case.attempts,
                outcome_unknown=case.unknown,
                seconds=case.last_failure - case.first_failure,
            )
        )
        if inspect.isawaitable(verdict):
            verdict = await verdict
        if verdict is None:
            return Stage.SKIP
        if verdict not in get_args(Verdict):
            raise ConfigurationError(
                f'on_failure returned {verdict!r}: return "dead_letter", "stop", "skip" or None'
            )
        return _STAGES[str(verdict)]


def _forget(event: str, **fields: object) -> None:
    """Remember nothing: there is no flight recorder."""


def place_of(record: Record) -> str:
    """Return where a record is, for people."""
    return f"{record.topic}[{record.partition}]@{record.offset}"
