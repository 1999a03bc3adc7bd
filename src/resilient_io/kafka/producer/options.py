"""The options of a producer: aiokafka's, typed and checked, and `DeliverySettings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from aiokafka import codec

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_name, check_number, check_seconds

from ..options import ClientOptions


class ProducerOptions(ClientOptions, total=False):
    """The options of `aiokafka.AIOKafkaProducer` that `ResilientKafkaProducer` passes on."""

    acks: Literal[0, 1, -1, "all"]
    compression_type: Literal["gzip", "snappy", "lz4", "zstd"] | None
    enable_idempotence: bool
    max_batch_size: int
    max_request_size: int
    transaction_timeout_ms: int
    transactional_id: str | None


REPLACED_OPTIONS: Final = {
    "linger_ms": "use settings=DeliverySettings(linger=0.005), in seconds",
}
"""Options of aiokafka that cannot be passed, and what to use instead."""

_ACKS_ALL = ("all", -1)
_ACKS = (*_ACKS_ALL, 1, 0)
_COMPRESSIONS = (None, "gzip", "snappy", "lz4", "zstd")
_LIBRARY_CHECKS = {"snappy": codec.has_snappy, "lz4": codec.has_lz4, "zstd": codec.has_zstd}

# Measured with values of 200 bytes: twice as much is not faster, half costs up to a fifth more.
_BATCH_SIZE = 128 * 1024

_REQUEST_SIZE = 1024 * 1024

_REQUEST_TIMEOUT_MS = 10_000


def complete_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return aiokafka's options with our defaults."""
    options = {"max_batch_size": _BATCH_SIZE, "max_request_size": _REQUEST_SIZE, **given}
    check_count("max_batch_size", options["max_batch_size"])
    check_count("max_request_size", options["max_request_size"])
    idempotent = options.setdefault("enable_idempotence", options.get("acks", "all") in _ACKS_ALL)
    acks = options.setdefault("acks", "all")
    if acks not in _ACKS or isinstance(acks, bool):
        raise ConfigurationError(f'acks={acks!r} is unknown: use acks="all", acks=1 or acks=0')
    if options.get("transactional_id") is not None:
        check_name("transactional_id", options["transactional_id"], example="orders-0")
    if idempotent and acks not in _ACKS_ALL:
        raise ConfigurationError(
            f'enable_idempotence=True needs acks="all", not acks={acks!r}; leave one of them out'
        )
    if options.get("transactional_id") is not None and not idempotent:
        raise ConfigurationError(
            'transactional_id needs enable_idempotence=True and acks="all"; leave them out'
        )
    compression = options.get("compression_type")
    if compression not in _COMPRESSIONS:
        raise ConfigurationError(
            f"compression_type={compression!r} is unknown; use one of "
            f"{', '.join(repr(name) for name in _COMPRESSIONS)}"
        )
    installed = _LIBRARY_CHECKS.get(compression or "")
    if installed is not None and not installed():
        raise ConfigurationError(
            f"compression_type={compression!r} needs a library that is not installed: run "
            f'pip install "aiokafka[{compression}]"'
        )
    return options


def request_timeout(options: dict[str, Any]) -> dict[str, int]:
    """Return the request timeout to use unless the user passes one.

    With aiokafka's 40 s a partition is blocked that long when its leader stops answering. aiokafka
    then repeats the request, which is harmless if batches are numbered; otherwise it may write the
    batch twice, so the default stays.
    """
    return {"request_timeout_ms": _REQUEST_TIMEOUT_MS} if options["enable_idempotence"] else {}


_MIN_BUFFER = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How long a producer tries to deliver, how long it collects records, and how much it holds.

    Args:
        delivery_timeout: Seconds within which a record passed to `send` or `send_many` is
            delivered or fails. `send_and_wait` is also limited by the policy's `deadline`.
        linger: How long, in seconds, to wait for more records before sending a batch to an idle
            partition. 0 sends it at the end of the event loop's iteration; records that arrive
            while a batch is in flight are collected anyway.
        buffer_bytes: Maximum bytes of records held. Each record counts as its own bytes and 256
            more. When the buffer is full, callers wait within their deadline, then get
            `KafkaOverloaded`.

    Raises:
        ConfigurationError: A value is out of range, or two values contradict each other.
    """

    delivery_timeout: float = 30.0
    linger: float = 0.0
    buffer_bytes: int = 32 * 1024 * 1024

    def __post_init__(self) -> None:
        """Check the values."""
        check_seconds("delivery_timeout", self.delivery_timeout)
        check_number("linger", self.linger)
        check_count("buffer_bytes", self.buffer_bytes, least=_MIN_BUFFER)
        if self.linger >= self.delivery_timeout:
            raise ConfigurationError(
                f"linger={self.linger!r} leaves no time to deliver within "
                f"delivery_timeout={self.delivery_timeout!r}; use linger=0.005"
            )
