"""A dependency: its availability, and how clients feed it."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import deque
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError
from resilient_io.text import redact_credentials
from resilient_io.validation import check_name

from .machine import Machine
from .probing import Client, Prober
from .states import Cause, Change, HealthSettings, State, describe, first_change, record
from .subscriptions import Feed, Subscription, Subscriptions, Watch, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .loop_lag import LoopLag
    from .recorder import FlightRecorder


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


CLOSE_GRACE = 1.0
"""Seconds that callbacks get to end when their owner is closed."""


class Dependency(Availability):
    """How one dependency is, as its clients' calls and a probe task see it.

    Several clients of one server may share it. It belongs to the event loop in which its first
    client attaches; when that loop is closed, it starts anew in the next.

    Args:
        name: How logs, errors and snapshots call it, for example "redis".
        settings: Times and thresholds.
        rng: Source of the jitter; give a seeded one to replay a schedule.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: HealthSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(name, settings, rng if rng is not None else random.Random())

    def start(
        self, probe: Callable[[bool], Awaitable[float]], *, last_reply: Callable[[], float]
    ) -> Attachment:
        """Attach a client; the first one's probe task starts now, in the running loop.

        Of several clients the longest attached one's probe is used, and the newest of all their
        replies counts.

        Args:
            probe: Asks the dependency and returns the seconds it took, or raises `ProbeFailed`
                or `ProbeDegraded`. Its argument says whether something was seen to fail: then
                it must use a connection of its own, made for it. It is cancelled when it takes
                too long.
            last_reply: Returns the loop time at which the client last received anything from
                it; `-math.inf` for never.

        Returns:
            A handle; await its `detach()` when the client closes.

        Raises:
            RuntimeError: It is in use in another living event loop.
        """
        _check_functions(probe, last_reply)
        self._bind()
        if self._feed.closed:
            self._feed = Feed(self._feed.newest)
        client = Client(probe, last_reply)
        self._prober.add(client)
        return Attachment(functools.partial(self._detach, client))

    def failed(self, cause: Cause, detail: str = "", *, definite: bool = False) -> None:
        """Report a failure that a client saw (not a cancellation, not an error reply).

        While it is watched, this never makes it DOWN by itself: it makes the probe look at once,
        on its own connection.

        Args:
            cause: What was seen.
            detail: In words, without secrets.
            definite: Refused or reset rather than timed out; matters only when nobody probes.
        """
        now = self._bind()
        self.note("call failed", cause=cause.value, detail=detail)
        self._take(
            self._machine.failed(now, cause, detail, definite=definite, probed=self._prober.running)
        )
        self._prober.suspect()

    async def judged(self, timeout: float) -> None:
        """Wait until the probe that a reported failure asked for has ended.

        So a client can let it know of an outage before its callers do. Returns at once when no
        probe was asked for, or when it is DOWN already. Cancelling leaves at once.

        Args:
            timeout: Longest wait in seconds; then it returns, too.
        """
        verdict = self._prober.verdict()
        if verdict is not None:
            await asyncio.wait([verdict], timeout=timeout)

    def succeeded(self, latency: float | None = None) -> None:
        """Report good news that cost something, for example that a connection was made.

        Replies need no report: `last_reply` tells of them. While it is DOWN this counts as one
        good probe.

        Args:
            latency: Seconds it took.
        """
        self._take(self._machine.succeeded(self._bind(), latency))

    def refused(self, cause: Cause, detail: str = "") -> None:
        """Report that it answered, but refused a write: DEGRADED until one is accepted.

        Also ends after `HealthSettings.refusal_hold` without another refusal.

        Args:
            cause: For example `Cause.READ_ONLY`.
            detail: In words, without secrets.
        """
        now = self._bind()
        self.note("write refused", cause=cause.value, detail=detail)
        self._take(self._machine.refused(now, cause, detail))

    def accepted(self) -> None:
        """Report an accepted write; needed only while `refusing`."""
        self._take(self._machine.accepted(self._bind()))

    def part_lost(self, part: str, cause: Cause, detail: str = "") -> None:
        """Report that a part is lost, for example one of several connections.

        DEGRADED while any is, once the probe has found that the whole is not DOWN. Going DOWN
        forgets the parts: report one that is still lost afterwards again.

        Args:
            part: Its name.
            cause: What was seen.
            detail: In words, without secrets.
        """
        now = self._bind()
        self.note("part lost", part=part, cause=cause.value, detail=detail)
        self._take(self._machine.part_lost(now, part, cause, detail, probed=self._prober.running))
        self._prober.suspect()

    def part_back(self, part: str) -> None:
        """Report that a lost part is back; one that was not lost does no harm."""
        self._take(self._machine.part_back(self._bind(), part))

    async def aclose(self) -> None:
        """Detach every client, end every `watch()`, and end the probe.

        Async callbacks get one second, then they are cancelled. Closing twice is fine, and a
        later `start()` begins anew; callbacks stay registered. Cancelling this leaves at once;
        what it began ends by itself.
        """
        leaving = [task for client in self._prober.clients if (task := self._detach(client))]
        self._feed.close()
        if leaving:
            await asyncio.wait(leaving)
        await self._subscriptions.finish(CLOSE_GRACE)

    # --- inside

    def _detach(self, client: Client) -> asyncio.Task[None] | None:
        if self._loop is None or self._loop.is_closed():
            self._prober.abandon()  # its task ended, or will never end, with its loop
            return None
        leaving = self._prober.remove(client)
        if leaving is not None and not self._prober.running:
            self._take(self._machine.forget(self._loop.time()))
        return leaving

    def _bind(self) -> float:
        """Belong to the running loop; return its time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._adopt(loop)
        return loop.time()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        forgotten = None
        if self._loop is not None:
            if self._prober.running and not self._loop.is_closed():
                raise RuntimeError(
                    f"the dependency {self.name!r} is in use in another running event loop: "
                    f"make one Dependency per loop"
                )
            # What that loop knew, and who waited in it, is gone with it.
            self._prober.abandon()
            self._feed = Feed(first_change(self.name, now))
            self._machine.since = now  # the times of two loops cannot be compared
            forgotten = self._machine.forget(now)
        self._machine.since = now
        self._loop = loop
        self._take(forgotten)


class Attachment:
    """A client's hold on a `Dependency`, given by `start()`."""

    __slots__ = ("_leave",)

    def __init__(self, leave: Callable[[], asyncio.Task[None] | None]) -> None:
        self._leave = leave

    async def detach(self) -> None:
        """Let go; returns when this client's probe is no longer under way.

        After the last one the dependency is UNKNOWN and nothing of it runs. Detaching twice is
        fine. Cancelling leaves at once; the probe still ends by itself.
        """
        leaving = self._leave()
        if leaving is not None:
            await asyncio.wait([leaving])


def _check_functions(*given: object) -> None:
    for function in given:
        if not callable(function):
            raise TypeError(f"{function!r} is no function: write start(probe, last_reply=...)")
