"""Check a container's Kubernetes probes against the timeouts of its service.

A probe that depends on another service restarts every replica because of one outage. A grace period
that is too short cuts off the work in progress. `lint_probes` finds what only this library can
know; kube-score and kube-linter check everything else about manifests.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from resilient_io.health import HealthSettings, LivenessSettings
from resilient_io.retry import RetryPolicy
from resilient_io.validation import check_number

if TYPE_CHECKING:
    from collections.abc import Iterator

Question = Literal["live", "ready", "started", "dependency", "unknown"]
"""What a probe asks, as far as its path or command shows."""

_PATHS: dict[str, Question] = {
    **dict.fromkeys(("livez", "live", "liveness", "alive"), "live"),
    **dict.fromkeys(("readyz", "ready", "readiness"), "ready"),
    **dict.fromkeys(("startupz", "startup", "started"), "started"),
}
_CLIENTS = ("redis-cli", "valkey-cli", "kafka-", "kcat", "kafkacat")
_COMMANDS = {"resilient-io", "resilient_io.cli"}
_HEARTBEAT_AGE = 30.0
"""Seconds that a heartbeat of every second may be old for `resilient-io probe --live`."""

_LATE_DEPENDENCY = 120.0
"""Seconds that a dependency may start after the service during a normal deployment."""

_ENDPOINTS = 3.0
"""Seconds that Kubernetes needs at least to remove a terminating pod from its endpoints."""

_SPARE = 1.0
_GRACE = "terminationGracePeriodSeconds"


class Severity(enum.StrEnum):
    """How serious a finding is."""

    ERROR = "error"  # pods are killed, or work is lost, without need
    WARNING = "warning"  # it works until the first outage


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should be changed.

    Attributes:
        code: Its name, for ignoring it: "liveness-depends".
        severity: How serious it is.
        where: The field that it is about: "livenessProbe.httpGet.path".
        found: What is wrong, in one sentence.
        advice: What to use instead.
    """

    code: str
    severity: Severity
    where: str
    found: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe, with the kubelet's defaults.

    Args:
        path: Path of an HTTP probe.
        command: Command of an exec probe. Without either, the probe only opens a connection.
        period: Seconds between two probes.
        timeout: Seconds that each may take.
        failures: Failures in a row after which the kubelet acts.
        initial_delay: Seconds before the first probe.
    """

    path: str | None = None
    command: tuple[str, ...] = ()
    period: float = 10.0
    timeout: float = 1.0
    failures: int = 3
    initial_delay: float = 0.0

    @property
    def tolerance(self) -> float:
        """Seconds, at least, for which there may be no answer before the kubelet acts."""
        words = _words(self.command)
        file = _value_of("--file", words) is not None
        # A heartbeat that is no longer written counts for a while.
        age = _HEARTBEAT_AGE if file and _value_of("--max-age", words) is None else 0.0
        return age + self.period * (self.failures - 1) + self.timeout

    @property
    def question(self) -> Question:
        """What the probe asks."""
        if self.path is not None:
            return _question_of_path(self.path)
        words = _words(self.command)
        programs = {word.rpartition("/")[2] for word in words}
        if any(program.startswith(_CLIENTS) for program in programs):
            return "dependency"
        if not _COMMANDS & programs or "probe" not in words:
            return "unknown"
        if "--live" in words:
            return "live"
        if "--started" in words:
            return "started"
        url = _value_of("--url", words)
        return "ready" if url is None else _question_of_path(url)


def _question_of_path(path: str) -> Question:
    words = [word for word in urlsplit(path).path.lower().split("/") if word]
    return _PATHS.get(words[-1], "unknown") if words else "unknown"


def _value_of(option: str, words: list[str]) -> str | None:
    match = re.search(rf"{option}[ =](\S+)", " ".join(words))
    return match[1] if match else None


def _words(command: tuple[str, ...]) -> list[str]:
    """Return the words of a command, also of that of `sh -c`."""
    text = " ".join(command)
    try:
        return shlex.split(text)
    except ValueError:  # unbalanced quotes
        return text.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The Kubernetes settings of one container.

    Args:
        liveness: Its failure restarts the container.
        readiness: Its failure removes the pod from its Services.
        startup: The other probes begin once it succeeds; its failure restarts the container.
        grace_period: `terminationGracePeriodSeconds`.
        pre_stop: Seconds that the preStop hook takes.
    """

    liveness: Probe | None = None
    readiness: Probe | None = None
    startup: Probe | None = None
    grace_period: float = 30.0
    pre_stop: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTimes:
    """The timeouts of a service in seconds, by default those of the library.

    Args:
        grace_period: `Lifecycle(grace_period=...)`.
        drain_delay: `Lifecycle(drain_delay=...)`.
        deadline: `RetryPolicy(deadline=...)`; None for calls without a time limit.
        health_interval: `HealthSettings(interval=...)`.
        health_timeout: `HealthSettings(timeout=...)`.
        liveness_window: `LivenessSettings(window=...)`.
        drain_timeout: `ConsumerSettings(drain_timeout=...)`; None without Kafka consumers.
        handler_timeout: `HandlerPolicy(timeout=...)`; None as above, or without a limit.
        max_poll_interval: `max_poll_interval_ms / 1000`.

    Raises:
        ConfigurationError: A value is out of range.
    """

    grace_period: float = 25.0
    drain_delay: float = 5.0
    deadline: float | None = RetryPolicy().deadline
    health_interval: float = HealthSettings().interval
    health_timeout: float = HealthSettings().timeout
    liveness_window: float = LivenessSettings().window
    drain_timeout: float | None = None
    handler_timeout: float | None = None
    max_poll_interval: float = 300.0

    def __post_init__(self) -> None:
        """Check the values."""
        for each in dataclasses.fields(self):
            if (value := getattr(self, each.name)) is not None:
                check_number(each.name, value, above=each.name not in _MAY_BE_0)


