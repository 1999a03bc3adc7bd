"""`resilient-io doctor`: shows what `resilient_io.doctor` finds, step by step as it finds it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resilient_io.cli.exits import INTERRUPTED
from resilient_io.cli.terminal import json_line, write_line
from resilient_io.doctor import Status, Step, examine, exit_code, ground
from resilient_io.doctor.urls import KAFKA_SCHEMES
from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from rich.console import Console

    from resilient_io.cli.running import Interruption

__all__ = ["Examination", "JsonReport", "LineReport", "Report", "TableReport", "examined", "plan"]

_STYLES = {
    Status.OK: "green",
    Status.NOTE: "yellow",
    Status.PROBLEM: "bold red",
    Status.BLIND: "magenta",
}
_NAMES = 12
"""Columns that a step's name has."""

_INDENT = 11
"""Columns before the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """One thing to look at.

    Attributes:
        name: What it is called, without secrets.
        steps: The look; begun when it is iterated over.
    """

    name: str
    steps: AsyncGenerator[Step, None] = field(repr=False)


class Report(Protocol):
    """How it is shown."""

    def begun(self, name: str) -> None:
        """Show what is looked at now."""

    def step(self, name: str, step: Step) -> None:
        """Show what was found."""

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Sum up."""


def plan(
    urls: Sequence[str],
    names: Sequence[str],
    *,
    timeout: float,
    group: str | None,
    topics: Sequence[str],
    with_ground: bool,
) -> list[Examination]:
    """Say what is looked at.

    Args:
        urls: Servers.
        names: How they are called, without secrets.
        timeout: Seconds for each.
        group: A consumer group, for Kafka.
        topics: Topics, for Kafka.
        with_ground: Whether our own ground is looked at, too.

    Raises:
        ConfigurationError: A URL or an option makes no sense; says what to write.
    """
    of_kafka = [url.partition("://")[0].lower() in KAFKA_SCHEMES for url in urls]
    if (group is not None or topics) and not any(of_kafka):
        raise ConfigurationError("--group and --topic are about Kafka: write a kafka:// URL, too")
    found = []
    for url, name, kafka in zip(urls, names, of_kafka, strict=True):
        steps = (
            examine(url, timeout=timeout, group=group, topics=topics)
            if kafka
            else examine(url, timeout=timeout)
        )
        found.append(Examination(name=name, steps=steps))
    if with_ground:
        found.append(Examination(name="this process", steps=ground(timeout=timeout)))
    return found


async def examined(
    examinations: Sequence[Examination], report: Report, interruption: Interruption
) -> int:
    """Look, and show.

    Returns:
        The exit code: 0 all is well, 1 problems, 2 something could not be looked at, 130
        interrupted.
    """
    steps: list[Step] = []

    async def look() -> None:
        for examination in examinations:
            report.begun(examination.name)
            async with contextlib.aclosing(examination.steps) as found:
                async for step in found:
                    steps.append(step)
                    report.step(examination.name, step)

    interrupted = await interruption.before(look())
    report.summary(steps, interrupted=interrupted)
    return INTERRUPTED if interrupted else exit_code(steps)


def _took(step: Step) -> str:
    if step.seconds < 1.0:
        return f"{step.seconds * 1000:.1f} ms"
    return f"{step.seconds:.2f} s"


def _word(status: Status) -> str:
    # Not told apart by colour alone: what needs somebody to act is loud.
    return "PROBLEM" if status is Status.PROBLEM else str(status)


def _summed_up(steps: Sequence[Step], *, interrupted: bool) -> str:
    counts = {status: sum(step.status is status for step in steps) for status in Status}
    problems, notes = counts[Status.PROBLEM], counts[Status.NOTE]
    parts = [
        f"{problems} problem{'s' * (problems != 1)}" if problems else "no problem",
        *([f"{notes} note{'s' * (notes != 1)}"] if notes else []),
        *([f"{counts[Status.BLIND]} could not look"] if counts[Status.BLIND] else []),
    ]
    seconds = sum(step.seconds for step in steps)
    looked = f"{', '.join(parts)} in {len(steps)} step{'s' * (len(steps) != 1)}, {seconds:.1f} s"
    return f"Interrupted: {looked}" if interrupted else f"{looked[0].upper()}{looked[1:]}"


class TableReport:
    """Shows it in columns, in colour where there is any."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begun(self, name: str) -> None:
        """Write a heading."""
        self._console.print(Text(name, style="bold"))

    def step(self, name: str, step: Step) -> None:
        """Write a row."""
        del name
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(width=_INDENT - 2)
        row.add_column(width=_NAMES)
        row.add_column(width=9, justify="right")
        row.add_column(ratio=1, overflow="fold")
        row.add_row(
            Text(f"  {_word(step.status)}"[: _INDENT - 2], style=_STYLES[step.status]),
            Text(step.name),
            Text(_took(step), style="dim"),
            Text(step.found),
        )
        self._console.print(row)
        if step.advice:
            advice = Text(f"-> {step.advice}", style="cyan")
            self._console.print(Padding(advice, (0, 0, 0, _INDENT)))

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Write the counts."""
        self._console.print(Text(_summed_up(steps, interrupted=interrupted), style="bold"))


class LineReport:
    """Shows it as lines, for pipes and logs."""

    def begun(self, name: str) -> None:
        """Write a heading."""
        write_line(name)

    def step(self, name: str, step: Step) -> None:
        """Write a line, and the advice below it."""
        del name
        head = f"  {_word(step.status):<8} {step.name:<{_NAMES}} {_took(step):>9}  "
        write_line(f"{head}{step.found}")
        if step.advice:
            write_line(f"{'':{_INDENT}}-> {step.advice}")

    def summary(self, steps: Sequence[Step], *, interrupted: bool) -> None:
        """Write the counts."""
        write_line(_summed_up(steps, interrupted=interrupted))


class JsonReport:
    """Shows it as lines of JSON: one for each step, and one for the summary."""

    def begun(self, name: str) -> None:
        """Say nothing: each step names what it is of."""

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
