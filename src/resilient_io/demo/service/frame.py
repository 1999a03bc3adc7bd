"""What is shown while the service goes through the script; it fits into 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from resilient_io.demo.screen import Line
from resilient_io.demo.service.scene import LEGEND
from resilient_io.demo.timeline import curve_lines, event_line
from resilient_io.health import State

if TYPE_CHECKING:
    from resilient_io.demo.service.run import Run
    from resilient_io.demo.service.service import Service
    from resilient_io.health import Dependency

_EVENTS: Final = 9


def frame(run: Run, service: Service, blocks: str) -> list[Line]:
    """Draw how it goes at this moment.

    Args:
        run: What has happened so far.
        service: The service that goes through it.
        blocks: Characters for the curves.
    """
    now = asyncio.get_running_loop().time()
    waiting = sorted(now - began for began in run.waiting.values())
    longest = f", the longest for {waiting[-1]:.1f} s" if waiting else ""
    errors = "   ".join(f"{count:,} {name}" for name, count in run.errors.most_common(2))
    stats = service.consumer.stats()
    title = "The service: orders come from Kafka and are booked in Redis"
    spent = f"{now - run.began:.1f} of {run.seconds:.0f} s"
    return [
        Line(),
        Line(f"{title:<60}{spent:>19}", "bold"),
        Line(),
        Line(f"  handled    {run.handled_lately():7,.0f} orders/s"),
        Line(f"  waiting    {len(waiting):7,} customers{longest}"),
        Line(f"  partitions {stats.partitions:7,}, {stats.paused} of them paused"),
        _health("kafka", service.kafka, now),
        _health("redis", service.redis.health, now),
        Line(f"  errors     {errors or 'none'}", "red" if errors else "plain"),
        *curves(run, blocks),
        Line(),
        *[event_line(event) for event in run.events[-_EVENTS:]],
    ]


def status_line(run: Run, service: Service) -> Line:
    """Say in one line how it goes."""
    now = asyncio.get_running_loop().time()
    stats = service.consumer.stats()
    return Line(
        f"  {now - run.began:7.3f} s  ... {run.handled_lately():,.0f} orders/s handled; "
        f"{stats.paused} of {stats.partitions} partitions paused"
    )


def curves(run: Run, blocks: str) -> list[Line]:
    """Draw orders sent and handled over time, and the faults below them."""
    return curve_lines(
        {"ordered": run.ordered.counts, "handled": run.booked.counts},
        [(fault.at - run.began, fault.scene.sign) for fault in run.faults],
        LEGEND,
        blocks,
    )


def _health(name: str, health: Dependency, now: float) -> Line:
    why = f" ({health.cause.value})" if health.cause is not None else ""
    said = f"  {name:<10} {health.state.name}{why} for {now - health.since:.1f} s"
    return Line(said, "red" if health.state is State.DOWN else "plain")
