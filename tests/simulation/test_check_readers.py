"""Small histories that keep and break the rules about locks and about what applications read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.history import Outcome
from tests.simulation.plan import Call, Caller, Fault
from tests.simulation.test_checks import Story


def _taken(story: Story, number: int = 20, *, fencing: int = 0, **facts: Any) -> Any:
    """Add that a caller acquires lock0 with the token "aaaa"."""
    facts = {"lock": "lock0", "timeout": 10.0, "fencing": bool(fencing), **facts}
    operation = story.start(number, kind="acquire", facts=facts)
    if fencing:
        story.run("EVALSHA 99 2 lock0 {lock0}:fencing aaaa 10000", fencing)
    else:
        story.run("SET lock0 aaaa NX PX 10000")
    return story.end(operation, reply=True, token="aaaa")


def _held(story: Story, seconds: float, *, lost: bool = False) -> None:
    """Add that the caller watches the lock for a while, and begins to release it."""
    hold = story.start(23, kind="hold", facts={"lock": "lock0", "token": "aaaa"})
    hold.facts["watched"] = story.time
    story.wait(seconds)
    if lost:
        hold.facts["lost_at"], hold.facts["lost"] = story.history.next(), story.time
    story.end(hold)
    release = story.start(22, kind="release", facts={"lock": "lock0", "token": "aaaa"})
    story.end(release, Outcome.REFUSED)


@pytest.mark.parametrize("number", [5, 6])
def test_a_holder_has_the_number_that_the_server_counted(number):
    story = Story()
    acquire = _taken(story, fencing=5)
    acquire.facts["number"] = number
    assert story.broken == (["the_numbers_of_holders_increase"] if number == 6 else [])


def test_a_copy_that_takes_the_lock_again_does_not_change_the_number_of_its_holder():
    story = Story()
    _taken(story, fencing=5).facts["number"] = 5
    story.run("DEL lock0", 1)
    story.run("EVALSHA 99 2 lock0 {lock0}:fencing aaaa 10000", 6)
    assert "the_numbers_of_holders_increase" not in story.broken


def test_numbers_of_holders_increase():
    story = Story()
    _taken(story, fencing=5).facts["number"] = 5
    story.run("DEL lock0", 1)
    story.run("EVALSHA 99 2 lock0 {lock0}:fencing bbbb 10000", 5)
    assert story.broken == ["the_numbers_of_holders_increase"]


@pytest.mark.parametrize("case", ["held", "deleted", "timeout"])
def test_a_lock_is_lost_only_if_its_key_is_gone(case):
    story = Story()
    _taken(story)
    if case == "deleted":
        story.run("DEL lock0", 1)
    _held(story, 10.0 if case == "timeout" else 0.5, lost=True)
    assert story.broken == (["a_lock_is_reported_lost_only_if_it_is"] if case == "held" else [])


@pytest.mark.parametrize(("seconds", "broken"), [(1.0, False), (2.0, True)])
def test_a_holder_learns_of_a_deletion(seconds, broken):
    story = Story()
    _taken(story)
    story.run("DEL lock0", 1)
    _held(story, seconds)
    assert story.broken == (["a_holder_learns_of_the_loss_of_its_lock"] if broken else [])


def test_a_holder_may_learn_later_of_a_deletion_when_something_fails():
    story = Story(faults=(Fault(0, "cut", 0.0, 1.0),))
    story.fault(0, 1.0)
    _taken(story)
    story.run("DEL lock0", 1)
    _held(story, 3.0)
    assert story.broken == []


@pytest.mark.parametrize(
    ("seconds", "closed", "broken"),
    [(10.1, False, False), (10.6, False, True), (10.6, True, False)],
)
def test_a_holder_knows_its_timeout(seconds, closed, broken):
    story = Story()
    _taken(story)
    if closed:
        for event in ("closing", "closed", "opened"):
            story.event(event, client="a")
    _held(story, seconds)
    name = "a_holder_does_not_outlast_the_timeout_of_its_lock"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize(("seconds", "broken"), [(0.3, False), (1.0, True)])
def test_a_holder_is_notified_when_its_client_is_closed(seconds, broken):
    story = Story()
    _taken(story)
    hold = story.start(23, kind="hold", facts={"lock": "lock0", "token": "aaaa"})
    hold.facts["watched"] = story.time
    story.wait(0.5)
    for event in ("closing", "closed"):
        story.event(event, client="a")
    story.wait(seconds)
    hold.facts["lost_at"], hold.facts["lost"] = story.history.next(), story.time
    story.end(hold)
    name = "a_holder_is_notified_when_its_client_is_closed"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize("renew", [False, True])
def test_a_renewed_lock_is_kept(renew):
    story = Story()
    _taken(story, timeout=1.0, renew=renew)
    story.wait(1.0)
    story.history.event("server1", "expired", key="lock0", database=0, due=story.time)
    assert story.broken == (["a_renewed_lock_does_not_expire"] if renew else [])


@pytest.mark.parametrize(("free", "broken"), [(0.5, False), (1.0, True)])
def test_a_waiting_caller_gets_a_lock(free, broken):
    story = Story()
    waiting = story.start(40, kind="acquire", facts={"lock": "lock0", "timeout": 10.0})
    _taken(story)
    story.run("DEL lock0", 1)
    story.wait(free)
    story.end(waiting, reply=False)
    assert story.broken == (["a_waiting_caller_gets_a_free_lock"] if broken else [])


@pytest.mark.parametrize("reply", ["ended", "raised"])
def test_a_block_raises_what_its_body_raises(reply):
    calls = (Call(20, "lock block", arguments={"raises": False}),)
    story = Story(callers=(Caller(0, "a", calls),))
    facts = {"lock": "lock0", "timeout": 10.0}
    story.end(story.start(20, kind="lock block", facts=facts), reply=reply)
    expected = ["a_block_raises_what_its_body_raises"] if reply == "raised" else []
    assert story.broken == expected


SHOWN = {
    "name": "redis-a",
    "state": "up",
    "snapshot": "up",
    "shown": True,
    "available": True,
    "history": ["up"],
}


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, False),
        ({"snapshot": "down"}, True),
        ({"shown": False}, True),
        ({"available": False}, True),
        ({"history": ["down"]}, True),
        ({"history": ["down", "down", "up"]}, True),
    ],
)
def test_health_shows_one_state(changes, broken):
    story = Story()
    story.state("up")
    story.end(story.start(20, kind="look"), reply=SHOWN | changes)
    assert story.broken == (["what_health_shows_is_consistent"] if broken else [])


@pytest.mark.parametrize(("seen", "since", "broken"), [("down", 0.1, False), ("down", 2.0, True)])
def test_a_follower_sees_the_latest_state(seen, since, broken):
    story = Story()
    facts = {"how": "watch", "seen": [seen], "state": "up", "since": since}
    story.end(story.start(20, kind="follow", facts=facts))
    assert story.broken == (["who_follows_a_health_sees_its_latest_state"] if broken else [])


@pytest.mark.parametrize(("events", "broken"), [(["up"], False), ([], True), (["down"], True)])
def test_a_recorder_has_every_change(events, broken):
    story = Story()
    operation = story.start(20, kind="follow", facts={"how": "recorder", "events": events})
    story.state("up")
    story.state("up")
    story.end(operation)
    assert story.broken == (["a_flight_recorder_has_every_change"] if broken else [])


@pytest.mark.parametrize("state", ["up", "down"])
def test_until_up_returns_when_it_is_up(state):
    story = Story()
    story.end(story.start(20, kind="wait up", facts={"state": state}))
    assert story.broken == (["waiting_for_up_ends_when_it_is_up"] if state == "down" else [])


@pytest.mark.parametrize("reply", ["RouteRefused", "RedisClosed", "no error, but None"])
def test_a_misuse_is_refused(reply):
    story = Story()
    story.end(story.start(20, kind="misuse", facts={"what": "select"}), reply=reply)
    assert story.broken == (["a_misuse_raises_its_error"] if "no error" in reply else [])


@pytest.mark.parametrize("ended", [2, 3])
def test_a_tracer_sees_each_call_end(ended):
    story = Story()
    story.history.ending.spans = {"begun": 3, "ended": ended}
    assert story.broken == (["a_tracer_sees_the_end_of_every_call"] if ended == 2 else [])
