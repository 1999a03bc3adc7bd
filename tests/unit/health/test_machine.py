"""The state machine alone: evidence in, transitions out."""

import math

import pytest

from resilient_io.errors import ConfigurationError
from resilient_io.health import Cause, HealthSettings, State
from resilient_io.health.machine import Machine

UP, DOWN, DEGRADED, UNKNOWN = State.UP, State.DOWN, State.DEGRADED, State.UNKNOWN


@pytest.fixture
def machine():
    return Machine("redis", HealthSettings())


@pytest.fixture
def up(machine):
    machine.probe_ok(1.0, 0.001)
    return machine


def refuse(machine, now):
    return machine.probe_failed(now, Cause.REFUSED, "connection refused", definite=True)


def time_out(machine, now):
    return machine.probe_failed(now, Cause.TIMED_OUT, "silence", definite=False)


def test_state_is_unknown_until_the_first_answer(machine):
    assert machine.state is UNKNOWN
    change = machine.probe_ok(3.0, 0.002)
    assert (change.previous, change.state, change.cause) == (UNKNOWN, UP, None)
    assert (change.after, change.at, change.probes) == (3.0, 3.0, 1)
    assert machine.latency == 0.002


def test_definite_failure_makes_it_down_immediately_also_from_unknown(machine, up):
    assert refuse(up, 2.0).state is DOWN
    fresh = Machine("redis", HealthSettings())
    assert refuse(fresh, 0.1).state is DOWN


def test_timeouts_must_repeat(up):
    assert time_out(up, 2.0) is None
    change = time_out(up, 3.0)
    assert (change.state, change.cause, change.detail) == (DOWN, Cause.TIMED_OUT, "silence")
    assert (change.probes, change.probes_failed) == (2, 2)


def test_answer_between_two_timeouts_separates_them(up):
    time_out(up, 2.0)
    up.probe_ok(2.5, 0.001)
    assert time_out(up, 3.0) is None
    assert up.state is UP


def test_fall_is_configurable():
    machine = Machine("redis", HealthSettings(fall=4))
    assert [time_out(machine, float(now)) is None for now in range(5)] == [True] * 3 + [False, True]


def test_timed_out_calls_count_as_one_failure():
    up = Machine("redis", HealthSettings(fall=3))
    up.probe_ok(1.0, 0.001)
    for _ in range(200):
        assert up.failed(2.0, Cause.TIMED_OUT, "", definite=False, probed=True) is None
    assert time_out(up, 3.0) is None
    change = time_out(up, 4.0)
    assert (change.state, change.failures) == (DOWN, 200)


def test_reset_call_never_makes_it_down_while_a_probe_runs(up):
    for _ in range(10):
        assert up.failed(2.0, Cause.RESET, "", definite=True, probed=True) is None
    assert time_out(up, 3.0) is None


def test_calls_alone_decide_without_probes(up):
    assert up.failed(2.0, Cause.TIMED_OUT, "", definite=False, probed=False) is None
    assert up.failed(3.0, Cause.TIMED_OUT, "", definite=False, probed=False).state is DOWN
    other = Machine("redis", HealthSettings())
    assert other.failed(0.0, Cause.RESET, "", definite=True, probed=False).state is DOWN


def test_cause_follows_the_latest_evidence_without_another_change(up):
    refuse(up, 2.0)
    assert up.probe_failed(2.1, Cause.LOADING, "loading the dataset", definite=True) is None
    assert (up.cause, up.detail, up.since) == (Cause.LOADING, "loading the dataset", 2.0)


def test_one_good_probe_ends_a_first_outage(up):
    refuse(up, 2.0)
    change = up.probe_ok(5.0, 0.001)
    assert (change.previous, change.state, change.after) == (DOWN, UP, 3.0)


def rise(machine, now):
    """Return how many good probes, 0.1 s apart, it takes to be up."""
    for count in range(1, 100):
        if machine.probe_ok(now + count / 10, 0.001) is not None:
            return count
    return math.inf


def test_each_fall_in_the_last_minute_doubles_the_good_probes_needed(up):
    needed = []
    for cycle in range(7):
        refuse(up, 2.0 + 5 * cycle)
        needed.append(rise(up, 2.0 + 5 * cycle))
    assert needed == [1, 2, 4, 8, 16, 16, 16]
    refuse(up, 200.0)
    assert rise(up, 200.0) == 1


def test_failure_while_rising_starts_the_count_again(up):
    for now in (2.0, 3.0, 4.0):
        refuse(up, now)
        rise(up, now)
    refuse(up, 5.0)  # the fourth: 8 are needed
    for count in range(7):
        assert up.probe_ok(5.1 + count / 10, 0.001) is None
    assert up.rising
    refuse(up, 6.0)
    assert not up.rising
    assert rise(up, 6.0) == 8


