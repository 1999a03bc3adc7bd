"""The vocabulary of health: states, causes, changes, settings and what a probe raises."""

from __future__ import annotations

import enum
import functools
import logging
from dataclasses import dataclass, fields

from resilient_io.errors import ConfigurationError
from resilient_io.text import TEXT_LIMIT, clean_text
from resilient_io.validation import check_count, check_seconds

_log = logging.getLogger("resilient_io.health")


class State(enum.StrEnum):
    """The state of a dependency."""

    UNKNOWN = "unknown"
    """No contact yet, or no longer watched. Calls wait for the connection."""

    UP = "up"
    """The dependency answers."""

    DEGRADED = "degraded"
    """The dependency answers, but refuses writes or has lost a part. Calls pass."""

    DOWN = "down"
    """The dependency does not answer. Only the probe contacts it."""

    @property
    def answering(self) -> bool:
        """Whether the dependency answers: UP or DEGRADED."""
        return self is State.UP or self is State.DEGRADED


class Cause(enum.StrEnum):
    """Why a dependency is not UP."""

    REFUSED = "refused"
    RESET = "reset"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    DNS = "DNS"
    TLS = "TLS"
    AUTH = "auth"
    WRONG_DATABASE = "wrong database"
    WRONG_SERVER = "wrong server"
    LOADING = "loading"
    READ_ONLY = "read-only"
    OUT_OF_MEMORY = "out of memory"
    DISK_ERROR = "disk error"
    NO_REPLICAS = "no replicas"
    MASTER_DOWN = "master down"
    CLUSTER_DOWN = "cluster down"
    SLOTS_LOST = "slots lost"
    FAILOVER = "failover"
    OVERLOADED = "overloaded"
    MAX_CLIENTS = "max clients"
    PROCESS_LIMIT = "process limit"
    PROTOCOL = "protocol"
    CONNECTION_LOST = "connection lost"
    BROKER_LOST = "broker lost"
    NO_LEADER = "no leader"
    NO_COORDINATOR = "no coordinator"
    FENCED = "fenced"
    STALLED = "stalled"
    OPEN_TRANSACTION = "open transaction"
    REBALANCING = "rebalancing"
    RECORDS_LOST = "records lost"
    SLOW_SUBSCRIBER = "slow subscriber"
    CLOSED = "closed"
    OTHER = "other"

    @property
    def permanent(self) -> bool:
        """Whether operator action is needed: waiting does not help."""
        return self in _PERMANENT


