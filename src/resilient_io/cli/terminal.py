"""Exit codes, and where the commands write: a terminal, a pipe or a log file.

`probe` imports this module, so rich, json and logging are imported only by the functions that need
them.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from resilient_io.text import redact_credentials

if TYPE_CHECKING:
    from rich.console import Console

GOOD = 0
PROBLEMS = 1
UNKNOWN = 2
"""The question could not be answered; also for a wrong command line."""

INTERRUPTED = 130

STATE_STYLES = {"up": "green", "degraded": "yellow", "down": "bold red", "unknown": "dim"}


def discard_output() -> None:
    """Send further output nowhere: its reader has closed the pipe.

    Otherwise the interpreter's last flush would print a traceback.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def standard_output() -> Console:
    """Return a rich console for the standard output.

    It does not interpret rich's markup: the texts contain what servers say, brackets included.
    """
    from rich.console import Console  # noqa: PLC0415 - see above

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows only ASCII shows escapes instead of raising an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.soft_wrap = True  # keep lines whole, for grep
    return console


def clean_line(text: str) -> str:
    """Return a text without control characters and credentials, for one line of output."""
    shown = (sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return redact_credentials("".join(shown))


def write_line(line: str) -> None:
    """Write a line and flush it."""
    sys.stdout.write(clean_line(line) + "\n")
    sys.stdout.flush()


def json_line(facts: dict[str, Any]) -> None:
    """Write a line of JSON, which escapes control characters, and flush it."""
    import json  # noqa: PLC0415 - see above

    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def complain(command: str, message: object) -> None:
    """Write in one line why a command cannot run."""
    sys.stderr.write(f"resilient-io {command}: {clean_line(str(message))}\n")


def quiet_loggers() -> None:
    """Keep log records of the library off the terminal: the command shows the same itself."""
    import logging  # noqa: PLC0415 - see above

    for name in ("resilient_io", "aiokafka"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