def test_answers_in_a_burst_are_one_piece_of_evidence(up):
    refuse(up, 2.0)
    up.probe_ok(2.5, 0.001)
    refuse(up, 3.0)  # now 2 are needed
    for _ in range(50):
        assert up.succeeded(3.5, 0.001) is None
    assert up.succeeded(3.6, 0.001).state is UP


def test_refused_write_degrades_it_until_one_is_accepted(up):
    change = up.refused(2.0, Cause.READ_ONLY, "READONLY You can't write")
    assert (change.state, change.cause, change.refusals) == (DEGRADED, Cause.READ_ONLY, 1)
    assert up.refusing
    assert up.probe_ok(3.0, 0.001) is None
    change = up.accepted(4.0)
    assert (change.state, change.previous) == (UP, DEGRADED)
    assert not up.refusing


def test_writes_that_are_accepted_and_refused_in_turn_do_not_change_the_state_each_time(up):
    changes = []
    for number in range(100):
        changes.append(up.refused(2.0 + number / 10, Cause.OUT_OF_MEMORY, "SET"))
        changes.append(up.accepted(2.05 + number / 10))  # DEL
    assert [each.state for each in changes if each] == [DEGRADED, UP, DEGRADED]
    assert up.refusing
    assert up.accepted(21.8) is None
    assert up.accepted(22.0).state is UP
    assert up.refused(40.0, Cause.OUT_OF_MEMORY, "").state is DEGRADED
    assert up.accepted(40.1).state is UP


def test_rare_refusals_among_accepted_writes_do_not_change_the_state_each_time(up):
    changes = []
    for number in range(600):
        if number % 30 == 0:
            changes.append(up.refused(2.0 + number / 10, Cause.OUT_OF_MEMORY, "SET"))
        changes.append(up.accepted(2.05 + number / 10))  # DEL
    assert [each.state for each in changes if each] == [DEGRADED, UP, DEGRADED]


def test_a_cluster_that_serves_again_is_up_soon_also_after_a_second_refusal(up):
    up.refused(2.0, Cause.CLUSTER_DOWN, "")
    up.accepted(2.1)
    up.refused(2.2, Cause.CLUSTER_DOWN, "")
    assert up.accepted(3.1) is None
    assert up.accepted(3.3).state is UP


def test_only_the_hold_ends_the_report_of_some_refused_writes_if_no_more_are_made(up):
    up.refused(2.0, Cause.OUT_OF_MEMORY, "")
    up.accepted(2.1)
    up.refused(2.2, Cause.OUT_OF_MEMORY, "")
    assert up.accepted(2.3) is None
    assert up.probe_ok(12.1, 0.001) is None
    assert up.probe_ok(12.2, 0.001).state is UP


def test_an_outage_ends_the_report_that_some_writes_are_refused(up):
    up.refused(2.0, Cause.OUT_OF_MEMORY, "")
    up.accepted(2.1)
    up.refused(2.2, Cause.OUT_OF_MEMORY, "")
    refuse(up, 3.0)
    assert up.probe_ok(4.0, 0.001).state is UP
    assert up.refused(15.0, Cause.OUT_OF_MEMORY, "").state is DEGRADED
    assert up.accepted(15.1).state is UP


def test_refusal_expires_after_good_probes(up):
    up.refused(2.0, Cause.OUT_OF_MEMORY, "")
    up.refused(7.0, Cause.OUT_OF_MEMORY, "")
    assert up.probe_ok(16.9, 0.001) is None
    assert up.probe_ok(17.0, 0.001).state is UP


def test_probe_that_reports_a_limitation_degrades_it_until_one_does_not(up):
    change = up.probe_degraded(2.0, Cause.READ_ONLY, "role is replica", None)
    assert (change.state, change.cause) == (DEGRADED, Cause.READ_ONLY)
    assert not up.refusing
    assert up.accepted(2.5) is None  # a writable replica: only the probe takes it back
    assert up.probe_ok(3.0, 0.001).state is UP


def test_reported_limitation_ends_an_outage_as_degraded(up):
    refuse(up, 2.0)
    assert up.probe_degraded(3.0, Cause.READ_ONLY, "", None).state is DEGRADED


def test_refusal_counts_as_an_answer(machine):
    assert machine.refused(1.0, Cause.DISK_ERROR, "").state is DEGRADED


