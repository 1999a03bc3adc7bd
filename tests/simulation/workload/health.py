"""Health as an application reads it: its state, its changes, and a flight recorder."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from resilient_io.errors import Closed
from resilient_io.health import FlightRecorder

if TYPE_CHECKING:
    from resilient_io.health import Dependency

    from .use import Use


async def wait_up(use: Use) -> None:
    """Wait until the server is up."""
    operation = use.operation(limit=None)
    health = use.redis.health
    timeout = use.argument("timeout", 1.0)

    async def work() -> Any:
        with contextlib.suppress(TimeoutError, Closed):
            await health.until_up(timeout)
            operation.facts["state"] = health.state.value

    await use.perform(operation, work)


async def look(use: Use) -> None:
    """Read everything that a client and its health show, all in one moment."""
    operation = use.operation(limit=None)
    client, health = use.redis, use.redis.health

    async def work() -> Any:
        stats, snapshot = client.stats(), health.snapshot()
        json.dumps(snapshot)
        assert client.liveness_failure() is None, client.liveness_failure()
        assert health.name in repr(health)
        assert "secret" not in repr(client)
        return {
            "name": health.name,
            "state": health.state.value,
            "snapshot": snapshot["state"],
            "shown": f" {health.state.value}>" in repr(client),
            "available": health.available,
            "history": [change.state.value for change in health.history],
            "changes": sum(health.transitions.values()),
            "latency": health.latency,
            "waiting": stats.waiting,
            "link": health.link is not None,
            "lag": health.lag is not None,
        }

    await use.perform(operation, work)


async def follow(use: Use) -> None:
    """Follow the changes of health for a while, in one of four ways."""
    operation = use.operation(limit=None)
    health, loop = use.redis.health, use.world.loop
    facts = operation.facts
    facts["how"] = how = use.argument("how", "watch")
    seen = facts["seen"] = []
    slow = use.argument("slow", 0.0)

    async def consume() -> None:
        async for change in health.watch():
            seen.append(change.state.value)
            if slow:
                await asyncio.sleep(slow)

    async def note_slowly(change: Any) -> None:
        await asyncio.sleep(slow)
        seen.append(change.state.value)

    def note_update(dependency: Dependency) -> None:
        seen.append(dependency.state.value)

    async def work() -> Any:
        seconds = use.argument("seconds", 1.0)
        seen.append(health.state.value)
        if how == "watch":
            seen.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await consume()
        elif how == "recorder":
            recorder = FlightRecorder(sink=seen.append)
            health.add_recorder(recorder)
            assert recorder in health.recorders
            try:
                await asyncio.sleep(seconds)
            finally:
                health.remove_recorder(recorder)
            facts["events"] = [
                each["state"] for each in recorder.events() if each["event"] == "state changed"
            ]
        elif how == "change":
            with health.on_change(note_slowly):
                await asyncio.sleep(seconds)
        else:
            with health.on_update(note_update):
                await asyncio.sleep(seconds)
        facts["state"], facts["since"] = health.state.value, loop.time() - health.since
        return None

    await use.perform(operation, work)
