"""How many seeds the simulation needs to find each planted bug."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .bugs import BUGS
from .history import Violation
from .known_findings import KNOWN, known_finding
from .processes import run_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .known_findings import KnownFinding
    from .processes import Job

_NOT_A_RULE = {"hang": "does not end", "died": "ends the process", "crash": "crash"}


@dataclass(frozen=True, slots=True)
class Measured:
    """How a planted bug was found.

    Attributes:
        name, area: Those of the bug.
        seeds: Number of seeds that were run, including the one that found it.
        job: The seed that found it, with its theme, or None.
        rules: The rules that it broke there. The client without the bug keeps them there.
        detail: The first violation.
    """

    name: str
    area: str
    seeds: int
    job: Job | None
    rules: tuple[str, ...]
    detail: str

    def row(self, width: int) -> str:
        """Return a row of the table, with names of that width."""
        found = f"{self.seeds:6,}" if self.job is not None else f">{self.seeds:5,}"
        rules = ", ".join(self.rules) or "NOT FOUND"
        return f"{self.name:{width}}  {self.area:17}  {found}  {rules}"


def measure(
    jobs: Sequence[Job],
    names: Sequence[str] | None = None,
    *,
    processes: int = 2,
    arguments: Sequence[str] = (),
    known: Sequence[KnownFinding] = KNOWN,
    output: TextIO | None = None,
) -> list[Measured]:
    """Plant each bug in a process of its own, and run seeds until one of them breaks a rule.

    A rule that the client without the bug breaks with the same seed does not count.

    Args:
        jobs: Seeds and themes, in the order in which they are tried.
        names: The bugs; None for all.
        processes: Number of bugs that are searched at the same time.
        arguments: Arguments of the workers.
        known: Findings that do not count.
        output: Where each row is written when it is known, and the sums at the end.

    Raises:
        KeyError: No bug has one of the names.
        SimulationBroken: A worker cannot import the simulation, or a bug cannot be planted.
    """
    areas = {bug.name: bug.area for bug in BUGS}
    chosen = list(areas) if names is None else list(names)
    width = max((len(name) for name in chosen), default=0)
    for name in chosen:
        if name not in areas:
            raise KeyError(f"no planted bug has the name {name!r}; see tests.simulation.bugs")

    def first(name: str) -> Measured:
        return _first(name, areas[name], jobs, usual, [*arguments, "--plant", name], known)

    usual = _usual(jobs, processes, arguments, known)
    measured = []
    with ThreadPoolExecutor(processes) as threads:
        for result in threads.map(first, chosen):
            measured.append(result)
            if output is not None:
                print(result.row(width), file=output, flush=True)
    if output is not None:
        for line in _sums(measured):
            print(line, file=output)
    return measured


def _usual(
    jobs: Sequence[Job], processes: int, arguments: Sequence[str], known: Sequence[KnownFinding]
) -> dict[Job, frozenset[str]]:
    """Return the rules that each seed breaks without a bug."""
    found: dict[Job, frozenset[str]] = {}
    for result in run_seeds(jobs, processes=processes, arguments=arguments):
        if result is not None:
            found[_job(result)] = frozenset(_broken(result, known))
    return found


def _first(
    name: str,
    area: str,
    jobs: Sequence[Job],
    usual: Mapping[Job, frozenset[str]],
    arguments: Sequence[str],
    known: Sequence[KnownFinding],
) -> Measured:
    """Run seeds with a bug until one of them breaks a rule."""
    results = run_seeds(jobs, processes=1, arguments=arguments)
    tried = 0
    try:
        for result in results:
            if result is None:
                continue
            tried += 1
            job, broken = _job(result), _broken(result, known)
            rules = tuple(rule for rule in broken if rule not in usual.get(job, ()))
            if rules:
                return Measured(name, area, tried, job, rules, broken[rules[0]])
    finally:
        results.close()
    return Measured(name, area, tried, None, (), "")


def _job(result: Mapping[str, Any]) -> Job:
    return result["seed"], result["theme"]


def _broken(result: Mapping[str, Any], known: Sequence[KnownFinding]) -> dict[str, str]:
    """Return the broken rules of a run, with the first violation of each."""
    for key, rule in _NOT_A_RULE.items():
        if key in result:
            return {rule: result[key].strip()}
    broken: dict[str, str] = {}
    for rule, detail, operations, at in result["violations"]:
        if known_finding(Violation(rule, detail, tuple(operations), at), known) is None:
            broken.setdefault(rule, detail)
    return broken


def _sums(measured: Sequence[Measured]) -> Iterator[str]:
    """Yield how many bugs of each area were found, and the rules that found most."""
    found = [each for each in measured if each.job is not None]
    yield ""
    for area in dict.fromkeys(each.area for each in measured):
        total = sum(each.area == area for each in measured)
        yield f"{area:17}  {sum(each.area == area for each in found)} of {total}"
    yield f"{len(found)} of {len(measured)} planted bugs were found."
    counts: dict[str, int] = {}
    for each in found:
        for rule in each.rules:
            counts[rule] = counts.get(rule, 0) + 1
    for rule, number in sorted(counts.items(), key=lambda item: -item[1]):
        yield f"  {rule}: {number}"
