"""Searches many seeds for broken rules, and sums up what it found."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from .history import Violation
from .known_findings import KNOWN, known_finding
from .processes import run_seeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .known_findings import KnownFinding
    from .processes import Job

DOES_NOT_END = "does not end"
ENDS_THE_PROCESS = "ends the process"
CRASHES = "crash of the simulation"
_NOT_A_RULE = {"hang": DOES_NOT_END, "died": ENDS_THE_PROCESS, "crash": CRASHES}


@dataclass(slots=True)
class Found:
    """The violations of one rule.

    Attributes:
        violations: Their number.
        seeds: Number of seeds with at least one of them.
        first: The smallest of these seeds, with its theme.
        violation: A violation of this seed.
    """

    violations: int
    seeds: int
    first: Job
    violation: Violation

    @property
    def is_rule(self) -> bool:
        """Whether a check found it: it has a timeline."""
        return self.violation.rule not in _NOT_A_RULE.values()


@dataclass(slots=True)
class Summary:
    """What a search did, and what it found.

    Attributes:
        cpu_seconds: The CPU time of the processes, without their start.
        seconds: The time since the start of the search.
    """

    seeds: int = 0
    calls: int = 0
    cpu_seconds: float = 0.0
    virtual_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    processes: int = 1
    rules: dict[str, Found] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)

    @property
    def violations(self) -> int:
        """The number of violations that are not known findings."""
        return sum(found.violations for found in self.rules.values())

    def add(self, result: dict[str, Any], known: Sequence[KnownFinding]) -> None:
        """Add the result of a seed."""
        self.seeds += 1
        self.seconds = time.monotonic() - self.started
        self.cpu_seconds += result.get("cpu", 0.0)
        job: Job = (result["seed"], result["theme"])
        for key, rule in _NOT_A_RULE.items():
            if key in result:
                self._add(rule, job, [Violation(rule, result[key].strip())])
                return
        self.calls += result["calls"]
        self.virtual_seconds += result["virtual"]
        by_rule: dict[str, list[Violation]] = {}
        for rule, detail, operations, at in result["violations"]:
            violation = Violation(rule, detail, tuple(operations), at)
            finding = known_finding(violation, known)
            if finding is not None:
                self.known[finding.name] = self.known.get(finding.name, 0) + 1
            else:
                by_rule.setdefault(rule, []).append(violation)
        for rule, violations in by_rule.items():
            self._add(rule, job, violations)

    def _add(self, rule: str, job: Job, violations: list[Violation]) -> None:
        found = self.rules.get(rule)
        if found is None:
            self.rules[rule] = Found(len(violations), 1, job, violations[0])
            return
        found.violations += len(violations)
        found.seeds += 1
        if job[0] < found.first[0]:
            found.first, found.violation = job, violations[0]

    def progress(self) -> str:
        """Return a line about the search so far."""
        rate = self.seeds / self.seconds if self.seconds else 0.0
        text = f"{self.seeds:,} seeds, {rate:.0f}/s, {count(self.violations, 'violation')}"
        if self.known:
            text += f", {sum(self.known.values())} known"
        return text

    def table(self, replay: Callable[[Job], str]) -> Iterator[str]:
        """Yield the lines of the table at the end."""
        for rule, found in sorted(self.rules.items(), key=lambda item: -item[1].seeds):
            yield rule
            yield (
                f"    {count(found.violations, 'violation')} in {count(found.seeds, 'seed')}, "
                f"first: {replay(found.first)}"
            )
        for name, number in sorted(self.known.items()):
            yield f"known finding, not counted: {name} ({number:,} times)"
        broken = f"{count(len(self.rules), 'rule')} broken" if self.rules else "No rule was broken"
        yield (
            f"{broken}: {self.seeds:,} seeds with {self.calls:,} calls in {self.seconds:.1f} s, "
            f"{self.virtual_seconds / 3600:.1f} virtual hours"
        )
        if self.cpu_seconds and self.seconds:
            yield (
                f"Speed: {self.seeds / self.seconds:.1f} seeds/s in "
                f"{count(self.processes, 'process', 'processes')}; per second of CPU time "
                f"{self.seeds / self.cpu_seconds:.1f} seeds with "
                f"{self.calls / self.cpu_seconds:,.0f} calls "
                f"({self.calls / self.seeds:.1f} calls per seed)"
            )


def count(number: int, one: str, several: str | None = None) -> str:
    """Return the number with its noun."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def jobs(seeds: int | None, start: int, themes: Sequence[str]) -> Iterator[Job]:
    """Yield seeds and themes: `seeds` of them, or without end. Several themes take turns."""
    seed = start
    while seeds is None or seed < start + seeds:
        yield seed, themes[(seed - start) % len(themes)] if themes else None
        seed += 1


