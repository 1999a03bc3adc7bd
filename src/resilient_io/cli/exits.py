"""The exit codes of the command; `probe` imports this, so it imports nothing."""

from __future__ import annotations

GOOD = 0
PROBLEMS = 1
COULD_NOT_LOOK = 2
INTERRUPTED = 130
