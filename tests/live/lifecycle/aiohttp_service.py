"""A service with aiohttp for the tests, which uses `loop.add_signal_handler`."""

# ruff: noqa: T201 -- the test reads what it prints

import asyncio
import json
import logging
import os

from aiohttp import web

from resilient_io import HealthMonitor, ResilientRedis
from resilient_io.lifecycle import Lifecycle

redis = ResilientRedis(port=int(os.environ["REDIS_PORT"]))
monitor = HealthMonitor(redis.health)


async def lifespan(app):
    lifecycle = Lifecycle(monitor, redis, drain_delay=1.0, grace_period=10.0)
    async with lifecycle:
        await monitor.until_ready(20)
        yield
    print(json.dumps({"say": "ended", "report": lifecycle.report.as_dict()}), flush=True)


async def readyz(request):
    return web.Response(status=200 if monitor.ready else 503)


async def slow(request):
    await asyncio.sleep(2.0)
    return web.Response(text=str(await redis.ping()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    app = web.Application()
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/slow", slow)
    app.cleanup_ctx.append(lifespan)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None)
    print(json.dumps({"say": "exits"}), flush=True)
