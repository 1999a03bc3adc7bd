"""What the status page does when its connection is lost, falls silent, or ends in good order."""

import asyncio
import contextlib
import socket

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from resilient_io.health import Cause, Dependency, HealthMonitor
from resilient_io.serve import _events, health_app, serve
from resilient_io.testing import FaultProxy

pytestmark = pytest.mark.soak  # a browser works the whole time, and cares for no Python

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def running(app):
    """Serve an app as its user would, and give the port."""
    listener = socket.create_server((HOST, 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def test_a_lost_connection_is_told_with_the_age_of_the_data_until_it_is_back(page):
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        async with serve(monitor, host=HOST, port=0) as server:
            await page.open(server.port)
            await page.until_reads("#link", "Live")
        await page.until("return link.textContent.startsWith('Connection lost; this is from ')")
        assert await page.text("#said") == "Connection lost."
        assert await page.text("#headline") == "Ready"  # what was known last stays
        assert await page.run("return document.body.classList.contains('stale')")
        await page.until("return link.textContent.includes(' 2 s ago')")
        redis.refused(Cause.READ_ONLY)
        async with serve(monitor, host=HOST, port=server.port):
            await page.until_reads("#link", "Live")
            await page.until_reads("#headline", "Ready, but degraded")
            assert not await page.run("return document.body.classList.contains('stale')")


async def test_a_connection_that_fell_silent_is_told_as_lost_and_made_anew(page):
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


async def test_a_stream_that_ends_in_good_order_is_not_told_as_lost(page, monkeypatch):
    monkeypatch.setattr(_events, "LASTS", 0.2)
    redis = Dependency("redis")
    async with HealthMonitor(redis) as monitor:
        redis.succeeded()
        app = Starlette(routes=[Mount("/health", health_app(monitor, name="mounted"))])
        async with running(app) as port:
            await page.open(port, "/health/status")
            await page.run(
                "window.said = [];"
                "new MutationObserver(() => window.said.push(link.textContent))"
                "  .observe(link, { childList: true });"
            )
            streams = (
                "return performance.getEntriesByType('resource')"
                ".filter(({ name }) => name.endsWith('/health/events')).length >= 3"
            )
            await page.until(streams)
            assert [text for text in await page.run("return window.said") if text != "Live"] == []
            assert await page.text("#service") == "mounted"
