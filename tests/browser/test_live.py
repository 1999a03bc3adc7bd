"""The status page of a service with a real Redis."""

import asyncio

from resilient_io.health import HealthMonitor
from resilient_io.redis import ResilientRedis
from resilient_io.serve import serve

HOST = "127.0.0.1"
WITHIN = 1.0
"""Seconds within which the page shows a change."""

SHOWN = "return document.querySelector('#dependencies .word').textContent === arguments[0]"


async def test_killed_redis_is_shown_within_a_second_without_a_reload(redis_server, page, slack):
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
        assert "refused" in await page.text("#reasons") or "reset" in await page.text("#reasons")
        assert await page.run("return document.title") == "Not ready: orders"

        began = loop.time()
        await redis_server.start()
        await page.until(SHOWN, "up")
        await page.until_reads("#headline", "Ready")
        took = loop.time() - began
        assert took < 2 * WITHIN + slack()  # includes the start of the server
        assert (await page.text(".ends small")).startswith("1 outage, ")
        assert await page.run("return window.loadedOnce") is True


async def test_names_and_counters_of_clients_are_shown(redis_server, page):
    async with (
        ResilientRedis(port=redis_server.port) as redis,
        HealthMonitor(redis.health) as monitor,
        serve(monitor, clients={"session cache": redis}, host=HOST, port=0) as server,
    ):
        for number in range(1234):
            await redis.set("number", number)
        await page.open(server.port)
        shown = await page.text("#clients")
        assert await page.texts(".client h3") == ["session cache"]
        assert f"Redis client, {redis.health.name}" in shown
        replies = await page.run(
            "return [...document.querySelectorAll('.client dl div')]"
            ".filter((row) => row.children[0].textContent === 'replies')"
            ".map((row) => row.children[1].textContent)"
        )
        assert len(replies) == 1
        assert 1234 <= int(replies[0].replace(",", "")) < 1300  # includes the probe's PINGs
