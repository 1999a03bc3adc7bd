"""`make demo`, or `python -m demo` in the checkout."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from demo import failover_part, redis_part, service_part
from demo.screen import Screen
from resilient_io.testing import NoServerError, ServerDidNotStartError, find_kafka, find_redis

if TYPE_CHECKING:
    from collections.abc import Sequence

BALANCED: Final = 0
NOT_BALANCED: Final = 1
NO_SERVER: Final = 2
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code.

    Returns:
        0 if the ledgers of `ResilientRedis` and of the service balance, 1 if not, 2 without a
        server, 130 after an interruption.
    """
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="redis-py and ResilientRedis through the same faults; a service between Kafka "
        "and Redis, while both fail in turn; and both Redis clients through Sentinel failovers",
        epilog="exit code: 0 if the ledgers balance, 1 if not, 2 without a server",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="shorter faults; both Redis clients get socket_timeout=1, so that their timeouts fit",
    )
    parser.add_argument(
        "--only", choices=("redis", "kafka", "failover"), help="run one of the three parts"
    )
    options = parser.parse_args(arguments)
    screen = Screen()
    # The clients log each change of state, which the screen shows anyway.
    for name in ("resilient_io", "aiokafka"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    try:
        balanced = asyncio.run(_run(screen, quick=options.quick, only=options.only))
    except (NoServerError, ServerDidNotStartError) as error:
        sys.stderr.write(f"The demo needs servers: {error}\n")
        return NO_SERVER
    except KeyboardInterrupt:
        screen.say("", "Interrupted; the servers are stopped.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has closed the pipe: the interpreter's last flush must not fail, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_BALANCED
    return BALANCED if balanced else NOT_BALANCED


async def _run(screen: Screen, *, quick: bool, only: str | None) -> bool:
    """Run the chosen parts; return whether all ledgers balance."""
    # Missing servers are reported before the first part, not after it.
    find_redis()
    if only in (None, "kafka"):
        find_kafka()
    balanced = True
    if only in (None, "redis"):
        script = redis_part.QUICK if quick else redis_part.FULL
        balanced = await redis_part.perform(script, screen)
    if only in (None, "kafka"):
        faults = service_part.QUICK if quick else service_part.FULL
        # Also after a failure of the first part.
        balanced = await service_part.perform(faults, screen) and balanced
    if only in (None, "failover"):
        failovers = failover_part.QUICK if quick else failover_part.FULL
        balanced = await failover_part.perform(failovers, screen) and balanced
    return balanced


if __name__ == "__main__":
    sys.exit(main())
