"""How long a producer tries, how long it collects, and how much it holds."""

from __future__ import annotations

from dataclasses import dataclass

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_number, check_seconds

__all__ = ["DeliverySettings"]

_LEAST_BUFFER = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How long a producer tries, how long it collects, and how much it holds.

    Args:
        delivery_timeout: Seconds within which a record given to `send` or `send_many` is
            delivered, or ends in an error. `send_and_wait` is bounded by the policy's `deadline`
            too.
        linger: Seconds for which the first record for an idle partition waits for company. 0 sends
            it at the end of the loop's tick: records that come while a batch travels are
            collected anyway.
        buffer_bytes: Bytes of records that may be held, each counted as its own bytes and 256
            more. Past it callers wait within their deadline, then get `KafkaOverloaded`.

    Raises:
        ConfigurationError: A value is out of range, or two contradict each other.
    """

    delivery_timeout: float = 30.0
    linger: float = 0.0
    buffer_bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_seconds("delivery_timeout", self.delivery_timeout)
        check_number("linger", self.linger)
        check_count("buffer_bytes", self.buffer_bytes, least=_LEAST_BUFFER)
        if self.linger >= self.delivery_timeout:
            raise ConfigurationError(
                f"linger={self.linger!r} leaves no time to deliver within "
                f"delivery_timeout={self.delivery_timeout!r}: write linger=0.005"
            )
