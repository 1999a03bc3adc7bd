"""`python -m benchmarks.link`: how long until a fault of the link is DOWN, and what never is.

It needs root, for network namespaces. `--repeat` measures each case several times; the table shows
the slowest. `--only cut` measures the cases whose name contains "cut". Exit code 1 means that a
requirement was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import cases
from .network import Network, kafka_in, why_not_permitted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .cases import Outcome
    from .network import NetworkRedis


@dataclass(frozen=True)
class Case:
    """A row of the table. Without a limit, DOWN would be wrong."""

    name: str
    limit: float | None
    run: Callable[[Network, NetworkRedis], Awaitable[Outcome]]


CASES = (
    Case("network cut, 50 callers", 1.0, cases.cut),
    Case("network cut, no traffic", 2.0, lambda n, s: cases.cut(n, s, callers=0, before=0.05)),
    Case("server frozen for 1.5 s, 50 callers", None, lambda _, s: cases.frozen(s, 1.5)),
    Case("server frozen for 1.5 s, no traffic", None, lambda _, s: cases.frozen(s, 1.5, callers=0)),
    Case("server busy with a script for 1.5 s", None, lambda _, s: cases.busy(s, 1.5)),
    Case("2 % packet loss for 30 s, 50 callers", None, lambda n, s: cases.lossy(n, s, 0.02, 30)),
    Case(
        "2 % packet loss for 30 s, 3 callers",
        None,
        lambda n, s: cases.lossy(n, s, 0.02, 30, callers=3),
    ),
    Case("RTT 150 to 210 ms, for 10 s", None, lambda n, s: cases.distant(n, s, 0.15, 0.06, 10)),
    Case("zero receive window for 1 s", None, lambda _, s: cases.closed_window(s, 1.0)),
    Case("BLPOP 0, its link dies silently", 5.0, cases.blocked),
)
KAFKA = {
    "producer": ("Kafka's network cut, producer with traffic", 1.5),
    "consumer": ("Kafka's network cut, consumer with traffic", 1.5),
    "idle": ("Kafka's network cut, consumer without traffic", 2.0),
}


def _row(name: str, limit: float | None, outcomes: list[Outcome]) -> bool:
    worst = max(outcomes, key=lambda each: each.down or 0.0)
    downs = [each.down for each in outcomes if each.down is not None]
    if limit is None:
        good = not downs
        wanted, found = "never DOWN", f"DOWN {len(downs)} times" if downs else "never DOWN"
    else:
        good = len(downs) == len(outcomes) and max(downs) <= limit
        wanted = f"≤ {limit:.1f} s"
        found = f"{worst.down:.2f} s" if worst.down is not None else "not noticed"
    detail = f"{worst.cause}: {worst.detail}" if worst.detail else ""
    print(f"| {name} | {wanted} | {found} | {'yes' if good else 'NO'} | {detail} |", flush=True)
    return good


async def _measure(options: argparse.Namespace) -> bool:
    good = True
    print("| case | required | slowest | met | reported |\n|---|---|---|---|---|")
    with Network() as network:
        server = network.start_redis()
        with network.inside():
            for case in CASES:
                if options.only in case.name:
                    outcomes = [await case.run(network, server) for _ in range(options.repeat)]
                    good &= _row(case.name, case.limit, outcomes)
        roles = [role for role, (name, _) in KAFKA.items() if options.only in name]
        if not roles:
            return good
        async with kafka_in(network) as broker:
            with network.inside():
                for role in roles:
                    outcomes = [
                        await cases.kafka_cut(network, broker, role=role)
                        for _ in range(options.repeat)
                    ]
                    good &= _row(*KAFKA[role], outcomes)
    return good


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__)
    parser.add_argument("--repeat", type=int, default=1, help="measurements of each case (1)")
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    options = parser.parse_args()
    reason = why_not_permitted()
    if reason is not None:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 2
    logging.getLogger("resilient_io").setLevel(logging.CRITICAL)
    return 0 if asyncio.run(_measure(options)) else 1


if __name__ == "__main__":
    sys.exit(main())
