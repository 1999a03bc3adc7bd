"""Our own times, against which a schedule is held."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from resilient_io.errors import ConfigurationError
from resilient_io.health import HealthSettings, LivenessSettings
from resilient_io.retry import RetryPolicy
from resilient_io.validation import check_number, check_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resilient_io.kafka import HandlerPolicy, RunLimits

__all__ = ["SETTINGS", "ServiceTimes", "times_from"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimes:
    """The times of a service, by default those of the library.

    Args:
        health: How fast a dependency's loss is noticed.
        policy: How long a call may take.
        liveness: When the process counts as stuck.
        run: Limits of a consumer's `run`; None for a service that consumes nothing.
        handler: How long its handlers may take; None as above, or for no bound.
        max_poll_interval: Seconds for which a consumer may stand still (`max_poll_interval_ms`).
        grace: Seconds that the service takes to end at most (`Lifecycle(grace=...)`).
        notice: Seconds of them for which it goes on while not ready (`Lifecycle(notice=...)`).
        start: Seconds until it answers its probes at the latest; None if nobody knows.

    Raises:
        ConfigurationError: A value is out of range.
    """

    health: HealthSettings = field(default_factory=HealthSettings)
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    liveness: LivenessSettings = field(default_factory=LivenessSettings)
    run: RunLimits | None = None
    handler: HandlerPolicy | None = None
    max_poll_interval: float = 300.0
    grace: float = 25.0
    notice: float = 5.0
    start: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_seconds("max_poll_interval", self.max_poll_interval)
        check_number("grace", self.grace)
        check_number("notice", self.notice)
        if self.start is not None:
            check_number("start", self.start)

    @property
    def consumes(self) -> bool:
        """Whether it has a consumer."""
        return self.run is not None or self.handler is not None

    @property
    def detection(self) -> float:
        """Seconds, at most, until the silence of a dependency is known."""
        return self.health.interval + self.health.fall * self.health.timeout

    @property
    def stall(self) -> float:
        """Seconds for which the event loop may be blocked before the process counts as stuck."""
        return self.liveness.window * self.liveness.share


SETTINGS = {
    "grace": "Lifecycle(grace=...)",
    "notice": "Lifecycle(notice=...)",
    "start": "seconds until the service answers its probes",
    "deadline": "RetryPolicy(deadline=...)",
    "health-interval": "HealthSettings(interval=...)",
    "health-timeout": "HealthSettings(timeout=...)",
    "drain-timeout": "RunLimits(drain_timeout=...)",
    "handler-timeout": "HandlerPolicy(timeout=...)",
    "max-poll-interval": "max_poll_interval_ms / 1000",
    "liveness-window": "LivenessSettings(window=...)",
}
"""What can be told of a service from outside of it, in seconds."""


def times_from(told: Mapping[str, float]) -> ServiceTimes:
    """Make times of what was told of a service.

    Args:
        told: Names of `SETTINGS`, and seconds.

    Raises:
        ConfigurationError: A name is unknown, a value out of range, or two contradict each other.
    """
    for name in told:
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"write one of {', '.join(SETTINGS)}"
            raise ConfigurationError(f"{name} is no time of a service: {hint}")
    given: dict[str, Any] = {
        name.replace("-", "_"): told[name]
        for name in ("grace", "notice", "start", "max-poll-interval")
        if name in told
    }
    health = _those(told, {"health-interval": "interval", "health-timeout": "timeout"})
    if health:
        knock = min(HealthSettings().reconnect_interval, told.get("health-interval", 1.0))
        given["health"] = HealthSettings(**health, reconnect_interval=knock)
    if "deadline" in told:
        policy = RetryPolicy()
        deadline = told["deadline"]
        given["policy"] = RetryPolicy(
            deadline=deadline,
            response_timeout=min(policy.response_timeout, deadline),
            connect_timeout=min(policy.connect_timeout, deadline),
        )
    if "liveness-window" in told:
        given["liveness"] = LivenessSettings(window=told["liveness-window"])
    if any(name in told for name in ("drain-timeout", "handler-timeout", "max-poll-interval")):
        from resilient_io.kafka import HandlerPolicy, RunLimits  # noqa: PLC0415 (brings aiokafka)

        given["run"] = RunLimits(**_those(told, {"drain-timeout": "drain_timeout"}))
        given["handler"] = HandlerPolicy(**_those(told, {"handler-timeout": "timeout"}))
    return ServiceTimes(**given)


def _those(told: Mapping[str, float], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: told[name] for name, ours in names.items() if name in told}
