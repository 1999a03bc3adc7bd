"""The answers as an ASGI application of Starlette's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route

from resilient_io.serve._answers import PATHS, Answer, Answers

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from resilient_io.health import HealthMonitor
    from resilient_io.serve._events import Reader
    from resilient_io.serve._status import Clients

__all__ = ["asgi_of", "health_app"]


def health_app(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    name: str = "service",
) -> Starlette:
    """Make an ASGI application that tells how the service is.

    Mount it (`app.mount("/health", health_app(monitor))`), or give any ASGI server it as it is.
    It owns nothing and needs no lifespan. Streams of events end while the service drains, and
    after 10 s otherwise, so that the server that carries them can stop; browsers come again.

    Args:
        monitor: How the service is.
        clients: `ResilientRedis`, producers and consumers, whose counters are shown and exported:
            a sequence, or a mapping that names them.
        metrics: None serves the library's metrics if prometheus-client is installed; a registry
            of prometheus-client serves what is in it; False serves none.
        name: How the service is called.

    Raises:
        ConfigurationError: An argument makes no sense, or Starlette is not installed.
        TypeError: `monitor` is no `HealthMonitor`.
    """
    return asgi_of(Answers(monitor, clients=clients, metrics=metrics, name=name))


def asgi_of(answers: Answers) -> Starlette:
    """Carry the answers over ASGI."""

    async def not_found(request: Request, _: Exception) -> Response:
        return _response(answers.answer("", request.method), request.method)

    app = Starlette(
        routes=[Route(path, _Endpoint(answers, path), name=path) for path in PATHS],
        exception_handlers={404: not_found},
    )
    app.router.redirect_slashes = False  # "/livez/" is another path, and there is none
    return app


class _Endpoint:
    """One path; an application and no function, so that Starlette leaves all methods to us."""

    def __init__(self, answers: Answers, path: str) -> None:
        self._answers = answers
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answers.answer(
            self._path,
            scope["method"],
            query=scope["query_string"].decode("latin-1"),
            accept=", ".join(Headers(scope=scope).getlist("accept")),
        )
        if answer.stream and scope["method"] == "GET":
            with self._answers.events.open() as reader:
                await _stream(answer, reader, receive, send)
            return
        response = _response(answer, scope["method"])
        await response(scope, receive, send)


def _response(answer: Answer, method: str) -> Response:
    body = b"" if method == "HEAD" else answer.body
    return Response(body, answer.status, dict(answer.headers))


async def _stream(answer: Answer, reader: Reader, receive: Receive, send: Send) -> None:
    """Send events until the reader ends; that its client went away only `receive` tells."""
    headers = Headers(dict(answer.headers)).raw
    watching = asyncio.create_task(_until_gone(receive), name="resilient-io reader of /events")
    watching.add_done_callback(lambda _: reader.end())
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for chunk in reader:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not watching.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        watching.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