_MAY_BE_0 = ("grace_period", "drain_delay")


def lint_probes(schedule: Schedule, times: ServiceTimes | None = None) -> tuple[Finding, ...]:
    """Check the Kubernetes settings of a container against the timeouts of its service.

    ```
    findings = lint_probes(
        Schedule(liveness=Probe(path="/livez"), readiness=Probe(path="/readyz", period=2)),
        ServiceTimes(grace_period=25, deadline=5),
    )
    assert not findings
    ```

    The command `resilient-io lint FILE` does the same for manifests.

    Args:
        schedule: The Kubernetes settings.
        times: The service's timeouts; None for the library's defaults.

    Returns:
        The findings, errors first.
    """
    times = times if times is not None else ServiceTimes()
    rules = (_liveness, _startup, _readiness, _shutdown, _drain_delay, _handlers)
    found = [finding for rule in rules for finding in rule(schedule, times)]
    return tuple(sorted(found, key=lambda each: list(Severity).index(each.severity)))


def _liveness(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.liveness
    if probe is None:
        return
    where = _where("livenessProbe", probe)
    if probe.question in ("ready", "dependency", "started"):
        yield Finding(
            "liveness-depends",
            Severity.ERROR,
            where,
            "Liveness depends on another service, whose outage restarts every replica "
            "repeatedly and fixes nothing.",
            _use(probe, "/livez, which never depends on other services", "--live"),
        )
    stuck = times.liveness_window * LivenessSettings().share
    if probe.tolerance < stuck:
        failures = probe.failures + -(-(stuck - probe.tolerance) // probe.period)
        yield Finding(
            "liveness-hasty",
            Severity.WARNING,
            "livenessProbe.failureThreshold",
            f"A stall of {probe.tolerance:g} s restarts the process, but the service counts "
            f"as stuck only after {stuck:g} s.",
            f"Use failureThreshold: {failures:g} or more.",
        )


def _startup(schedule: Schedule, _times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.startup
    if probe is None:
        return
    limit = probe.initial_delay + probe.period * (probe.failures - 1)
    waits = probe.question == "started" and limit < _LATE_DEPENDENCY
    if waits or probe.question in ("ready", "dependency"):
        yield Finding(
            "startup-depends",
            Severity.WARNING if waits else Severity.ERROR,
            _where("startupProbe", probe),
            f"Startup depends on another service: if it is unavailable for {limit:g} s, every "
            "replica is restarted, repeatedly.",
            _use(probe, "/livez", "--live"),
        )


def _readiness(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.readiness
    if probe is None:
        return
    where = _where("readinessProbe", probe)
    if probe.question == "dependency":
        yield Finding(
            "readiness-depends",
            Severity.WARNING,
            where,
            "Readiness asks a server that all replicas share: its outage removes every replica, "
            "also for requests that do not need it.",
            _use(probe, "/readyz", "--ready"),
        )
    elif probe.question in ("live", "started"):
        yield Finding(
            "readiness-independent",
            Severity.ERROR,
            where,
            "Readiness does not change in an outage: traffic continues to a service that "
            "cannot serve it.",
            _use(probe, "/readyz", "--ready"),
        )
    detection = times.health_interval + HealthSettings().fall * times.health_timeout
    if detection > probe.period * probe.failures:
        yield Finding(
            "detection-slow",
            Severity.WARNING,
            "readinessProbe",
            f"The kubelet acts within {probe.period * probe.failures:g} s, but the service "
            f"may need {detection:g} s to detect that a dependency is silent.",
            "Use a shorter HealthSettings(interval=..., timeout=...), or a longer periodSeconds.",
        )


def _shutdown(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    needed = schedule.pre_stop + times.grace_period
    hook = f"the preStop hook takes {schedule.pre_stop:g} s and " if schedule.pre_stop else ""
    if schedule.grace_period < needed + _SPARE:
        short = schedule.grace_period < needed
        yield Finding(
            "grace-period-short",
            Severity.ERROR if short else Severity.WARNING,
            _GRACE,
            f"The pod is killed after {schedule.grace_period:g} s, but {hook}the service may "
            f"need {times.grace_period:g} s to shut down: "
            + ("work in progress is lost or repeated." if short else "no time is left."),
            f"Use {_GRACE}: {needed + 5:g}, or a shorter Lifecycle(grace_period=...).",
        )
    left = min(times.grace_period, schedule.grace_period - schedule.pre_stop) - times.drain_delay
    if times.deadline is None or times.deadline > left:
        limit = "no" if times.deadline is None else f"a {times.deadline:g} s"
        yield Finding(
            "deadline-beyond-grace-period",
            Severity.ERROR,
            _GRACE,
            f"Calls have {limit} time limit, but after SIGTERM only {max(left, 0.0):g} s remain: "
            "they are cut off.",
            "Use a RetryPolicy(deadline=...) below that, or a longer grace period.",
        )
    if times.drain_timeout is not None and times.drain_timeout > left:
        yield Finding(
            "drain-beyond-grace-period",
            Severity.ERROR,
            _GRACE,
            f"Handlers get {times.drain_timeout:g} s to finish, but only "
            f"{max(left, 0.0):g} s remain after SIGTERM.",
            "Use a shorter ConsumerSettings(drain_timeout=...), or a longer grace period.",
        )


def _drain_delay(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    total = schedule.pre_stop + times.drain_delay
    if schedule.readiness is not None and total < _ENDPOINTS:
        yield Finding(
            "drain-delay-missing",
            Severity.ERROR,
            "lifecycle.preStop",
            f"The service stops serving {total:g} s after SIGTERM, but Kubernetes sends it "
            "traffic for some seconds more.",
            "Use Lifecycle(drain_delay=5), or a preStop hook with sleep: {seconds: 5}.",
        )


def _handlers(_schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    limit = times.max_poll_interval
    if times.handler_timeout is not None and times.handler_timeout > limit:
        yield Finding(
            "handler-beyond-poll-interval",
            Severity.ERROR,
            "HandlerPolicy(timeout=...)",
            f"A handler may take {times.handler_timeout:g} s, but counts as stuck after {limit:g} "
            "s (max_poll_interval_ms): the process restarts and handles the record again, forever.",
            "Use a shorter timeout, or a longer max_poll_interval_ms.",
        )


def _where(name: str, probe: Probe) -> str:
    if probe.path is not None:
        return f"{name}.httpGet.path"
    return f"{name}.exec.command" if probe.command else name


def _use(probe: Probe, path: str, option: str) -> str:
    return f"Use `resilient-io probe --file FILE {option}`." if probe.command else f"Use {path}."
