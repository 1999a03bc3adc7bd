"""Readiness follows a real Redis within a second on every server; liveness does not."""

import asyncio
import contextlib
import json
import logging

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from resilient_io.serve import Heartbeat, aiohttp_app, events, health_app, serve

PROMISE = 1.0
"""Seconds within which readiness follows."""


@contextlib.asynccontextmanager
async def standalone(monitor, clients=()):
    async with serve(monitor, clients=clients, host="127.0.0.1", port=0) as server:
        yield server.port, ""


@contextlib.asynccontextmanager
async def in_fastapi(monitor, clients=()):
    app = FastAPI()
    app.mount("/health", health_app(monitor, clients=clients))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1], "/health"
    server.should_exit = True
    await running


@contextlib.asynccontextmanager
async def in_aiohttp(monitor, clients=(), name="service"):
    app = web.Application()
    app.add_subapp("/health", aiohttp_app(monitor, clients=clients, name=name))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1], "/health"
    await runner.cleanup()


@pytest.fixture(params=[standalone, in_fastapi, in_aiohttp], ids=lambda each: each.__name__)
async def place(request, monitor, redis):
    """Return a port and the path of the probes on it."""
    async with request.param(monitor, [redis]) as found:
        yield found


async def seconds_until(status, ask, port, path):
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (reply := await ask(port, path)).status != status:
        assert loop.time() - began < 20, reply
        await asyncio.sleep(0.01)
    return loop.time() - began, reply


async def test_readiness_follows_redis_and_liveness_does_not(
    place, redis, redis_server, ask, connect, slack
):
    port, prefix = place
    assert (await ask(port, f"{prefix}/readyz")).text == "ready\n"
    async with connect(port) as page:
        page.send(f"{prefix}/events")
        assert (await page.event())["ready"] is True

        redis_server.kill()
        took, reply = await seconds_until(503, ask, port, f"{prefix}/readyz")
        assert took < PROMISE + slack()
        assert reply.text.startswith("not ready: redis 127.0.0.1:")
        while (event := await page.event())["ready"]:
            pass
        assert event["dependencies"][0]["state"] == "down"
        verbose = await ask(port, f"{prefix}/readyz?verbose")
        assert verbose.json()["status"] == "fail"
        assert (await ask(port, f"{prefix}/livez")).status == 200
        assert (await ask(port, f"{prefix}/startupz")).status == 200

        await redis_server.start()
        await redis.health.until_up(20)
        assert (await ask(port, f"{prefix}/readyz")).status == 200


async def test_every_server_answers_the_same(place, ask):
    port, prefix = place
    for path, status, form in (
        ("/livez", 200, "text/plain; charset=utf-8"),
        ("/readyz?verbose", 200, "application/health+json"),
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8"),
        ("/status", 200, "text/html; charset=utf-8"),
        ("/status?format=json", 200, "application/json"),
        ("/events/", 404, "text/plain; charset=utf-8"),
    ):
        reply = await ask(port, prefix + path)
        assert (reply.status, reply.headers["content-type"]) == (status, form)
        assert reply.headers["cache-control"] == "no-store"
        assert int(reply.headers["content-length"]) == len(reply.body) > 0
        head = await ask(port, prefix + path, "HEAD")
        assert (head.status, head.headers["content-type"]) == (status, form)
        if path in {"/livez", "/status", "/events/"}:  # the others change all the time
            assert head.headers["content-length"] == reply.headers["content-length"]
    rejected = await ask(port, f"{prefix}/readyz", "POST")
    assert (rejected.status, rejected.headers["allow"]) == (405, "GET, HEAD")
    assert (await ask(port, f"{prefix}/events", "HEAD")).status == 200


async def test_names_of_clients_are_shown(monitor, redis, ask):
    async with standalone(monitor, {"cache": redis}) as (port, _):
        assert 'resilient_io_redis_calls_total{client="cache"' in (await ask(port, "/metrics")).text
        (client,) = (await ask(port, "/status?format=json")).json()["clients"]
        assert (client["name"], client["kind"]) == ("cache", "redis")


async def test_readiness_follows_a_frozen_redis(monitor, redis_server, ask, slack):
    async with standalone(monitor) as (port, _):
        redis_server.freeze()
        took, _ = await seconds_until(503, ask, port, "/readyz")
        redis_server.thaw()
        assert took < 4 + slack()  # two probes have to time out
        await seconds_until(200, ask, port, "/readyz")


async def test_heartbeat_follows_redis(monitor, redis, redis_server, tmp_path, slack):
    path = tmp_path / "heartbeat.json"

    async def until_written(ready):
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not path.exists() or json.loads(path.read_text())["ready"] is not ready:
            await asyncio.sleep(0.01)
            assert loop.time() - began < 20
        return loop.time() - began

    async with Heartbeat(monitor, path):
        await until_written(ready=True)
        redis_server.kill()
        assert await until_written(ready=False) < PROMISE + slack()
        assert json.loads(path.read_text())["alive"] is True


@pytest.mark.parametrize("drains", [True, False])
async def test_open_stream_does_not_keep_another_server_from_stopping(
    monitor, connect, slack, monkeypatch, drains
):
    monkeypatch.setattr(events, "STREAM_SECONDS", events.STREAM_SECONDS if drains else 0.5)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as pages:
        async with in_fastapi(monitor) as (port, prefix):
            page = await pages.enter_async_context(connect(port))
            page.send(f"{prefix}/events")
            await page.event()
            if drains:  # as Lifecycle does before it stops the server
                monitor.drain()
                assert (await page.event())["draining"] is True
            began = loop.time()
        assert loop.time() - began < 2.0 + slack()


@pytest.mark.parametrize("reads", [True, False])
async def test_open_stream_does_not_keep_aiohttp_from_stopping(
    monitor, connect, slack, monkeypatch, reads
):
    monkeypatch.setattr(events, "INTERVAL", 0.005)
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as pages:
        async with in_aiohttp(monitor, name="s" * 50_000) as (port, prefix):
            page = await pages.enter_async_context(connect(port))
            page.send(f"{prefix}/events")
            await page.event()
            ends = asyncio.ensure_future(read_to_the_end(page)) if reads else asyncio.sleep(0)
            await asyncio.sleep(1)  # one that does not read has filled every buffer by then
            began = loop.time()
        assert loop.time() - began < 1.0 + slack()
        await ends


async def read_to_the_end(page):
    with contextlib.suppress(EOFError):
        while True:
            await page.event()


async def test_access_log_of_the_service_s_own_uvicorn_continues(monitor, ask, caplog):
    caplog.set_level(logging.INFO, logger="uvicorn.access")
    async with standalone(monitor) as (probes, _), in_fastapi(monitor) as (service, prefix):
        await ask(probes, "/livez")
        await ask(service, f"{prefix}/livez")
    lines = [each.getMessage() for each in caplog.records if each.name == "uvicorn.access"]
    assert len(lines) == 1
    assert f"{prefix}/livez" in lines[0]
