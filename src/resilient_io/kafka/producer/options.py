"""The options of aiokafka's producer, completed and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_number, check_seconds

OWNED: Final = {
    "linger_ms": "write settings=DeliverySettings(linger=0.005), in seconds",
}
"""Options that are ours, and what to write instead."""

_ALL = ("all", -1)
_COMPRESSIONS = (None, "gzip", "snappy", "lz4", "zstd")

_BATCH_SIZE = 128 * 1024
"""Measured with values of 200 bytes: twice as much is no faster; half costs up to a fifth more."""

_REQUEST_SIZE = 1024 * 1024

_REQUEST_TIMEOUT_MS = 10_000


def completed(given: dict[str, Any]) -> dict[str, Any]:
    """Complete the options of the instance.

    Raises:
        ConfigurationError: They contradict each other; it says what to write.
    """
    own = {"max_batch_size": _BATCH_SIZE, "max_request_size": _REQUEST_SIZE, **given}
    check_count("max_batch_size", own["max_batch_size"])
    check_count("max_request_size", own["max_request_size"])
    idempotent = own.setdefault("enable_idempotence", own.get("acks", "all") in _ALL)
    acks = own.setdefault("acks", "all")
    if idempotent and acks not in _ALL:
        raise ConfigurationError(
            f'enable_idempotence=True needs acks="all", not acks={acks!r}: leave one of them out'
        )
    if own.get("transactional_id") is not None and not idempotent:
        raise ConfigurationError(
            'a transactional_id needs enable_idempotence=True and acks="all": leave them out'
        )
    compression = own.get("compression_type")
    if compression not in _COMPRESSIONS:
        raise ConfigurationError(
            f"compression_type={compression!r} is unknown: write one of "
            f"{', '.join(repr(name) for name in _COMPRESSIONS)}"
        )
    return own


def patience(own: dict[str, Any]) -> dict[str, int]:
    """Say how long a request waits for its answer, unless the user says so.

    aiokafka's 40 s would keep partitions closed that long when their leader falls silent. It asks
    again on its own, which is harmless if batches are numbered, and writes twice if not.
    """
    return {"request_timeout_ms": _REQUEST_TIMEOUT_MS} if own["enable_idempotence"] else {}


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
