"""Each rule sees what it is for, and nothing where all is well."""

import dataclasses

import pytest

from resilient_io import (
    ConfigurationError,
    HealthSettings,
    LivenessSettings,
    RetryPolicy,
    RunLimits,
)
from resilient_io.kafka import HandlerPolicy
from resilient_io.probing import Finding, Probe, Schedule, ServiceTimes, Severity, lint_probes
from resilient_io.probing.times import SETTINGS, times_from

GOOD = Schedule(
    liveness=Probe(path="/livez"),
    readiness=Probe(path="/readyz", period=2, failures=2),
)
CONSUMER = ServiceTimes(run=RunLimits(drain_timeout=10), handler=HandlerPolicy(timeout=10))


FILE = ("resilient-io", "probe", "--file", "/tmp/beat")


def found(schedule=GOOD, times=None, **changes):
    findings = lint_probes(dataclasses.replace(schedule, **changes), times)
    return {finding.code: finding for finding in findings}


def test_a_good_schedule_fits_the_librarys_own_times():
    assert lint_probes(GOOD) == ()
    assert lint_probes(GOOD, CONSUMER) == ()


def test_a_readiness_probe_of_kubernetes_own_defaults_is_late_only():
    assert [*found(readiness=Probe(path="/readyz"))] == ["readiness-late"]


@pytest.mark.parametrize(
    "liveness",
    [
        Probe(path="/readyz"),
        Probe(path="/startupz"),
        Probe(command=("redis-cli", "ping"), timeout=5),
        Probe(command=("resilient-io", "probe", "--file", "/tmp/beat"), timeout=5),
    ],
)
def test_liveness_that_depends_on_a_dependency_is_an_error(liveness):
    findings = found(liveness=liveness)
    assert [*findings] == ["liveness-depends"]
    assert findings["liveness-depends"].severity is Severity.ERROR


def test_advice_about_a_command_is_a_command():
    command = ("resilient-io", "probe", "--file", "/tmp/beat")
    assert "--live" in found(liveness=Probe(command=command))["liveness-depends"].advice
    assert "/livez" in found(liveness=Probe(path="/readyz"))["liveness-depends"].advice


def test_liveness_that_nobody_can_judge_is_only_noted():
    finding = found(liveness=Probe(path="/healthz"))["liveness-unclear"]
    assert finding.severity is Severity.NOTE
    assert finding.where == "livenessProbe.httpGet.path"


@pytest.mark.parametrize(("failures", "hasty"), [(3, True), (4, False)])
def test_liveness_must_not_act_before_the_process_calls_itself_stuck(failures, hasty):
    liveness = Probe(path="/livez", period=5, failures=failures)
    assert ("liveness-hasty" in found(liveness=liveness)) is hasty  # 11 or 16 s; 15 s are allowed


def test_what_counts_as_stuck_can_be_told():
    times = ServiceTimes(liveness=LivenessSettings(window=100.0, share=0.5))
    assert "failureThreshold: 6" in found(times=times)["liveness-hasty"].advice


def test_a_process_that_nobody_restarts_is_a_warning():
    assert found(liveness=None)["liveness-missing"].severity is Severity.WARNING


def test_a_start_that_takes_longer_than_liveness_waits_never_ends():
    slow = ServiceTimes(start=60.0)
    assert "start-cut-off" in found(times=slow)
    started = Probe(path="/livez", period=5, failures=13)
    assert found(times=slow, startup=started) == {}
    hasty = found(times=slow, startup=Probe(path="/livez", period=5, failures=12))
    assert "failureThreshold: 13" in hasty["start-cut-off"].advice


def test_a_startup_probe_must_not_ask_whether_the_service_is_ready():
    assert "startup-depends" in found(startup=Probe(path="/readyz", failures=100))


@pytest.mark.parametrize(("failures", "waits"), [(12, True), (13, False)])
def test_a_startup_probe_that_waits_for_dependencies_must_wait_for_long(failures, waits):
    assert ("startup-waits" in found(startup=Probe(path="/startupz", failures=failures))) is waits


