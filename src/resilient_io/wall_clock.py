"""The wall clock, for what leaves the process and is read by others: files, dumps.

Nothing in the library measures or decides by it. It is read here only, so that a simulation can
replace it.
"""

from __future__ import annotations

import time

__all__ = ["iso", "now"]


def now() -> float:
    """Return the seconds since the epoch."""
    return time.time()


def iso(at: float) -> str:
    """Write seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    whole, thousandths = divmod(round(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03d}Z"
