"""The statistics that `watch` keeps of a dependency."""

import pytest

from resilient_io import Cause, Change, State
from resilient_io.cli.watch import Statistics, reason_text


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


def statistics(now):
    found = Statistics("redis")
    found.until(now)
    return found


def outage(seen, begins, ends):
    seen.changed(
        change(State.DOWN, State.UP, begins, cause=Cause.REFUSED, detail="Connection refused")
    )
    seen.changed(change(State.UP, State.DOWN, ends))


def test_availability_is_the_share_of_the_known_time():
    seen = statistics(100.0)
    seen.changed(change(State.UP, State.UNKNOWN, 105.0))  # these 5 s are unknown
    outage(seen, 106.0, 107.0)
    seen.until(109.0)
    assert seen.availability == pytest.approx(0.75)
    assert seen.down == pytest.approx(1.0)
    assert seen.outages == 1
    assert not seen.well


def test_degraded_dependency_counts_as_answering():
    seen = statistics(0.0)
    seen.changed(change(State.DEGRADED, State.UNKNOWN, 0.0, cause=Cause.READ_ONLY))
    seen.until(10.0)
    assert seen.availability == 1.0
    assert seen.well
    assert "degraded for 10.0 s" in seen.summary()


def test_summary_counts_outages_including_the_current_one():
    seen = statistics(0.0)
    seen.changed(change(State.UP, State.UNKNOWN, 0.0))
    outage(seen, 1.0, 4.0)
    outage(seen, 5.0, 6.0)
    seen.changed(change(State.DOWN, State.UP, 10.0, cause=Cause.TIMED_OUT))
    seen.until(15.0)
    seen.until(20.0)
    assert seen.outages == 3
    assert "down 3 times, 14.0 s (last: timed out)" in seen.summary()


def test_answers_are_summed_up_without_being_kept():
    seen = statistics(0.0)
    for latency in (0.002, 0.001, 0.006):
        seen.answered(latency)
    assert (seen.fastest, seen.slowest, seen.answers) == (0.001, 0.006, 3)
    seen.changed(change(State.UP, State.UNKNOWN, 0.0))
    seen.until(1.0)
    assert seen.summary() == (
        "redis: answered 100.00% of 1.0 s; 3 answers, min/avg/max 1.00/3.00/6.00 ms"
    )


def test_summary_of_a_dependency_that_never_answered():
    seen = statistics(0.0)
    seen.until(5.0)
    assert seen.availability is None
    assert not seen.well
    assert seen.summary() == "redis: no answer, state unknown for 5.0 s"


def test_statistics_can_be_written_as_json():
    seen = statistics(0.0)
    seen.changed(change(State.UP, State.UNKNOWN, 1.0))
    outage(seen, 2.0, 4.0)
    seen.until(5.0)
    assert seen.as_dict() == {
        "dependency": "redis",
        "state": "up",
        "availability": 0.5,
        "seconds": {"unknown": 1.0, "up": 2.0, "degraded": 0.0, "down": 2.0},
        "outages": 1,
        "last_outage": "Connection refused",
        "answers": 0,
        "fastest": None,
        "mean": None,
        "slowest": None,
    }


def test_transition_that_is_reported_late_does_not_reduce_counted_time():
    seen = statistics(0.0)
    seen.changed(change(State.UP, State.UNKNOWN, 0.0))
    seen.until(10.0)
    seen.changed(change(State.DOWN, State.UP, 9.9, cause=Cause.RESET))
    seen.until(11.0)
    assert seen.down == pytest.approx(1.0)


def test_summary_names_the_time_in_which_the_state_was_unknown():
    seen = statistics(0.0)
    seen.changed(change(State.UP, State.UNKNOWN, 3.0))
    seen.changed(change(State.UNKNOWN, State.UP, 5.0))
    seen.changed(change(State.UP, State.UNKNOWN, 6.0))
    seen.until(10.0)
    assert seen.summary() == "redis: answered 100.00% of 6.0 s; state unknown for 4.0 s"


@pytest.mark.parametrize(
    ("cause", "detail", "text"),
    [
        (None, "", ""),
        (Cause.TIMED_OUT, "", "timed out"),
        (Cause.TIMED_OUT, "no answer within 1 s", "timed out: no answer within 1 s"),
        (Cause.REFUSED, "connection refused", "connection refused"),
        (Cause.OTHER, "\x1b[31mred\n", "other: \N{REPLACEMENT CHARACTER}[31mred"),
    ],
)
def test_reason_names_the_cause_once_and_has_no_control_characters(cause, detail, text):
    assert reason_text(cause, detail) == text
