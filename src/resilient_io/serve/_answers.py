"""What is answered to which request, whoever carries it: Starlette or aiohttp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import parse_qs

from resilient_io.health import HealthMonitor, State
from resilient_io.health.states import describe_state
from resilient_io.serve import _health_json, _status
from resilient_io.serve._events import Broadcast
from resilient_io.serve._metrics import Metrics
from resilient_io.serve._negotiation import prefer
from resilient_io.telemetry._clients import named
from resilient_io.text import redact_credentials
from resilient_io.validation import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from resilient_io.serve._status import Clients

__all__ = ["PATHS", "Answer", "Answers"]

PATHS: Final = ("/livez", "/readyz", "/startupz", "/metrics", "/status", "/events")

_PLAIN: Final = "text/plain"
_HTML: Final = "text/html"
_JSON: Final = "application/json"
_NO: Final = {"0", "false", "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to send.

    Attributes:
        status: The status code.
        content_type: Of the body.
        body: All of it.
        extra: Further headers.
        stream: Whether the body is the stream of events, and does not end here.
    """

    status: int
    content_type: str
    body: bytes = b""
    extra: tuple[tuple[str, str], ...] = ()
    stream: bool = False

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers; for HEAD, too: they are those of the body that is left out."""
        length = [] if self.stream else [("content-length", str(len(self.body)))]
        return [
            ("content-type", self.content_type),
            *length,
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            *self.extra,
        ]


class Answers:
    """The answers of one service.

    Args:
        monitor: How it is.
        clients: Whose counters are shown and exported.
        metrics: See `Metrics`.
        name: How it is called.
        lasting: See `Broadcast`.

    Raises:
        ConfigurationError: An argument makes no sense.
        TypeError: One is of the wrong kind.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        *,
        clients: Clients = (),
        metrics: CollectorRegistry | Literal[False] | None = None,
        name: str = "service",
        lasting: bool = False,
    ) -> None:
        if not isinstance(monitor, HealthMonitor):
            raise TypeError(f"{monitor!r} is no HealthMonitor: write HealthMonitor(redis.health)")
        self._monitor = monitor
        named(clients)  # refuses what is no client of ours
        self._clients = tuple(clients.values() if isinstance(clients, Mapping) else clients)
        self._name = check_name("name", name)
        self._metrics = Metrics(monitor, clients, metrics)
        self._page = _status.status_page().encode()
        self.events = Broadcast(monitor, self._status, lasting=lasting)
        self._handlers: dict[str, Callable[[dict[str, list[str]], str], Answer]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/startupz": self._startupz,
            "/metrics": self._scrape,
            "/status": self._show,
            "/events": self._tell,
        }

    def answer(self, path: str, method: str, *, query: str = "", accept: str = "") -> Answer:
        """Return what to send; for HEAD, all but the body of it.

        Args:
            path: One of `PATHS`; anything else is not found.
            method: Anything but GET and HEAD is not allowed.
            query: What follows the question mark.
            accept: The value of the request's header.
        """
        handler = self._handlers.get(path)
        if handler is None:
            return _words(HTTPStatus.NOT_FOUND, f"not found: there is {', '.join(PATHS)}")
        if method not in {"GET", "HEAD"}:
            return _words(HTTPStatus.METHOD_NOT_ALLOWED, "write GET", ("allow", "GET, HEAD"))
        return handler(parse_qs(query, keep_blank_values=True), accept)

    def _livez(self, query: dict[str, list[str]], accept: str) -> Answer:
        stuck = self._monitor.liveness_failures
        words = f"not alive: {'; '.join(stuck)}" if stuck else "alive"
        return self._probe(not stuck, words, _health_json.liveness, query, accept)

    def _readyz(self, query: dict[str, list[str]], accept: str) -> Answer:
        monitor = self._monitor
        words = f"not ready: {'; '.join(monitor.unready_reasons)}"
        if monitor.ready:
            troubles = [
                f"{each.name} is {describe_state(each.state, each.cause, each.detail)}"
                for each in monitor.dependencies
                if each.state is not State.UP
            ]
            words = f"ready, though {'; '.join(troubles)}" if troubles else "ready"
        return self._probe(monitor.ready, words, _health_json.readiness, query, accept)

    def _startupz(self, query: dict[str, list[str]], accept: str) -> Answer:
        monitor = self._monitor
        words = "started"
        if not monitor.started:
            words = f"not started: {'; '.join(monitor.unready_reasons)}"
        return self._probe(monitor.started, words, _health_json.startup, query, accept)

    def _probe(
        self,
        passes: bool,  # noqa: FBT001 (what it is all about)
        words: str,
        document: Callable[[HealthMonitor, str], dict[str, object]],
        query: dict[str, list[str]],
        accept: str,
    ) -> Answer:
        status = HTTPStatus.OK if passes else HTTPStatus.SERVICE_UNAVAILABLE
        form = prefer(accept, (_PLAIN, _health_json.MEDIA_TYPE, _JSON))
        if "verbose" in query and query["verbose"][-1].lower() not in _NO:
            form = _health_json.MEDIA_TYPE if form == _PLAIN else form
        if form == _PLAIN:
            return _words(status, words, ("vary", "accept"))
        body = _json(document(self._monitor, self._name))
        return Answer(
            status=status, content_type=form, body=body.encode(), extra=(("vary", "accept"),)
        )

    def _scrape(self, _: dict[str, list[str]], accept: str) -> Answer:
        missing = self._metrics.missing
        if missing is not None:
            return _words(HTTPStatus.NOT_FOUND, missing)
        text, content_type = self._metrics.text(accept)
        return Answer(
            status=HTTPStatus.OK,
            content_type=content_type,
            body=redact_credentials(text.decode()).encode(),
            extra=(("vary", "accept"),),
        )

    def _show(self, query: dict[str, list[str]], accept: str) -> Answer:
        asked = query.get("format", [""])[-1]
        form = {"json": _JSON, "html": _HTML}.get(asked) or prefer(accept, (_HTML, _JSON))
        if form == _JSON:
            body = self._status().encode()
            return Answer(
                status=HTTPStatus.OK, content_type=_JSON, body=body, extra=(("vary", "accept"),)
            )
        return Answer(
            status=HTTPStatus.OK,
            content_type=f"{_HTML}; charset=utf-8",
            body=self._page,
            extra=(
                ("vary", "accept"),
                ("content-security-policy", _status.CONTENT_SECURITY_POLICY),
                ("referrer-policy", "no-referrer"),
            ),
        )

    def _tell(self, _: dict[str, list[str]], __: str) -> Answer:
        if self.events.full:
            return _words(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "closing" if self.events.closed else "too many readers",
                ("retry-after", "5"),
            )
        return Answer(
            status=HTTPStatus.OK,
            content_type="text/event-stream; charset=utf-8",
            extra=(("x-accel-buffering", "no"),),  # else nginx would hold events back
            stream=True,
        )

    def _status(self) -> str:
        return _json(_status.status_of(self._monitor, self._clients, self._name))


def _words(status: HTTPStatus, words: str, *extra: tuple[str, str]) -> Answer:
    return Answer(
        status=status,
        content_type=f"{_PLAIN}; charset=utf-8",
        body=f"{redact_credentials(words)}\n".encode(errors="backslashreplace"),
        extra=extra,
    )


def _json(document: dict[str, object]) -> str:
    return redact_credentials(json.dumps(document, separators=(",", ":"), allow_nan=False))
