"""Rules about what an application reads of a client's health."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Index

_SETTLED = 0.6  # seconds after a change within which every follower has seen it


def what_health_shows_is_consistent(index: Index) -> Iterator[Broken]:
    """In one moment, the state, the snapshot, the history and `available` agree."""
    for operation in index.history.operations:
        if operation.kind != "look" or operation.outcome is not Outcome.OK:
            continue
        shown = operation.reply
        state, latest = shown["state"], shown["history"][-1:]
        published = [c.state for c in index.history.health if c.dependency == shown["name"]]
        if shown["snapshot"] != state or not shown["shown"]:
            why = f"the state is {state}, but the snapshot says {shown['snapshot']}"
        elif latest and latest != [state]:
            why = f"the state is {state}, but the last change was to {latest[0]}"
        elif state == "down" and shown["available"]:
            why = "it is down and available"
        elif state in ("up", "unknown") and not shown["available"]:
            why = f"it is {state} and not available"
        elif published and not _contains(published, shown["history"]):
            why = f"its history {shown['history']} was not published: {published}"
        else:
            continue
        yield Broken(
            f"call {operation.number} read: {why}", (operation.number,), operation.ended_at
        )


def who_follows_a_health_sees_its_latest_state(index: Index) -> Iterator[Broken]:
    """An iteration or a callback has seen the latest state a moment after it changed."""
    for operation in index.history.operations:
        facts = operation.facts
        if operation.kind != "follow" or operation.outcome is not Outcome.OK:
            continue
        if "state" not in facts or operation.ended is None:
            continue
        late = _SETTLED + index.stalled(operation.ended - facts["since"], operation.ended)
        if facts["how"] == "recorder" or facts["since"] < late or not facts["seen"]:
            continue
        if facts["seen"][-1] != facts["state"]:
            yield Broken(
                f"call {operation.number} ({facts['how']}) saw {facts['seen']}, but the state was "
                f"{facts['state']} for {facts['since']:.3f} s",
                (operation.number,),
                operation.ended_at,
            )


def a_flight_recorder_has_every_change(index: Index) -> Iterator[Broken]:
    """Each change of state while a recorder was added is in it, in order."""
    for operation in index.history.operations:
        if operation.kind != "follow" or operation.facts.get("how") != "recorder":
            continue
        if operation.outcome is not Outcome.OK:
            continue
        name = index.dependencies.get(operation.client)
        changes = [
            change.state
            for change in index.history.health
            if change.dependency == name
            and operation.started_at < change.at < (operation.ended_at or 0)
        ]
        recorded = operation.facts.get("events", [])
        # A change is published a moment after it was recorded.
        if [state for state, _ in groupby(recorded)] != [state for state, _ in groupby(changes)]:
            if recorded[:-1] == changes or recorded == changes[1:]:
                continue
            yield Broken(
                f"a flight recorder has {recorded}, but the changes were {changes}",
                (operation.number,),
                operation.ended_at,
            )


def waiting_for_up_ends_when_it_is_up(index: Index) -> Iterator[Broken]:
    """`until_up` returns only while the dependency answers."""
    for operation in index.history.operations:
        state = operation.facts.get("state")
        if operation.kind == "wait up" and state not in (None, "up", "degraded"):
            yield Broken(
                f"until_up returned, but the state is {state}",
                (operation.number,),
                operation.ended_at,
            )


def _contains(published: list[str], shown: list[str]) -> bool:
    """Return whether a history is a part of what was published, apart from its newest change."""
    for part in (shown, shown[:-1]):
        size = len(part)
        if any(published[at : at + size] == part for at in range(len(published) - size + 1)):
            return True
    return False
