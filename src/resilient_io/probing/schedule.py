"""What Kubernetes is told about a container: its probes, and how it is ended."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_number, check_seconds

__all__ = ["Probe", "Question", "Schedule"]

Question = Literal["live", "ready", "started", "dependency", "unknown"]
"""What a probe asks, as far as its path or command tells."""

_PATHS: dict[str, Question] = {
    "livez": "live",
    "live": "live",
    "liveness": "live",
    "alive": "live",
    "readyz": "ready",
    "ready": "ready",
    "readiness": "ready",
    "startupz": "started",
    "startup": "started",
    "started": "started",
}
_CLIENTS = ("redis-cli", "valkey-cli", "kafka-", "kcat", "kafkacat")
_BELIEVED = 30.0
"""Seconds that `resilient-io probe --live` allows a heartbeat of every second."""

_NAMES = {"resilient-io", "resilient_io.cli"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe of the kubelet's, with the kubelet's defaults.

    Args:
        path: Of an HTTP probe.
        command: Of an exec probe. Without either it only opens a connection.
        initial_delay: Seconds before the first.
        period: Seconds between two.
        timeout: Seconds that each may take.
        failures: How many in a row make the kubelet act.
        successes: How many in a row make it believe again.

    Raises:
        ConfigurationError: A value is out of range, or `path` and `command` are both given.
    """

    path: str | None = None
    command: tuple[str, ...] = ()
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    failures: int = 3
    successes: int = 1

    def __post_init__(self) -> None:
        """Refuse what the kubelet would refuse."""
        check_number("initial_delay", self.initial_delay)
        check_seconds("period", self.period)
        check_seconds("timeout", self.timeout)
        check_count("failures", self.failures)
        check_count("successes", self.successes)
        if self.path is not None and self.command:
            raise ConfigurationError("a probe has a path or a command: write one of them")

    @property
    def reaction(self) -> float:
        """Seconds, at most, from a failure to what the kubelet does about it."""
        return self.period * self.failures + self.timeout

    @property
    def patience(self) -> float:
        """Seconds, at least, that a container has from its start until the kubelet acts.

        The first probe is due as soon as the initial delay is over.
        """
        return self.initial_delay + self.period * (self.failures - 1)

    @property
    def tolerance(self) -> float:
        """Seconds, at least, for which there may be no answer before the kubelet acts."""
        words = _words(self.command)
        file = _value_of("--file", words) is not None
        # A heartbeat that stands still is believed in for a while.
        believed = _BELIEVED if file and _value_of("--max-age", words) is None else 0.0
        return believed + self.period * (self.failures - 1) + self.timeout

    @property
    def question(self) -> Question:
        """What it asks."""
        if self.path is not None:
            return _question_of_path(self.path)
        if self.command:
            return _question_of_command(self.command)
        return "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What Kubernetes is told about one container.

    Args:
        liveness: Its failure restarts the container.
        readiness: Its failure takes the pod out of its Services.
        startup: Until it succeeds there are no others; its failure restarts the container.
        grace: Seconds from the decision to end the pod until it is killed
            (`terminationGracePeriodSeconds`).
        pre_stop: Seconds of them that the preStop hook takes, before SIGTERM.
        serves: Whether it gets traffic through a Service.
        cpu_limit: In CPUs; None for no limit.
        command: What is run in the container (`command` and `args`); () for the image's own.

    Raises:
        ConfigurationError: A value is out of range.
    """

    liveness: Probe | None = None
    readiness: Probe | None = None
    startup: Probe | None = None
    grace: float = 30.0
    pre_stop: float = 0.0
    serves: bool = True
    cpu_limit: float | None = None
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        check_number("grace", self.grace)
        check_number("pre_stop", self.pre_stop)
        if self.cpu_limit is not None:
            check_seconds("cpu_limit", self.cpu_limit)

    @property
    def probes(self) -> dict[str, Probe]:
        """The probes that there are, by the name of their field."""
        found = {
            "startupProbe": self.startup,
            "livenessProbe": self.liveness,
            "readinessProbe": self.readiness,
        }
        return {name: probe for name, probe in found.items() if probe is not None}


def _question_of_path(path: str) -> Question:
    words = [word for word in urlsplit(path).path.lower().split("/") if word]
    return _PATHS.get(words[-1], "unknown") if words else "unknown"


def _question_of_command(command: tuple[str, ...]) -> Question:
    words = _words(command)
    programs = [word.rpartition("/")[2] for word in words]
    if any(program.startswith(_CLIENTS) for program in programs):
        return "dependency"
    if not _NAMES & {*programs} or "probe" not in words:
        return "unknown"
    if "--live" in words:
        return "live"
    if "--started" in words:
        return "started"
    url = _value_of("--url", words)
    return "ready" if url is None else _question_of_path(url)


def _value_of(option: str, words: list[str]) -> str | None:
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _words(command: tuple[str, ...]) -> list[str]:
    """Take a command apart, that of `sh -c` too."""
    found: list[str] = []
    for part in command:
        try:
            found += shlex.split(part) if any(c.isspace() for c in part) else [part]
        except ValueError:  # quotes that do not close
            found += part.split()
    return found
