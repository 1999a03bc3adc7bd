"""Plans that have failed, minimized and kept in files: each must never fail again.

A file keeps the whole plan, because a change of `draw.py` gives a seed another meaning.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan

FOLDER = Path(__file__).with_name("plans")


class Recorded(NamedTuple):
    """A plan that has failed.

    Attributes:
        finding: What was wrong with the client, in one sentence.
        rule: The name of the rule that it broke.
        plan: The smallest plan that broke it.
    """

    finding: str
    rule: str
    plan: Plan


def save(path: Path, recorded: Recorded) -> None:
    """Write a plan to a file. Values that equal their defaults are left out."""
    facts = {
        "finding": recorded.finding,
        "rule": recorded.rule,
        "plan": _without_defaults(asdict(recorded.plan)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _without_defaults(values: dict[str, Any]) -> dict[str, Any]:
    for client in values["clients"]:
        _drop(client, asdict(ClientSetup("")))
    for caller in values["callers"]:
        for call in caller["calls"]:
            _drop(call, asdict(Call(-1, "")))
    for fault in values["faults"]:
        _drop(fault, asdict(Fault(-1, "", -1.0)))
    return values


def _drop(values: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        if values[name] == default:
            del values[name]


def load(path: Path) -> Recorded:
    """Read a file.

    Raises:
        ValueError: The file is not a recorded plan.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        values = facts["plan"]
        plan = Plan(
            seed=values["seed"],
            theme=values["theme"],
            clients=tuple(ClientSetup(**each) for each in values["clients"]),
            callers=tuple(
                Caller(
                    each["number"], each["client"], tuple(Call(**call) for call in each["calls"])
                )
                for each in values["callers"]
            ),
            faults=tuple(Fault(**each) for each in values["faults"]),
            network=NetworkSettings(**values["network"]),
            server=values["server"],
        )
        return Recorded(facts["finding"], facts["rule"], plan)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a recorded plan: {error!r}") from None


def files() -> list[Path]:
    """Return the files of all recorded plans."""
    return sorted(FOLDER.glob("*.json"))
