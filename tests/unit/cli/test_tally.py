"""What `watch` adds up."""

import pytest

from resilient_io import Cause, Change, State
from resilient_io.cli.tally import Tally


def change(state, previous, at, *, cause=None, detail=""):
    return Change(
        dependency="redis",
        state=state,
        previous=previous,
        cause=cause,
        detail=detail,
        at=at,
        after=0.0,
    )


def outage(tally, begins, ends):
    tally.changed(
        change(State.DOWN, State.UP, begins, cause=Cause.REFUSED, detail="Connection refused")
    )
    tally.changed(change(State.UP, State.DOWN, ends))


def test_availability_is_the_share_of_the_known_time():
    tally = Tally("redis", 100.0)
    tally.changed(change(State.UP, State.UNKNOWN, 105.0))  # nobody knows about these 5 s
    outage(tally, 106.0, 107.0)
    tally.until(109.0)
    assert tally.availability == pytest.approx(0.75)
    assert tally.down == pytest.approx(1.0)
    assert tally.outages == 1
    assert not tally.well


def test_a_degraded_dependency_answers():
    tally = Tally("redis", 0.0)
    tally.changed(change(State.DEGRADED, State.UNKNOWN, 0.0, cause=Cause.READ_ONLY))
    tally.until(10.0)
    assert tally.availability == 1.0
    assert tally.well
    assert "degraded for 10.0 s" in tally.said()


def test_the_longest_outage_is_kept_and_the_one_that_lasts_counts():
    tally = Tally("redis", 0.0)
    tally.changed(change(State.UP, State.UNKNOWN, 0.0))
    outage(tally, 1.0, 4.0)
    outage(tally, 5.0, 6.0)
    assert tally.longest == pytest.approx(3.0)
    tally.changed(change(State.DOWN, State.UP, 10.0, cause=Cause.TIMED_OUT))
    tally.until(15.0)
    tally.until(20.0)
    assert tally.longest == pytest.approx(10.0)
    assert tally.outages == 3
    assert "down 3 times, 14.0 s, longest 10.0 s (last: timed out)" in tally.said()


def test_answers_are_summed_up_without_being_kept():
    tally = Tally("redis", 0.0)
    for latency in (0.002, 0.001, 0.006):
        tally.answered(latency)
    assert (tally.fastest, tally.slowest, tally.answers) == (0.001, 0.006, 3)
    assert tally.mean == pytest.approx(0.003)
    tally.changed(change(State.UP, State.UNKNOWN, 0.0))
    tally.until(1.0)
    assert tally.said() == (
        "redis: answered 100.00% of 1.0 s; 3 answers, min/avg/max 1.00/3.00/6.00 ms"
    )


def test_of_what_was_never_heard_from_nothing_is_said():
    tally = Tally("redis", 0.0)
    tally.until(5.0)
    assert tally.availability is None
    assert not tally.well
    assert tally.said() == "redis: nothing was heard"


def test_it_is_json_as_it_stands():
    tally = Tally("redis", 0.0)
    tally.changed(change(State.UP, State.UNKNOWN, 1.0))
    outage(tally, 2.0, 4.0)
    tally.until(5.0)
    assert tally.as_dict() == {
        "dependency": "redis",
        "state": "up",
        "availability": 0.5,
        "seconds": {"unknown": 1.0, "up": 2.0, "degraded": 0.0, "down": 2.0},
        "outages": 1,
        "longest_outage": 2.0,
        "last_outage": "refused: Connection refused",
        "answers": 0,
        "fastest": None,
        "mean": None,
        "slowest": None,
    }


def test_news_that_come_late_take_nothing_away():
    tally = Tally("redis", 0.0)
    tally.changed(change(State.UP, State.UNKNOWN, 0.0))
    tally.until(10.0)
    tally.changed(change(State.DOWN, State.UP, 9.9, cause=Cause.RESET))
    tally.until(11.0)
    assert tally.down == pytest.approx(1.0)
