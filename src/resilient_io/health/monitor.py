"""The dependencies of a service together: readiness, startup and liveness."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from resilient_io.errors import ConfigurationError
from resilient_io.text import clean_text
from resilient_io.validation import check_number, check_seconds, check_type

from .dependency import CLOSE_TIMEOUT, Dependency
from .loop_lag import LoopLag
from .recorder import FlightRecorder
from .states import Change, State, describe_state
from .subscriptions import Broadcast, Subscription, Subscriptions, Watch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, Self

_log = logging.getLogger("resilient_io.health")

_NAME = "health monitor"


@runtime_checkable
class LivenessCheck(Protocol):
    """An object that the process depends on to be useful, such as a consumer."""

    def liveness_failure(self) -> str | None:
        """Return why only a restart of the process helps, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """When a blocked event loop means that the process is stuck.

    Attributes:
        window: Time over which the event loop is measured, in seconds.
        share: Fraction of that time (0 to 1) during which the loop may be blocked.

    Raises:
        ConfigurationError: A value is out of range.
    """

    window: float = 30.0
    share: float = 0.5

    def __post_init__(self) -> None:
        """Validate the values."""
        check_seconds("window", self.window)
        if check_number("share", self.share, above=True) > 1:
            raise ConfigurationError(
                f"share={self.share:g} is more than 1: use a fraction, for example share=0.5"
            )


