"""`resilient-io doctor`: show the steps of examinations as they finish."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.text import Text

from resilient_io.doctor import Status, Step, examine, examine_host, exit_code
from resilient_io.doctor.urls import kind_of
from resilient_io.errors import ConfigurationError

from . import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from .terminal import Interruption, Report

_STYLES = {
    Status.OK: "green",
    Status.NOTE: "yellow",
    Status.PROBLEM: "bold red",
    Status.UNKNOWN: "magenta",
}
_INDENT = 11
"""Columns before the names."""


def plan(
    servers: Mapping[str, str], *, timeout: float, group: str | None, with_host: bool
) -> dict[str, AsyncGenerator[Step, None]]:
    """Return the examinations to run by their names, for URLs by the names of their servers."""
    groups = {name: group if kind_of(url) == "kafka" else None for name, url in servers.items()}
    if group is not None and not any(groups.values()):
        raise ConfigurationError("--group needs a kafka:// URL")
    if not servers and not with_host:
        raise ConfigurationError("nothing to examine: pass a URL, or leave out --no-host")
    planned = {
        name: examine(url, timeout=timeout, group=groups[name]) for name, url in servers.items()
    }
    return planned | ({"this host": examine_host(timeout=timeout)} if with_host else {})


async def run_examinations(
    examinations: Mapping[str, AsyncGenerator[Step, None]],
    report: Report,
    interruption: Interruption,
) -> int:
    """Run examinations one after the other, show their steps and return the exit code.

    The exit code is that of `exit_code`, or 130 after an interruption.
    """
    steps: list[Step] = []

    async def run() -> None:
        for name, examination in examinations.items():
            report.heading(name)
            async with contextlib.aclosing(examination) as found:
                async for step in found:
                    steps.append(step)
                    _show(report, name, step)

    interrupted = await interruption.before(run())
    counts = {str(status): sum(step.status is status for step in steps) for status in Status}
    seconds = sum(step.seconds for step in steps)
    found = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    text = f"{found or 'nothing'} in {seconds:.1f} s"
    facts = {"interrupted": interrupted, "seconds": round(seconds, 6), "steps": counts}
    report.summary(f"Interrupted: {text}" if interrupted else text, facts)
    return INTERRUPTED if interrupted else exit_code(steps)


def _show(report: Report, name: str, step: Step) -> None:
    # Problems stand out without colors, too.
    status = "PROBLEM" if step.status is Status.PROBLEM else str(step.status)
    short = step.seconds < 1.0
    seconds = f"{step.seconds * 1000:.1f} ms" if short else f"{step.seconds:.2f} s"
    head = Text.assemble(
        (f"  {status:<{_INDENT - 2}}", _STYLES[step.status]),
        f"{step.name:<12} ",
        (f"{seconds:>9}  ", "dim"),
    )
    facts = {"event": "step", "of": name, **step.as_dict()}
    report.finding(facts, head, step.found, step.advice, indent=_INDENT)
