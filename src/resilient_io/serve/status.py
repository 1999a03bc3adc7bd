"""The data of the status page: the service, its dependencies and its clients as plain values."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from resilient_io.telemetry.clients import kind_of
from resilient_io.text import clean_text

if TYPE_CHECKING:
    from typing import Any

    from resilient_io.health import Cause, Dependency, HealthMonitor, LoopLag, State

_HISTORY_SECONDS = 3600.0  # the length of the timeline

_MAX_EVENTS = 50

_MAX_PARTITIONS = 200
"""Partitions of one topic with a row of their own: those with the most lag. The page is built
again every second."""

_MAX_SERVERS = 60
"""Servers of one dependency that are listed: for the same reason."""

# Counters that are useful only as differences over time; the histogram is also long.
_FOR_METRICS = frozenset({"latency_total", "latency_counts"})
_INLINE: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def status_page() -> str:
    """Return the HTML page: one file that loads nothing else."""
    return files("resilient_io.serve").joinpath("status.html").read_text(encoding="utf-8")


def content_security_policy(page: str) -> str:
    """Return the policy that lets a browser run exactly the style and the script of the page."""
    allowed: dict[str, str] = {}
    for match in _INLINE.finditer(page):
        digest = hashlib.sha256(match.group(2).encode()).digest()
        allowed[match.group(1)] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; style-src {allowed['style']}; script-src {allowed['script']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def build_status(
    monitor: HealthMonitor, clients: Mapping[str, Any] | None = None, name: str = "service"
) -> dict[str, object]:
    """Return the status of a service as plain data that `json.dumps` accepts.

    It uses only what is known already and contacts no server. Times are in seconds and relative to
    now, because the clocks of a server and a browser differ. Every text is bounded, and free of
    credentials and control characters.
    """
    now = asyncio.get_running_loop().time()
    clients = clients or {}
    lag = loop_lag(monitor)
    status: dict[str, object] = {
        "ready": monitor.ready,
        "alive": monitor.alive,
        "started": monitor.started,
        "draining": monitor.draining,
        "state": monitor.state.value,
        "unready_reasons": monitor.unready_reasons,
        "liveness_failures": monitor.liveness_failures,
        "loop_lag": lag and {each: getattr(lag, each) for each in ("current", "worst", "stalled")},
        "dependencies": [
            {
                "role": monitor.role_of(dependency),
                **_snapshot(dependency),
                "timeline": _timeline(dependency, now),
            }
            for dependency in monitor.dependencies
        ],
        "clients": [_client(name, client) for name, client in clients.items()],
        "lag": [row for name, client in clients.items() for row in _lag(name, client)],
        "events": monitor.recorder.events(_MAX_EVENTS),
    }
    return {"service": name, **{key: _plain(value) for key, value in status.items()}}


def loop_lag(monitor: HealthMonitor) -> LoopLag | None:
    """Return the lag of the event loop, which all watched dependencies share."""
    return next((each.lag for each in monitor.dependencies if each.lag is not None), None)


def _snapshot(dependency: Dependency) -> dict[str, Any]:
    snapshot: dict[str, Any] = dependency.snapshot()
    topology = snapshot["topology"]
    if topology is not None:
        servers = topology["servers"]
        if len(servers) > _MAX_SERVERS:
            # Of a large cluster, those that matter most.
            servers = sorted(servers, key=lambda each: each["state"] != "down")
        topology["servers"] = servers[:_MAX_SERVERS]
        topology["servers_omitted"] = max(len(servers) - _MAX_SERVERS, 0)
    return snapshot


def _timeline(dependency: Dependency, now: float) -> list[dict[str, object]]:
    """Return the states of the last hour, oldest first; the last one continues until now.

    The history is bounded, so that the timeline of a dependency that changes often may be shorter.
    """
    history = dependency.history
    if not history and not dependency.since:
        return []  # nothing has watched it yet
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
        if now - end < _HISTORY_SECONDS
    ]


def _client(name: str, client: Any) -> dict[str, object]:
    stats = client.stats()
    counters = {
        each.name: getattr(stats, each.name)
        for each in dataclasses.fields(stats)
        if each.name not in _FOR_METRICS
    }
    kind = kind_of(client)
    about = {"kind": kind, "name": name, "dependency": client.health.name, "stats": counters}
    if kind == "consumer":
        about |= {"group": client.group_id, "run": client.run_stats()}
    return about


def _lag(name: str, client: Any) -> list[dict[str, object]]:
    if kind_of(client) != "consumer":
        return []
    topics: dict[str, list[tuple[int, int]]] = {}
    for (topic, partition), lag in client.known_lag().items():
        topics.setdefault(topic, []).append((partition, lag))
    return [
        {"client": client.group_id or name, "topic": topic, **row}
        for topic in sorted(topics)
        for row in _partitions(topics[topic])
    ]


def _partitions(lags: list[tuple[int, int]]) -> list[dict[str, object]]:
    """Return one row per partition, in order; above the limit, one row for those least behind."""
    shown, rest = lags, []
    if len(lags) > _MAX_PARTITIONS:
        worst = sorted(lags, key=lambda each: (-each[1], each[0]))
        shown, rest = worst[:_MAX_PARTITIONS], worst[_MAX_PARTITIONS:]
    rows: list[dict[str, object]] = [
        {"partition": partition, "lag": lag} for partition, lag in sorted(shown)
    ]
    if rest:
        behind = sum(lag for _, lag in rest)
        rows.append({"partition": "others", "partitions": len(rest), "lag": behind})
    return rows


def _plain(value: object) -> object:
    """Return a value that JSON can hold (it has no infinity), with every text cleaned."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {clean_text(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_plain(each) for each in value]
    return clean_text(str(value))
