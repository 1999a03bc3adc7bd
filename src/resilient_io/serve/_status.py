"""What the status page shows: the service, its dependencies and its clients as plain data."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import TypeAlias

    from resilient_io.health import Cause, Dependency, HealthMonitor, State

    Clients: TypeAlias = "Sequence[StatusSource] | Mapping[str, StatusSource]"

__all__ = ["CONTENT_SECURITY_POLICY", "StatusSource", "status_of", "status_page"]

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What a browser may do with the page: run what is in it, and ask where it came from."""

_SHOWN = 3600.0
"""Seconds of the past that the timeline shows."""

_EVENTS = 50

_MOST_PARTITIONS = 200
"""Of one topic, with a row each: those most behind. The page is made anew each second."""

_FOR_METRICS = frozenset({"latency_total", "latency_counts"})
"""Counters that only say something to who adds them up over time; a histogram is long, too."""


class StatusSource(Protocol):
    """A client as the page sees it: `ResilientRedis`, a producer, a consumer."""

    @property
    def health(self) -> Dependency:
        """The dependency it speaks to."""
        ...

    def stats(self) -> object:
        """Return its counters."""
        ...


@runtime_checkable
class _Consuming(Protocol):
    """What only a consumer has. Asked by shape, so that Kafka is not imported for Redis alone."""

    @property
    def group_id(self) -> str | None: ...

    def run_stats(self) -> object: ...

    def known_lag(self) -> Mapping[tuple[str, int], int]: ...


def status_page() -> str:
    """Return the page, which is one file without any outside resource."""
    return files("resilient_io.serve").joinpath("status.html").read_text(encoding="utf-8")


def status_of(
    monitor: HealthMonitor, clients: Sequence[StatusSource] = (), name: str = "service"
) -> dict[str, object]:
    """Return how a service is, as plain data that `json.dumps` takes and JSON allows.

    Looks only at what is known already: nothing is asked over the network. Times are in seconds
    and relative to now, for the clocks of a server and a browser differ.

    Args:
        monitor: The service's dependencies.
        clients: Those whose counters are shown.
        name: How the page calls the service.

    Raises:
        RuntimeError: No event loop runs.
    """
    now = asyncio.get_running_loop().time()
    return {
        "service": name,
        "ready": monitor.ready,
        "alive": monitor.alive,
        "started": monitor.started,
        "draining": monitor.draining,
        "state": monitor.state.value,
        "because": list(monitor.unready_reasons),
        "stuck": list(monitor.liveness_failures),
        "loop_lag": _loop_lag(monitor),
        "dependencies": [
            {
                "role": monitor.role_of(dependency),
                **dependency.snapshot(),
                "timeline": _timeline(dependency, now),
            }
            for dependency in monitor.dependencies
        ],
        "clients": [_client(client) for client in clients],
        "lag": [row for client in clients for row in _lag(client)],
        "events": _plain(monitor.recorder.events(_EVENTS)),
    }


def _loop_lag(monitor: HealthMonitor) -> dict[str, float] | None:
    """Find the watch over our event loop; all dependencies that are watched share it."""
    for dependency in monitor.dependencies:
        if (lag := dependency.lag) is not None:
            return {"current": lag.current, "worst": lag.worst, "stalled": lag.stalled}
    return None


def _timeline(dependency: Dependency, now: float) -> list[dict[str, object]]:
    """Return the states of the last hour, oldest first; the last of them lasts until now.

    The history is bounded: of a dependency that changes often it may begin later.
    """
    history = dependency.history
    if not history and not dependency.since:
        return []  # nobody has watched it yet
    states: list[tuple[State, Cause | None, str, float]] = []
    if history:
        first = history[0]
        states.append((first.previous, None, "", first.at - first.after))
        states += [(each.state, each.cause, each.detail, each.at) for each in history[:-1]]
    states.append((dependency.state, dependency.cause, dependency.detail, dependency.since))
    ends = [*(begin for *_, begin in states[1:]), now]
    return [
        {
            "state": state.value,
            "cause": cause.value if cause is not None else None,
            "detail": detail,
            "ago": max(0.0, now - begin),
            "lasted": max(0.0, end - begin),
        }
        for (state, cause, detail, begin), end in zip(states, ends, strict=True)
        if now - end < _SHOWN
    ]


def _client(client: StatusSource) -> dict[str, object]:
    stats = client.stats()
    counters = _plain(stats)
    if isinstance(counters, dict):
        counters = {name: value for name, value in counters.items() if name not in _FOR_METRICS}
    about: dict[str, object] = {
        "kind": type(stats).__name__.removesuffix("Stats").lower(),
        "name": client.health.name,
        "stats": counters,
    }
    if isinstance(client, _Consuming):
        about["group"] = client.group_id
        about["run"] = _plain(client.run_stats())
    return about


def _lag(client: StatusSource) -> list[dict[str, object]]:
    if not isinstance(client, _Consuming):
        return []
    named = client.group_id or client.health.name
    topics: dict[str, list[tuple[int, int]]] = {}
    for (topic, partition), lag in client.known_lag().items():
        topics.setdefault(topic, []).append((partition, lag))
    return [
        {"client": named, "topic": topic, **row}
        for topic in sorted(topics)
        for row in _partitions(topics[topic])
    ]


def _partitions(lags: list[tuple[int, int]]) -> list[dict[str, object]]:
    """Return a row for each partition, in order; the least behind of very many share one."""
    shown, rest = lags, []
    if len(lags) > _MOST_PARTITIONS:
        worst = sorted(lags, key=lambda each: (-each[1], each[0]))
        shown, rest = worst[:_MOST_PARTITIONS], worst[_MOST_PARTITIONS:]
    rows: list[dict[str, object]] = [
        {"partition": partition, "lag": lag} for partition, lag in sorted(shown)
    ]
    if rest:
        behind = sum(lag for _, lag in rest)
        rows.append({"partition": "others", "partitions": len(rest), "lag": behind})
    return rows


def _plain(value: object) -> object:
    """Return a value as JSON can hold it: it knows neither infinity nor other types' values."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(each) for each in value]
    return str(value)
