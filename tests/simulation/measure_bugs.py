"""How many seeds the simulation needs to find each planted bug."""

from __future__ import annotations

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from .bugs import BUGS
from .history import Violation
from .known_findings import KNOWN, known_finding
from .processes import ROOT, run_seeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .known_findings import KnownFinding
    from .processes import Job

_LEAST = 3.0  # standard deviations by which a bug must break a rule more often than the client

_NOT_A_RULE = {"hang": "does not end", "died": "ends the process", "crash": "crash"}


@dataclass(frozen=True, slots=True)
class Measured:
    """How a planted bug was found.

    Attributes:
        name, area: Those of the bug.
        seeds: Number of seeds that were run, including those that found it.
        job: The first seed that found it, with its theme, or None.
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
    baseline: Path | None = None,
    output: TextIO | None = None,
) -> list[Measured]:
    """Plant each bug in a process of its own, and run seeds until one of them breaks a rule.

    A rule that the client without the bug breaks with the same seed does not count. If the client
    breaks it with other seeds, the bug must break it significantly more often.

    Args:
        jobs: Seeds and themes, in the order in which they are tried.
        names: The bugs; None for all.
        processes: Number of bugs that are searched at the same time.
        arguments: Arguments of the workers.
        known: Findings that do not count.
        baseline: A file that keeps what the client without a bug breaks, for the next time.
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

    usual = _usual(jobs, processes, arguments, known, baseline)
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
    jobs: Sequence[Job],
    processes: int,
    arguments: Sequence[str],
    known: Sequence[KnownFinding],
    file: Path | None,
) -> dict[Job, frozenset[str]]:
    """Return the rules that each seed breaks without a bug."""
    found: dict[Job, frozenset[str]] = {}
    version = _version(arguments, known)
    if file is not None and file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["version"] == version:
            found = {(seed, theme): frozenset(rules) for seed, theme, rules in kept["seeds"]}
    missing = [job for job in jobs if job not in found]
    for result in run_seeds(missing, processes=processes, arguments=arguments):
        if result is not None:
            found[_job(result)] = frozenset(_broken(result, known))
    if file is not None and missing:
        seeds = [[*job, sorted(rules)] for job, rules in found.items()]
        file.write_text(json.dumps({"version": version, "seeds": seeds}), encoding="utf-8")
    return {job: found[job] for job in jobs if job in found}


def _version(arguments: Sequence[str], known: Sequence[KnownFinding]) -> str:
    """Return a hash of all that decides what the client breaks without a bug."""
    total = hashlib.sha256(repr((sys.version, list(arguments), known)).encode())
    for folder in (ROOT / "src", ROOT / "tests" / "simulation"):
        for path in sorted(folder.rglob("*.py")):
            if path.name not in ("bugs.py", "measure_bugs.py") and "test_" not in path.name:
                total.update(path.read_bytes())
    return total.hexdigest()


def _first(
    name: str,
    area: str,
    jobs: Sequence[Job],
    usual: Mapping[Job, frozenset[str]],
    arguments: Sequence[str],
    known: Sequence[KnownFinding],
) -> Measured:
    """Run seeds with a bug until it has broken a rule that the client keeps without it."""
    broken_without = frozenset[str]().union(*usual.values())
    first: dict[str, tuple[Job, str]] = {}
    more: dict[str, int] = {}
    fewer: dict[str, int] = {}
    results = run_seeds(jobs, processes=1, arguments=arguments)
    tried = 0
    try:
        for result in results:
            if result is None:
                continue
            tried += 1
            job, broken = _job(result), _broken(result, known)
            before = usual.get(job, frozenset())
            for rule in before.difference(broken):
                fewer[rule] = fewer.get(rule, 0) + 1
            for rule in (rule for rule in broken if rule not in before):
                more[rule] = more.get(rule, 0) + 1
                first.setdefault(rule, (job, broken[rule]))
            rules = tuple(
                rule
                for rule, number in more.items()
                if rule not in broken_without or _significant(number, fewer.get(rule, 0))
            )
            if rules:
                return Measured(name, area, tried, *_shown(first, rules))
    finally:
        results.close()
    return Measured(name, area, tried, None, (), "")


def _significant(more: int, fewer: int) -> bool:
    """Return whether a rule was broken too often in more seeds than in fewer to be a coincidence.

    Any change of the client moves what is broken by chance to other seeds (McNemar's test).
    """
    return more > fewer and (more - fewer) ** 2 >= _LEAST**2 * (more + fewer)


def _shown(
    first: Mapping[str, tuple[Job, str]], rules: tuple[str, ...]
) -> tuple[Job, tuple[str, ...], str]:
    """Return the first seed that broke one of the rules, all of them, and its violation."""
    job, detail = first[rules[0]]
    return job, rules, detail


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
