"""The words of health: states, causes, changes, and what a probe reports."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Cause", "Change", "ProbeDegraded", "ProbeFailed", "State"]


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
