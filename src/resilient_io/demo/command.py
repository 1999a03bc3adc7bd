"""The command line of the demo."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from resilient_io.demo.screen import Line, Screen
from resilient_io.demo.script import FULL, QUICK
from resilient_io.demo.stage import perform
from resilient_io.testing import NoServerError, ServerDidNotStartError

if TYPE_CHECKING:
    from collections.abc import Sequence

BALANCED: Final = 0
NOT_BALANCED: Final = 1
NO_SERVER: Final = 2
INTERRUPTED: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the demo.

    Args:
        arguments: Of the command line; None for those of this process.

    Returns:
        0 if the ledger of `ResilientRedis` balances, 1 if not, 2 if there is no server to use,
        130 if it was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m resilient_io.demo",
        description="redis-py and ResilientRedis through the same faults, on a server of its own",
        epilog="exit code: 0 if ResilientRedis's ledger balances, 1 if not, 2 without a server",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="shorter faults; both clients get socket_timeout=1, so that their timeouts fit",
    )
    script = QUICK if parser.parse_args(arguments).quick else FULL
    screen = Screen(sys.stdout)
    # The client logs each change of state; here the screen shows it.
    logging.getLogger("resilient_io").addHandler(logging.NullHandler())
    logging.getLogger("resilient_io").propagate = False
    try:
        return BALANCED if asyncio.run(perform(script, screen)) else NOT_BALANCED
    except (NoServerError, ServerDidNotStartError) as error:
        sys.stderr.write(f"The demo needs a Redis server: {error}\n")
        return NO_SERVER
    except KeyboardInterrupt:
        screen.say(Line(), Line("Interrupted; the server is gone."))
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on: not even the interpreter's last flush may complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_BALANCED
    finally:
        screen.close()
