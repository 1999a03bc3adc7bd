"""Small histories that keep and break the rules about shared pools, reopening and dropping."""

from __future__ import annotations

import pytest

from tests.simulation.history import Outcome
from tests.simulation.plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan
from tests.simulation.run import run
from tests.simulation.test_checks import Story

POOLED = ClientSetup("a", form={"pooled": True})
REOPENS = ClientSetup("a", form={"reopens": True})
CLOSED = {"error": "RedisClosed: x", "error_bases": ("RedisClosed", "RedisError")}


@pytest.mark.parametrize(
    ("connections", "tasks", "stalled"),
    [
        ([], [], False),
        ([1], [], False),
        ([], ["resilient-io probe redis-a"], False),
        ([1], [], True),
    ],
)
def test_a_pool_without_clients_is_closed(connections, tasks, stalled):
    story = Story(clients=(POOLED,))
    story.event("left", client="a", users=0, connections=[1])
    if stalled:
        story.event("stall", seconds=2.0)
    story.wait(13.0 if not stalled else 9.0)
    story.event("unused", connections=connections, tasks=tasks)
    broken = (connections or tasks) and not stalled
    assert story.broken == (["unused_connections_of_a_pool_are_closed"] if broken else [])


@pytest.mark.parametrize(
    ("seconds", "connections", "case", "broken"),
    [
        (5.0, [1, 2], "", False),
        (5.0, [2], "", False),
        (5.0, [3], "", True),
        (9.995, [], "", False),
        (5.0, [], "fault", False),
        (5.0, [], "closing", False),
        (5.0, [], "used", False),
    ],
)
def test_the_next_client_of_a_pool_finds_a_connection(seconds, connections, case, broken):
    story = Story(clients=(POOLED,), faults=(Fault(0, "reset", 0.0),))
    story.wait(10.0)
    story.event("left", client="a", users=int(case == "used"), connections=[1, 2])
    if case == "fault":
        story.fault()
    if case == "closing":
        story.event("closing", client="a")
    story.wait(seconds)
    story.event("joined", client="a", users=1, connections=connections)
    rule = "connections_of_a_pool_are_kept_for_its_next_client"
    assert story.broken == ([rule] if broken else [])


@pytest.mark.parametrize(
    ("setup", "before", "during", "broken"),
    [
        (ClientSetup("a"), "", "", True),
        (ClientSetup("a"), "closed", "", False),
        (ClientSetup("a"), "", "closing", False),
        (REOPENS, "closed", "", True),
        (REOPENS, "closed", "closing", False),
        (POOLED, "", "", True),
        (POOLED, "", "closing", False),
        (POOLED, "closing", "", False),
        (POOLED, "closed", "", True),  # its next call opens the pool again
    ],
)
def test_a_call_finds_its_client_closed(setup, before, during, broken):
    story = Story(clients=(setup,))
    if before:
        story.event(before, client="a")
    call = story.start(20, "GET r0", kind="get")
    if during:
        story.event(during, client="a")
    story.end(call, Outcome.NOT_APPLIED, **CLOSED)
    rule = "a_call_finds_its_client_closed_only_if_it_was"
    assert story.broken == ([rule] if broken else [])


@pytest.mark.parametrize("visitor", [False, True])
def test_a_call_finds_closed_what_its_owner_closed(visitor):
    story = Story(clients=(POOLED,))
    close = story.start(20, kind="close")
    story.end(close)
    call = story.start(40, "GET r0", kind="visit", facts={"visitor": True} if visitor else {})
    story.end(call, Outcome.NOT_APPLIED, **CLOSED)
    rule = "a_call_finds_its_client_closed_only_if_it_was"
    assert story.broken == ([rule] if visitor else [])
    call.facts["left_at"] = close.started_at
    assert story.broken == []


@pytest.mark.parametrize(
    ("named", "case", "broken"),
    [
        ("name20", "", False),
        ("", "", True),
        ("name10", "", True),
        ("name10", "forbidden", False),
        ("name40", "overlapping", False),
        ("resilient-io", "failed", False),
    ],
)
def test_connections_have_the_name_that_was_set(named, case, broken):
    denied = Fault(0, "deny", 0.0, arguments={"commands": ["CLIENT|SETNAME"]})
    story = Story(clients=(ClientSetup("a"),), faults=(denied,))
    if case == "forbidden":
        story.fault()
    outcome = Outcome.UNKNOWN if case == "failed" else Outcome.OK
    story.end(story.start(20, kind="name", facts={"name": "name20"}), outcome)
    if case == "overlapping":
        story.start(40, kind="name", facts={"name": "name40"})
    call = story.start(60, "SET r0 t60.0")
    story.wrote("SET r0 t60.0")
    name = f"{named}:{'0' * 16}-1"
    words = (b"SET", b"r0", b"t60.0")
    story.history.executed("server1", 1, name, words, applied=True, reply=b"OK")
    story.end(call, reply=True)
    rule = "a_name_that_was_set_is_that_of_all_connections"
    assert story.broken == ([rule] if broken else [])


@pytest.mark.parametrize(
    ("running", "collected", "warned", "broken"),
    [
        (True, True, 1, False),
        (False, True, 0, False),
        (True, True, 0, True),
        (True, False, 1, True),
    ],
)
def test_a_dropped_client_warns(running, collected, warned, broken):
    story = Story()
    story.event("dropped", client="a~20", running=running, collected=collected, warned=warned)
    assert story.broken == (["a_dropped_client_warns_and_is_collected"] if broken else [])


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("pause", "noted"), [(0.0, True), (20.0, False)])
def test_tasks_of_a_temporary_client_are_not_left_by_others(pooled, pause, noted):
    setup = ClientSetup("a", form={"pooled": True} if pooled else {})
    temporary = Call(0, "temporary", arguments={"key": 0, "count": 2, "pause": pause})
    closes = (Call(20, "close"), Call(40, "close", pause=15.0))
    callers = (Caller(0, "a", (temporary,)), Caller(1, "a", closes))
    result = run(Plan(1, "mixed", (setup,), callers, (), NetworkSettings()))
    assert result.violations == []
    kind = "unused" if pooled else "all closed"
    assert [each.kind for each in result.history.events].count(kind) == noted
