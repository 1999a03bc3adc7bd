"""Reads the heartbeat file of a service, and judges it by its age and by what it says."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NamedTuple

__all__ = ["PATIENCE", "Verdict", "judged"]

PATIENCE = {"live": 30.0, "ready": 5.0, "started": 5.0}
"""How many of the writer's intervals a heartbeat may be old.

A service that was busy for a moment must not be restarted, but it need not get more work either.
"""

_LONGEST = 1 << 16
_ENDLESS = 1e12
_NEGATIVE = {"live": "not alive", "ready": "not ready", "started": "not started"}
_FACTS = {"live": "alive", "ready": "ready", "started": "started"}


class Verdict(NamedTuple):
    """What a probe found.

    Attributes:
        good: Whether the answer is yes; None if it could not be found out.
        said: The answer in one line.
        facts: What else there is to say, for `--json`.
    """

    good: bool | None
    said: str
    facts: dict[str, object]


def judged(path: str, question: str, longest: float | None) -> Verdict:
    """Judge a heartbeat file.

    Args:
        path: Where it is.
        question: "live", "ready" or "started".
        longest: Seconds that it may be old; None for a multiple of its own interval.
    """
    no = _NEGATIVE[question]
    try:
        with open(path, "rb", opener=_at_once) as file:
            text = file.read(_LONGEST)
    except FileNotFoundError:
        return Verdict(False, f"{no}: there is no heartbeat at {path} yet", {})
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return Verdict(None, f"cannot read {path}: {reason}", {})
    heartbeat = _parsed(text)
    if heartbeat is None:
        return Verdict(None, f"{path} is no heartbeat file of resilient_io", {})
    allowed = PATIENCE[question] * heartbeat["interval"] if longest is None else longest
    # A clock that was set back makes a heartbeat come from the future: just as doubtful.
    age = abs(time.time() - heartbeat["at"])
    facts = {"age": round(age, 3), "allowed": allowed, "heartbeat": heartbeat}
    why = _objection(heartbeat, question, age, allowed)
    if why is not None:
        return Verdict(False, f"{no}{': ' if why else ''}{why}", facts)
    return Verdict(True, f"{_FACTS[question]} ({heartbeat['state']}, {age:.1f} s ago)", facts)


def _at_once(path: str, flags: int) -> int:
    # Of os alone: pathlib costs 10 ms of import.
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def _objection(heartbeat: dict[str, Any], question: str, age: float, allowed: float) -> str | None:
    """Say why the answer is no, perhaps without words; None if it is yes."""
    stopped = bool(heartbeat.get("stopped"))
    if age > allowed:
        gone = "it had stopped" if stopped else "the process hangs, or is gone"
        return f"the heartbeat is {age:.1f} s old, {allowed:g} s are allowed: {gone}"
    if stopped and question != "live":  # who ends in good order is not to be restarted for it
        return "it has stopped"
    if not heartbeat[_FACTS[question]]:
        because = heartbeat.get("because")
        return "; ".join(map(str, because)) if isinstance(because, list) else ""
    return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        # JSON has numbers without end, and none of a service's are.
        if isinstance(found, dict) and 0 < found["interval"] < _ENDLESS > found["at"] > 0:
            known = {name: found[name] for name in (*_FACTS.values(), "state")}
            return {
                **found,
                **known,
                "at": float(found["at"]),
                "interval": float(found["interval"]),
            }
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
