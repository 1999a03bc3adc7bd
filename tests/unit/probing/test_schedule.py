"""What a probe asks, and how long the kubelet takes to act on it."""

import pytest

from resilient_io import ConfigurationError
from resilient_io.probing import Probe, Schedule


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
def test_the_path_of_a_probe_tells_what_it_asks(path, question):
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
    ],
)
def test_the_command_of_a_probe_tells_what_it_asks(command, question):
    assert Probe(command=tuple(command)).question == question


def test_a_probe_that_only_connects_asks_nothing_known():
    assert Probe().question == "unknown"


def test_the_kubelet_acts_after_its_failures_in_a_row():
    probe = Probe(path="/readyz", period=2.0, failures=3, timeout=1.0, initial_delay=5.0)
    assert probe.reaction == 7.0
    assert probe.patience == 9.0
    assert probe.tolerance == 5.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"period": 0.0},
        {"timeout": -1.0},
        {"failures": 0},
        {"successes": 0},
        {"initial_delay": -0.1},
        {"path": "/livez", "command": ("true",)},
    ],
)
def test_a_probe_that_kubernetes_would_refuse_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"write|must be"):
        Probe(**wrong)


@pytest.mark.parametrize("wrong", [{"grace": -1.0}, {"pre_stop": -1.0}, {"cpu_limit": 0.0}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"write|must be"):
        Schedule(**wrong)


def test_a_schedule_names_the_probes_it_has_as_kubernetes_does():
    live = Probe(path="/livez")
    assert Schedule(liveness=live).probes == {"livenessProbe": live}
