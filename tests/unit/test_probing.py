"""Each rule of the linter finds what it is for, and nothing in good settings."""

import dataclasses
import json

import pytest

from resilient_io import ConfigurationError, HealthSettings, LivenessSettings, RetryPolicy
from resilient_io.probing import Finding, Probe, Schedule, ServiceTimes, Severity, lint_probes

GOOD = Schedule(
    liveness=Probe(path="/livez"),
    readiness=Probe(path="/readyz", period=2, failures=2),
)
CONSUMER = ServiceTimes(drain_timeout=10.0, handler_timeout=10.0)
FILE = ("resilient-io", "probe", "--file", "/tmp/beat")


def found(schedule=GOOD, times=None, **changes):
    findings = lint_probes(dataclasses.replace(schedule, **changes), times)
    return {finding.code: finding for finding in findings}


def test_good_schedule_fits_the_default_timeouts():
    assert lint_probes(GOOD) == ()
    assert lint_probes(GOOD, CONSUMER) == ()


def test_default_timeouts_are_those_of_the_library():
    times = ServiceTimes()
    assert times.deadline == RetryPolicy().deadline
    assert times.health_interval == HealthSettings().interval
    assert times.health_timeout == HealthSettings().timeout
    assert times.liveness_window == LivenessSettings().window


@pytest.mark.parametrize(
    "liveness",
    [
        Probe(path="/readyz"),
        Probe(path="/startupz"),
        Probe(command=("redis-cli", "ping"), timeout=5),
        Probe(command=("resilient-io", "probe", "--file", "/tmp/beat"), timeout=5),
    ],
)
def test_liveness_that_depends_on_another_service_is_an_error(liveness):
    findings = found(liveness=liveness)
    assert [*findings] == ["liveness-depends"]
    assert findings["liveness-depends"].severity is Severity.ERROR


def test_advice_about_a_command_is_a_command():
    command = ("resilient-io", "probe", "--file", "/tmp/beat")
    assert "--live" in found(liveness=Probe(command=command))["liveness-depends"].advice
    assert "/livez" in found(liveness=Probe(path="/readyz"))["liveness-depends"].advice


@pytest.mark.parametrize(("failures", "hasty"), [(3, True), (4, False)])
def test_liveness_must_not_act_before_the_process_counts_as_stuck(failures, hasty):
    liveness = Probe(path="/livez", period=5, failures=failures)
    assert ("liveness-hasty" in found(liveness=liveness)) is hasty  # 11 or 16 s; 15 s are allowed


def test_liveness_window_of_the_service_counts():
    times = ServiceTimes(liveness_window=100.0)
    assert "failureThreshold: 6" in found(times=times)["liveness-hasty"].advice


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
def test_stall_restarts_once_the_last_probe_within_it_has_timed_out(probe, hasty):
    assert ("liveness-hasty" in found(liveness=probe)) is hasty


def test_startup_that_asks_for_readiness_is_an_error():
    finding = found(startup=Probe(path="/readyz", failures=100))["startup-depends"]
    assert finding.severity is Severity.ERROR


@pytest.mark.parametrize(("failures", "depends"), [(12, True), (13, False)])
def test_startup_that_waits_for_dependencies_must_wait_long(failures, depends):
    findings = found(startup=Probe(path="/startupz", failures=failures))
    assert ("startup-depends" in findings) is depends
    assert not depends or findings["startup-depends"].severity is Severity.WARNING


def test_readiness_that_asks_for_liveness_is_an_error():
    assert [*found(readiness=Probe(path="/livez", period=2))] == ["readiness-independent"]


def test_readiness_that_asks_a_shared_server_is_a_warning():
    finding = found(readiness=Probe(command=("redis-cli", "ping")))["readiness-depends"]
    assert finding.severity is Severity.WARNING
    assert "resilient-io probe" in finding.advice


def test_detection_that_is_slower_than_the_kubelet_is_a_warning():
    slow = ServiceTimes(health_interval=10.0)
    assert [*found(times=slow)] == ["detection-slow"]
    patient = Probe(path="/readyz", period=4, failures=3)
    assert "detection-slow" not in found(readiness=patient, times=slow)


@pytest.mark.parametrize(
    ("grace_period", "pre_stop", "severity"),
    [
        (30, 0, None),
        (24, 0, Severity.ERROR),
        (25, 0, Severity.WARNING),
        (30, 2, None),
        (30, 5, Severity.WARNING),
        (30, 6, Severity.ERROR),
    ],
)
def test_hook_and_shutdown_must_fit_into_the_grace_period(grace_period, pre_stop, severity):
    findings = found(grace_period=float(grace_period), pre_stop=float(pre_stop))
    finding = findings.get("grace-period-short")
    assert (finding.severity if finding else None) is severity


