"""Compare the working tree with another commit in one run: `python -m benchmarks.against COMMIT`.

Both versions run the same workloads in turns, each in a fresh process, against the same servers.
The ratio is computed for each pair of neighboring rounds, so that a drift of the machine's speed
affects both sides alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io.testing import KafkaServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
WORKER = Path(__file__).with_name("against_worker.py")
REDIS = {
    "get-1": "GET, 1 caller",
    "get-50": "GET, 50 callers",
    "get-500": "GET, 500 callers",
    "pipeline": "pipeline of 100 GETs",
}
KAFKA = {
    "send": "`send`, 1,000 keys",
    "send-keyless": "`send`, without keys",
    "wait-500": "`send_and_wait`, 500 callers",
    "async-for": "`async for`",
    "run": "`run`, handler that does nothing",
}
READING = ("async-for", "run")
WORKLOADS = REDIS | KAFKA
RECORDS = 200_000
TIMEOUT = 120.0


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary folder and return its `src`."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        add = ("git", "worktree", "add", "--quiet", "--detach", str(tree), commit)
        subprocess.run(add, cwd=ROOT, check=True)
        try:
            yield tree / "src"
        finally:
            remove = ("git", "worktree", "remove", "--force", str(tree))
            subprocess.run(remove, cwd=ROOT, check=True)


async def measure(source: Path, workload: str, address: str, *arguments: str) -> dict[str, float]:
    """Run a workload once with the package in a source folder, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the folder of the worker has packages named like the drivers
        str(WORKER),
        workload,
        address,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONHASHSEED": "0"},
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise SystemExit(f"{workload} failed with the package in {source}")
    result: dict[str, float] = json.loads(output)
    return result


async def compare(
    sources: tuple[Path, Path], workload: str, address: str, rounds: int, *arguments: str
) -> str:
    """Run a workload in turns and return a row of the table."""
    pairs: list[list[dict[str, float]]] = []
    for index in range(rounds + 1):
        order = sources if index % 2 else sources[::-1]
        results = {
            source: await measure(source, workload, address, *arguments, str(index))
            for source in order
        }
        pairs.append([results[source] for source in sources])
    pairs = pairs[1:]  # the first round warms the servers up
    rates = [statistics.median(pair[side]["rate"] for pair in pairs) for side in (0, 1)]
    cpu = [statistics.median(pair[side]["cpu"] for pair in pairs) for side in (0, 1)]
    ratios = sorted(after["rate"] / before["rate"] for before, after in pairs)
    cost = statistics.median(after["cpu"] / before["cpu"] for before, after in pairs)
    return (
        f"| {WORKLOADS[workload]} | {rates[0]:,.0f} | {rates[1]:,.0f} | "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f}) | "
        f"{cpu[0]:.2f} | {cpu[1]:.2f} | {cost:.3f} |"
    )


async def run(options: argparse.Namespace, before: Path) -> None:
    """Start the servers and print the table."""
    sources = (before, ROOT / "src")
    print("| workload | per second before | now | ratio | CPU µs before | now | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    seconds, rounds = str(options.seconds), options.rounds
    redis = [name for name in REDIS if name in options.workloads]
    kafka = [name for name in KAFKA if name in options.workloads]
    if redis:
        async with RedisServer() as server:
            for name in redis:
                print(await compare(sources, name, server.url, rounds, seconds), flush=True)
    if kafka:
        async with KafkaServer(quick=False, heap="768m") as broker:
            address = broker.bootstrap_servers
            await broker.create_topic("against-send", partitions=4)
            await broker.create_topic("against-run", partitions=4)
            await measure(ROOT / "src", "fill", address, str(RECORDS), "0")
            for name in kafka:
                length = str(RECORDS) if name in READING else seconds
                print(await compare(sources, name, address, rounds, length), flush=True)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("commit", help="the commit to compare the working tree with")
    parser.add_argument("workloads", nargs="*", default=[*WORKLOADS], help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each version (9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round (1)")
    options = parser.parse_args()
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        parser.error(f"unknown workload {unknown[0]!r}; expected one of: {', '.join(WORKLOADS)}")
    with checkout(options.commit) as before:
        asyncio.run(run(options, before))


if __name__ == "__main__":
    main()
