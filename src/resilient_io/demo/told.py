"""What a caller was told about its write."""

from __future__ import annotations

import enum

from resilient_io.errors import OutcomeUnknown, Progress, ResilientIOError


class Told(enum.Enum):
    """What a caller was told about its write."""

    NOTHING = "nothing yet"
    DONE = "done"
    UNKNOWN = "perhaps done"
    NOT_DONE = "not done"


def told_by(error: Exception) -> Told:
    """Say what an error of ours says about a write; one of a driver's says nothing."""
    if not isinstance(error, ResilientIOError) or isinstance(error, OutcomeUnknown):
        return Told.UNKNOWN
    return Told.UNKNOWN if error.progress is Progress.MAYBE_APPLIED else Told.NOT_DONE
