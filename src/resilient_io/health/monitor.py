"""The dependencies of a service together: is it ready, has it started, is it alive?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_number, check_seconds

from .dependency import CLOSE_GRACE, Dependency
from .loop_lag import LoopLag
from .recorder import FlightRecorder
from .states import Change, State, describe
from .subscriptions import Feed, Subscription, Subscriptions, Watch, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, Self


_log = logging.getLogger("resilient_io.health")


@runtime_checkable
class LivenessCheck(Protocol):
    """Something that has to go on for the process to be of use, such as a consumer."""

    def liveness_failure(self) -> str | None:
        """Return why only a restart helps, in words; None while all is well."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """When the process counts as stuck.

    Attributes:
        window: Seconds over which the event loop is looked at.
        share: Part of them (0 to 1) for which it may have been blocked.

    Raises:
        ConfigurationError: A value is out of range.
    """

    window: float = 30.0
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_seconds("window", self.window)
        if check_number("share", self.share, above=True) > 1:
            raise ConfigurationError(
                f"share={self.share:g} is more than all of the time: write it as a part of 1, for "
                f"example share=0.5"
            )


class Liveness:
    """Judges whether the process is stuck.

    Args:
        settings: How much blocking of the event loop is too much.
        vital: What has to go on.
    """

    def __init__(self, settings: LivenessSettings, vital: Sequence[LivenessCheck]) -> None:
        self._settings = settings
        self._vital = tuple(vital)
        self._lag: LoopLag | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False
        self._broken: list[LivenessCheck] = []

    def look(self) -> None:
        """Begin, unless that was ended: who still asks then has nobody to end it again."""
        if not self._over:
            self.begin()

    def begin(self) -> None:
        """Look at the running loop, if one runs."""
        self._over = False
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if loop is not self._loop:
            self._let_go()
            self._loop = loop
            self._lag = LoopLag.acquire()

    def end(self) -> None:
        """Look no more."""
        self._over = True
        self._let_go()

    def _let_go(self) -> None:
        if self._lag is not None:
            self._lag.release()
        self._lag = self._loop = None

    def reasons(self) -> tuple[str, ...]:
        """Return why the process is stuck, in words; nothing while it is not."""
        found = [why for each in self._vital if (why := self._ask(each)) is not None]
        lag, window = self._lag, self._settings.window
        blocked = lag.stalled_within(window) if lag is not None else 0.0
        if blocked > self._settings.share * window:
            found.append(f"the event loop was blocked for {blocked:.1f} s of the last {window:g} s")
        return tuple(found)

    def _ask(self, part: LivenessCheck) -> str | None:
        try:
            return part.liveness_failure()
        # The boundary between us and a function of others. A bug in it is in the next process, too:
        # restarts would not heal it.
        except Exception:  # noqa: BLE001 (a part may raise anything)
            if part not in self._broken:
                self._broken.append(part)
                _log.exception(
                    "liveness_failure() of %s raised; further failures of it are not logged",
                    type(part).__name__,
                    extra={"event": "stuck_raised", "part": type(part).__name__},
                )
            return None


_NAME = "health monitor"


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorChange:
    """Something has changed, and this is how the service is now.

    Attributes:
        ready: Whether the service should be given work.
        state: The service's state.
        previous: The state that was told before; may be the same.
        change: What changed; None in the first item of a `watch()` that begins before any
            change, and when the service was told to drain.
        draining: Whether the service was told to drain.
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

    Readiness is a choice for each dependency. `critical`: while it is away, this replica wants no
    work. `shared`: every replica would lose it at the same moment, and a service whose replicas
    have all withdrawn answers nobody, so its loss only degrades. `optional`: as shared, and nobody
    waits for it at the start either.

    It owns no dependency and runs no task of its own; it needs no running loop to be made. Use
    `async with`, or `aclose()` it, to let go of the dependencies.

    Args:
        critical: The service is ready only while none of these is DOWN or UNKNOWN.
        shared: It is ready as soon as it is known how these are; DOWN only degrades it.
        optional: These only degrade it.
        liveness: Clients, and other objects with a `liveness_failure()` method, that must work for
            the process to be of use. See `alive`.
        recorder: Remembers the latest events; None makes one without a sink.
        liveness_settings: When the process counts as stuck.

    Raises:
        ConfigurationError: There is no dependency, or one is named twice.
        TypeError: An argument is of the wrong kind.
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
            _check_list(name, given)
        self.critical = critical
        self.shared = tuple(shared)
        self.optional = tuple(optional)
        _check(self.dependencies)
        _check_parts(liveness, recorder, liveness_settings)
        self.recorder = recorder if recorder is not None else FlightRecorder()
        self._liveness = Liveness(liveness_settings or LivenessSettings(), liveness)
        self._draining = False
        self._started = False
        self._subscriptions: Subscriptions[MonitorChange] = Subscriptions(_NAME)
        self._told = self.state
        self._feed = Feed(self._how_it_is(self._told, None))
        for dependency in self.dependencies:
            dependency.add_recorder(self.recorder)
        self._sources = [
            dependency.on_change(self._dependency_changed) for dependency in self.dependencies
        ]

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """All of them: the critical ones, the shared ones, the optional ones."""
        return (*self.critical, *self.shared, *self.optional)

    def role_of(self, dependency: Dependency) -> Literal["critical", "shared", "optional"]:
        """Return what a dependency is to the service.

        Raises:
            ValueError: It is none of this service's.
        """
        if dependency in self.critical:
            return "critical"
        if dependency in self.shared:
            return "shared"
        if dependency in self.optional:
            return "optional"
        raise ValueError(f"{dependency.name!r} is no dependency of this monitor")

    @property
    def ready(self) -> bool:
        """Whether the service should be given work.

        No critical dependency is DOWN or UNKNOWN, no shared one UNKNOWN, and it is not draining.
        A degraded one counts as ready: it answers, and taking every replica of a service out of
        rotation because their shared server is read-only would help nobody.
        """
        return not self._draining and not self._missing()

    @property
    def unready_reasons(self) -> tuple[str, ...]:
        """Why it is not ready, in words without secrets; nothing when it is."""
        why = tuple(
            f"{each.name} is {describe(each.state, each.cause, each.detail)}"
            for each in self._missing()
        )
        return ("draining", *why) if self._draining else why

    @property
    def started(self) -> bool:
        """Whether it was ever ready, draining aside; it never goes back."""
        if not self._started:
            self._started = not self._missing()
        return self._started

    @property
    def draining(self) -> bool:
        """Whether it was told to drain."""
        return self._draining

    def drain(self) -> None:
        """Be unready for good: the service is about to stop. Doing it again changes nothing.

        Raises:
            RuntimeError: No event loop runs.
        """
        if self._draining:
            return
        self.recorder.note(_NAME, "draining")
        self._draining = True
        self._publish(None)

    @property
    def alive(self) -> bool:
        """Whether the process can go on without a restart.

        False while a vital part says that it is stuck, or the event loop was blocked for more
        than its share of the time. A dependency that is away never makes it False: a restart
        would not bring it back.
        """
        return not self.liveness_failures

    @property
    def liveness_failures(self) -> tuple[str, ...]:
        """Why the process is stuck, in words; nothing while it is alive.

        The event loop is watched from the first time this is asked in it, or from `async with`, to
        `aclose()`. A `liveness_failure()` that raises says nothing, and is logged once.
        """
        self._liveness.look()
        return self._liveness.reasons()

    @property
    def state(self) -> State:
        """The service's state.

        DOWN or UNKNOWN while a critical dependency is, UNKNOWN while a shared one is; else
        DEGRADED while one is degraded, or a shared or optional one is down; else UP.
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
        """Call a function, sync or async, whenever a dependency has changed, or it drains.

        It is isolated as with `Dependency.on_change`; an async one that is still busy gets only
        the newest change afterwards, whose `ready` and `state` are those of the whole service.

        Returns:
            A handle to `remove()` it, also usable as a context manager.

        Raises:
            TypeError: `callback` is not callable.
        """
        return self._subscriptions.add(callback)

    def watch(self) -> Watch[MonitorChange]:
        """Iterate over the changes: `async for change in monitor.watch()`.

        The first item comes at once and tells how the service is; each further one is the newest
        since the one before. Cancelling leaves nothing behind. `aclose()` ends the iteration.
        """
        return Watch(self._feed)

    async def until_ready(self, timeout: float | None = None) -> None:
        """Wait until the service is ready.

        Returns at once when it already is. Cancelling the wait changes nothing.

        Args:
            timeout: Longest wait in seconds; None waits for ever. An enclosing
                `resilient_io.deadline` bounds it too.

        Raises:
            DeadlineExceeded: It was still not ready; says which dependency held it up.
            Closed: The monitor was closed meanwhile.
        """
        await wait_until(
            self._feed,
            lambda: self.ready,
            timeout=timeout,
            dependency=_NAME,
            operation="until_ready",
            describe=lambda: ", ".join(self.unready_reasons),
        )

    def snapshot(self) -> dict[str, object]:
        """Return how the service is as plain data that `json.dumps` takes."""
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
        """Let go of the dependencies, end every `watch()` and wait for async callbacks.

        These get one second, then they are cancelled; dumps under way get one second, too. Closing
        twice is fine. Cancelling this leaves at once.
        """
        for source in self._sources:
            source.remove()
        if not self._feed.closed:
            for dependency in self.dependencies:
                dependency.remove_recorder(self.recorder)
        self._liveness.end()
        self._feed.close()
        await self._subscriptions.finish(CLOSE_GRACE)
        await self.recorder.aclose(CLOSE_GRACE)

    async def __aenter__(self) -> Self:
        self._liveness.begin()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<HealthMonitor {self.state.value}: {self._describe()}>"

    def _describe(self) -> str:
        states = (
            f"{dependency.name} is {dependency.state.value}" for dependency in self.dependencies
        )
        return ", ".join(states)

    def _missing(self) -> list[Dependency]:
        return [
            *(each for each in self.critical if not each.state.answering),
            *(each for each in self.shared if each.state is State.UNKNOWN),
        ]

    def _how_it_is(self, previous: State, change: Change | None) -> MonitorChange:
        return MonitorChange(
            ready=self.ready,
            state=self.state,
            previous=previous,
            change=change,
            draining=self._draining,
        )

    def _dependency_changed(self, change: Change) -> None:
        self._publish(change)

    def _publish(self, change: Change | None) -> None:
        _ = self.started  # latched, also when nobody asks
        news = self._how_it_is(self._told, change)
        self._told = news.state
        self._feed.publish(news)
        self._subscriptions.tell(news)


def _check(dependencies: Sequence[object]) -> None:
    if not dependencies:
        raise ConfigurationError(
            "a HealthMonitor needs a dependency: write HealthMonitor(redis.health)"
        )
    for position, dependency in enumerate(dependencies):
        if not isinstance(dependency, Dependency):
            raise TypeError(f"{dependency!r} is no Dependency: write HealthMonitor(redis.health)")
        if dependency in dependencies[:position]:
            raise ConfigurationError(
                f"{dependency.name!r} is named twice: name it once, as critical "
                f"(HealthMonitor(dependency)), as shared=[dependency] or as optional=[dependency]"
            )


def _check_list(name: str, given: object) -> None:
    # Not merely iterable: redis-py's client seems to be.
    if not isinstance(given, Sequence):
        example = "consumer" if name == "liveness" else "redis.health"
        raise TypeError(f"{name}={given!r} is no list: write {name}=[{example}]")


def _check_parts(liveness: Sequence[object], recorder: object, settings: object) -> None:
    for part in liveness:
        if not isinstance(part, LivenessCheck):
            raise TypeError(
                f"{part!r} has no liveness_failure(): write HealthMonitor(..., liveness=[consumer])"
            )
    if recorder is not None and not isinstance(recorder, FlightRecorder):
        raise TypeError(f"recorder={recorder!r} is no FlightRecorder: write FlightRecorder()")
    if settings is not None and not isinstance(settings, LivenessSettings):
        raise TypeError(
            f"liveness_settings={settings!r} is no LivenessSettings: write LivenessSettings()"
        )