_PERMANENT = (Cause.AUTH, Cause.TLS, Cause.WRONG_DATABASE, Cause.WRONG_SERVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a dependency's state; the counts are those of the time in the previous state.

    Attributes:
        dependency: Name of the dependency.
        state: The new state.
        previous: The previous state.
        cause: Why the dependency is not UP, or None.
        detail: The cause in words: one line, without secrets.
        at: Absolute time of the event loop, in seconds.
        after: Time in the previous state, in seconds.
        probes: Probes that ended.
        probes_failed: Probes that failed.
        failures: Failures that clients reported.
        refusals: Refused writes that clients reported.
    """

    dependency: str
    state: State
    previous: State
    cause: Cause | None
    detail: str
    at: float
    after: float
    probes: int = 0
    probes_failed: int = 0
    failures: int = 0
    refusals: int = 0


class ProbeFailed(Exception):
    """Raised by a probe: the dependency did not answer properly.

    Args:
        cause: Why.
        detail: The cause in words, without secrets.
        definite: True if one failure is proof (refused, reset, a permanent error): the dependency
            is DOWN immediately. False if it must repeat (a timeout) `HealthSettings.fall` times.
        answered: True if the dependency itself answered that it does not serve (LOADING). Then
            neither replies to clients nor new connections contradict that, only a good probe.
    """

    def __init__(
        self, cause: Cause, detail: str = "", *, definite: bool = False, answered: bool = False
    ) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
        self.definite = definite
        self.answered = answered


class ProbeDegraded(Exception):
    """Raised by a probe: the dependency answers, but reports that it cannot do all of its work.

    Args:
        cause: Why, for example `Cause.READ_ONLY` for a server that reports to be a replica.
        detail: The cause in words, without secrets.
        latency: Time that the answer took in seconds, if measured.
    """

    def __init__(self, cause: Cause, detail: str = "", *, latency: float | None = None) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
        self.latency = latency


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """When to probe a dependency, and when to consider it down or up.

    Args:
        interval: Seconds between probes while the dependency is UP. No probe is sent while replies
            arrive. A probe may be early by a fifth of the interval, so that many dependencies share
            timers. More than 200 clients of one Redis server take turns; see "Connections" in the
            documentation.
        timeout: Time limit of a probe, in seconds. Time during which our own event loop was blocked
            does not count.
        fall: Number of consecutive failures that make the dependency DOWN, if one alone proves
            nothing (timeouts). A refused or reset connection is proof immediately.
        reconnect_interval: Longest pause between probes in a short outage, in seconds. Pauses are
            drawn from its upper half, so that many processes do not probe at the same moment.
        reconnect_interval_cap: Longest pause between probes in a long outage, in seconds.
        short_outage: Duration up to which an outage is short, in seconds. An outage with a
            permanent cause, such as a wrong password, is never short.
        refusal_hold: Seconds without another refused write after which, if probes succeed, the
            dependency is considered to accept writes again. An accepted write ends DEGRADED
            earlier. But if another one is refused within this time, only some are refused: then
            accepted writes prove nothing, and it ends after this time, too.
        history: Number of state changes to keep.

    Raises:
        ConfigurationError: A value is out of range, or two values contradict each other.
    """

    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 2
    reconnect_interval: float = 0.15
    reconnect_interval_cap: float = 2.0
    short_outage: float = 10.0
    refusal_hold: float = 10.0
    history: int = 64

    def __post_init__(self) -> None:
        """Validate the values."""
        for each in fields(self):
            check = check_count if each.name in {"fall", "history"} else check_seconds
            check(each.name, getattr(self, each.name))
        if self.reconnect_interval > self.reconnect_interval_cap:
            raise ConfigurationError(
                f"reconnect_interval={self.reconnect_interval!r} is above "
                f"reconnect_interval_cap={self.reconnect_interval_cap!r}: use "
                f"reconnect_interval_cap={self.reconnect_interval!r} or more"
            )


_clean_short = functools.lru_cache(maxsize=64)(clean_text)  # an outage repeats a few texts


def clean_detail(text: str) -> str:
    """Return a text from outside as one safe line of bounded length; see `clean_text`."""
    return _clean_short(text) if len(text) <= TEXT_LIMIT else clean_text(text)


def first_change(name: str, now: float) -> Change:
    """Return what a watcher sees before the first change of state."""
    state = State.UNKNOWN
    return Change(
        dependency=name, state=state, previous=state, cause=None, detail="", at=now, after=0.0
    )


def describe_state(state: State, cause: Cause | None, detail: str) -> str:
    """Return a state and its cause in words, for example "down: connection refused"."""
    reason = detail or cause or ""
    return f"{state}: {reason}" if reason else str(state)


def log_change(change: Change) -> None:
    """Write the one log record of a state change."""
    reason = change.detail or change.cause or ""
    _log.log(
        logging.INFO if change.state in (State.UP, State.UNKNOWN) else logging.WARNING,
        "%s is %s%s (%s)",
        change.dependency,
        change.state.upper(),
        f": {reason}" if reason else "",
        _describe_previous(change),
        extra={
            "event": "state_changed",
            "dependency": change.dependency,
            "state": change.state.value,
            "previous": change.previous.value,
            "cause": change.cause and change.cause.value,
            "detail": change.detail,
            "after": change.after,
            "probes": change.probes,
            "probes_failed": change.probes_failed,
            "failures": change.failures,
            "refusals": change.refusals,
        },
    )


def _describe_previous(change: Change) -> str:
    """Return for example "up for 0.34 s; 1 probe failed, 2 failures reported, 1 write refused".

    A client reports each failed call and each connection that it lost or could not open.
    """
    events = [f"{_counted(change.probes_failed, 'probe')} failed"] if change.probes_failed else []
    if change.failures:
        events.append(f"{_counted(change.failures, 'failure')} reported")
    if change.refusals:
        events.append(f"{_counted(change.refusals, 'write')} refused")
    lasted = f"{change.previous} for {change.after:.2f} s"
    return f"{lasted}; {', '.join(events)}" if events else lasted


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
