"""`python -m benchmarks`: measure, print the tables, and on request put them into the docs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from resilient_io.testing import find_redis

from .arena import Arena, WorkerFailedError, tune
from .plan import EXTRAS, WORKS
from .tables import Results, report, write

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_NAMES = [*(work.name for work in WORKS), *EXTRAS]
_SIZES = (1, 2, 4, 8, 16, 32, 64)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each client (5)")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a round (0.5)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.2 s")
    parser.add_argument("--only", action="append", choices=_NAMES, help="just this; repeatable")
    parser.add_argument("--loop", action="append", choices=("asyncio", "uvloop"), help="just this")
    parser.add_argument("--json", action="store_true", help="print every round's figures instead")
    parser.add_argument("--write-docs", action="store_true", help=f"rewrite {DOCUMENT.name}")
    parser.add_argument("--tune", action="store_true", help="compare the peers' pool sizes")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if options.write_docs and options.only:
        parser.error("--write-docs needs every row, so no --only")
    if options.quick:
        options.rounds, options.seconds = 3, 0.2
    return options


async def measure(loop: str, options: argparse.Namespace) -> Results:
    """Measure everything that is wanted on one kind of loop."""
    wanted = options.only or _NAMES
    rounds, seconds = options.rounds, options.seconds
    results: Results = {}
    async with Arena(loop, _say) as arena:
        for work in WORKS:
            if work.name in wanted:
                results[work.name] = await arena.compete(work, rounds, seconds)
        if "overhead" in wanted:
            results["overhead"] = await arena.overhead(rounds, seconds * 2)
        if "idle" in wanted and sys.platform == "linux":
            results["idle"] = await arena.idle()
        if "down" in wanted:
            results["down"] = await arena.down(rounds)
    return results


def setting(options: argparse.Namespace, load: float) -> list[str]:
    """Say where and how it was measured."""
    packages = ("redis", "hiredis", "coredis", "valkey-glide", "uvloop")
    return [
        f"{find_redis().version}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f"; {_processor()}, {os.cpu_count()} CPUs.",
        "",
        (
            f"Medians of {options.rounds} rounds of {options.seconds:g} s for each client; ratios "
            "are medians of the rounds' ratios, with the lowest and the highest. Load average of "
            f"the machine before the run: {load:.1f}."
        ),
    ]


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


def main() -> int:
    """Run; 1 when a worker failed."""
    options = parse()
    print(f"server: {find_redis()}", file=sys.stderr)
    if options.tune:
        asyncio.run(tune(("redis-py", "coredis"), _SIZES, print))
        return 0
    load = os.getloadavg()[0]
    try:
        loops = {
            loop: asyncio.run(measure(loop, options))
            for loop in options.loop or ("asyncio", "uvloop")
        }
    except WorkerFailedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    _say("")
    if options.json:
        print(json.dumps(loops, indent=1))
        return 0
    text = report(setting(options, load), loops)
    print(text)
    if options.write_docs:
        write(DOCUMENT, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
