"""What is shown while a client goes through the script; it fits into 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from resilient_io.demo.screen import Line
from resilient_io.demo.timeline import curve_lines, event_line, ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.demo.redis.run import Run

_EVENTS: Final = 10
_LEGEND: Final = "L: replies lost   K: server killed   F: server frozen"


def frame(run: Run, part: int, blocks: str) -> list[Line]:
    """Draw how it goes at this moment.

    Args:
        run: What has happened so far.
        part: 1 for the first client, 2 for the second.
        blocks: Characters for the curve.
    """
    now = asyncio.get_running_loop().time()
    rate, p50, p99 = run.lately()
    waiting = sorted(now - began for began in run.waiting.values())
    longest = f", the longest for {waiting[-1]:.1f} s" if waiting else ""
    hangs = bool(waiting) and waiting[-1] > 1.0
    retries = run.side.retries()
    errors = "   ".join(f"{count:,} {name}" for name, count in run.errors.most_common(2))
    title = f"{part} of 2: {run.side.title}"
    spent = f"{now - run.began:.1f} of {run.seconds:.0f} s"
    return [
        Line(),
        Line(f"{title:<60}{spent:>19}", "bold"),
        Line(),
        Line(f"  answered   {rate:7,.0f} commands/s    p50 {ms(p50)}   p99 {ms(p99)}"),
        Line(f"  waiting    {len(waiting):7,} calls{longest}", "red" if hangs else "plain"),
        Line(f"  server     {run.side.state(now)}"),
        Line(f"  retries    {retries:7,}" if retries is not None else "  retries    not told"),
        Line(f"  errors     {errors or 'none'}", "red" if errors else "plain"),
        *curves([run], blocks),
        Line(),
        *[event_line(event) for event in run.events[-_EVENTS:]],
    ]


def status_line(run: Run) -> Line:
    """Say in one line how it goes."""
    now = asyncio.get_running_loop().time()
    rate, p50, p99 = run.lately()
    said = f"{rate:,.0f}/s, p50 {ms(p50).strip()}, p99 {ms(p99).strip()}"
    longest = max((now - began for began in run.waiting.values()), default=0.0)
    return Line(
        f"  {now - run.began:7.3f} s  ... {said}; {len(run.waiting)} waiting, up to {longest:.1f} s"
    )


def curves(runs: Sequence[Run], blocks: str) -> list[Line]:
    """Draw answered commands over time, all to the same scale, and the faults below them."""
    labels = [run.side.name for run in runs] if len(runs) > 1 else ["over time"]
    return curve_lines(
        dict(zip(labels, (run.curve.counts for run in runs), strict=True)),
        [(fault.at - runs[0].began, fault.scene.sign) for fault in runs[0].faults],
        _LEGEND,
        blocks,
    )
