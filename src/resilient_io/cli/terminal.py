"""Where the commands write: in colour on a terminal, as plain lines anywhere else."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

from rich.console import Console

__all__ = [
    "STATE_STYLES",
    "complain",
    "json_line",
    "quiet_loggers",
    "standard_output",
    "write_line",
]

STATE_STYLES = {"up": "green", "degraded": "yellow", "down": "bold red", "unknown": "dim"}


def standard_output() -> Console:
    """Give the console of this process.

    Texts are never read as rich's markup: they hold what servers said, brackets included.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows only ASCII shows what it can, rather than a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.soft_wrap = True  # lines are for grep there
    return console


def write_line(line: str) -> None:
    """Write a line, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def json_line(facts: dict[str, Any]) -> None:
    """Write a line of JSON, at once."""
    write_line(json.dumps(facts))


def complain(command: str, message: object) -> None:
    """Say in one line why a command cannot do what it was asked for."""
    sys.stderr.write(f"resilient-io {command}: {message}\n")


def quiet_loggers() -> None:
    """Keep the library's log records off the terminal: the command shows the same itself."""
    for name in ("resilient_io", "aiokafka"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
