"""The words of health: states, causes, changes, and what a probe reports."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count, check_seconds


class State(enum.StrEnum):
    """How a dependency is."""

    UNKNOWN = "unknown"
    """Not yet heard from, or no longer watched; calls wait for the connection."""

    UP = "up"
    """It answers."""

    DEGRADED = "degraded"
    """It answers, but refuses writes, or a part of it is lost; calls pass."""

    DOWN = "down"
    """It does not answer; only probes knock."""

    @property
    def answering(self) -> bool:
        """Whether it answers: UP or DEGRADED."""
        return self is State.UP or self is State.DEGRADED


class Cause(enum.StrEnum):
    """Why a dependency is not well."""

    REFUSED = "refused"
    RESET = "reset"
    TIMED_OUT = "timed out"
    UNREACHABLE = "unreachable"
    DNS = "DNS"
    TLS = "TLS"
    AUTH = "auth"
    WRONG_DATABASE = "wrong database"
    LOADING = "loading"
    READ_ONLY = "read-only"
    OUT_OF_MEMORY = "out of memory"
    DISK_ERROR = "disk error"
    NO_REPLICAS = "no replicas"
    MASTER_DOWN = "master down"
    OVERLOADED = "overloaded"
    MAX_CLIENTS = "max clients"
    PROTOCOL = "protocol"
    LANE_LOST = "lane lost"
    BROKER_LOST = "broker lost"
    NO_LEADER = "no leader"
    NO_COORDINATOR = "no coordinator"
    FENCED = "fenced"
    STALLED = "stalled"
    CLOSED = "closed"
    OTHER = "other"

    @property
    def permanent(self) -> bool:
        """Whether waiting does not heal it: somebody has to change a setting."""
        return self is Cause.AUTH or self is Cause.TLS or self is Cause.WRONG_DATABASE


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A dependency went from one state to another.

    The counts tell what was seen while it was in the previous state.

    Attributes:
        dependency: Its name.
        state: The state it is in now.
        previous: The state it was in before.
        cause: Why, if it is not well.
        detail: The cause in words, one line, without secrets.
        at: Absolute time of the event loop, in seconds.
        after: Seconds spent in the previous state.
        probes: Probes that ended.
        probes_failed: Those among them that failed.
        failures: Failures that its clients reported.
        refusals: Refused writes that its clients reported.
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
    """Raised by a probe: the dependency did not answer as it should.

    Args:
        cause: Why.
        detail: The cause in words, without secrets.
        definite: True for evidence that needs no second look (refused, reset, a permanent
            error): the dependency is down at once. False for evidence that must repeat (a
            timeout), as often as `HealthSettings.fall` says.
    """

    def __init__(self, cause: Cause, detail: str = "", *, definite: bool = False) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
        self.definite = definite


class ProbeDegraded(Exception):
    """Raised by a probe: it answers, but it says itself that it cannot do all of its work.

    Args:
        cause: Why, for example `Cause.READ_ONLY` of a server that says it is a replica.
        detail: The cause in words, without secrets.
        latency: Seconds the answer took, if measured.
    """

    def __init__(self, cause: Cause, detail: str = "", *, latency: float | None = None) -> None:
        super().__init__(cause, detail)
        self.cause = cause
        self.detail = detail
        self.latency = latency


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """When a dependency is probed, and when it is believed to be down or up.

    Args:
        interval: Seconds between probes while it is up; none is sent while replies arrive.
        timeout: Seconds after which a probe has failed. Time during which our own event loop
            was blocked does not count.
        fall: Failures in a row that must agree before it is down, where one alone proves
            nothing (timeouts). A refused or reset connection is proof at once.
        knock: Longest pause between probes of a short outage, in seconds. The pauses are drawn
            from the upper half of it, so that many processes do not knock together.
        knock_cap: Longest pause between probes of a long outage, in seconds.
        short_outage: Seconds for which an outage is short. One with a permanent cause (a wrong
            password, say) never is.
        refusal_hold: Seconds without another refused write after which, if probes are good, it
            is believed to accept writes again.
        history: How many transitions are remembered.

    Raises:
        ConfigurationError: A value is out of range, or two contradict each other.
    """

    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 2
    knock: float = 0.15
    knock_cap: float = 2.0
    short_outage: float = 10.0
    refusal_hold: float = 10.0
    history: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("interval", "timeout", "knock", "knock_cap", "short_outage", "refusal_hold"):
            check_seconds(name, getattr(self, name))
        check_count("fall", self.fall)
        check_count("history", self.history)
        if self.knock > self.knock_cap:
            message = (
                f"knock={self.knock!r} is above knock_cap={self.knock_cap!r}: "
                f"write knock_cap={self.knock!r} or more"
            )
            raise ConfigurationError(message)


_log = logging.getLogger("resilient_io.health")


def first_change(name: str, now: float) -> Change:
    """Return what a watcher is told before the first transition."""
    return Change(
        dependency=name,
        state=State.UNKNOWN,
        previous=State.UNKNOWN,
        cause=None,
        detail="",
        at=now,
        after=0.0,
    )


def describe(state: State, cause: Cause | None, detail: str) -> str:
    """Say a state and why it is so, in a few words."""
    why = ": ".join(word for word in (cause.value if cause is not None else "", detail) if word)
    return f"{state.value} ({why})" if why else state.value


def record(change: Change) -> None:
    """Write the one log record of a transition."""
    well = change.state in (State.UP, State.UNKNOWN)
    _log.log(
        logging.INFO if well else logging.WARNING,
        "%s is %s after %.3f s %s; meanwhile %d probes (%d failed), %d failures, %d refusals",
        change.dependency,
        describe(change.state, change.cause, change.detail),
        change.after,
        change.previous.value,
        change.probes,
        change.probes_failed,
        change.failures,
        change.refusals,
        extra={
            "event": "state_changed",
            "dependency": change.dependency,
            "state": change.state.value,
            "previous": change.previous.value,
            "cause": change.cause.value if change.cause is not None else None,
            "detail": change.detail,
            "after": change.after,
            "probes": change.probes,
            "probes_failed": change.probes_failed,
            "failures": change.failures,
            "refusals": change.refusals,
        },
    )
