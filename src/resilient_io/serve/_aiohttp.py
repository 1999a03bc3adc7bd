"""The answers as an application of aiohttp's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web

from resilient_io.serve._answers import PATHS, Answer, Answers

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from resilient_io.health import HealthMonitor
    from resilient_io.serve._status import Clients

__all__ = ["aiohttp_app"]


def aiohttp_app(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    name: str = "service",
) -> web.Application:
    """Make an application of aiohttp's that tells how the service is.

    Add it (`app.add_subapp("/health", aiohttp_app(monitor))`), or run it by itself. It answers as
    `health_app` does. Streams of events end when the application shuts down.

    Args:
        monitor: How the service is.
        clients: `ResilientRedis`, producers and consumers, whose counters are shown and exported:
            a sequence, or a mapping that names them.
        metrics: None serves the library's metrics if prometheus-client is installed; a registry
            of prometheus-client serves what is in it; False serves none.
        name: How the service is called.

    Raises:
        ConfigurationError: An argument makes no sense, or aiohttp is not installed.
        TypeError: `monitor` is no `HealthMonitor`.
    """
    answers = Answers(monitor, clients=clients, metrics=metrics, name=name, lasting=True)
    app = web.Application()
    for path in PATHS:
        app.router.add_route("*", path, _Handler(answers, path).handle)
    app.router.add_route("*", "/{other:.*}", _Handler(answers, "").handle)

    async def close(_: web.Application) -> None:
        answers.events.close()

    app.on_shutdown.append(close)
    return app


class _Handler:
    """One path."""

    def __init__(self, answers: Answers, path: str) -> None:
        self._answers = answers
        self._path = path

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request."""
        answer = self._answers.answer(
            self._path,
            request.method,
            query=request.query_string,
            accept=", ".join(request.headers.getall("Accept", [])),
        )
        if answer.stream and request.method == "GET":
            return await self._stream(answer, request)
        return web.Response(status=answer.status, headers=dict(answer.headers), body=answer.body)

    async def _stream(self, answer: Answer, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=dict(answer.headers))
        transport = request.transport
        with self._answers.events.open(transport.abort if transport else None) as reader:
            try:
                await response.prepare(request)
                async for chunk in reader:
                    await response.write(chunk)
            except ConnectionError:  # the client went away
                return response
            await response.write_eof()
        return response