def test_advice_about_a_short_grace_period_is_sufficient():
    finding = found(grace_period=20.0, pre_stop=5.0)["grace-period-short"]
    assert "terminationGracePeriodSeconds: 35" in finding.advice
    assert "grace-period-short" not in found(grace_period=35.0, pre_stop=5.0)


@pytest.mark.parametrize(("deadline", "cut_off"), [(20.0, False), (20.5, True), (None, True)])
def test_calls_must_end_within_what_the_shutdown_leaves_them(deadline, cut_off):
    times = ServiceTimes(deadline=deadline)  # 25 s, 5 of them for the drain delay
    assert ("deadline-beyond-grace-period" in found(times=times)) is cut_off


def test_calls_must_end_before_the_pod_is_killed():
    times = ServiceTimes(deadline=18.0)
    assert found(times=times) == {}
    assert "deadline-beyond-grace-period" in found(times=times, grace_period=22.0)


@pytest.mark.parametrize(("drain", "beyond"), [(20.0, False), (21.0, True)])
def test_handlers_must_be_drained_within_what_the_shutdown_leaves_them(drain, beyond):
    times = ServiceTimes(drain_timeout=drain, handler_timeout=5.0)
    assert ("drain-beyond-grace-period" in found(times=times)) is beyond


def test_service_must_serve_until_traffic_has_ended():
    silent = ServiceTimes(drain_delay=0.0)
    assert [*found(times=silent)] == ["drain-delay-missing"]
    assert found(times=silent, pre_stop=3.0) == {}
    assert found(times=silent, readiness=None) == {}


def test_handler_longer_than_the_poll_interval_is_an_error():
    times = dataclasses.replace(CONSUMER, max_poll_interval=9.0)
    assert found(times=times)["handler-beyond-poll-interval"].severity is Severity.ERROR
    assert found(times=dataclasses.replace(CONSUMER, max_poll_interval=10.0)) == {}


def test_errors_come_first():
    findings = lint_probes(
        Schedule(liveness=Probe(path="/livez", period=1), readiness=Probe(path="/livez"))
    )
    assert [finding.severity for finding in findings] == [Severity.ERROR, Severity.WARNING]


def test_finding_can_be_written_as_json():
    finding = found(grace_period=10.0)["grace-period-short"]
    assert json.loads(json.dumps(dataclasses.asdict(finding)))["severity"] == "error"
    assert {field.name for field in dataclasses.fields(Finding)} == {*dataclasses.asdict(finding)}


@pytest.mark.parametrize(
    "wrong", [{"grace_period": -1.0}, {"max_poll_interval": 0.0}, {"deadline": 0.0}]
)
def test_timeouts_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ServiceTimes(**wrong)


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("/livez", "live"),
        ("/health/LIVE", "live"),
        ("/livez?verbose", "live"),
        ("/readyz", "ready"),
        ("/api/ready/", "ready"),
        ("/startupz", "started"),
        ("/healthz", "unknown"),
        ("/", "unknown"),
        ("", "unknown"),
    ],
)
def test_question_follows_from_the_path(path, question):
    assert Probe(path=path).question == question


@pytest.mark.parametrize(
    ("command", "question"),
    [
        (["resilient-io", "probe", "--file", "/tmp/beat"], "ready"),
        (["/app/.venv/bin/resilient-io", "probe", "--live", "--file=/tmp/beat"], "live"),
        (["python", "-m", "resilient_io.cli", "probe", "--started", "--file", "x"], "started"),
        (["sh", "-c", "resilient-io probe --file /tmp/beat --live || exit 1"], "live"),
        (["resilient-io", "probe", "--url", "http://127.0.0.1:8080/livez"], "live"),
        (["resilient-io", "probe", "--url=http://127.0.0.1:8080/readyz"], "ready"),
        (["resilient-io", "doctor", "redis://cache"], "unknown"),
        (["redis-cli", "-h", "cache", "ping"], "dependency"),
        (["sh", "-c", "/opt/kafka/bin/kafka-topics.sh --list"], "dependency"),
        (["sh", "-c", "echo 'unclosed"], "unknown"),
        (["cat", "/tmp/healthy"], "unknown"),
        ([], "unknown"),
    ],
)
def test_question_follows_from_the_command(command, question):
    assert Probe(command=tuple(command)).question == question


def test_kubelet_tolerates_its_failures_in_a_row():
    probe = Probe(path="/readyz", period=2.0, failures=3, timeout=1.0, initial_delay=5.0)
    assert probe.tolerance == 5.0
