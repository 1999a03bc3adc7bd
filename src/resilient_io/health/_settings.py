"""The times and thresholds of health."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_seconds

__all__ = ["HealthSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """When a dependency is probed, and when it is believed to be down or up.

    Args:
        interval: Seconds between probes while it is up; none is sent while replies arrive.
        timeout: Seconds after which a probe has failed. Time during which our own event loop
            was blocked does not count.
        fall: Failures in a row that must agree before it is down, where one alone proves
            nothing (timeouts). A refused or reset connection is proof at once.
        knock: Longest pause between probes of a short outage, in seconds. The pauses are drawn
            from the upper half of it, so that many processes do not knock together.
        knock_cap: Longest pause between probes of a long outage, in seconds.
        short_outage: Seconds for which an outage is short. One with a permanent cause (a wrong
            password, say) never is.
        refusal_hold: Seconds without another refused write after which, if probes are good, it
            is believed to accept writes again.
        history: How many transitions are remembered.

    Raises:
        ConfigurationError: A value is out of range, or two contradict each other.
    """

    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 2
    knock: float = 0.15
    knock_cap: float = 2.0
    short_outage: float = 10.0
    refusal_hold: float = 10.0
    history: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("interval", "timeout", "knock", "knock_cap", "short_outage", "refusal_hold"):
            check_seconds(name, getattr(self, name))
        check_count("fall", self.fall)
        check_count("history", self.history)
        if self.knock > self.knock_cap:
            message = (
                f"knock={self.knock!r} is above knock_cap={self.knock_cap!r}: "
                f"write knock_cap={self.knock!r} or more"
            )
            raise ConfigurationError(message)
