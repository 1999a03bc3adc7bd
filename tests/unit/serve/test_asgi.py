"""The ASGI application: on its own, and mounted in other applications."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from resilient_io.health import State
from resilient_io.serve import health_app
from resilient_io.serve.endpoints import PATHS


def client_of(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


def in_fastapi(health):
    app = FastAPI()

    @app.get("/orders")
    async def orders():
        return ["one"]

    app.mount("/health", health)
    return app


@pytest.fixture(
    params=[
        pytest.param(lambda health: (health, ""), id="alone"),
        pytest.param(lambda health: (in_fastapi(health), "/health"), id="fastapi"),
        pytest.param(
            lambda health: (Starlette(routes=[Mount("/a/b", health)]), "/a/b"), id="starlette"
        ),
        pytest.param(lambda health: (Starlette(routes=health.routes), ""), id="routes"),
    ]
)
def mounted(request, service):
    """Return an application and the path of the probes in it."""
    return request.param(health_app(service.monitor, name="shop"))


async def test_probes_answer_wherever_they_are_mounted(mounted, service):
    app, prefix = mounted
    async with client_of(app) as client:
        for path, word in (("/livez", "alive"), ("/readyz", "ready"), ("/startupz", "started")):
            answer = await client.get(prefix + path)
            assert (answer.status_code, answer.text) == (200, f"{word}\n")
        service.put(service.redis, State.DOWN)
        assert (await client.get(f"{prefix}/readyz")).status_code == 503
        assert (await client.get(f"{prefix}/livez")).status_code == 200
        assert (await client.get(f"{prefix}/status?format=json")).json()["service"] == "shop"
        assert "resilient_io" in (await client.get(f"{prefix}/metrics")).text


async def test_head_is_answered_like_get_without_the_body(mounted):
    app, prefix = mounted
    async with client_of(app) as client:
        for path in PATHS:
            head = await client.head(prefix + path)
            assert head.status_code == 200
            assert head.content == b""
            assert head.headers["cache-control"] == "no-store"
        head = await client.head(f"{prefix}/readyz")
        assert head.headers["content-length"] == str(len(b"ready\n"))


async def test_other_methods_are_not_allowed(mounted):
    app, prefix = mounted
    async with client_of(app) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = await client.request(method, f"{prefix}/readyz")
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_other_paths_are_not_found_and_not_redirected(service):
    health = health_app(service.monitor)
    for app, prefix in ((health, ""), (in_fastapi(health), "/health")):
        async with client_of(app) as client:
            for path in ("/livez/", "/readyz/x", "/", "/LIVEZ", "//livez"):
                answer = await client.get(f"http://service{prefix}{path}")
                assert answer.status_code == 404
                assert answer.headers["cache-control"] == "no-store"


async def test_paths_of_the_application_are_left_alone(service):
    async with client_of(in_fastapi(health_app(service.monitor))) as client:
        assert (await client.get("/orders")).json() == ["one"]
        assert (await client.get("/livez")).status_code == 404


async def test_every_accept_header_of_a_request_counts(service):
    async with client_of(health_app(service.monitor)) as client:
        accept = [("accept", "image/png"), ("accept", "application/health+json")]
        answer = await client.get("/readyz", headers=httpx.Headers(accept))
        assert answer.headers["content-type"] == "application/health+json"


class Call:
    """One request to an ASGI application, with both channels under the control of the test."""

    def __init__(self, app, path):
        self.scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [],
        }
        self.app = app
        self.sent = []
        self.disconnected = asyncio.Event()

    async def receive(self):
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def run(self):
        await self.app(self.scope, self.receive, self.send)


async def test_stream_ends_immediately_when_its_client_disconnects(service):
    call = Call(health_app(service.monitor), "/events")
    asyncio.get_running_loop().call_later(2.5, call.disconnected.set)
    await call.run()
    assert asyncio.get_running_loop().time() == pytest.approx(2.5)
    start, *chunks = call.sent
    assert dict(start["headers"])[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in dict(start["headers"])
    assert len(chunks) == 3
    assert all(chunk["more_body"] for chunk in chunks)


async def test_stream_of_a_draining_service_ends_with_a_complete_response(service):
    call = Call(health_app(service.monitor), "/events")
    service.monitor.drain()
    await call.run()
    assert [message.get("more_body") for message in call.sent[1:]] == [True, None]


async def test_cancelled_stream_leaves_nothing_behind(service, run_loop):
    app = health_app(service.monitor)
    call = Call(app, "/events")
    running = asyncio.create_task(call.run())
    await asyncio.sleep(1.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await run_loop()
    assert service.monitor._subscriptions._all == []
