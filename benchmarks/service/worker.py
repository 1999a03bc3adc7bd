"""The process that exports metrics of one client, and that starts others."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.redis.clients import Ours
from benchmarks.redis.plan import value_of
from benchmarks.redis.worker import Drive
from benchmarks.worker import run

from .plan import CALLERS, EXPORT_EVERY, STARTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from resilient_io import HealthMonitor, ResilientRedis

_BASE = (sys.executable, "-c", "pass")
_PROBE = Path(sys.executable).with_name("resilient-io")


class ServiceServant:
    """One client, with what watches it on request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Any = None

    async def close(self) -> None:
        """Close the client, if there is one."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def metrics(self, seconds: float, first: str) -> dict[str, float]:
        """Have the callers call for so long with metrics collected, and so long without.

        Args:
            seconds: Of each side; the collections of a second are within it.
            first: "with" or "without".
        """
        client = self._client
        if client is None:
            client = self._client = await Ours.open(self._url, CALLERS, value_of(0))
        cost: dict[str, float] = {}
        order = ("with", "without") if first == "with" else ("without", "with")
        for side in order:
            collecting = _collected(client.client) if side == "with" else contextlib.nullcontext()
            async with collecting:
                result = await Drive(client, "get", CALLERS).run(seconds)
            cost[side] = 1e6 / result["rate"]
        return cost

    async def probe(self) -> dict[str, float]:
        """Return the duration of a probe of a heartbeat file, in ms."""
        from resilient_io import HealthMonitor  # noqa: PLC0415 (what is measured imports its own)
        from resilient_io.serve import Heartbeat  # noqa: PLC0415 (as above)

        client = await Ours.open(self._url, 1, value_of(0))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "heartbeat.json"
            async with HealthMonitor(client.client.health) as monitor, Heartbeat(monitor, path):
                async with asyncio.timeout(10):
                    while not path.exists():  # noqa: ASYNC110 (without an event)
                        await asyncio.sleep(0.01)
                found = await _starts((str(_PROBE), "probe", "--file", str(path)))
        await client.aclose()
        return found

    async def imports(self) -> dict[str, float]:
        """Return the duration of importing the package, in ms."""
        return await _starts((sys.executable, "-c", "import resilient_io"))

    async def drivers(self) -> dict[str, float]:
        """Return the duration of importing the drivers, in ms."""
        return await _starts((sys.executable, "-c", "import redis.asyncio, aiokafka"))


@contextlib.asynccontextmanager
async def _collected(redis: ResilientRedis) -> AsyncIterator[None]:
    """Collect all metrics again and again, as Prometheus and OpenTelemetry's reader do."""
    from resilient_io import HealthMonitor  # noqa: PLC0415 (what is measured imports its own)

    async with HealthMonitor(redis.health, liveness=[redis]) as monitor:
        scraping = asyncio.create_task(_scrape(monitor, redis), name="scrape")
        provider = _exporting(monitor, redis)
        try:
            yield
        finally:
            scraping.cancel()
            await asyncio.wait([scraping])
            await asyncio.to_thread(provider.shutdown)


async def _scrape(monitor: HealthMonitor, redis: ResilientRedis) -> None:
    from resilient_io.telemetry.prometheus import PrometheusMetrics  # noqa: PLC0415 (as above)

    metrics = PrometheusMetrics(monitor, [redis])
    while True:
        await asyncio.sleep(EXPORT_EVERY / 2)
        body, _ = metrics.render()
        assert b"resilient_io_redis_calls_total" in body
        await asyncio.sleep(EXPORT_EVERY / 2)


def _exporting(monitor: HealthMonitor, redis: ResilientRedis) -> Any:
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 (as above)
    from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415 (as above)
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )

    from resilient_io.telemetry.otel import OpenTelemetryMetrics  # noqa: PLC0415 (as above)

    nowhere = Path("/dev/null").open("w", encoding="utf-8")  # noqa: SIM115 (closed at the end)
    reader = PeriodicExportingMetricReader(
        ConsoleMetricExporter(nowhere), export_interval_millis=EXPORT_EVERY * 1000
    )
    provider = MeterProvider([reader], shutdown_on_exit=False)
    OpenTelemetryMetrics(monitor, [redis], provider)
    return provider


async def _starts(command: Sequence[str]) -> dict[str, float]:
    """Start both in turns; what they say goes nowhere."""
    taken: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(2 * STARTS):
        side, asked = (("with", command), ("without", _BASE))[number % 2]
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*asked, stdout=asyncio.subprocess.DEVNULL)
        code = await process.wait()
        taken[side].append((time.perf_counter() - began) * 1e3)
        assert code == 0, f"{asked} ended with {code}"
    return {side: statistics.median(times) for side, times in taken.items()}


def main() -> None:
    """Run as `python -m benchmarks.service.worker NAME URL LOOP`."""
    _name, url, loop = sys.argv[1:]
    run(lambda: ServiceServant(url), loop)


if __name__ == "__main__":
    main()
