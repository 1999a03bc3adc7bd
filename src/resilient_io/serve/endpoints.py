"""What each endpoint answers, independent of the framework that carries it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qs

from resilient_io.health import HealthMonitor, State, describe_state
from resilient_io.telemetry.clients import name_clients
from resilient_io.text import clean_text, redact_credentials
from resilient_io.validation import check_name, check_type

from .events import StatusBroadcast
from .status import build_status, content_security_policy, loop_lag, status_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client import CollectorRegistry

    from resilient_io.health import Dependency
    from resilient_io.telemetry.clients import Clients

    _Query = dict[str, list[str]]
    _Checks = dict[str, list[dict[str, object]]]

PATHS: Final = ("/livez", "/readyz", "/startupz", "/metrics", "/status", "/events")

HEALTH_JSON: Final = "application/health+json"
"""The draft inadarei-rfc-health-check has expired, but tools read it. The `time` of observations is
left out: a state holds now, and the wall clock is not read when a latency is measured."""

METRICS_SECONDS: Final = 1.0
"""How long the text of `/metrics` is reused. Without this, a client could keep the event loop busy
with requests that each read every counter."""

# Formats of the metrics that are kept; prometheus-client decides how many there are.
_MAX_FORMATS: Final = 8
_PLAIN: Final = "text/plain"
_HTML: Final = "text/html"
_JSON: Final = "application/json"
_VARY: Final = ("vary", "accept")
_FALSE: Final = {"0", "false", "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """A response."""

    status: int
    content_type: str
    body: bytes = b""
    extra: tuple[tuple[str, str], ...] = ()
    stream: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """All headers. HEAD gets the same ones, without the body."""
        headers = {"content-type": self.content_type}
        if not self.stream:
            headers["content-length"] = str(len(self.body))
        security = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return headers | security | dict(self.extra)


class Endpoints:
    """The endpoints of one service."""

    def __init__(
        self,
        monitor: HealthMonitor,
        *,
        clients: Clients = (),
        metrics: CollectorRegistry | Literal[False] | None = None,
        status: bool = True,
        name: str = "service",
        closes_streams: bool = False,
    ) -> None:
        if not isinstance(status, bool):
            raise TypeError(f"status must be True or False, not {status!r}")
        self._monitor = check_type(
            "monitor", monitor, HealthMonitor, use="HealthMonitor(redis.health)"
        )
        self._clients = name_clients(clients)
        self._name = redact_credentials(check_name("name", name))
        self._metrics = _Metrics(monitor, clients, metrics)
        self._page = status_page().encode()
        self._policy = content_security_policy(self._page.decode())
        self.events = StatusBroadcast(monitor, self._status_json, closes_streams=closes_streams)
        self._handlers: dict[str, Callable[[_Query, str], HttpAnswer]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/startupz": self._startupz,
            "/metrics": self._metrics.answer,
            "/status": self._show_status if status else _no_status,
            "/events": self._open_events if status else _no_status,
        }

    def answer(self, path: str, method: str, *, query: str = "", accept: str = "") -> HttpAnswer:
        """Return the response to a request; HEAD is answered like GET, without the body."""
        handler = self._handlers.get(path)
        if handler is None:
            return _text(HTTPStatus.NOT_FOUND, f"not found; available: {', '.join(PATHS)}")
        if method not in {"GET", "HEAD"}:
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "use GET", ("allow", "GET, HEAD"))
        return handler(parse_qs(query, keep_blank_values=True), accept)

    def _livez(self, query: _Query, accept: str) -> HttpAnswer:
        failures = _clean(self._monitor.liveness_failures)
        text = f"not alive: {'; '.join(failures)}" if failures else "alive"
        status = "fail" if failures else "pass"
        return self._probe(status, text, failures, query, accept, checks=_liveness_checks)

    def _readyz(self, query: _Query, accept: str) -> HttpAnswer:
        monitor = self._monitor
        reasons = _clean(monitor.unready_reasons)
        if monitor.ready:
            problems = _clean(
                f"{each.name} is {describe_state(each.state, each.cause, each.detail)}"
                for each in monitor.dependencies
                if each.state is not State.UP
            )
            text = f"ready, although {'; '.join(problems)}" if problems else "ready"
            status = "pass" if monitor.state is State.UP else "warn"
        else:
            status, text = "fail", f"not ready: {'; '.join(reasons)}"
        return self._probe(status, text, reasons, query, accept, checks=_dependency_checks)

    def _startupz(self, query: _Query, accept: str) -> HttpAnswer:
        if self._monitor.started:
            return self._probe("pass", "started", (), query, accept, checks=_dependency_checks)
        reasons = _clean(self._monitor.unready_reasons)
        text = f"not started: {'; '.join(reasons)}"
        return self._probe("fail", text, reasons, query, accept, checks=_dependency_checks)

    def _probe(
        self,
        status: str,
        text: str,
        reasons: Sequence[str],
        query: _Query,
        accept: str,
        *,
        checks: Callable[[HealthMonitor], _Checks],
    ) -> HttpAnswer:
        code = HTTPStatus.SERVICE_UNAVAILABLE if status == "fail" else HTTPStatus.OK
        form = preferred_type(accept, (_PLAIN, HEALTH_JSON, _JSON))
        if "verbose" in query and query["verbose"][-1].lower() not in _FALSE:
            form = HEALTH_JSON if form == _PLAIN else form
        if form == _PLAIN:
            return _text(code, text, _VARY)
        document: dict[str, object] = {"status": status, "serviceId": self._name}
        if reasons:
            document["output"] = "; ".join(reasons)
        body = _json(document | {"checks": checks(self._monitor)}).encode()
        return HttpAnswer(status=code, content_type=form, body=body, extra=(_VARY,))

    def _show_status(self, query: _Query, accept: str) -> HttpAnswer:
        requested = query.get("format", [""])[-1]
        form = {"json": _JSON, "html": _HTML}.get(requested) or preferred_type(
            accept, (_HTML, _JSON)
        )
        if form == _JSON:
            body = self._status_json().encode()
            return HttpAnswer(status=HTTPStatus.OK, content_type=_JSON, body=body, extra=(_VARY,))
        return HttpAnswer(
            status=HTTPStatus.OK,
            content_type=f"{_HTML}; charset=utf-8",
            body=self._page,
            extra=(
                _VARY,
                ("content-security-policy", self._policy),
                ("referrer-policy", "no-referrer"),
            ),
        )

    def _open_events(self, _: _Query, __: str) -> HttpAnswer:
        if self.events.full:
            return _text(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "closing" if self.events.closed else "too many readers",
                ("retry-after", "5"),
            )
        return HttpAnswer(
            status=HTTPStatus.OK,
            content_type="text/event-stream; charset=utf-8",
            extra=(("x-accel-buffering", "no"),),  # otherwise nginx would delay the events
            stream=True,
        )

    def _status_json(self) -> str:
        return _json(build_status(self._monitor, self._clients, self._name))


class _Metrics:
    """Answers `/metrics`, from the library's metrics (`source` is None) or from a registry."""

    def __init__(
        self,
        monitor: HealthMonitor,
        clients: Clients,
        source: CollectorRegistry | Literal[False] | None,
    ) -> None:
        if source is not None and source is not False and not hasattr(source, "collect"):
            raise TypeError(
                f"metrics must be a registry, None or False, not {source!r}: use "
                f"metrics=prometheus_client.REGISTRY to serve what is registered there, None for "
                f"the library's metrics, False for none"
            )
        self._monitor = monitor
        self._clients = clients
        self._off = source is False
        self._source = source or None
        self._recent: dict[str, tuple[float, bytes]] = {}

    def answer(self, _: _Query, accept: str) -> HttpAnswer:
        """Return the metrics, at most `METRICS_SECONDS` old, in the format that is preferred."""
        if self._off:
            return _text(HTTPStatus.NOT_FOUND, "metrics are switched off")
        if self._source is None and find_spec("prometheus_client") is None:
            return _text(
                HTTPStatus.NOT_FOUND,
                "metrics need prometheus-client: pip install 'resilient-io[prometheus]'",
            )
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 (an extra)

        encode, content_type = choose_encoder(accept)
        now = asyncio.get_running_loop().time()
        at, body = self._recent.get(content_type, (-METRICS_SECONDS, b""))
        if not body or not 0 <= now - at < METRICS_SECONDS:
            body = redact_credentials(encode(self._registry()).decode()).encode()
            if len(self._recent) >= _MAX_FORMATS:
                self._recent.clear()
            self._recent[content_type] = (now, body)
        return HttpAnswer(
            status=HTTPStatus.OK, content_type=content_type, body=body, extra=(_VARY,)
        )

    def _registry(self) -> CollectorRegistry:
        if self._source is None:
            from prometheus_client import CollectorRegistry  # noqa: PLC0415 (an extra)

            from resilient_io.telemetry.prometheus import (  # noqa: PLC0415 (an extra)
                PrometheusMetrics,
            )

            # A separate registry: the default one may have the library's metrics already.
            self._source = CollectorRegistry()
            PrometheusMetrics(self._monitor, clients=self._clients).register(self._source)
        return self._source


