"""The read side of a dependency's availability: look, await, subscribe."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError
from resilient_io.health._feed import Feed, Watch
from resilient_io.health._machine import Machine
from resilient_io.health._probing import Prober
from resilient_io.health._settings import HealthSettings
from resilient_io.health._states import Cause, Change, State
from resilient_io.health._subscription import Subscription, Subscriptions
from resilient_io.health._waiting import wait_until
from resilient_io.health._wording import describe, first_change, record
from resilient_io.text import redact_credentials
from resilient_io.validation import check_name

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable

    from resilient_io.health._lag import LoopLag
    from resilient_io.health._recorder import FlightRecorder

__all__ = ["Availability"]


class Availability:
    """How a dependency is, for those who only look.

    Attributes:
        name: How logs, errors and snapshots call it; without the login, if it was given as a URL.
        settings: Times and thresholds.
        available: False while it is DOWN. For reading only.
        refusing: True while it is known to refuse writes: only then need a client report
            `accepted()`. For reading only.
    """

    def __init__(self, name: str, settings: HealthSettings | None, rng: random.Random) -> None:
        self.name = redact_credentials(check_name("name", name))
        self.settings = settings if settings is not None else HealthSettings()
        if not isinstance(self.settings, HealthSettings):
            message = (
                f"settings must be HealthSettings, not {settings!r}: write HealthSettings(...)"
            )
            raise ConfigurationError(message)
        # Plain attributes: every call of a client reads them.
        self.available = True
        self.refusing = False
        self._holders: list[FlightRecorder] = []  # one for each monitor; they may share one
        self._recorders: tuple[FlightRecorder, ...] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._machine = Machine(self.name, self.settings)
        self._prober = Prober(self._machine, rng, self._take, self.note)
        self._history: deque[Change] = deque(maxlen=self.settings.history)
        self._subscriptions: Subscriptions[Change] = Subscriptions(self.name)
        self._feed = Feed(first_change(self.name, 0.0))

    @property
    def state(self) -> State:
        """The state it is in."""
        return self._machine.state

    @property
    def since(self) -> float:
        """Absolute loop time at which it came into this state."""
        return self._machine.since

    @property
    def cause(self) -> Cause | None:
        """Why it is not well; None when it is."""
        return self._machine.cause

    @property
    def detail(self) -> str:
        """The cause in words, one line, without secrets."""
        return self._machine.detail

    @property
    def latency(self) -> float | None:
        """Seconds that the latest measured answer took."""
        return self._machine.latency

    @property
    def history(self) -> tuple[Change, ...]:
        """The latest transitions, oldest first."""
        return tuple(self._history)

    @property
    def transitions(self) -> dict[tuple[State, Cause | None], int]:
        """How often it came into each state, by the cause that it had then."""
        return dict(self._machine.changes)

    @property
    def lag(self) -> LoopLag | None:
        """The watch over the event loop's own stalls, while a client is attached."""
        return self._prober.lag

    def on_change(self, callback: Callable[[Change], object]) -> Subscription[Change]:
        """Call a function, sync or async, after every transition.

        It runs in the event loop, never inside a call or a probe. An async one that is still
        busy gets only the newest change afterwards. One that raises is logged once and goes on
        being called; it harms nobody else. Needs no running loop.

        Args:
            callback: Takes the `Change`; what it returns is awaited if it can be.

        Returns:
            A handle to `remove()` it, also usable as a context manager.

        Raises:
            TypeError: `callback` is not callable.
        """
        return self._subscriptions.add(callback)

    def watch(self) -> Watch[Change]:
        """Iterate over its changes: `async for change in dependency.watch()`.

        The first item comes at once and tells the state it is in (the latest change, or one
        from UNKNOWN to UNKNOWN before the first), so that nothing is missed between looking and
        watching. Each further one is the newest since the one before: who is slow skips, and
        nothing queues. Cancelling, or leaving the loop, leaves nothing behind. `aclose()` ends
        the iteration, after the last change.
        """
        return Watch(self._feed)

    async def until_up(self, timeout: float | None = None) -> None:
        """Wait until it answers (UP or DEGRADED).

        Returns at once when it already does. Cancelling the wait changes nothing. Somebody must
        be watching it: a client starts that when it is entered or first used.

        Args:
            timeout: Longest wait in seconds; None waits for ever. An enclosing
                `resilient_io.deadline` bounds it too.

        Raises:
            DeadlineExceeded: It was still not answering.
            Closed: It was closed meanwhile.
        """
        machine = self._machine
        await wait_until(
            self._feed,
            lambda: machine.state.answering,
            timeout=timeout,
            dependency=self.name,
            operation="until_up",
            describe=lambda: f"still {describe(machine.state, machine.cause, machine.detail)}",
        )

    @property
    def recorders(self) -> tuple[FlightRecorder, ...]:
        """Where its events are remembered: those of the monitors that watch it."""
        return self._recorders

    def add_recorder(self, recorder: FlightRecorder) -> None:
        """Remember its events there, too; a `HealthMonitor` does this until it is closed.

        Args:
            recorder: Where; as often as it was given, `remove_recorder` has to take it back.
        """
        self._holders.append(recorder)
        self._recorders = tuple(dict.fromkeys(self._holders))

    def remove_recorder(self, recorder: FlightRecorder) -> None:
        """Take back one `add_recorder`; without one it does no harm."""
        if recorder in self._holders:
            self._holders.remove(recorder)
            self._recorders = tuple(dict.fromkeys(self._holders))

    def note(self, event: str, **fields: object) -> None:
        """Let the flight recorders remember something, if there are any.

        For what clients do about a dependency: a retry, a connection that was replaced. Never for
        every call.

        Args:
            event: What happened, in the past tense.
            fields: Plain data that `json.dumps` takes, without secrets.
        """
        for recorder in self._recorders:
            recorder.note(self.name, event, **fields)

    def snapshot(self) -> dict[str, object]:
        """Return how it is as plain data that `json.dumps` takes. Times are in seconds."""
        machine, lag = self._machine, self._prober.lag
        return {
            "name": self.name,
            "state": machine.state.value,
            "age": self._loop.time() - machine.since if self._loop is not None else 0.0,
            "cause": machine.cause.value if machine.cause is not None else None,
            "detail": machine.detail,
            "latency": machine.latency,
            "watched": self._prober.running,
            "transitions": machine.transitions,
            "probes": {"ok": machine.probes_ok, "failed": machine.probes_failed},
            "failures": machine.failures,
            "refusals": machine.refusals,
            "parts_lost": machine.parts_lost,
            "loop_lag": {
                "current": lag.current if lag is not None else 0.0,
                "worst": lag.worst if lag is not None else 0.0,
                "stalled": lag.stalled if lag is not None else 0.0,
            },
        }

    def __repr__(self) -> str:
        machine = self._machine
        how = describe(machine.state, machine.cause, machine.detail)
        return f"<{type(self).__name__} {self.name}: {how}>"

    def _take(self, change: Change | None) -> None:
        machine = self._machine
        self.available = machine.state is not State.DOWN
        self.refusing = machine.refusing
        if change is None:
            return
        self._history.append(change)
        record(change)
        for recorder in self._recorders:
            recorder.changed(change)
        self._feed.publish(change)
        self._subscriptions.tell(change)
