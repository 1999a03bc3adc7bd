"""One client's way through the script: what it did, and when."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.demo.timeline import Curve, Event, quantile
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.demo.redis.ledger import Audit, Ledger
    from resilient_io.demo.redis.scene import Scene
    from resilient_io.demo.redis.sides import Side
    from resilient_io.demo.timeline import Kind
    from resilient_io.health import Change

SLOW: Final = 1.0
"""Seconds from which on a call counts as one that hung."""


@dataclass(slots=True)
class Fault:
    """A fault that happened, and when its news came. Times are loop times.

    Attributes:
        scene: What the script wanted.
        at: When it began.
        down_at: When the client published that the server is down.
        up_at: When it published that it is up again.
        error_at: When a caller met the first error.
        errors: Calls that failed between this fault and the next.
        errors_before_down: Those among them that failed before `down_at`.
        longest: Seconds that the longest call took that ended between this fault and the next.
    """

    scene: Scene
    at: float
    down_at: float | None = None
    up_at: float | None = None
    error_at: float | None = None
    errors: int = 0
    errors_before_down: int = 0
    longest: float = 0.0


class Run:
    """Takes down all that happens while one client goes through the script.

    Args:
        side: The client.
        ledger: What its callers are told.
        seconds: How long it will take.
        on_event: Is called with each new line of the timeline.
    """

    def __init__(
        self, side: Side, ledger: Ledger, seconds: float, on_event: Callable[[Event], None]
    ) -> None:
        self.side = side
        self.ledger = ledger
        self.seconds = seconds
        self.began = asyncio.get_running_loop().time()
        self.events: list[Event] = []
        self.faults: list[Fault] = []
        self.errors: Counter[str] = Counter()
        self.answered: list[float] = []
        """The seconds that each answered call took."""
        self.curve = Curve(self.began)
        self.calls = 0
        self.hung = 0
        self.longest = 0.0
        self.audit: Audit | None = None
        self.waiting: dict[object, float] = {}
        """When each call under way began, by the task that waits for it."""
        self._recent: deque[tuple[float, float]] = deque()
        self._on_event = on_event
        self._over = False
        side.on_change(self._changed)

    # What the workload and the script tell

    def call_began(self, caller: object, now: float) -> None:
        """Note a call."""
        self.calls += 1
        self.waiting[caller] = now

    def call_ended(self, caller: object, now: float, error: Exception | None) -> None:
        """Note its end."""
        took = now - self.waiting.pop(caller)
        self.longest = max(self.longest, took)
        self.hung += took >= SLOW
        fault = self.faults[-1] if self.faults else None
        if fault is not None:
            fault.longest = max(fault.longest, took)
        if error is None:
            self.answered.append(took)
            self._recent.append((now, took))
            self.curve.add(now)
            return
        name = type(error).__name__
        if fault is None or fault.error_at is None:
            self._tell(now, "error", f"a caller gets {name} after {took:.3f} s")
        if fault is not None:
            fault.error_at = fault.error_at or now
            fault.errors += 1
            fault.errors_before_down += fault.down_at is None
        self.errors[name] += 1

    def fault_began(self, scene: Scene) -> None:
        """Note that a fault has just struck."""
        now = asyncio.get_running_loop().time()
        self.faults.append(Fault(scene, now))
        self._tell(now, "fault", scene.title)

    def fault_over(self, words: str | None) -> None:
        """Note that it has just ended."""
        if words is not None:
            self._tell(asyncio.get_running_loop().time(), "fault", words)

    def ended(self) -> None:
        """Note that the load has ended; calls that still wait then were given up."""
        self._over = True  # what closing the client changes is no news
        now = asyncio.get_running_loop().time()
        self.seconds = now - self.began
        self.longest = max([self.longest, *(now - began for began in self.waiting.values())])

    # What the screen asks

    def lately(self) -> tuple[float, float | None, float | None]:
        """Return commands answered in the last second, their p50 and their p99 in seconds."""
        now = asyncio.get_running_loop().time()
        while self._recent and self._recent[0][0] < now - 1.0:
            self._recent.popleft()
        took = sorted(duration for _, duration in self._recent)
        elapsed = min(1.0, now - self.began) or 1.0
        return len(took) / elapsed, quantile(took, 0.5), quantile(took, 0.99)

    def _changed(self, change: Change) -> None:
        if self._over:
            return
        fault = self.faults[-1] if self.faults else None
        if fault is not None and change.state is State.DOWN and fault.down_at is None:
            fault.down_at = change.at
        if fault is not None and change.state is State.UP and fault.up_at is None:
            fault.up_at = change.at
        why = f" ({change.cause.value})" if change.cause is not None else ""
        kind: Kind = "bad" if change.state is State.DOWN else "good"
        self._tell(change.at, kind, f"published: {change.state.name}{why}")

    def _tell(self, at: float, kind: Kind, text: str) -> None:
        event = Event(at - self.began, kind, text)
        self.events.append(event)
        self._on_event(event)