class Liveness:
    """Decides whether the process is stuck."""

    def __init__(self, settings: LivenessSettings, checks: Sequence[LivenessCheck]) -> None:
        self._settings = settings
        self._checks = tuple(checks)
        self._lag: LoopLag | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = False
        self._broken: list[LivenessCheck] = []

    def begin(self) -> None:
        """Measure the running loop, if there is one."""
        self._ended = False
        self._measure()

    def end(self) -> None:
        """Stop measuring."""
        self._ended = True
        self._release()

    def failures(self) -> tuple[str, ...]:
        """Return why the process is stuck; empty if it is not.

        The first call in a loop starts measuring it, except after `end`, which no second call of
        `end` would follow.
        """
        if not self._ended:
            self._measure()
        found = [why for check in self._checks if (why := self._run_check(check)) is not None]
        lag, window = self._lag, self._settings.window
        blocked = lag.stalled_within(window) if lag is not None else 0.0
        if blocked > self._settings.share * window:
            found.append(f"the event loop was blocked for {blocked:.1f} s of the last {window:g} s")
        return tuple(found)

    def _measure(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if loop is not self._loop:
            self._release()
            self._loop = loop
            self._lag = LoopLag.acquire()

    def _release(self) -> None:
        if self._lag is not None:
            self._lag.release()
        self._lag = self._loop = None

    def _run_check(self, check: LivenessCheck) -> str | None:
        try:
            failure = check.liveness_failure()
        # The boundary to the application's code. A restart would not cure a bug in it, so an
        # exception does not count as a failure.
        except Exception:  # noqa: BLE001
            if check not in self._broken:
                self._broken.append(check)
                _log.exception(
                    "liveness_failure() of %s raised an exception; further ones are not logged",
                    type(check).__name__,
                    extra={"event": "liveness_check_raised", "part": type(check).__name__},
                )
            return None
        return clean_text(failure) if isinstance(failure, str) else failure


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorChange:
    """The state of the service after a change.

    Attributes:
        ready: Whether the service should receive work.
        state: The state of the service.
        previous: Its state in the previous item; may be the same.
        change: The change of a dependency; None in the first item of a `watch()` that starts before
            any change, and when draining starts.
        draining: Whether the service is draining.
    """

    ready: bool
    state: State
    previous: State
    change: Change | None
    draining: bool = False


class HealthMonitor:
    """The dependencies of a service: those that it cannot work without, and the others.

    ```
    monitor = HealthMonitor(redis.health, optional=[cache.health], liveness=[consumer])
    ```

    Readiness is a choice for each dependency. `critical`: while it is unavailable, this replica
    should receive no work. `shared`: every replica would lose it at the same moment, and if all
    replicas became unready, the service would not answer at all; so its loss only degrades the
    service. `optional`: like shared, and startup does not wait for it.

    The monitor owns no dependency and runs no task. Creating it needs no running loop. Use
    `async with`, or `aclose()`, to detach it from the dependencies. It can be entered again after
    it was closed.

    Args:
        critical: The service is ready only while none of these is DOWN or UNKNOWN.
        shared: The service is ready as soon as the state of these is known. DOWN only degrades it.
        optional: These only degrade the service.
        liveness: Clients, and other objects with a `liveness_failure()` method, without which the
            process is useless. See `alive`.
        recorder: Records the latest events; None for one without a sink.
        liveness_settings: When a blocked event loop means that the process is stuck.

    Raises:
        ConfigurationError: There is no dependency, or one is passed twice.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        *critical: Dependency,
        shared: Sequence[Dependency] = (),
        optional: Sequence[Dependency] = (),
        liveness: Sequence[LivenessCheck] = (),
        recorder: FlightRecorder | None = None,
        liveness_settings: LivenessSettings | None = None,
    ) -> None:
        for name, given in (("shared", shared), ("optional", optional), ("liveness", liveness)):
            if not isinstance(given, Sequence):  # an iterable is not enough: redis-py's client is
                example = "consumer" if name == "liveness" else "redis.health"
                kind = type(given).__name__
                raise TypeError(f"{name} must be a list, not {kind}: use {name}=[{example}]")
        self.critical = critical
        self.shared = tuple(shared)
        self.optional = tuple(optional)
        _check_dependencies(self.dependencies)
        for check in liveness:
            if not isinstance(check, LivenessCheck):
                raise TypeError(
                    f"liveness must contain objects with a liveness_failure() method, not "
                    f"{type(check).__name__}: use HealthMonitor(..., liveness=[consumer])"
                )
        if recorder is None:
            recorder = FlightRecorder()
        if liveness_settings is None:
            liveness_settings = LivenessSettings()
        self.recorder = check_type("recorder", recorder, FlightRecorder, use="FlightRecorder()")
        check_type(
            "liveness_settings", liveness_settings, LivenessSettings, use="LivenessSettings()"
        )
        self._liveness = Liveness(liveness_settings, liveness)
        self._subscriptions: Subscriptions[MonitorChange] = Subscriptions(_NAME)
        self._open()

    def _open(self) -> None:
        """Watch the dependencies, at first or again after `aclose()`."""
        self._draining = False
        self._started = False
        self._published = self.state
        self._broadcast = Broadcast(self._current(self._published, None))
        for dependency in self.dependencies:
            dependency.add_recorder(self.recorder)
        self._sources = [dependency.on_change(self._publish) for dependency in self.dependencies]

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """All dependencies: the critical, the shared, then the optional ones."""
        return (*self.critical, *self.shared, *self.optional)

    def role_of(self, dependency: Dependency) -> Literal["critical", "shared", "optional"]:
        """Return the role of a dependency.

        Raises:
            ValueError: The monitor does not watch it.
        """
        if dependency in self.critical:
            return "critical"
        if dependency in self.shared:
            return "shared"
        if dependency in self.optional:
            return "optional"
        raise ValueError(f"{dependency.name!r} is not a dependency of this monitor")

    @property
    def ready(self) -> bool:
        """Whether the service should receive work.

        True if no critical dependency is DOWN or UNKNOWN, no shared one is UNKNOWN, and the service
        is not draining. A DEGRADED dependency counts as ready: it answers, and taking every replica
        out of rotation because their shared server is read-only would not help.
        """
        return not self._draining and not self._missing()

    @property
    def unready_reasons(self) -> tuple[str, ...]:
        """Why the service is not ready, in words without secrets; empty if it is."""
        reasons = tuple(
            f"{each.name} is {describe_state(each.state, each.cause, each.detail)}"
            for each in self._missing()
        )
        return ("draining", *reasons) if self._draining else reasons

    @property
    def started(self) -> bool:
        """Whether the service was ever ready, apart from draining. It never becomes False again."""
        if not self._started:
            self._started = not self._missing()
        return self._started

    @property
    def draining(self) -> bool:
        """Whether `drain()` was called."""
        return self._draining

    def drain(self) -> None:
        """Make the service unready permanently, because it is about to stop. Idempotent.

        Raises:
            RuntimeError: No event loop is running.
        """
        if self._draining:
            return
        self.recorder.note(_NAME, "draining")
        self._draining = True
        self._publish(None)

    @property
    def alive(self) -> bool:
        """Whether the process can continue without a restart.

        False while a liveness check fails, or if the event loop was blocked for more than the
        allowed share of the time. An unavailable dependency never makes it False: a restart would
        not bring it back.
        """
        return not self.liveness_failures

    @property
    def liveness_failures(self) -> tuple[str, ...]:
        """Why the process is stuck; empty while it is alive.

        The event loop is measured from the first read of this property in it, or from `async with`,
        until `aclose()`. An exception in `liveness_failure()` is logged once and does not count.
        """
        return self._liveness.failures()

    @property
    def state(self) -> State:
        """The state of the service.

        DOWN or UNKNOWN if a critical dependency is, UNKNOWN if a shared one is; else DEGRADED if
        one is DEGRADED, or a shared or optional one is DOWN; else UP.
        """
        critical = [dependency.state for dependency in self.critical]
        if State.DOWN in critical:
            return State.DOWN
        shared = [dependency.state for dependency in self.shared]
        if State.UNKNOWN in critical or State.UNKNOWN in shared:
            return State.UNKNOWN
        states = critical + shared + [dependency.state for dependency in self.optional]
        if State.DEGRADED in states or State.DOWN in states:
            return State.DEGRADED
        return State.UP

    def on_change(self, callback: Callable[[MonitorChange], object]) -> Subscription[MonitorChange]:
        """Call a function, sync or async, when a dependency has changed or draining starts.

        Return a handle with `remove()`. The rules of `Dependency.on_change` apply. `ready` and
        `state` are those of the service.

        Raises:
            TypeError: `callback` is not callable.
        """
        return self._subscriptions.add(callback)

    def watch(self) -> Watch[MonitorChange]:
        """Iterate over changes: `async for change in monitor.watch()`.

        The first item is available immediately and contains the current state. Later items are the
        latest change since the previous item. `aclose()` ends the iteration.
        """
        return Watch(self._broadcast)

    async def until_ready(self, timeout: float | None = None) -> None:
        """Wait until the service is ready, for at most `timeout` seconds.

        Return immediately if it already is. Cancelling the wait has no other effect. An enclosing
        `resilient_io.deadline` limits the wait, too, also if `timeout` is None.

        Raises:
            DeadlineExceeded: The service was not ready in time. The message names the dependency.
            Closed: The monitor was closed meanwhile.
        """
        await wait_until(
            self._broadcast,
            lambda: self.ready,
            timeout=timeout,
            dependency=_NAME,
            operation="until_ready",
            describe=lambda: ", ".join(self.unready_reasons),
        )

    def snapshot(self) -> dict[str, object]:
        """Return the state of the service as plain data for `json.dumps`."""
        return {
            "ready": self.ready,
            "started": self.started,
            "draining": self.draining,
            "alive": self.alive,
            "because": [*self.unready_reasons, *self.liveness_failures],
            "state": self.state.value,
            "critical": [dependency.snapshot() for dependency in self.critical],
            "shared": [dependency.snapshot() for dependency in self.shared],
            "optional": [dependency.snapshot() for dependency in self.optional],
        }

    async def aclose(self) -> None:
        """Detach from the dependencies, end every `watch()` and wait for async callbacks.

        Callbacks get one second, then they are cancelled. Dumps in progress get one second, too.
        Idempotent.
        """
        for source in self._sources:
            source.remove()
        if not self._broadcast.closed:
            for dependency in self.dependencies:
                dependency.remove_recorder(self.recorder)
        self._liveness.end()
        self._broadcast.close()
        await self._subscriptions.finish(CLOSE_TIMEOUT)
        await self.recorder.aclose(CLOSE_TIMEOUT)

    async def __aenter__(self) -> Self:
        if self._broadcast.closed:
            self._open()
        self._liveness.begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        states = ", ".join(f"{each.name} is {each.state.value}" for each in self.dependencies)
        return f"<HealthMonitor {self.state.value}: {states}>"

    def _missing(self) -> list[Dependency]:
        """Return the dependencies because of which the service is not ready."""
        return [
            *(each for each in self.critical if not each.state.answering),
            *(each for each in self.shared if each.state is State.UNKNOWN),
        ]

    def _current(self, previous: State, change: Change | None) -> MonitorChange:
        return MonitorChange(
            ready=self.ready,
            state=self.state,
            previous=previous,
            change=change,
            draining=self._draining,
        )

    def _publish(self, change: Change | None) -> None:
        _ = self.started  # remembered even if it is never read
        current = self._current(self._published, change)
        self._published = current.state
        self._broadcast.publish(current)
        self._subscriptions.notify(current)


def _check_dependencies(dependencies: Sequence[object]) -> None:
    if not dependencies:
        raise ConfigurationError(
            "a HealthMonitor needs a dependency: use HealthMonitor(redis.health)"
        )
    for position, given in enumerate(dependencies):
        dependency = check_type("dependency", given, Dependency, use="HealthMonitor(redis.health)")
        if dependency in dependencies[:position]:
            raise ConfigurationError(
                f"{dependency.name!r} is passed twice: pass it once, as critical "
                f"(HealthMonitor(dependency)), as shared=[dependency] or as optional=[dependency]"
            )
