"""What is measured of a service's own eyes, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CALLERS: Final = 50
EXPORT_EVERY: Final = 1.0
"""Seconds between two scrapes, and between two exports: fifteen times as often as is usual."""

STARTS: Final = 10
"""Processes of a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something that is done with and without.

    Attributes:
        name: Its short name, for `--only`.
        title: What it is called in the table.
        base: What it is compared with.
        unit: Of both figures.
        most_more: The share that it may cost more than the base; None for no such bound.
        most: The bound of the figure itself; None for none.
    """

    name: str
    title: str
    base: str
    unit: str
    most_more: float | None = None
    most: float | None = None


WORKS: Final = (
    Work(
        name="metrics-50",
        title=f"GET, {CALLERS} callers, with metrics collected every second, both ways",
        base="without",
        unit="µs",
        most_more=0.05,
    ),
    Work(
        name="probe",
        title="`resilient-io probe --file`, the interpreter included",
        base="`python -c pass`",
        unit="ms",
        most=80.0,
    ),
    Work(
        name="import",
        title="`import resilient_io`, the interpreter included",
        base="`python -c pass`",
        unit="ms",
    ),
    Work(
        name="drivers",
        title="`import redis.asyncio, aiokafka`, which a probe does without",
        base="`python -c pass`",
        unit="ms",
    ),
)
