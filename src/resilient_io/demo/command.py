"""The command line of the demo."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

import resilient_io.demo.redis.script as redis_script
import resilient_io.demo.service.script as service_script
from resilient_io.demo.redis import stage as redis_stage
from resilient_io.demo.screen import Line, Screen
from resilient_io.demo.service import stage as service_stage
from resilient_io.testing import NoServerError, ServerDidNotStartError, find_kafka, find_redis

if TYPE_CHECKING:
    from collections.abc import Sequence

BALANCED: Final = 0
NOT_BALANCED: Final = 1
NO_SERVER: Final = 2
INTERRUPTED: Final = 130

_LOGGERS: Final = ("resilient_io", "aiokafka")


def main(
    arguments: Sequence[str] | None = None, *, program: str = "python -m resilient_io.demo"
) -> int:
    """Show the demo.

    Args:
        arguments: Of the command line; None for those of this process.
        program: What was called, for its help.

    Returns:
        0 if the ledgers of `ResilientRedis` and of the service balance, 1 if not, 2 if there is no
        server to use, 130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="redis-py and ResilientRedis through the same faults; then a service between "
        "Kafka and Redis, both taken from it in turn; on servers of its own",
        epilog="exit code: 0 if the ledgers balance, 1 if not, 2 without a server",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="shorter faults; for Redis both clients get socket_timeout=1, so that their "
        "timeouts fit",
    )
    parser.add_argument("--only", choices=("redis", "kafka"), help="one of the two parts")
    chosen = parser.parse_args(arguments)
    screen = Screen(sys.stdout)
    # The clients log each change of state; here the screen shows it.
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    try:
        balanced = asyncio.run(_show(screen, quick=chosen.quick, only=chosen.only))
    except (NoServerError, ServerDidNotStartError) as error:
        sys.stderr.write(f"The demo needs servers: {error}\n")
        return NO_SERVER
    except KeyboardInterrupt:
        screen.say(Line(), Line("Interrupted; the servers are gone."))
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on: not even the interpreter's last flush may complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_BALANCED
    finally:
        screen.close()
    return BALANCED if balanced else NOT_BALANCED


async def _show(screen: Screen, *, quick: bool, only: str | None) -> bool:
    """Show what is asked for; return whether all its ledgers balance."""
    # Better to know before the first part than after it.
    find_redis()
    if only != "redis":
        find_kafka()
    balanced = True
    if only != "kafka":
        script = redis_script.QUICK if quick else redis_script.FULL
        balanced = await redis_stage.perform(script, screen)
    if only != "redis":
        faults = service_script.QUICK if quick else service_script.FULL
        # Shown also when the first part failed.
        balanced = await service_stage.perform(faults, screen) and balanced
    return balanced
