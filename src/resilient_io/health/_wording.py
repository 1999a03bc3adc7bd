"""How health says things: the log record of a transition, a state in words."""

from __future__ import annotations

import logging

from resilient_io.health._states import Cause, Change, State

__all__ = ["describe", "first_change", "record"]

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
