"""The endpoints as an ASGI application, built with Starlette."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Route

from .endpoints import PATHS, Endpoints, HttpAnswer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from resilient_io.health import HealthMonitor
    from resilient_io.telemetry.clients import Clients

    from .events import EventReader


def health_app(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    status: bool = True,
    name: str = "service",
) -> Starlette:
    """Return an ASGI application that answers probes.

    Mount it (`app.mount("/health", health_app(monitor))`), or run it with any ASGI server. It
    owns no resource and needs no lifespan. Event streams end while the service drains, and after
    10 s otherwise, so that the server that carries them can stop; browsers reconnect.

    The arguments are those of `serve`.

    Raises:
        ConfigurationError: An argument has a wrong value, or Starlette is not installed.
        TypeError: An argument has the wrong type.
    """
    return build_app(Endpoints(monitor, clients=clients, metrics=metrics, status=status, name=name))


def build_app(endpoints: Endpoints) -> Starlette:
    """Return an application that carries the endpoints."""

    async def not_found(request: Request, _: Exception) -> Response:
        return _response(endpoints.answer("", request.method), request.method)

    app = Starlette(
        routes=[Route(path, _Endpoint(endpoints, path), name=path) for path in PATHS],
        exception_handlers={404: not_found},
    )
    app.router.redirect_slashes = False  # "/livez/" is another path, and is not found
    return app


class _Endpoint:
    """One path. An application, not a function, so that Starlette passes on every method."""

    def __init__(self, endpoints: Endpoints, path: str) -> None:
        self._endpoints = endpoints
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._endpoints.answer(
            self._path,
            scope["method"],
            query=scope["query_string"].decode("latin-1"),
            accept=", ".join(Headers(scope=scope).getlist("accept")),
        )
        if answer.stream and scope["method"] == "GET":
            with self._endpoints.events.open() as reader:
                await _stream(answer, reader, receive, send)
            return
        response = _response(answer, scope["method"])
        await response(scope, receive, send)


def _response(answer: HttpAnswer, method: str) -> Response:
    body = b"" if method == "HEAD" else answer.body
    return Response(body, answer.status, answer.headers)


async def _stream(answer: HttpAnswer, reader: EventReader, receive: Receive, send: Send) -> None:
    """Send events until the reader ends. Only `receive` reports that the client disconnected."""
    headers = Headers(answer.headers).raw
    watching = asyncio.create_task(_until_disconnected(receive), name="resilient-io /events reader")
    watching.add_done_callback(lambda _: reader.end())
    try:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        async for chunk in reader:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if not watching.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        watching.cancel()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