def test_lost_part_degrades_it_until_it_is_back(up):
    change = up.part_lost(2.0, (None, "lane 0"), Cause.CONNECTION_LOST, "reset", probed=False)
    assert (change.state, change.cause, change.detail) == (
        DEGRADED,
        Cause.CONNECTION_LOST,
        "lane 0: reset",
    )
    assert up.part_lost(2.1, (None, "lane 1"), Cause.CONNECTION_LOST, "", probed=False) is None
    assert up.part_back(3.0, (None, "lane 0")) is None
    assert up.detail == "lane 1"
    assert up.part_back(4.0, (None, "lane 1")).state is UP
    assert up.part_back(5.0, (None, "lane 1")) is None


def test_lost_part_counts_only_after_a_probe_of_the_whole(up):
    assert up.part_lost(2.0, (None, "lane 0"), Cause.CONNECTION_LOST, "", probed=True) is None
    assert up.parts_lost == ["lane 0"]
    assert up.probe_ok(2.1, 0.001).state is DEGRADED


def test_outage_is_one_change_although_its_parts_are_lost_first(up):
    up.part_lost(2.0, (None, "lane 0"), Cause.CONNECTION_LOST, "", probed=True)
    up.part_lost(2.0, (None, "lane 1"), Cause.CONNECTION_LOST, "", probed=True)
    assert refuse(up, 2.1).state is DOWN
    assert up.part_lost(2.2, (None, "lane 2"), Cause.CONNECTION_LOST, "", probed=True) is None
    assert up.parts_lost == []
    assert up.probe_ok(3.0, 0.001).state is UP


def test_part_that_is_back_before_the_probe_ends_never_counts_as_lost(up):
    up.part_lost(2.0, (None, "lane 0"), Cause.CONNECTION_LOST, "", probed=True)
    up.part_back(2.05, (None, "lane 0"))
    assert up.probe_ok(2.1, 0.001) is None


def test_refusals_take_precedence_over_lost_parts_and_an_outage_ends_both(up):
    up.part_lost(2.0, (None, "lane 0"), Cause.CONNECTION_LOST, "", probed=False)
    assert up.refused(2.1, Cause.OUT_OF_MEMORY, "full") is None
    assert up.cause is Cause.OUT_OF_MEMORY
    refuse(up, 3.0)
    assert not up.refusing
    assert up.probe_ok(4.0, 0.001).state is UP


def test_forgetting_makes_it_unknown_and_clears_its_falls(up):
    for now in (2.0, 3.0, 4.0):
        refuse(up, now)
        rise(up, now)
    change = up.forget(9.0)
    assert (change.state, change.cause) == (UNKNOWN, Cause.CLOSED)
    assert up.forget(9.5) is None
    up.probe_ok(10.0, 0.001)
    refuse(up, 11.0)
    assert rise(up, 11.0) == 1


def test_counts_start_again_with_each_state(up):
    up.probe_ok(1.5, 0.001)
    up.failed(1.9, Cause.RESET, "", definite=True, probed=True)
    change = refuse(up, 2.0)
    assert (change.probes, change.probes_failed, change.failures) == (2, 1, 1)
    change = up.probe_ok(3.0, 0.001)
    assert (change.probes, change.probes_failed, change.failures) == (1, 0, 0)


def test_detail_is_one_line_of_bounded_length(up):
    up.probe_failed(2.0, Cause.OTHER, "two\r\nlines " + "x" * 1000, definite=True)
    assert up.detail.startswith("two lines xxx")
    assert len(up.detail) == 300


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval": 0}, "interval=0 is out of range: use a finite number above 0"),
        ({"timeout": math.nan}, "timeout=nan is out of range"),
        ({"timeout": "1"}, "timeout='1' is not a number"),
        ({"fall": 0}, "fall=0 must be an integer of at least 1"),
        ({"history": 1.5}, "history=1.5 must be an integer"),
        (
            {"reconnect_interval": 3.0},
            "is above reconnect_interval_cap=2.0: use reconnect_interval_cap=3.0 or more",
        ),
        ({"refusal_hold": math.inf}, "refusal_hold=inf is not finite"),
    ],
)
def test_invalid_settings_are_refused(wrong, message):
    with pytest.raises(ConfigurationError) as refusal:
        HealthSettings(**wrong)
    assert message in str(refusal.value)


def test_surrogates_in_a_detail_are_replaced():
    """The name of a file may contain surrogates. A log handler fails on them."""
    machine = Machine("redis", HealthSettings())
    change = machine.probe_failed(1.0, Cause.TLS, "no such file: caf\udce9", definite=True)
    assert change.detail == "no such file: caf\ufffd"
