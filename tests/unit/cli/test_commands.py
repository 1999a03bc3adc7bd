"""The commands in this process: what they refuse in one line, and what `lint` shows."""

import json
import re

import pytest

from resilient_io.cli.entry import main
from resilient_io.probing.times import SETTINGS

GOOD = """\
kind: Deployment
metadata: {name: orders}
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 40
      containers:
        - name: orders
          ports: [{name: http, containerPort: 8080}]
          livenessProbe: {httpGet: {path: /livez, port: http}}
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 2
            failureThreshold: 2
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wach"], "No such command"),
        (["watch"], "Missing argument"),
        (["watch", "redis://a", "--count", "0"], "--count"),
        (["watch", "redis://a", "--interval", "never"], "--interval"),
        (["lint"], "Missing argument"),
        (["doctor", "--timeout"], "--timeout"),
    ],
)
def test_what_the_command_line_does_not_understand_is_code_2(capsys, arguments, said):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", ["watch", "doctor"])
@pytest.mark.parametrize(
    "url", ["cache:6379", "http://cache", "redis://:s3cret@cache:port", "kafka://a:s3cret@"]
)
def test_a_wrong_url_is_one_clear_line_without_the_url(capsys, command, url):
    assert main([command, url]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"resilient-io {command}: ")
    assert shown.err.count("\n") == 1
    assert "write" in shown.err
    assert "s3cret" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["redis://cache", "--group", "orders"], "write a kafka:// URL"),
        (["redis://cache", "--topic", "orders"], "write a kafka:// URL"),
        (["--no-ground"], "leaves nothing to look at"),
    ],
)
def test_what_leaves_the_doctor_nothing_to_do_is_one_clear_line(capsys, arguments, said):
    assert main(["doctor", *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_watching_one_server_twice_is_one_clear_line(capsys):
    assert main(["watch", "redis://cache", "redis://cache:6379/0"]) == 2
    assert capsys.readouterr().err == (
        "resilient-io watch: redis cache:6379/0 is named twice: write it once\n"
    )


@pytest.fixture
def written(tmp_path):
    """Write a manifest; return its path."""

    def write(text, name="k8s.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_good_manifests_are_code_0_and_bad_ones_1(capsys, written):
    good = written(GOOD)
    assert main(["lint", good]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Deployment/orders: 1 note"
    bad = written(GOOD.replace("/livez", "/readyz").replace("orders", "bad"), "bad.yaml")
    assert main(["lint", good, bad]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bad}:10: error [liveness-depends] Deployment/bad livenessProbe.")
    assert lines[-1] == "Deployment/orders, Deployment/bad: 1 error, 2 notes"


def test_manifests_without_any_finding_say_so(capsys, written):
    assert main(["lint", written(GOOD.replace("kind: Deployment", "kind: DaemonSet"))]) == 0
    assert capsys.readouterr().out == "DaemonSet/orders: nothing to say\n"


def test_lint_gives_json_with_each_finding(capsys, written):
    path = written(GOOD)
    assert main(["lint", path, "--json", "--set", "grace=60", "--set", "notice=2"]) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in told] == ["finding", "finding", "finding", "summary"]
    assert {each["code"] for each in told[:-1]} == {"grace-short", "notice-missing", "replicas-one"}
    assert told[0]["file"] == path
    assert told[-1]["looked_at"] == ["Deployment/orders"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Pod\nspec: {{ .Values.spec }}\nb", "k8s.yaml:3: this is no YAML"),
        (b"\xff\xfe\x00", "k8s.yaml is no text in UTF-8"),
        ("kind: ConfigMap", "makes pods"),
    ],
)
def test_what_is_no_manifest_is_one_clear_line(capsys, written, text, said):
    assert main(["lint", written(text)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("resilient-io lint: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("grace", "write --set grace=25"),
        ("grace=soon", "write --set grace=25"),
        ("graze=1", "did you mean grace?"),
        ("grace=-1", "out of range"),
    ],
)
def test_a_time_that_makes_no_sense_is_one_clear_line(capsys, written, told, said):
    assert main(["lint", written(GOOD), "--set", told]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_clear_line(capsys, tmp_path):
    path = tmp_path / "none.yaml"
    assert main(["lint", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"resilient-io lint: {path} cannot be read: No such file or directory\n"
    )


def test_help_is_code_0(capsys):
    assert main(["--help"]) == 0
    assert main(["lint", "--help"]) == 0
    assert "--set" in capsys.readouterr().out


def test_the_help_of_lint_names_each_time(capsys):
    main(["lint", "--help"])
    shown = re.sub(r"-\n\s+", "-", capsys.readouterr().out).split()
    assert [name for name in SETTINGS if name not in {word.strip(",.:") for word in shown}] == []
