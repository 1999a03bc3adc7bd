"""A driver's error that says: refused for now, whatever was asked. It is passed on as it is.

A server that is out of memory, or read-only, refuses every write. Whoever judges a failed piece of
work has to tell that from an error of the work's own, and knows neither the driver nor the client.
"""

from __future__ import annotations

__all__ = ["mark_refused", "refused_by"]

_MARK = "_resilient_io_refused_by"


def mark_refused(error: BaseException, dependency: str) -> None:
    """Note on a driver's error that its server refuses such calls for now, and applied nothing.

    Args:
        error: The error, as its caller will see it.
        dependency: The name of the dependency that refused.
    """
    setattr(error, _MARK, dependency)


def refused_by(error: BaseException) -> str | None:
    """Return the name of the dependency whose refusal this is; None for any other error."""
    name: str | None = getattr(error, _MARK, None)
    return name