# --- health+json


def _liveness_checks(monitor: HealthMonitor) -> _Checks:
    """Return the checks of `/livez`, which contain no dependency."""
    failures = monitor.liveness_failures
    process: dict[str, object] = {
        "componentType": "component",
        "observedValue": "stuck" if failures else "alive",
        "observedUnit": "state",
        "status": "fail" if failures else "pass",
    }
    checks = {"process:liveness": [process]}
    if (lag := loop_lag(monitor)) is not None:
        checks["event-loop:lag"] = [{"componentType": "component", **_seconds(lag.current)}]
    return checks


def _dependency_checks(monitor: HealthMonitor) -> _Checks:
    checks: _Checks = {}
    for dependency in monitor.dependencies:
        name = clean_text(dependency.name)
        component = name.replace(":", "-")  # a colon ends the component's name
        about: dict[str, object] = {"componentId": name, "componentType": "system"}
        availability = {
            **about,
            "observedValue": dependency.state.value,
            "observedUnit": "state",
            "status": _check_status(monitor, dependency),
            "role": monitor.role_of(dependency),
        }
        if dependency.state is not State.UP:
            availability["output"] = clean_text(
                describe_state(dependency.state, dependency.cause, dependency.detail)
            )
        checks.setdefault(f"{component}:availability", []).append(availability)
        if dependency.latency is not None:
            checks.setdefault(f"{component}:responseTime", []).append(
                {**about, **_seconds(dependency.latency)}
            )
    return checks


