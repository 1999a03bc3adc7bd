"""The state machine: evidence in, transitions out. It knows no loop, no task and no clock."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .states import Cause, Change, State

if TYPE_CHECKING:
    from .states import HealthSettings


FLAP_WINDOW = 60.0
"""Seconds for which a fall is held against a dependency."""

MOST_TO_RISE = 16
"""Most good probes that a flapping dependency needs to be up again."""

RISE_SPACING = 0.1
"""Seconds between the good probes of a dependency that needs more than one."""

_DETAIL_LIMIT = 300


class Machine:
    """Turns evidence about one dependency into its state.

    Every method that takes evidence takes the loop time `now` too, and returns the transition
    that it caused, or None.
    """

    def __init__(self, name: str, settings: HealthSettings) -> None:
        self.name = name
        self.settings = settings
        self.state = State.UNKNOWN
        self.since = 0.0
        self.cause: Cause | None = None
        self.detail = ""
        self.latency: float | None = None
        self.streak = 0  # failures in a row, none of which was proof
        self.transitions = 0
        self.changes: dict[tuple[State, Cause | None], int] = {}
        self.probes_ok = 0
        self.probes_failed = 0
        self.failures = 0
        self.refusals = 0
        self._counted = (0, 0, 0, 0)  # the counts at the last transition
        self._contact = State.UNKNOWN  # UNKNOWN, UP or DOWN
        self._trouble: tuple[Cause | None, str] = (None, "")  # why it is DOWN or UNKNOWN
        self._refusal: tuple[Cause, str, float] | None = None  # told by calls
        self._admission: tuple[Cause, str] | None = None  # told by the latest probe
        self._parts: dict[str, tuple[Cause, str]] = {}
        self._suspected: dict[str, tuple[Cause, str]] = {}
        self._good = 0
        self._last_good = 0.0
        self._falls: deque[float] = deque(maxlen=MOST_TO_RISE.bit_length())

    @property
    def refusing(self) -> bool:
        """Whether a call said that writes are refused, and none has been accepted since."""
        return self._refusal is not None

    @property
    def parts_lost(self) -> list[str]:
        """The parts that are lost, in the order in which they were lost."""
        return [*self._parts, *self._suspected]

    def needed_to_rise(self, now: float) -> int:
        """Return how many good probes a dependency that is down needs to be up again."""
        recent = sum(1 for fall in self._falls if now - fall <= FLAP_WINDOW)
        return min(1 << max(recent - 1, 0), MOST_TO_RISE)

    @property
    def rising(self) -> bool:
        """Whether it is down and has given good evidence since it last failed."""
        return self._contact is State.DOWN and self._good > 0

    # --- evidence of probes

    def probe_ok(self, now: float, latency: float | None) -> Change | None:
        """Take a probe's good answer."""
        self.probes_ok += 1
        self._admission = None
        if self._refusal is not None and now - self._refusal[2] >= self.settings.refusal_hold:
            self._refusal = None
        return self._answered(now, latency)

    def probe_degraded(
        self, now: float, cause: Cause, detail: str, latency: float | None
    ) -> Change | None:
        """Take a probe's answer that it cannot do all of its work."""
        self.probes_ok += 1
        self._admission = (cause, detail)
        return self._answered(now, latency)

    def probe_failed(
        self, now: float, cause: Cause, detail: str, *, definite: bool
    ) -> Change | None:
        """Take a probe's failure; `definite` is proof alone."""
        self.probes_failed += 1
        self._confirm_parts()
        return self._fell_short(now, cause, detail, definite=definite)

    def probe_overruled(self, now: float) -> Change | None:
        """Take a probe's failure during which the dependency answered others."""
        self.probes_failed += 1
        return self._answered(now, None)

    # --- evidence of clients

    def succeeded(self, now: float, latency: float | None) -> Change | None:
        """Take a client's good news, for example that it has connected."""
        return self._answered(now, latency)

    def failed(
        self, now: float, cause: Cause, detail: str, *, definite: bool, probed: bool
    ) -> Change | None:
        """Take a client's bad news, which a probe, if there is one, is about to judge."""
        self.failures += 1
        if not probed:
            return self._fell_short(now, cause, detail, definite=definite)
        if self._contact is not State.DOWN and cause is Cause.TIMED_OUT:
            # Many calls time out together: they are one piece of evidence, not many.
            self.streak = max(self.streak, 1)
        return None

    def refused(self, now: float, cause: Cause, detail: str) -> Change | None:
        """Take a client's news that a write was refused."""
        self.refusals += 1
        self._refusal = (cause, detail, now)
        if self._contact is State.UP:
            return self._settle(now)
        return self._answered(now, None)  # who refuses has answered

    def accepted(self, now: float) -> Change | None:
        """Take a client's news that a write was accepted."""
        self._refusal = None
        return self._settle(now)

    def part_lost(
        self, now: float, part: str, cause: Cause, detail: str, *, probed: bool
    ) -> Change | None:
        """Take the loss of a part; a probe, if there is one, first judges the whole."""
        if self._contact is State.DOWN:
            return None  # the whole is lost: its parts are found again when it is up
        if probed and part not in self._parts:
            self._suspected[part] = (cause, detail)
            return None
        self._parts[part] = (cause, detail)
        return self._settle(now)

    def part_back(self, now: float, part: str) -> Change | None:
        """Take the return of a part."""
        self._parts.pop(part, None)
        self._suspected.pop(part, None)
        return self._settle(now)

    def forget(self, now: float) -> Change | None:
        """Forget all evidence: nobody watches any longer."""
        self._contact = State.UNKNOWN
        self._refusal = self._admission = None
        self._parts.clear()
        self._suspected.clear()
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
            # Half the spacing: news that come in a burst are one piece of evidence.
            if self._good and now - self._last_good < RISE_SPACING / 2:
                return None
            self._good += 1
            self._last_good = now
            if self._good < self.needed_to_rise(now):
                return None
        self._contact = State.UP
        return self._settle(now)

    def _fell_short(
        self, now: float, cause: Cause, detail: str, *, definite: bool
    ) -> Change | None:
        self._good = 0
        self.streak += 1
        if self._contact is not State.DOWN:
            if not definite and self.streak < self.settings.fall:
                return self._settle(now)
            self._contact = State.DOWN
            self._falls.append(now)
            self._refusal = self._admission = None
            self._parts.clear()
        self._trouble = (cause, detail)
        return self._settle(now)

    def _confirm_parts(self) -> None:
        self._parts.update(self._suspected)
        self._suspected.clear()

    def _settle(self, now: float) -> Change | None:
        """Derive the state; it is the only place where it changes."""
        state, cause, detail = self._derive()
        if detail:
            # Half signs, as of a file's odd name, can be written nowhere.
            text = detail.encode("utf-8", "backslashreplace").decode()
            detail = " ".join(text.split())[:_DETAIL_LIMIT]
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
        if self._contact is not State.UP:
            return self._contact, *self._trouble
        if self._refusal is not None:
            return State.DEGRADED, self._refusal[0], self._refusal[1]
        if self._admission is not None:
            return State.DEGRADED, *self._admission
        for part, (cause, detail) in self._parts.items():
            return State.DEGRADED, cause, f"{part}: {detail}" if detail else part
        return State.UP, None, ""
