"""How the command ends; `probe` imports this, so it imports only what Python itself does."""

from __future__ import annotations

import os
import sys

GOOD = 0
PROBLEMS = 1
COULD_NOT_LOOK = 2
INTERRUPTED = 130


def let_go_of_output() -> None:
    """Take note that nobody reads on: not even the interpreter's last flush may complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