def test_a_service_that_serves_has_to_say_when_it_can():
    assert "readiness-missing" in found(readiness=None)
    assert found(readiness=None, serves=False) == {}


def test_readiness_that_asks_for_liveness_sees_no_outage():
    assert [*found(readiness=Probe(path="/livez", period=2))] == ["readiness-blind"]


def test_detection_that_is_slower_than_the_kubelets_is_a_warning():
    slow = ServiceTimes(health=HealthSettings(interval=10.0))
    assert [*found(times=slow)] == ["detection-slow"]
    patient = Probe(path="/readyz", period=4, failures=3)
    assert "detection-slow" not in found(readiness=patient, times=slow)


def test_only_readiness_may_want_several_successes():
    several = Probe(path="/livez", successes=2)
    assert [*found(liveness=several)] == ["success-threshold"]
    assert found(readiness=Probe(path="/readyz", period=2, failures=2, successes=2)) == {}


def test_a_probe_that_may_take_longer_than_its_period_is_noted():
    overlap = Probe(path="/livez", period=10, timeout=11)
    assert [*found(liveness=overlap)] == ["probe-overlap"]


@pytest.mark.parametrize(
    ("timeout", "cpu", "short"),
    [(1, None, True), (2, None, False), (2, 0.02, True), (5, 0.02, False)],
)
def test_a_command_needs_time_to_start_on_the_cpu_there_is(timeout, cpu, short):
    command = Probe(command=("resilient-io", "probe", "--live", "--file", "x"), timeout=timeout)
    assert ("probe-timeout" in found(liveness=command, cpu_limit=cpu)) is short


@pytest.mark.parametrize(
    ("grace", "pre_stop", "code"),
    [
        (30, 0, None),
        (24, 0, "grace-short"),
        (25, 0, "grace-tight"),
        (30, 2, None),
        (30, 5, "grace-tight"),
        (30, 6, "grace-short"),
    ],
)
def test_the_hook_and_the_lifecycle_must_fit_into_the_pods_grace(grace, pre_stop, code):
    findings = found(grace=float(grace), pre_stop=float(pre_stop))
    assert [each for each in findings if each.startswith("grace-")] == ([code] if code else [])


def test_the_advice_about_a_short_grace_is_enough():
    assert (
        "terminationGracePeriodSeconds: 35" in found(grace=20.0, pre_stop=5.0)["grace-short"].advice
    )
    assert not {"grace-short", "grace-tight"} & found(grace=35.0, pre_stop=5.0).keys()


@pytest.mark.parametrize(("deadline", "cut_off"), [(20.0, False), (20.5, True), (None, True)])
def test_a_call_must_end_within_what_the_end_leaves_it(deadline, cut_off):
    times = ServiceTimes(policy=RetryPolicy(deadline=deadline))  # 25 s, 5 of them for the notice
    assert ("deadline-beyond-grace" in found(times=times)) is cut_off


def test_a_call_must_end_before_the_pod_is_killed():
    times = ServiceTimes(policy=RetryPolicy(deadline=18.0))
    assert found(times=times) == {}
    assert "deadline-beyond-grace" in found(times=times, grace=22.0)


@pytest.mark.parametrize(("drain", "beyond"), [(20.0, False), (21.0, True)])
def test_handlers_must_be_drained_within_what_the_end_leaves_them(drain, beyond):
    times = ServiceTimes(run=RunLimits(drain_timeout=drain), handler=HandlerPolicy(timeout=5.0))
    assert ("drain-beyond-grace" in found(times=times)) is beyond


def test_endpoints_need_a_moment_to_notice():
    silent = ServiceTimes(notice=0.0)
    assert [*found(times=silent)] == ["notice-missing"]
    assert found(times=silent, pre_stop=3.0) == {}
    assert found(times=silent, serves=False, readiness=None) == {}


def test_a_moment_that_is_given_twice_is_noted():
    assert found(pre_stop=4.0)["notice-twice"].severity is Severity.NOTE


