"""The status page of a service on real servers, in a real browser."""

import asyncio

from resilient_io.health import HealthMonitor
from resilient_io.redis import ResilientRedis
from resilient_io.serve import serve

HOST = "127.0.0.1"
WITHIN = 1.0
"""Seconds within which the page shows what happened."""

SHOWN = "return document.querySelector('#dependencies .word').textContent === arguments[0]"


async def test_a_killed_redis_is_shown_within_a_second_without_a_reload(redis_server, page, slack):
    loop = asyncio.get_running_loop()
    async with (
        ResilientRedis(port=redis_server.port) as redis,
        HealthMonitor(redis.health) as monitor,
        serve(monitor, clients=[redis], name="orders", host=HOST, port=0) as server,
    ):
        await monitor.until_ready(10)
        await page.open(server.port)
        await page.until_reads("#headline", "Ready")
        await page.run("window.loadedOnce = true")
        began = loop.time()
        redis_server.kill()
        await page.until(SHOWN, "down")
        took = loop.time() - began
        assert took < WITHIN + slack()
        assert await page.text("#headline") == "Not ready"
        assert "refused" in await page.text("#because") or "reset" in await page.text("#because")
        assert await page.run("return document.title") == "Not ready: orders"

        began = loop.time()
        await redis_server.start()
        await page.until(SHOWN, "up")
        await page.until_reads("#headline", "Ready")
        took = loop.time() - began
        assert took < 2 * WITHIN + slack()  # the server starts meanwhile
        assert (await page.text(".ends small")).startswith("1 outage, ")
        assert await page.run("return window.loadedOnce") is True


async def test_what_was_counted_is_shown(redis_server, page):
    async with (
        ResilientRedis(port=redis_server.port) as redis,
        HealthMonitor(redis.health) as monitor,
        serve(monitor, clients=[redis], host=HOST, port=0) as server,
    ):
        for number in range(1234):
            await redis.set("number", number)
        await page.open(server.port)
        shown = await page.text("#clients")
        assert "Redis client" in shown
        replies = await page.run(
            "return [...document.querySelectorAll('.client dl div')]"
            ".filter((row) => row.children[0].textContent === 'replies')"
            ".map((row) => row.children[1].textContent)"
        )
        assert len(replies) == 1
        assert 1234 <= int(replies[0].replace(",", "")) < 1300  # the probe's PINGs, too
