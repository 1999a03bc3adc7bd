"""The failures of one supervisor's instances: who is told of them, and how long the pauses are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .classification import connection_failure, meaning_of

if TYPE_CHECKING:
    import random

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .quiet import Tally

__all__ = ["Setbacks"]

_log = logging.getLogger("resilient_io.kafka")

_STEADY = 30.0
"""Seconds of service after which an instance's predecessors' failures are forgotten."""

_LEAST_BACKOFF = 0.05
"""Least bound of the first pause, in seconds."""

_PERMANENT_CAP = 30.0
"""Greatest bound of the backoff, in seconds, when only somebody's change can help."""


class Setbacks:
    """Counts failures in a row; logs the 1st, 2nd, 4th, 8th and so on of them.

    Args:
        role: What kind of instance, for the log.
        health: Told of failures that may be the cluster's.
        policy: Its backoff.
        rng: Source of the jitter.
        tally: The driver's records that were dropped.
    """

    def __init__(
        self,
        role: str,
        health: Dependency,
        policy: RetryPolicy,
        rng: random.Random,
        tally: Tally,
    ) -> None:
        self._role = role
        self._health = health
        self._policy = policy
        self._rng = rng
        self._tally = tally
        self._count = 0

    def overcome(self, generation: int) -> None:
        """Take note that an instance is in service."""
        self._health.note("instance in service", role=self._role, generation=generation)
        if self._count and self._is_news():
            _log.info(
                "%s: %s %d is in service after %d failures; %d records of the driver's dropped",
                self._health.name,
                self._role,
                generation,
                self._count,
                self._tally.dropped,
                extra={
                    "event": "instance_in_service",
                    "dependency": self._health.name,
                    "role": self._role,
                    "generation": generation,
                    "failures": self._count,
                    "dropped": self._tally.dropped,
                },
            )

    def note(self, error: Exception, lived: float, *, final: bool) -> None:
        """Take note of what an instance ended of; tell health, and once the log.

        Args:
            error: What it ended of.
            lived: Seconds that it lived.
            final: None will follow it.
        """
        if lived >= _STEADY:
            self._count = 0
        self._count += 1
        failure = connection_failure(error)
        self._health.note(
            "instance ended", role=self._role, detail=failure.detail, replaced=not final
        )
        if final or self._is_news():
            _log.log(
                logging.ERROR if final else logging.WARNING,
                "%s: the %s %s: %s; last word of the driver: %s",
                self._health.name,
                self._role,
                "is not replaced" if final else "has to be replaced",
                failure.detail,
                self._tally.newest or "none",
                extra={
                    "event": "instance_ended",
                    "dependency": self._health.name,
                    "role": self._role,
                    "replaced": not final,
                    "cause": failure.cause.value,
                    "detail": failure.detail,
                },
            )
        if meaning_of(error).kind in ("perhaps", "transient") or failure.permanent:
            # Not "definite": the probe looks for itself, and finds the true cause.
            self._health.failed(failure.cause, failure.detail)

    def pause(self, error: Exception) -> float:
        """Give the seconds until the next instance: backoff with full jitter."""
        cap = self._policy.backoff_cap
        if meaning_of(error).kind == "permanent":
            cap = max(cap, _PERMANENT_CAP)
        bound = max(self._policy.backoff, _LEAST_BACKOFF) * 2.0 ** min(self._count - 1, 32)
        return self._rng.random() * min(bound, cap)

    def _is_news(self) -> bool:
        return self._count & (self._count - 1) == 0