@pytest.mark.parametrize(
    ("command", "lost"),
    [
        (("sh", "-c", "migrate && python main.py"), True),
        (("/bin/bash", "-c", "migrate; python main.py"), True),
        (("sh", "-c", "migrate && exec python main.py"), False),
        (("sh", "-c", "python main.py"), False),
        (("python", "main.py"), False),
        (("sh",), False),
        ((), False),
    ],
)
def test_a_shell_that_stays_keeps_the_signal_to_itself(command, lost):
    assert ("signal-lost" in found(command=command)) is lost


def test_a_handler_longer_than_the_poll_interval_is_handled_for_ever():
    times = dataclasses.replace(CONSUMER, max_poll_interval=9.0)
    assert found(times=times)["handler-beyond-poll"].severity is Severity.ERROR
    assert found(times=dataclasses.replace(CONSUMER, max_poll_interval=10.0)) == {}


def test_a_handler_without_a_bound_is_a_warning_and_one_longer_than_the_drain_a_note():
    unbounded = ServiceTimes(run=RunLimits(), handler=HandlerPolicy())
    assert found(times=unbounded)["handler-unbounded"].severity is Severity.WARNING
    long = dataclasses.replace(CONSUMER, handler=HandlerPolicy(timeout=11.0))
    assert found(times=long)["handler-beyond-drain"].severity is Severity.NOTE


def test_errors_come_first():
    findings = lint_probes(
        Schedule(liveness=Probe(path="/healthz"), readiness=Probe(path="/livez"), grace=10.0)
    )
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=list(Severity).index)
    assert {*severities} == {*Severity}


def test_a_finding_is_json_as_it_stands():
    assert found(grace=10.0)["grace-short"].as_dict()["severity"] == "error"
    assert {field.name for field in dataclasses.fields(Finding)} == {
        *found(grace=10.0)["grace-short"].as_dict()
    }


def test_each_time_that_can_be_told_changes_the_times():
    for name in SETTINGS:
        assert times_from({name: 4.0}) != times_from({}), name


def test_times_that_are_told_are_those_that_are_meant():
    times = times_from(
        {"deadline": 1.0, "health-interval": 0.1, "drain-timeout": 7.0, "start": 3.0}
    )
    assert times.policy.deadline == 1.0
    assert times.health.interval == 0.1
    assert times.run == RunLimits(drain_timeout=7.0)
    assert times.handler == HandlerPolicy()
    assert times.start == 3.0


def test_an_unknown_time_is_refused_with_the_closest():
    with pytest.raises(ConfigurationError, match="did you mean handler-timeout"):
        times_from({"handler-timout": 1.0})
    with pytest.raises(ConfigurationError, match="write one of grace"):
        times_from({"xyz": 1.0})


@pytest.mark.parametrize("wrong", [{"grace": -1.0}, {"max_poll_interval": 0.0}, {"start": -1.0}])
def test_times_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="write"):
        ServiceTimes(**wrong)


@pytest.mark.parametrize(
    ("probe", "hasty"),
    [
        (Probe(path="/livez", period=20, failures=1), True),  # one answer after 1.1 s is enough
        (Probe(path="/livez", period=5, failures=3), True),  # due at 0, 5 and 10 s, and 1 s to fail
        (Probe(path="/livez", period=5, failures=3, timeout=5), False),
        (Probe(path="/livez", period=5, failures=4), False),
        (Probe(path="/livez"), False),
        (Probe(command=(*FILE, "--live"), period=5), False),  # a heartbeat may be 30 s old
        (Probe(command=(*FILE, "--live", "--max-age=3"), period=5), True),
    ],
)
def test_a_stall_restarts_once_the_last_probe_within_it_has_timed_out(probe, hasty):
    assert ("liveness-hasty" in found(liveness=probe)) is hasty


def test_the_first_probe_of_a_start_is_not_late():
    once = Probe(path="/livez", period=60, failures=1)
    assert "start-cut-off" in found(times=ServiceTimes(start=30.0), liveness=once)
