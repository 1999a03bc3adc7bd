"""`python -m benchmarks`: measure, print the tables, and on request put them into the docs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .kafka.suite import SUITE as KAFKA
from .markdown import write
from .redis.suite import SUITE as REDIS
from .service.suite import SUITE as SERVICE
from .suite import Effort
from .worker import WorkerFailedError

if TYPE_CHECKING:
    from .suite import Results, Suite

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"
SUITES = {suite.name: suite for suite in (REDIS, KAFKA, SERVICE)}
_NAMES = [name for suite in SUITES.values() for name in suite.names]
_QUICK = (3, 0.2)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"{' or '.join(SUITES)}; default: all")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each client (5)")
    parser.add_argument(
        "--seconds", type=float, help="length of a round (Redis 0.5, Kafka 1, service 2)"
    )
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s")
    parser.add_argument("--only", action="append", choices=_NAMES, help="just this; repeatable")
    parser.add_argument(
        "--loop",
        action="append",
        choices=("asyncio", "uvloop"),
        help="just this; repeatable (Redis: both; the others: asyncio)",
    )
    parser.add_argument("--json", action="store_true", help="print every round's figures instead")
    parser.add_argument("--write-docs", action="store_true", help=f"rewrite {DOCUMENT.name}")
    parser.add_argument("--tune", action="store_true", help="compare settings of the peers")
    options = parser.parse_args(arguments)
    for name in options.suites:
        if name not in SUITES:
            parser.error(f"{name!r} is not measured here: write {' or '.join(SUITES)}")
    if options.rounds < 1 or (options.seconds is not None and options.seconds <= 0):
        parser.error("--rounds and --seconds must be above 0")
    if options.write_docs and options.only:
        parser.error("--write-docs needs every row, so no --only")
    if options.quick:
        options.rounds, options.seconds = _QUICK
    return options


def chosen(options: argparse.Namespace) -> dict[Suite, tuple[str, ...]]:
    """Return the selected suites, and which of their works."""
    suites = [SUITES[name] for name in SUITES if not options.suites or name in options.suites]
    works = {
        suite: tuple(name for name in suite.names if not options.only or name in options.only)
        for suite in suites
    }
    return {suite: names for suite, names in works.items() if names}


def setting(suite: Suite, effort: Effort, load: float) -> list[str]:
    """Return where and how it was measured."""
    return [
        f"{suite.server()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in suite.packages)
        + f"; {_processor()}, {os.cpu_count()} CPUs.",
        "",
        (
            f"Medians of {effort.rounds} rounds of {effort.seconds:g} s for each client; ratios "
            "are medians of the rounds' ratios, with the lowest and the highest. Load average of "
            f"the machine before the run: {load:.1f}."
        ),
        "",
    ]


def report(suite: Suite, setting: list[str], loops: dict[str, Results]) -> str:
    """Render a whole run of a suite: where it was made, then its tables for each kind of loop."""
    lines = [*setting]
    for loop, results in loops.items():
        lines += [f"#### {suite.name.title()} on {loop}", "", *suite.tables(results), ""]
    return "\n".join(lines)


def _processor() -> str:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _write(reports: dict[Suite, str]) -> None:
    for suite, text in reports.items():
        write(DOCUMENT, suite.name, text)
    subprocess.run([sys.executable, ROOT / "scripts" / "readme_tables.py"], check=True)


def main() -> int:
    """Run; 1 when a worker failed."""
    options = parse()
    wanted = chosen(options)
    for suite in wanted:
        print(f"{suite.name}: {suite.server()}", file=sys.stderr)
    if options.tune:
        for suite in wanted:
            asyncio.run(suite.tune(print))
        return 0
    measured: dict[str, dict[str, Results]] = {}
    reports: dict[Suite, str] = {}
    load = os.getloadavg()[0]
    for suite, names in wanted.items():
        effort = Effort(
            wanted=names, rounds=options.rounds, seconds=options.seconds or suite.seconds
        )
        try:
            loops = {
                loop: asyncio.run(suite.measure(loop, effort, _say))
                for loop in options.loop or suite.loops
            }
        except WorkerFailedError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
        _say("")
        measured[suite.name] = loops
        reports[suite] = report(suite, setting(suite, effort, load), loops)
        if not options.json:
            print(reports[suite])
    if options.json:
        print(json.dumps(measured, indent=1))
    elif options.write_docs:
        _write(reports)
    return 0


if __name__ == "__main__":
    sys.exit(main())
