"""The endpoints as an aiohttp application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web

from .endpoints import PATHS, Endpoints, HttpAnswer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from resilient_io.health import HealthMonitor
    from resilient_io.telemetry.clients import Clients


def aiohttp_app(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    status: bool = True,
    name: str = "service",
) -> web.Application:
    """Return an aiohttp application that answers probes.

    Add it to another one (`app.add_subapp("/health", aiohttp_app(monitor))`), or run it on its
    own. It answers as `health_app` does. Event streams end when the application shuts down.

    The arguments are those of `serve`.

    Raises:
        ConfigurationError: An argument has a wrong value, or aiohttp is not installed.
        TypeError: An argument has the wrong type.
    """
    endpoints = Endpoints(
        monitor, clients=clients, metrics=metrics, status=status, name=name, closes_streams=True
    )
    app = web.Application()
    for path in PATHS:
        app.router.add_route("*", path, _Handler(endpoints, path).handle)
    app.router.add_route("*", "/{other:.*}", _Handler(endpoints, "").handle)

    async def close(_: web.Application) -> None:
        endpoints.events.close()

    app.on_shutdown.append(close)
    return app


class _Handler:
    """The handler of one path."""

    def __init__(self, endpoints: Endpoints, path: str) -> None:
        self._endpoints = endpoints
        self._path = path

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        answer = self._endpoints.answer(
            self._path,
            request.method,
            query=request.query_string,
            accept=", ".join(request.headers.getall("Accept", [])),
        )
        if answer.stream and request.method == "GET":
            return await self._stream(answer, request)
        return web.Response(status=answer.status, headers=answer.headers, body=answer.body)

    async def _stream(self, answer: HttpAnswer, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        transport = request.transport
        with self._endpoints.events.open(transport.abort if transport else None) as reader:
            try:
                await response.prepare(request)
                async for chunk in reader:
                    await response.write(chunk)
            except ConnectionError:  # the client disconnected
                return response
            await response.write_eof()
        return response
