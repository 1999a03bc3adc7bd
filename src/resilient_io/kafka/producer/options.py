"""The options of aiokafka's producer, completed and checked against each other."""

from __future__ import annotations

from typing import Any, Final

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

__all__ = ["OWNED", "completed", "patience"]

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
