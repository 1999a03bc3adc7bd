"""A module-level FastAPI application whose lifespan runs more than once, as in a test suite."""

import warnings

import pytest
from fastapi import FastAPI

from resilient_io import HealthMonitor, ResilientRedis
from resilient_io.lifecycle import Lifecycle
from resilient_io.serve import health_app, serve

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette 1.3 prefers a successor of httpx
    from fastapi.testclient import TestClient


@pytest.fixture
def app(redis_server):
    """Return an application whose clients were created once, as at the top of a module."""
    redis = ResilientRedis(port=redis_server.port)
    monitor = HealthMonitor(redis.health)
    server = serve(monitor, host="127.0.0.1", port=0)
    lifecycle = Lifecycle(monitor, redis, servers=[server], drain_delay=0.0)
    app = FastAPI(lifespan=lifecycle.lifespan)
    app.mount("/health", health_app(monitor))
    app.state.lifecycle = lifecycle

    @lifecycle.worker
    async def count_starts():
        await redis.incr("starts")
        await lifecycle.stopping.wait()

    @app.get("/visits")
    async def visits():
        await monitor.until_ready(10)
        return await redis.incr("visits")

    return app


def test_two_test_clients_can_use_the_same_application(app):
    for number in (1, 2, 3):
        with TestClient(app) as client:
            assert client.get("/visits").json() == number
            assert client.get("/health/readyz").text == "ready\n"
            assert client.get("/health/livez").status_code == 200
            status = client.get("/health/status?format=json").json()
            assert (status["ready"], status["draining"]) == (True, False)
        lifecycle = app.state.lifecycle
        assert lifecycle.phase == "stopped"
        assert lifecycle.report.clean, str(lifecycle.report)
        assert lifecycle.monitor.draining
    assert lifecycle.report.reason == "the block ended"
