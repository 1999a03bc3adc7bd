"""The dependencies of a service together: is it ready?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError
from resilient_io.health._dependency import CLOSE_GRACE, Dependency
from resilient_io.health._feed import Feed, Watch
from resilient_io.health._states import Change, State
from resilient_io.health._subscription import Subscription, Subscriptions
from resilient_io.health._waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

__all__ = ["HealthMonitor", "MonitorChange"]

_NAME = "health monitor"


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorChange:
    """A dependency of the service has changed, and this is how the service is now.

    Attributes:
        ready: Whether the service can do its work.
        state: The service's state.
        previous: The state that was told before; may be the same.
        change: What changed; None in the first item of a `watch()` that begins before any
            change.
    """

    ready: bool
    state: State
    previous: State
    change: Change | None


class HealthMonitor:
    """The dependencies of a service: those that it cannot work without, and the others.

    ```
    monitor = HealthMonitor(redis.health, orders.health, optional=[cache.health])
    ```

    It owns no dependency and runs no task of its own; it needs no running loop to be made. Use
    `async with`, or `aclose()` it, to let go of the dependencies.

    Args:
        critical: The service is ready only while none of these is DOWN or UNKNOWN.
        optional: These only degrade it.

    Raises:
        ConfigurationError: There is no dependency, or one is named twice.
        TypeError: One is not a `Dependency`.
    """

    def __init__(self, *critical: Dependency, optional: Sequence[Dependency] = ()) -> None:
        self.critical = critical
        self.optional = tuple(optional)
        _check(self.dependencies)
        self._subscriptions: Subscriptions[MonitorChange] = Subscriptions(_NAME)
        self._told = self.state
        self._feed = Feed(self._how_it_is(self._told, None))
        self._sources = [
            dependency.on_change(self._dependency_changed) for dependency in self.dependencies
        ]

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """All of them, the critical ones first."""
        return (*self.critical, *self.optional)

    @property
    def ready(self) -> bool:
        """Whether the service can do its work: no critical dependency is DOWN or UNKNOWN.

        A degraded one counts as ready: it answers, and taking every replica of a service out of
        rotation because their shared server is read-only would help nobody.
        """
        return all(dependency.state.answering for dependency in self.critical)

    @property
    def state(self) -> State:
        """The service's state.

        DOWN or UNKNOWN while a critical dependency is; else DEGRADED while one is degraded, or
        an optional one is degraded or down; else UP.
        """
        states = [dependency.state for dependency in self.critical]
        for worst in (State.DOWN, State.UNKNOWN):
            if worst in states:
                return worst
        states += [dependency.state for dependency in self.optional]
        if State.DEGRADED in states or State.DOWN in states:
            return State.DEGRADED
        return State.UP

    def on_change(self, callback: Callable[[MonitorChange], object]) -> Subscription[MonitorChange]:
        """Call a function, sync or async, whenever a dependency has changed.

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
            describe=self._describe,
        )

    def snapshot(self) -> dict[str, object]:
        """Return how the service is as plain data that `json.dumps` takes."""
        return {
            "ready": self.ready,
            "state": self.state.value,
            "critical": [dependency.snapshot() for dependency in self.critical],
            "optional": [dependency.snapshot() for dependency in self.optional],
        }

    async def aclose(self) -> None:
        """Let go of the dependencies, end every `watch()` and wait for async callbacks.

        These get one second, then they are cancelled. Closing twice is fine. Cancelling this
        leaves at once.
        """
        for source in self._sources:
            source.remove()
        self._feed.close()
        await self._subscriptions.finish(CLOSE_GRACE)

    async def __aenter__(self) -> Self:
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

    def _how_it_is(self, previous: State, change: Change | None) -> MonitorChange:
        return MonitorChange(ready=self.ready, state=self.state, previous=previous, change=change)

    def _dependency_changed(self, change: Change) -> None:
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
                f"(HealthMonitor(dependency)) or as optional=[dependency]"
            )