def search(
    chosen: Iterator[Job],
    *,
    processes: int,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    minutes: float | None = None,
    first_only: bool = False,
    known: Sequence[KnownFinding] = KNOWN,
    output: TextIO | None = None,
    every: float = 10.0,
    tick: float = 0.2,
) -> Summary:
    """Run the seeds and return what was found. Ctrl-C ends the search early.

    Args:
        chosen: Seeds and themes.
        processes: Number of processes.
        arguments: Arguments of the workers.
        environment: Environment variables of the workers.
        minutes: Minutes after which no further seed is started.
        first_only: Whether to stop at the first seed that breaks a rule.
        known: The known findings.
        output: Where progress is shown: each second on a terminal.
        every: Seconds between two lines of progress elsewhere.
        tick: Longest time, in seconds, between two looks at the clock.
    """
    summary = Summary(processes=processes)
    until = None if minutes is None else summary.started + minutes * 60

    def wanted() -> Iterator[Job]:
        for job in chosen:
            if until is not None and time.monotonic() >= until:
                return
            if first_only and summary.rules:
                return
            yield job

    live = output is not None and output.isatty()
    shown = _Progress(output, 1.0 if live else every)
    results = run_seeds(
        wanted(),
        processes=processes,
        arguments=arguments,
        environment=environment,
        tick=tick,
    )
    try:
        for result in results:
            if result is not None:
                summary.add(result, known)
            shown.show(summary)
    except KeyboardInterrupt:
        if output is not None:
            output.write("\nStopped. Until then:\n")
    finally:
        results.close()
        shown.end()
    return summary


class _Progress:
    """Shows the progress of a search."""

    def __init__(self, output: TextIO | None, every: float) -> None:
        self._output = output
        self._every = every
        self._live = output is not None and output.isatty()
        self._shown = time.monotonic()

    def show(self, summary: Summary) -> None:
        """Show the progress, if it is time."""
        now = time.monotonic()
        if self._output is None or now - self._shown < self._every:
            return
        self._shown = now
        line = summary.progress()
        self._output.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        self._output.flush()

    def end(self) -> None:
        """Remove the line of the progress."""
        if self._output is not None and self._live:
            self._output.write("\r\x1b[K")
            self._output.flush()


def differing_digests(
    seeds: int,
    start: int,
    themes: Sequence[str],
    *,
    processes: int,
    arguments: Sequence[str] = (),
    python: str = sys.executable,
) -> dict[Job, list[str]]:
    """Return the seeds that did not do the same in all runs, with their digests.

    The seeds run forward in one process, backward in another, and spread over several, each time
    with another PYTHONHASHSEED.
    """
    forward = list(jobs(seeds, start, themes))
    digests: dict[Job, list[str]] = {job: [] for job in forward}
    for order, number, hash_seed in (
        (forward, 1, "0"),
        (forward[::-1], 1, "1"),
        (forward[::2] + forward[1::2], max(processes, 2), "2"),
    ):
        for result in run_seeds(
            order,
            processes=number,
            arguments=(*arguments, "--digests"),
            environment={"PYTHONHASHSEED": hash_seed},
            python=python,
        ):
            if result is not None:
                known = result.get("digest", "failed")
                digests[result["seed"], result["theme"]].append(known)
    return {job: found for job, found in digests.items() if len(set(found)) != 1}
