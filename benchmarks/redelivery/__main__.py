"""`python -m benchmarks.redelivery`: how many records are delivered again, on a real broker.

`--repeat` measures each case several times; the table shows the fewest and the most. `--only kill`
measures the cases whose name contains "kill". A run takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.testing import KafkaServer, find_apache_kafka

from . import cases

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .cases import Scene


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    act: Callable[[Scene], Awaitable[None]]
    slow: bool = False
    kind: str = "run"
    count: int = 200_000


_SLOW = "one handler of 10 s among 4,000"
_FEW = 4_000
CASES = (
    Case("kill -9, `run`, highest rate", cases.kill),
    Case("kill -9, `async for`, highest rate", cases.kill, kind="iterate"),
    Case("`aclose()`, `run`, highest rate", cases.terminate),
    Case("`aclose()`, `async for`, highest rate", cases.terminate, kind="iterate"),
    Case("a second member joins, handlers of 1 ms", cases.join, count=60_000),
    Case("process stopped for 9 s, session timeout 6 s", cases.freeze),
    Case('a handler raises, `on_failure="stop"`', cases.fail),
    Case(f"kill -9, {_SLOW}", cases.kill_slow, slow=True, count=_FEW),
    Case(f"`aclose()`, {_SLOW}", cases.terminate_slow, slow=True, count=_FEW),
    Case(f"a second member joins, {_SLOW}", cases.join_slow, slow=True, count=_FEW),
    Case(
        f"`aclose()`, then aiokafka's consumer, {_SLOW}", cases.plain_client, slow=True, count=_FEW
    ),
)


async def _measure(only: str, repeat: int) -> None:
    print(f"Apache Kafka {find_apache_kafka().version}\n")
    print("| case | records delivered again |\n|---|---|")
    async with KafkaServer(quick=False, heap="768m") as server:
        for case in CASES:
            if only not in case.name:
                continue
            found = [
                await cases.measure(
                    server, case.act, count=case.count, slow=case.slow, kind=case.kind
                )
                for _ in range(repeat)
            ]
            fewest, most = min(found), max(found)
            figure = f"{most:,}" if fewest == most else f"{fewest:,} to {most:,}"
            print(f"| {case.name} | {figure} |", flush=True)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redelivery", description=__doc__)
    parser.add_argument("--repeat", type=int, default=1, help="measurements of each case (1)")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    options = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    asyncio.run(_measure(options.only, options.repeat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
