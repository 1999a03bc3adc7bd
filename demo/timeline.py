"""Faults, and a record of what happens while they strike; the same for both parts."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from resilient_io.errors import OutcomeUnknown, Progress, ResilientIOError
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from resilient_io.health import Change

HOST: Final = "127.0.0.1"
POLL: Final = 0.05
STEP: Final = 0.4
"""Seconds of each step of a curve."""

_LONGEST: Final = 66
"""Longest line of the timeline, in characters after the time."""

Kind = Literal["fault", "good", "bad", "error"]
What = Literal["lost replies", "killed", "frozen", "cut off", "failover"]


class Outcome(enum.Enum):
    """The outcome of a write, as its caller knows it."""

    PENDING = "pending"
    DONE = "done"
    UNKNOWN = "unknown"
    NOT_DONE = "not done"


def outcome_of(error: Exception) -> Outcome:
    """Return what an error says about a write; drivers' errors say nothing."""
    if not isinstance(error, ResilientIOError) or isinstance(error, OutcomeUnknown):
        return Outcome.UNKNOWN
    maybe = error.progress is Progress.MAYBE_APPLIED
    return Outcome.UNKNOWN if maybe else Outcome.NOT_DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault, with a pause before and after it."""

    server: str = "redis"  # "redis" or "kafka"
    what: What  # what happens to the server, or to the network in front of it
    before: float  # seconds before the fault
    lasts: float  # seconds that it lasts; a killed server is started after them
    after: float  # seconds after the fault
    replies: int = 4  # how many replies to each of two write commands are lost

    @property
    def seconds(self) -> float:
        """How long the fault takes with its pauses."""
        return self.before + self.lasts + self.after

    @property
    def title(self) -> str:
        """The fault in a few words."""
        if self.what == "lost replies":
            return f"{2 * self.replies} replies lost"
        return f"{self.server} {self.what}, {self.lasts:g} s"

    @property
    def sign(self) -> str:
        """A letter for the fault, below the curves: small for Redis, capital for Kafka."""
        return self.what[0].upper() if self.server == "kafka" else self.what[0]


@dataclass(slots=True)
class FaultRecord:
    """What followed a fault, until the next one. Times are loop times."""

    fault: Fault  # the fault
    at: float  # when it began
    ended_at: float | None = None  # when the server was back
    down_at: float | None = None  # when it was published that the server is down
    error_at: float | None = None  # when a caller got the first error
    errors: int = 0  # calls that failed
    errors_before_down: int = 0  # those among them that failed before `down_at`
    longest: float = 0.0  # seconds of the longest call that ended


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the timeline; `at` is in seconds since the beginning."""

    at: float
    kind: Kind
    text: str


class Curve:
    """Counts what happens in each step of time, from a loop time on."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.counts: list[int] = []

    def add(self, now: float) -> None:
        """Count one."""
        place = int((now - self._began) / STEP)
        self.counts += [0] * (place + 1 - len(self.counts))
        self.counts[place] += 1


class Timeline:
    """Records faults, published states and errors."""

    def __init__(self, seconds: float, on_event: Callable[[Event], None]) -> None:
        self.seconds = seconds
        self.began = asyncio.get_running_loop().time()
        self.events: list[Event] = []
        self.faults: list[FaultRecord] = []
        self.errors: Counter[str] = Counter()
        self.waiting: dict[str, float] = {}
        """When each call in progress began."""
        self.longest = 0.0
        self.recent: deque[tuple[float, float]] = deque()
        """The end and the duration of the calls that succeeded in the last second."""
        self._on_event = on_event
        self._ended = False

    @property
    def current(self) -> FaultRecord | None:
        """The latest fault."""
        return self.faults[-1] if self.faults else None

    @property
    def signs(self) -> list[tuple[float, str]]:
        """The beginning of each fault in seconds, and its letter."""
        return [(each.at - self.began, each.fault.sign) for each in self.faults]

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return asyncio.get_running_loop().time() - self.began

    @property
    def waiting_longest(self) -> float:
        """Seconds for which the longest call in progress has waited."""
        now = asyncio.get_running_loop().time()
        return max((now - began for began in self.waiting.values()), default=0.0)

    @property
    def waiting_text(self) -> str:
        """That time in words."""
        return f", the longest for {self.waiting_longest:.1f} s" if self.waiting else ""

    @property
    def errors_text(self) -> str:
        """The most common errors."""
        return "   ".join(f"{count:,} {name}" for name, count in self.errors.most_common(2))

    def rate(self) -> float:
        """Return how many calls per second succeeded in the last second."""
        now = asyncio.get_running_loop().time()
        while self.recent and self.recent[0][0] < now - 1.0:
            self.recent.popleft()
        return len(self.recent) / (min(1.0, self.passed) or 1.0)

    def fault_began(self, fault: Fault) -> None:
        """Record that a fault has begun."""
        now = asyncio.get_running_loop().time()
        self.faults.append(FaultRecord(fault, now))
        self.add(now, "fault", fault.title)

    def fault_ended(self) -> None:
        """Record that the current fault has ended."""
        record = self.faults[-1]
        record.ended_at = asyncio.get_running_loop().time()
        if record.fault.what != "lost replies":
            self.add(record.ended_at, "fault", f"{record.fault.server} is back")

    def changed(self, change: Change) -> None:
        """Record a published state; for `health.on_change`."""
        if self._ended:
            return
        record = self.current
        if (
            record is not None
            and change.dependency.startswith(record.fault.server)
            and change.state is State.DOWN
            and record.down_at is None
        ):
            record.down_at = change.at
        cause = f" ({change.cause.value})" if change.cause is not None else ""
        kind: Kind = "bad" if change.state is State.DOWN else "good"
        server = change.dependency.partition(" ")[0]
        self.add(change.at, kind, f"published: {server} is {change.state.name}{cause}")

    def failed(self, who: str, error: Exception, now: float, took: float | None = None) -> None:
        """Record an error of a caller; only the first one after each fault is an event."""
        name = type(error).__name__
        record = self.current
        if record is None or record.error_at is None:
            after = f" after {took:.3f} s" if took is not None else ""
            if record is not None or not self.errors:
                self.add(now, "error", f"{who} gets {name}{after}")
        if record is not None:
            record.error_at = record.error_at or now
            record.errors += 1
            record.errors_before_down += record.down_at is None
        self.errors[name] += 1

    def add(self, at: float, kind: Kind, text: str) -> None:
        """Add an event."""
        line = " ".join(text.split())
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST - 3]}..."
        event = Event(at - self.began, kind, line)
        self.events.append(event)
        self._on_event(event)

    @property
    def ended(self) -> bool:
        """Whether recording has ended."""
        return self._ended

    def end(self) -> None:
        """End recording: closing the clients changes states, too."""
        self._ended = True
        self.seconds = self.passed


@contextlib.asynccontextmanager
async def repeated(
    calls: dict[str, Coroutine[None, None, None]], stopping: asyncio.Event, timeout: float | None
) -> AsyncIterator[None]:
    """Run tasks by their names while the body runs; then set `stopping`, and wait for them.

    Those that do not end within `timeout` seconds are cancelled.
    """
    tasks = [asyncio.create_task(call, name=f"demo {name}") for name, call in calls.items()]
    try:
        yield
        stopping.set()
        await asyncio.wait(tasks, timeout=timeout)
    finally:
        while left := [task for task in tasks if not task.done()]:
            for task in left:
                task.cancel()
            # Repeatedly: redis-py loses cancellations on Python 3.11.
            await asyncio.wait(left, timeout=POLL)
    for task in tasks:
        if not task.cancelled():
            task.result()
