"""The headers that say where a failed record comes from, why it failed, and until when it waits."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..record import Record

_MAX_DIGITS = 20  # of a number in a header

UNKNOWN_HEADER = ("x-outcome-unknown", b"1")
"""Header of a record whose handler is called again after it raised `OutcomeUnknown`."""

ORIGIN_HEADERS = (
    "x-original-topic",
    "x-original-partition",
    "x-original-offset",
    "x-original-timestamp",
)
FAILURE_HEADERS = (
    "x-error-type",
    "x-error-message",
    "x-attempts",
    "x-attempts-not-counted",
    "x-first-failure-ago",
    "x-last-failure-ago",
    "x-outcome-unknown",
)
RETRY_HEADERS = ("x-retries", "x-retry-due", "x-retry-group")
"""The headers of a record in a retry topic: its number among the retry topics of the record, when
it is due in milliseconds since 1970, and the group that wrote it."""

ADDED_HEADERS = (*ORIGIN_HEADERS, *FAILURE_HEADERS, *RETRY_HEADERS)
"""The headers that a failed record may have in addition to its own."""


def header(record: Record, name: str) -> str | None:
    """Return the first header of a record with this name as text, or None."""
    for given, value in record.headers:
        if given == name:
            return bytes(value).decode(errors="replace")
    return None


def number_header(record: Record, name: str) -> int | None:
    """Return a header that is a number of at least 0, or None."""
    text = header(record, name)
    if text is None or not text.isdecimal() or len(text) > _MAX_DIGITS:
        return None
    return int(text)


@dataclass(frozen=True, slots=True)
class PastFailures:
    """The failures of a record before it was written to the retry topic that it was read from."""

    attempts: int = 0
    not_counted: int = 0
    outcome_unknown: int = 0
    seconds: float = 0.0  # since the first one

    @classmethod
    def of(cls, record: Record, now: float) -> PastFailures:
        """Return the failures that the headers contain; `now` is the time since the epoch."""
        return cls(
            attempts=number_header(record, "x-attempts") or 0,
            not_counted=number_header(record, "x-attempts-not-counted") or 0,
            outcome_unknown=number_header(record, "x-outcome-unknown") or 0,
            seconds=_seconds(header(record, "x-first-failure-ago"))
            + max(0.0, now - record.timestamp / 1000),
        )


def original_record(record: Record) -> Record:
    """Return a record of a retry topic as it was in its own topic."""
    found = copy.copy(record)
    found._source = record
    found.headers = tuple(each for each in record.headers if each[0] not in ADDED_HEADERS)
    if header(record, UNKNOWN_HEADER[0]) is not None:
        found.headers = (*found.headers, UNKNOWN_HEADER)
    topic = header(record, "x-original-topic")
    partition = number_header(record, "x-original-partition")
    offset = number_header(record, "x-original-offset")
    timestamp = number_header(record, "x-original-timestamp")
    if topic is not None and partition is not None and offset is not None:
        found.topic, found.partition, found.offset = topic, partition, offset
        found.timestamp = record.timestamp if timestamp is None else timestamp
    return found


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
