"""The status page when its connection is lost, silent, or closed by the server."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from resilient_io.health import Cause, Dependency, HealthMonitor
from resilient_io.serve import events, health_app, serve
from resilient_io.testing import FaultProxy

pytestmark = pytest.mark.soak(seconds=2)  # not in `make test`: independent of the Python version

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def running(app):
    """Serve an application with uvicorn, and yield the port."""
    listener = socket.create_server((HOST, 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def test_lost_connection_is_shown_with_the_age_of_the_data_until_it_is_restored(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        async with serve(monitor, host=HOST, port=0) as server:
            await page.open(server.port)
            await page.until_reads("#link", "Live")
        await page.until("return link.textContent.startsWith('Connection lost; data from ')")
        assert await page.text("#announcement") == "Connection lost."
        assert await page.text("#headline") == "Ready"  # the latest status stays
        assert await page.run("return document.body.classList.contains('stale')")
        await page.until("return link.textContent.includes(' 2 s ago')")
        redis.refused(Cause.READ_ONLY)
        async with serve(monitor, host=HOST, port=server.port):
            await page.until_reads("#link", "Live")
            await page.until_reads("#headline", "Ready, but degraded")
            assert not await page.run("return document.body.classList.contains('stale')")


async def test_silent_connection_is_shown_as_lost_and_opened_again(page):
    redis = Dependency("redis")
    async with (
        HealthMonitor(redis) as monitor,
        serve(monitor, host=HOST, port=0) as server,
        FaultProxy(server.port, protocol=None) as proxy,
    ):
        redis.succeeded()
        await page.open(proxy.port)
        await page.until_reads("#link", "Live")
        proxy.stall()
        await page.until("return link.textContent.startsWith('Connection lost')")
        proxy.resume()
        await page.until_reads("#link", "Live")


async def test_stream_that_the_server_ends_is_not_shown_as_lost(page, monkeypatch):
    monkeypatch.setattr(events, "STREAM_SECONDS", 0.2)
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        app = Starlette(routes=[Mount("/health", health_app(monitor, name="mounted"))])
        async with running(app) as port:
            await page.open(port, "/health/status")
            await page.run(
                "window.texts = [];"
                "new MutationObserver(() => window.texts.push(link.textContent))"
                "  .observe(link, { childList: true });"
            )
            streams = (
                "return performance.getEntriesByType('resource')"
                ".filter(({ name }) => name.endsWith('/health/events')).length >= 3"
            )
            await page.until(streams)
            assert [text for text in await page.run("return window.texts") if text != "Live"] == []
            assert await page.text("#service") == "mounted"
