"""The times of a lifecycle, checked together."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_number, check_seconds

__all__ = ["Times"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long a service may take to start and to end; see `Lifecycle`."""

    grace: float
    notice: float
    start_timeout: float
    body_timeout: float

    def __post_init__(self) -> None:
        check_seconds("grace", self.grace)
        check_number("notice", self.notice)
        check_seconds("start_timeout", self.start_timeout)
        check_number("body_timeout", self.body_timeout)
        if self.notice > self.grace / 2:
            raise ConfigurationError(
                f"notice={self.notice:g} leaves too little of grace={self.grace:g} to drain and "
                f"close: write notice={self.grace / 4:g}, or a longer grace (the pod's "
                f"terminationGracePeriodSeconds must be longer still)"
            )
