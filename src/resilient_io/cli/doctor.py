"""`resilient-io doctor`: show the steps of examinations as they finish."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resilient_io.doctor import Status, Step, examine, examine_host, exit_code
from resilient_io.doctor.urls import kind_of
from resilient_io.errors import ConfigurationError

from .terminal import INTERRUPTED, json_line, write_line

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from rich.console import Console

    from .running import Interruption

_STYLES = {
    Status.OK: "green",
    Status.NOTE: "yellow",
    Status.PROBLEM: "bold red",
    Status.UNKNOWN: "magenta",
}
_NAME_WIDTH = 12
_INDENT = 11
"""Columns before the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """An examination that has not begun.

    Attributes:
        name: What is examined, without secrets.
        steps: Its steps; the examination begins when they are iterated over.
    """

    name: str
    steps: AsyncGenerator[Step, None] = field(repr=False)


class Report(Protocol):
    """Shows examinations."""

    def begin(self, name: str) -> None:
        """Show what is examined now."""

    def step(self, name: str, step: Step) -> None:
        """Show a step."""

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Show the counts of all steps."""


def plan(
    servers: Mapping[str, str], *, timeout: float, group: str | None, with_host: bool
) -> list[Examination]:
    """Return the examinations to run.

    Args:
        servers: URLs by the names of their servers.
        timeout: Seconds for each examination.
        group: A Kafka consumer group.
        with_host: Whether this host is examined, too.

    Raises:
        ConfigurationError: A URL or an option is wrong.
    """
    kafka = {name: kind_of(url) == "kafka" for name, url in servers.items()}
    if group is not None and not any(kafka.values()):
        raise ConfigurationError("--group needs a kafka:// URL")
    if not servers and not with_host:
        raise ConfigurationError("nothing to examine: pass a URL, or leave out --no-host")
    planned = [
        Examination(
            name=name, steps=examine(url, timeout=timeout, group=group if kafka[name] else None)
        )
        for name, url in servers.items()
    ]
    if with_host:
        planned.append(Examination(name="this host", steps=examine_host(timeout=timeout)))
    return planned


async def run_examinations(
    examinations: Sequence[Examination], report: Report, interruption: Interruption
) -> int:
    """Run examinations one after the other, show their steps and return the exit code.

    The exit code is that of `exit_code`, or 130 after an interruption.
    """
    steps: list[Step] = []

    async def run() -> None:
        for examination in examinations:
            report.begin(examination.name)
            async with contextlib.aclosing(examination.steps) as found:
                async for step in found:
                    steps.append(step)
                    report.step(examination.name, step)

    interrupted = await interruption.before(run())
    report.summary(steps, interrupted=interrupted)
    return INTERRUPTED if interrupted else exit_code(steps)


def _duration(step: Step) -> str:
    if step.seconds < 1.0:
        return f"{step.seconds * 1000:.1f} ms"
    return f"{step.seconds:.2f} s"


def _word(status: Status) -> str:
    # Problems stand out without colors, too.
    return "PROBLEM" if status is Status.PROBLEM else str(status)


def _summary(steps: Sequence[Step], *, interrupted: bool) -> str:
    counts = {status: sum(step.status is status for step in steps) for status in Status}
    problems, notes = counts[Status.PROBLEM], counts[Status.NOTE]
    parts = [
        f"{problems} problem{'s' * (problems != 1)}" if problems else "no problem",
        *([f"{notes} note{'s' * (notes != 1)}"] if notes else []),
        *([f"{counts[Status.UNKNOWN]} could not be checked"] if counts[Status.UNKNOWN] else []),
    ]
    seconds = sum(step.seconds for step in steps)
    text = f"{', '.join(parts)} in {len(steps)} step{'s' * (len(steps) != 1)}, {seconds:.1f} s"
    return f"Interrupted: {text}" if interrupted else f"{text[0].upper()}{text[1:]}"


class TableReport:
    """Shows steps in columns and colors, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, name: str) -> None:
        """Show a heading."""
        self._console.print(Text(name, style="bold"))

    def step(self, name: str, step: Step) -> None:
        """Show a row."""
        del name
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(width=_INDENT - 2)
        row.add_column(width=_NAME_WIDTH)
        row.add_column(width=9, justify="right")
        row.add_column(ratio=1, overflow="fold")
        row.add_row(
            Text(f"  {_word(step.status)}"[: _INDENT - 2], style=_STYLES[step.status]),
            Text(step.name),
            Text(_duration(step), style="dim"),
            Text(step.found),
        )
        self._console.print(row)
        if step.advice:
            advice = Text(f"-> {step.advice}", style="cyan")
            self._console.print(Padding(advice, (0, 0, 0, _INDENT)))

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Show the counts."""
        self._console.print(Text(_summary(steps, interrupted=interrupted), style="bold"))


class LineReport:
    """Shows steps as lines, for pipes and logs."""

    def begin(self, name: str) -> None:
        """Write a heading."""
        write_line(name)

    def step(self, name: str, step: Step) -> None:
        """Write a line, and one for the advice."""
        del name
        head = f"  {_word(step.status):<8} {step.name:<{_NAME_WIDTH}} {_duration(step):>9}  "
        write_line(f"{head}{step.found}")
        if step.advice:
            write_line(f"{'':{_INDENT}}-> {step.advice}")

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Write the counts."""
        write_line(_summary(steps, interrupted=interrupted))


class JsonReport:
    """Shows steps as JSON objects, one per line."""

    def begin(self, name: str) -> None:
        """Write nothing: each step has the name."""

    def step(self, name: str, step: Step) -> None:
        """Write a line."""
        json_line({"event": "step", "of": name, **step.as_dict()})

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Write the counts."""
        counts = {str(status): sum(step.status is status for step in steps) for status in Status}
        seconds = round(sum(step.seconds for step in steps), 6)
        json_line(
            {"event": "summary", "interrupted": interrupted, "seconds": seconds, "steps": counts}
        )
