"""Reads everything at the moment when somebody collects: until then, metrics cost nothing."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, NamedTuple, cast

from resilient_io.health import HealthMonitor, State

from ._abode import Abode
from ._catalogue import CATALOGUE
from ._clients import kind_of, named, unique
from ._counts import COUNTS
from ._metric import BOUNDARIES, TO_MIDDLE
from ._totals import Distribution, Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from resilient_io.health import Dependency

    from ._counts import Add
    from ._metric import Metric


__all__ = ["Reading", "Readings", "fold"]

_log = logging.getLogger("resilient_io.telemetry")

_PATIENCE = 1.0
"""Seconds that another thread waits for the event loop."""


class Reading(NamedTuple):
    """One value of one metric.

    Attributes:
        metric: Which.
        labels: Values of its labels, in the metric's order; "" for one that does not apply.
        value: The value.
    """

    metric: Metric
    labels: tuple[str, ...]
    value: float | Distribution


def fold(counts: tuple[tuple[float, int], ...]) -> list[int]:
    """Return how many took at most as long as each of `BOUNDARIES`, and how many there are.

    A bucket of ours that lies across a boundary counts by its middle.
    """
    found = [
        sum(count for top, count in counts if top * TO_MIDDLE <= boundary)
        for boundary in BOUNDARIES
    ]
    return [*found, sum(count for _, count in counts)]


class Readings:
    """Reads a monitor and clients.

    Args:
        monitor: The service's health.
        clients: Those whose counters are read: a sequence, or a mapping with names.

    Raises:
        ConfigurationError: An argument is of the wrong kind.
    """

    def __init__(self, monitor: HealthMonitor, clients: object) -> None:
        if not isinstance(monitor, HealthMonitor):
            raise TypeError(f"{monitor!r} is no HealthMonitor: write HealthMonitor(redis.health)")
        self._monitor = monitor
        self._clients = named(clients)
        # Each client may have a dependency of its own, of the same name.
        self._dependencies = unique((each.name, each) for each in monitor.dependencies)
        self._abode = Abode(monitor.dependencies)
        self._totals = Totals()
        self._latest: list[Reading] = []
        self._blind: dict[str, str] = {}

    def collect(self) -> list[Reading]:
        """Read everything; from any thread.

        What is read changes in the event loop, so from another thread the loop is asked to read.
        One that does not come to it within a second is answered for with what was read before. In
        a process that was forked while the loop ran there is nothing: it is counted in the parent.
        """
        if self._abode.forked:
            return []
        loop = self._abode.loop()
        if loop is None:
            self._latest = self._read()
            return self._latest
        reading = self._answer()
        try:
            answer = asyncio.run_coroutine_threadsafe(reading, loop)
        except RuntimeError:  # it was closed just now
            reading.close()
            return self._latest
        try:
            self._latest = answer.result(_PATIENCE)
        except TimeoutError:
            answer.cancel()
        except Exception:
            if not answer.cancelled():  # as it is when the loop ends just now
                raise
        return self._latest

    async def _answer(self) -> list[Reading]:
        return self._read()

    def _read(self) -> list[Reading]:
        found: list[Reading] = []
        for name, read in self._parts():
            part: list[Reading] = []
            try:
                read(functools.partial(self._add, part))
            # The boundary between the parts: a bug in one must not blind whoever looks at all the
            # others.
            except Exception as error:  # noqa: BLE001
                self._complain(name, error)
            else:
                found += part
        return found

    def _parts(self) -> Iterator[tuple[str, Callable[[Add], None]]]:
        yield "the service", self._read_service
        yield "liveness", self._read_liveness
        for name, dependency in self._dependencies:
            yield name, functools.partial(self._read_dependency, name, dependency)
        for name, client in self._clients.items():
            yield name, functools.partial(COUNTS[kind_of(client)], name, client)

    def _add(
        self, found: list[Reading], name: str, *labels: str, value: float | Distribution
    ) -> None:
        metric = CATALOGUE[name]
        if isinstance(value, Distribution):
            value = self._totals.of_histogram((name, labels), value)
        elif metric.kind == "counter":
            value = self._totals.of_counter((name, labels), value)
        found.append(Reading(metric, labels, value))

    def _complain(self, name: str, error: Exception) -> None:
        kind = type(error).__name__
        if self._blind.get(name) != kind:
            self._blind[name] = kind
            _log.error(
                "the metrics of %s cannot be read",
                name,
                exc_info=error,
                extra={"event": "metrics_not_read", "part": name, "error": kind},
            )

    def _read_service(self, add: Add) -> None:
        monitor = self._monitor
        add("resilient_io.service.ready", value=monitor.ready)
        add("resilient_io.service.started", value=monitor.started)
        add("resilient_io.service.draining", value=monitor.draining)
        for _, dependency in self._dependencies:
            lag = dependency.lag
            if lag is not None:  # one for the loop, shared by all
                add("resilient_io.event_loop.lag", value=lag.current)
                add("resilient_io.event_loop.stalled", value=lag.stalled)
                break

    def _read_liveness(self, add: Add) -> None:
        add("resilient_io.service.alive", value=self._monitor.alive)

    def _read_dependency(self, name: str, dependency: Dependency, add: Add) -> None:
        role = self._monitor.role_of(dependency)
        now = dependency.snapshot()
        for state in State:
            add(
                "resilient_io.dependency.state",
                name,
                role,
                state.value,
                value=dependency.state is state,
            )
        add("resilient_io.dependency.state.age", name, role, value=_number(now["age"]))
        for (state, cause), count in dependency.transitions.items():
            why = "" if cause is None else cause.value
            add(
                "resilient_io.dependency.transitions",
                name,
                role,
                state.value,
                why,
                value=count,
            )
        if dependency.latency is not None:
            add("resilient_io.dependency.latency", name, role, value=dependency.latency)
        probes = cast("Mapping[str, int]", now["probes"])
        for outcome, count in probes.items():
            add("resilient_io.dependency.probes", name, role, outcome, value=count)
        add("resilient_io.dependency.failures", name, role, value=_number(now["failures"]))
        add("resilient_io.dependency.refusals", name, role, value=_number(now["refusals"]))
        lost = cast("list[str]", now["parts_lost"])
        add("resilient_io.dependency.parts_lost", name, role, value=len(lost))


def _number(value: object) -> float:
    return cast("float", value)
