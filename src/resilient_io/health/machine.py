"""The state machine: evidence in, state changes out. It knows no loop, no task and no clock."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from .states import Cause, Change, State, clean_detail, describe_state

if TYPE_CHECKING:
    from .states import HealthSettings

FLAP_WINDOW = 60.0  # seconds for which a fall counts against a dependency
MOST_TO_RISE = 16  # largest number of good probes that a flapping dependency needs to be UP again
RISE_SPACING = 0.1  # seconds between the good probes of a dependency that needs more than one

_UP = State.UP  # a member of an enumeration takes longer to look up than a global

Part: TypeAlias = tuple[object, str]
"""A part of a dependency: the client that reports it (or None), and its name."""


class Machine:
    """Derives the state of one dependency from evidence.

    Every method that takes evidence also takes the loop time `now`, and returns the change of state
    that it caused, or None.
    """

    # fmt: off
    __slots__ = (
        "_accepted", "_contact", "_counted", "_failovers", "_falls", "_good", "_last_good",
        "_limitation", "_not_serving", "_parts", "_refusal", "_refuses_some", "_remark",
        "_suspected", "_trouble", "cause", "changes", "detail", "failures", "latency", "name",
        "probes_failed", "probes_ok", "refusals", "settings", "since", "state", "streak",
        "transitions",
    )
    # fmt: on

    def __init__(self, name: str, settings: HealthSettings) -> None:
        self.name = name
        self.settings = settings
        self.state = State.UNKNOWN
        self.since = 0.0
        self.cause: Cause | None = None
        self.detail = ""
        self.latency: float | None = None
        self.streak = 0  # consecutive failures, none of which was proof
        self.transitions = 0
        self.changes: dict[tuple[State, Cause | None], int] = {}
        self.probes_ok = 0
        self.probes_failed = 0
        self.failures = 0
        self.refusals = 0
        self._counted = (0, 0, 0, 0)  # the counts at the last change
        self._contact = State.UNKNOWN  # UNKNOWN, UP or DOWN
        self._trouble: tuple[Cause | None, str] = (None, "")  # why it is DOWN or UNKNOWN
        self._refusal: tuple[Cause, str, float] | None = None  # reported by calls
        self._accepted = -math.inf  # when an accepted write ended a period of refusals
        self._refuses_some = False  # whether another one was refused soon after that
        self._limitation: tuple[Cause, str] | None = None  # reported by the latest probe
        self._not_serving = False  # whether it answered the latest probe that it does not serve
        self._parts: dict[Part, tuple[Cause, str]] = {}
        self._suspected: dict[Part, tuple[Cause, str]] = {}
        self._failovers: dict[object, str] = {}  # those in progress, by the client that waits
        self._remark = ""  # what is known about an outage beyond its cause
        self._good = 0
        self._last_good = 0.0
        self._falls: list[float] = []  # the latest

    @property
    def refusing(self) -> bool:
        """Whether writes are refused, at least some of them."""
        return self._refusal is not None

    @property
    def contact(self) -> State:
        """Whether it answers at all: UNKNOWN, UP or DOWN. The latter also during a failover."""
        return self._contact

    @property
    def parts_lost(self) -> list[str]:
        """The lost parts, in the order in which they were lost."""
        return [name for _, name in (*self._parts, *self._suspected)]

    def needed_to_rise(self, now: float) -> int:
        """Return how many good probes a dependency that is DOWN needs to be UP again."""
        recent = sum(1 for fall in self._falls if now - fall <= FLAP_WINDOW)
        return min(1 << max(recent - 1, 0), MOST_TO_RISE)

    @property
    def rising(self) -> bool:
        """Whether the dependency is DOWN and has answered since it last failed."""
        return self._contact is State.DOWN and self._good > 0

    def describe(self) -> str:
        """Return the state and its cause in words."""
        return describe_state(self.state, self.cause, self.detail)

    # --- evidence from probes

    def probe_ok(self, now: float, latency: float | None) -> Change | None:
        """Take a good answer to a probe."""
        self.probes_ok += 1
        settled = self.state is _UP and self._contact is _UP and not self._suspected
        if settled and not self._not_serving:
            # There is nothing that a good probe could change.
            self.streak = 0
            if latency is not None:
                self.latency = latency
            return None
        self._limitation, self._not_serving = None, False
        if self._refusal is not None and now - self._refusal[2] >= self.settings.refusal_hold:
            self._refusal, self._refuses_some = None, False
        return self._answered(now, latency)

    def probe_degraded(
        self, now: float, cause: Cause, detail: str, latency: float | None
    ) -> Change | None:
        """Take an answer to a probe that reports a limitation."""
        self.probes_ok += 1
        self._limitation, self._not_serving = (cause, detail), False
        return self._answered(now, latency)

    def probe_failed(
        self, now: float, cause: Cause, detail: str, *, definite: bool, answered: bool = False
    ) -> Change | None:
        """Take the failure of a probe. A definite failure is proof on its own.

        If the dependency `answered` that it does not serve, only a good probe ends that.
        """
        self.probes_failed += 1
        self._not_serving = answered
        self._confirm_parts()
        return self._failed(now, cause, detail, definite=definite)

    def probe_overruled(self, now: float) -> Change | None:
        """Take the failure of a probe during which the dependency answered clients."""
        self.probes_failed += 1
        return self._answered(now, None)

    # --- evidence from clients

    def succeeded(self, now: float, latency: float | None) -> Change | None:
        """Take the success of a client, for example that it has connected."""
        if self._contact is State.DOWN and self._not_serving:
            return None  # a server that does not serve yet accepts connections, too
        return self._answered(now, latency)

    def failed(
        self, now: float, cause: Cause, detail: str, *, definite: bool, probed: bool
    ) -> Change | None:
        """Take the failure of a client. If there is a probe, it decides what the failure means."""
        self.failures += 1
        if not probed:
            return self._failed(now, cause, detail, definite=definite)
        silent = cause is Cause.TIMED_OUT or (cause is Cause.UNREACHABLE and not definite)
        if self._contact is not State.DOWN and silent:
            # Many calls time out together. They are one piece of evidence.
            self.streak = max(self.streak, 1)
        return None

    def refused(self, now: float, cause: Cause, detail: str) -> Change | None:
        """Take the refusal of a write."""
        self.refusals += 1
        if now - self._accepted < self.settings.refusal_hold:
            self._refuses_some = True
        self._refusal = (cause, detail, now)
        if self._contact is State.UP:
            return self._settle(now)
        return self._answered(now, None)  # a refusal is an answer

    def accepted(self, now: float) -> Change | None:
        """Take the acceptance of a write, which ends a period of refusals.

        Without memory, for example, Redis refuses SET and accepts DEL. Then it proves something
        only if no write was refused for `refusal_hold`.
        """
        if self._refuses_some and self._refusal is not None:
            cause, _, last = self._refusal
            # A cluster that is down refuses everything, and serves again after an election.
            brief = cause is Cause.CLUSTER_DOWN
            if now - last < (self.settings.interval if brief else self.settings.refusal_hold):
                return None
        self._refusal, self._refuses_some, self._accepted = None, False, now
        return self._settle(now)

    def part_lost(
        self, now: float, part: Part, cause: Cause, detail: str, *, probed: bool
    ) -> Change | None:
        """Take the loss of a part. If there is a probe, it first checks the whole."""
        if self._contact is State.DOWN:
            return None  # the whole is lost; lost parts are reported again when it is UP
        if probed and part not in self._parts:
            self._suspected[part] = (cause, detail)
            return None
        self._parts[part] = (cause, detail)
        return self._settle(now)

    def part_back(self, now: float, part: Part) -> Change | None:
        """Take the return of a part."""
        self._parts.pop(part, None)
        self._suspected.pop(part, None)
        return self._settle(now)

    def failover_began(self, now: float, owner: object, detail: str) -> Change | None:
        """Take the beginning of a failover: DEGRADED, although the master may not answer."""
        self._failovers[owner] = detail
        return self._settle(now)

    def failover_ended(self, now: float, owner: object) -> Change | None:
        """Take the end of a failover, successful or not."""
        self._failovers.pop(owner, None)
        return self._settle(now)

    def remark(self, now: float, text: str) -> Change | None:
        """Add a remark to the detail of an outage, or remove it."""
        self._remark = text
        return self._settle(now)

    def parts_gone(self, now: float, owner: object) -> Change | None:
        """Forget the lost parts of a client that no longer exists."""
        self._failovers.pop(owner, None)
        self._parts = {part: why for part, why in self._parts.items() if part[0] is not owner}
        self._suspected = {
            part: why for part, why in self._suspected.items() if part[0] is not owner
        }
        return self._settle(now)

    def forget(self, now: float) -> Change | None:
        """Forget all evidence: the dependency is no longer watched."""
        self._contact = State.UNKNOWN
        self._refusal = self._limitation = None
        self._refuses_some = self._not_serving = False
        self._parts.clear()
        self._suspected.clear()
        self._failovers.clear()
        self._remark = ""
        self._falls.clear()
        self.streak = self._good = 0
        self.latency = None
        self._trouble = (Cause.CLOSED, "no longer watched")
        return self._settle(now)

    # --- from evidence to state

    def _answered(self, now: float, latency: float | None) -> Change | None:
        self.streak = 0
        if latency is not None:
            self.latency = latency
        self._confirm_parts()
        if self._contact is State.DOWN:
            # Answers in a burst, less than half the spacing apart, are one piece of evidence.
            if self._good and now - self._last_good < RISE_SPACING / 2:
                return None
            self._good += 1
            self._last_good = now
            if self._good < self.needed_to_rise(now):
                return None
        self._contact = State.UP
        return self._settle(now)

    def _failed(self, now: float, cause: Cause, detail: str, *, definite: bool) -> Change | None:
        self._good = 0
        self.streak += 1
        if self._contact is not State.DOWN:
            if not definite and self.streak < self.settings.fall:
                return self._settle(now)
            self._contact = State.DOWN
            self._falls = [*self._falls, now][-MOST_TO_RISE.bit_length() :]
            self._refusal = self._limitation = None
            self._refuses_some = False
            self._parts.clear()
        elif cause is Cause.TIMED_OUT and self._trouble[0] is Cause.UNREACHABLE:
            return self._settle(now)  # silence adds nothing to what the kernel has shown
        self._trouble = (cause, detail)
        return self._settle(now)

    def _confirm_parts(self) -> None:
        self._parts.update(self._suspected)
        self._suspected.clear()

    def _settle(self, now: float) -> Change | None:
        """Derive the state. This is the only place where it changes."""
        state, cause, detail = self._derive()
        detail = clean_detail(detail) if detail else ""
        previous, since = self.state, self.since
        self.cause, self.detail = cause, detail
        if state is previous:
            return None
        counts = (self.probes_ok, self.probes_failed, self.failures, self.refusals)
        ok, bad, failures, refusals = (
            new - old for new, old in zip(counts, self._counted, strict=True)
        )
        self._counted = counts
        self._good = 0
        self.state, self.since = state, now
        self.transitions += 1
        self.changes[state, cause] = self.changes.get((state, cause), 0) + 1
        return Change(
            dependency=self.name,
            state=state,
            previous=previous,
            cause=cause,
            detail=detail,
            at=now,
            after=now - since,
            probes=ok + bad,
            probes_failed=bad,
            failures=failures,
            refusals=refusals,
        )

    def _derive(self) -> tuple[State, Cause | None, str]:
        if self._contact is not State.UNKNOWN and self._failovers:
            return State.DEGRADED, Cause.FAILOVER, next(iter(self._failovers.values()))
        if self._contact is not State.UP:
            cause, detail = self._trouble
            remark = self._remark if self._contact is State.DOWN else ""
            return self._contact, cause, "; ".join(part for part in (detail, remark) if part)
        if self._refusal is not None:
            return State.DEGRADED, self._refusal[0], self._refusal[1]
        if self._limitation is not None:
            return State.DEGRADED, *self._limitation
        for (_, name), (cause, detail) in self._parts.items():
            return State.DEGRADED, cause, f"{name}: {detail}" if detail else name
        return State.UP, None, ""
