"""How much a client shares."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

_MOST_LANES = 16
_LEAST_IN_FLIGHT = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """How much a client shares.

    Args:
        count: Connections that all callers share. One carries the calls, the others stand by for
            the time when it is busy with a large value or dies.
        in_flight: Bytes that may be in flight on a lane, each call counted as its own bytes and
            4 KiB: so at most 16,384 calls with the default. Past it callers wait.

    Raises:
        ConfigurationError: A value is out of range.
    """

    count: int = 2
    in_flight: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if type(self.count) is not int or not 1 <= self.count <= _MOST_LANES:
            raise ConfigurationError(
                f"count must be an int from 1 to {_MOST_LANES}, not {self.count!r}: write count=2"
            )
        check_count("in_flight", self.in_flight, least=_LEAST_IN_FLIGHT)
