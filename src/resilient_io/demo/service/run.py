"""The service's way through the script: what was ordered, handled and published, and when."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.demo.timeline import Curve, Event
from resilient_io.demo.told import Told
from resilient_io.errors import OutcomeUnknown
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilient_io.demo.service.ledger import Ledger
    from resilient_io.demo.service.scene import Scene
    from resilient_io.demo.timeline import Kind
    from resilient_io.health import Change
    from resilient_io.kafka import Record

_WIDEST: Final = 66
"""Characters of a line of the timeline, behind its time."""


@dataclass(slots=True)
class Fault:
    """A fault that happened, and what came of it. Times are loop times.

    Attributes:
        scene: What the script wanted.
        at: When it began.
        ended_at: When the server was there again.
        down_at: When the service published that it is down.
        handled_at: When the first order after the end was handled.
        orders_failed: Orders that ended in an error between this fault and the next.
        calls_failed: Handler calls that did.
        logged: Records that we logged.
    """

    scene: Scene
    at: float
    ended_at: float | None = None
    down_at: float | None = None
    handled_at: float | None = None
    orders_failed: int = 0
    calls_failed: int = 0
    logged: int = 0


class Run:
    """Takes down all that happens while the service goes through the script.

    Args:
        ledger: What customers are told, and how often the handler is called.
        seconds: How long it will take, about.
        on_event: Is called with each new line of the timeline.
    """

    def __init__(self, ledger: Ledger, seconds: float, on_event: Callable[[Event], None]) -> None:
        self.ledger = ledger
        self.seconds = seconds
        self.began = asyncio.get_running_loop().time()
        self.events: list[Event] = []
        self.faults: list[Fault] = []
        self.errors: Counter[str] = Counter()
        """Errors that customers and handlers met, by their names."""
        self.ordered = Curve(self.began)
        self.booked = Curve(self.began)
        self.waiting: dict[str, float] = {}
        """When each order under way began."""
        self.longest = 0.0
        """Seconds that the longest order took until its customer was told."""
        self.logged = 0
        """Records that we logged."""
        self.logged_by_drivers = 0
        """Records that the drivers logged all the same."""
        self.out_of_order = 0
        """Orders that were handled before an earlier one of the same customer."""
        self.cpu = 0.0
        """Seconds of processor time, clients and demo together."""
        self._cpu_before = time.process_time()
        self._recent: deque[float] = deque()
        self._newest: dict[bytes, tuple[int, int]] = {}
        self._on_event = on_event
        self._first = asyncio.Event()
        self._over = False

    # What customers tell

    def order_began(self, number: str, now: float) -> None:
        """Note that an order is about to be sent."""
        self.ledger.told[number] = Told.NOTHING
        self.waiting[number] = now

    def order_ended(self, number: str, now: float, told: Told, error: Exception | None) -> None:
        """Note what its customer was told."""
        self.ledger.told[number] = told
        self.longest = max(self.longest, now - self.waiting.pop(number))
        if error is None:
            self.ordered.add(now)
            return
        if self.faults:
            self.faults[-1].orders_failed += 1
        self._failed("an order", error, now)

    # What the handler tells

    @contextlib.contextmanager
    def handling(self, record: Record, number: str) -> Iterator[None]:
        """Note a call of the handler, and how it ends."""
        calls = self.ledger.calls_for(number)
        calls.made += 1
        try:
            yield
        except asyncio.CancelledError:
            # It was cut off in the middle: nobody knows.
            calls.unknown += 1
            raise
        except Exception as error:
            calls.unknown += isinstance(error, OutcomeUnknown)
            if self.faults:
                self.faults[-1].calls_failed += 1
            self._failed("a handler", error, asyncio.get_running_loop().time())
            raise
        self._handled(record, first=calls.succeeded == 0)
        calls.succeeded += 1

    def _handled(self, record: Record, *, first: bool) -> None:
        now = asyncio.get_running_loop().time()
        self.booked.add(now)
        self._first.set()
        self._recent.append(now)
        fault = self.faults[-1] if self.faults else None
        if fault is not None and fault.ended_at is not None and fault.handled_at is None:
            fault.handled_at = now
        if first:
            place = (record.partition, record.offset)
            if place < self._newest.get(record.raw_key or b"", place):
                self.out_of_order += 1
            self._newest[record.raw_key or b""] = place

    async def handles(self, timeout: float) -> None:
        """Wait until the first order was handled: a group takes a while to come together.

        Args:
            timeout: Longest wait, in seconds; the script goes on after it all the same.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._first.wait()

    # What the script tells

    def fault_began(self, scene: Scene) -> None:
        """Note that a fault has just struck."""
        now = asyncio.get_running_loop().time()
        self.faults.append(Fault(scene, now))
        self._tell(now, "fault", scene.title)

    def fault_over(self) -> None:
        """Note that it has just ended."""
        now = asyncio.get_running_loop().time()
        self.faults[-1].ended_at = now
        self._tell(now, "fault", self.faults[-1].scene.over)

    def ended(self) -> None:
        """Note that everything is over: what closing the clients changes is no news."""
        self._over = True
        self.seconds = asyncio.get_running_loop().time() - self.began
        self.cpu = time.process_time() - self._cpu_before

    # What the library tells

    def changed(self, change: Change) -> None:
        """Note that a dependency's state changed; for `health.on_change`."""
        if self._over:
            return
        fault = self.faults[-1] if self.faults else None
        if (
            fault is not None
            and change.dependency.startswith(fault.scene.whom)
            and change.state is State.DOWN
            and fault.down_at is None
        ):
            fault.down_at = change.at
        why = f" ({change.cause.value})" if change.cause is not None else ""
        kind: Kind = "bad" if change.state is State.DOWN else "good"
        self._tell(change.at, kind, f"{change.dependency} is {change.state.name}{why}")

    def died(self, error: BaseException) -> None:
        """Note that the consumer's `run` ended by itself, which it should not."""
        now = asyncio.get_running_loop().time()
        self._tell(now, "error", f"the consumer has died: {error!r}")

    def log(self, record: logging.LogRecord) -> None:
        """Note a record of the log; what is not told by health goes into the timeline."""
        if self._over:
            return
        if not record.name.startswith("resilient_io"):
            self.logged_by_drivers += 1
            return
        self.logged += 1
        if self.faults:
            self.faults[-1].logged += 1
        if not record.name.startswith("resilient_io.health"):
            now = asyncio.get_running_loop().time()
            self._tell(now, "good", f"log: {record.getMessage()}")

    # What the screen asks

    def handled_lately(self) -> float:
        """Return how many orders a second were handled in the last second."""
        now = asyncio.get_running_loop().time()
        while self._recent and self._recent[0] < now - 1.0:
            self._recent.popleft()
        return len(self._recent) / (min(1.0, now - self.began) or 1.0)

    def _failed(self, whose: str, error: Exception, now: float) -> None:
        name = type(error).__name__
        fault = self.faults[-1] if self.faults else None
        seen = sum(self.errors.values())
        self.errors[name] += 1
        if fault is None or fault.orders_failed + fault.calls_failed == 1 or not seen:
            self._tell(now, "error", f"{whose} meets {name}")

    def _tell(self, at: float, kind: Kind, text: str) -> None:
        line = " ".join(text.split())
        if len(line) > _WIDEST:
            line = f"{line[: _WIDEST - 3]}..."
        event = Event(at - self.began, kind, line)
        self.events.append(event)
        self._on_event(event)


class LogTap(logging.Handler):
    """Hands every log record of ours and of the drivers to a function; a context manager.

    Args:
        tell: The function.
    """

    _NAMES: Final = ("resilient_io", "aiokafka", "redis")

    def __init__(self, tell: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.INFO)
        self._tell_of = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand it on."""
        self._tell_of(record)

    def __enter__(self) -> None:
        for name in self._NAMES:
            logger = logging.getLogger(name)
            logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        for name in self._NAMES:
            logging.getLogger(name).removeHandler(self)