def _seconds(value: float) -> dict[str, object]:
    return {"observedValue": round(value, 6), "observedUnit": "s", "status": "pass"}


def _check_status(monitor: HealthMonitor, dependency: Dependency) -> str:
    """Return "fail" if the dependency makes the service unready, else "warn" or "pass"."""
    if dependency.state is State.UP:
        return "pass"
    role = monitor.role_of(dependency)
    blocks = (role == "critical" and not dependency.state.answering) or (
        role == "shared" and dependency.state is State.UNKNOWN
    )
    return "fail" if blocks else "warn"


# --- content negotiation


def preferred_type(accept: str, offered: Sequence[str]) -> str:
    """Return the offered media type that a client prefers.

    A type that the header names is preferred to one that only matches `*/*`. Among equals, the
    order of `offered` decides. The first one is the default, also if none is acceptable.
    """
    ranges = [_parse_range(each) for each in accept.split(",") if each.strip()]
    best, best_rank = offered[0], (0.0, -1)
    for each in offered:
        matching = [
            (specificity, quality)
            for name, quality in ranges
            if (specificity := _specificity(name, each)) >= 0
        ]
        if not matching:
            continue
        specificity, quality = max(matching)  # the most specific range decides
        if quality > 0 and (quality, specificity) > best_rank:
            best, best_rank = each, (quality, specificity)
    return best


def _parse_range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0


def _specificity(name: str, offered: str) -> int:
    if name == offered:
        return 2
    if name == f"{offered.partition('/')[0]}/*":
        return 1
    return 0 if name == "*/*" else -1


# --- responses


def _no_status(_: _Query, __: str) -> HttpAnswer:
    return _text(HTTPStatus.NOT_FOUND, "the status page is switched off")


def _clean(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(clean_text(text) for text in texts)


def _text(status: HTTPStatus, text: str, *extra: tuple[str, str]) -> HttpAnswer:
    return HttpAnswer(
        status=status,
        content_type=f"{_PLAIN}; charset=utf-8",
        body=f"{text}\n".encode(errors="backslashreplace"),
        extra=extra,
    )


def _json(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False)
