"""The wall clock, for files and dumps that are read by other processes and by people.

The library does not measure or decide anything by it, with one exception: when a record of a retry
topic is due, because another process may have written it. It is read only here, so that a
simulation can replace it.
"""

from __future__ import annotations

import time


def now() -> float:
    """Return the seconds since the epoch."""
    return time.time()


def iso(at: float) -> str:
    """Return seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    whole, thousandths = divmod(round(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03d}Z"
