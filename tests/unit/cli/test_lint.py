"""Manifests: which containers are checked, with which timeouts, and how findings are shown."""

import json
import textwrap

import pytest

from resilient_io import ConfigurationError
from resilient_io.cli.__main__ import main
from resilient_io.cli.lint import SETTINGS, lint, times_from
from resilient_io.cli.terminal import Report, standard_output

GOOD = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
spec:
  template:
    spec:
      containers:
        - name: orders
          livenessProbe:
            httpGet: {path: /livez, port: http}
          readinessProbe:
            periodSeconds: 2
            failureThreshold: 2
            httpGet:
              path: /readyz
              port: http
"""


@pytest.fixture
def check(capsys):
    """Check a manifest; return the names of its workloads, and the findings by code."""

    def run(text, settings=None):
        report = Report(standard_output(), as_json=True)
        lint({"k8s.yaml": textwrap.dedent(text)}, settings or {}, report)
        *findings, summary = map(json.loads, capsys.readouterr().out.splitlines())
        return summary["workloads"], {each["code"]: each for each in findings}

    return run


@pytest.fixture
def written(tmp_path):
    """Write a manifest; return its path."""

    def write(text, name="k8s.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def changed(old, new, text=GOOD):
    assert old in text
    return text.replace(old, new)


def test_good_manifest_has_no_findings(check):
    assert check(GOOD) == (["Deployment/orders"], {})


def test_finding_names_file_workload_and_field(check):
    finding = check(changed("path: /readyz", "path: /livez"))[1]["readiness-independent"]
    assert (finding["file"], finding["of"]) == ("k8s.yaml", "Deployment/orders")
    assert finding["where"] == "readinessProbe.httpGet.path"


def test_grace_period_of_the_pod_and_its_hook_are_read(check):
    pod = changed("      containers:", "      terminationGracePeriodSeconds: 60\n      containers:")
    assert check(pod, {"grace-period": 40.0})[1] == {}
    hook = "          lifecycle: {preStop: {sleep: {seconds: 30}}}\n          livenessProbe:"
    hooked = changed("          livenessProbe:", hook, pod)
    assert [*check(hooked, {"grace-period": 40.0})[1]] == ["grace-period-short"]


@pytest.mark.parametrize(
    ("hook", "seconds"),
    [
        ("{sleep: {seconds: 4}}", 4),
        ("{exec: {command: [sleep, '4']}}", 4),
        ("{exec: {command: [sh, -c, 'echo bye; sleep 4']}}", 4),
        ("{exec: {command: [sleep, 60s]}}", 60),
        ("{exec: {command: [sleep, 1m]}}", 60),
        ("{exec: {command: [sleep, '60.0']}}", 60),
        ("{exec: {command: [nginx, -s, quit]}}", 0),
    ],
)
def test_sleep_of_a_hook_is_read(check, hook, seconds):
    hooked = changed(
        "          livenessProbe:",
        f"          lifecycle: {{preStop: {hook}}}\n          livenessProbe:",
    )
    found = check(hooked, {"grace-period": 40.0})[1]["grace-period-short"]["found"]
    assert (f"the preStop hook takes {seconds} s" in found) is bool(seconds)


def test_settings_come_from_annotations_then_the_environment_then_the_command_line(check):
    def limit(text, settings=None):
        return check(text, settings)[1]["grace-period-short"]["found"]

    annotated = changed(
        "metadata:\n  name: orders\n",
        'metadata:\n  name: orders\n  annotations: {resilient-io/grace-period: "50"}\n',
    )
    assert "need 50 s" in limit(annotated)
    of_pods = changed(
        "    spec:\n",
        '    metadata: {annotations: {resilient-io/grace-period: "51"}}\n    spec:\n',
        annotated,
    )
    assert "need 51 s" in limit(of_pods)
    environment = changed(
        "          livenessProbe:",
        '          env: [{name: RESILIENT_IO_GRACE_PERIOD, value: "52"}, {name: X, value: x}]\n'
        "          livenessProbe:",
        of_pods,
    )
    assert "need 52 s" in limit(environment)
    assert "need 53 s" in limit(environment, {"grace-period": 53.0})


def test_other_variables_of_the_environment_are_ignored(check):
    others = (
        "          env:\n"
        "            - {name: RESILIENT_IO_LOG, value: debug}\n"
        "            - {name: RESILIENT_IO_DEADLINE, valueFrom: {fieldRef: {fieldPath: a}}}\n"
        "          livenessProbe:"
    )
    assert check(changed("          livenessProbe:", others))[1] == {}


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ('resilient-io/grace-periode: "25"', "did you mean grace-period"),
        ('resilient-io/deadline: "soon"', "must be a number of seconds"),
        ('resilient-io/deadline: "-1"', "out of range"),
    ],
)
def test_wrong_annotation_is_refused_with_its_workload(check, annotation, message):
    wrong = changed("  name: orders\n", f"  name: orders\n  annotations: {{{annotation}}}\n")
    with pytest.raises(ConfigurationError, match=message) as refused:
        check(wrong)
    assert str(refused.value).startswith("k8s.yaml: Deployment/orders")


def test_findings_can_be_ignored_by_their_codes(check):
    text = changed("path: /livez", "path: /readyz")
    assert [*check(text)[1]] == ["liveness-depends"]
    ignored = "  annotations: {resilient-io/lint-ignore: 'other, liveness-depends'}\n"
    assert check(changed("  name: orders\n", f"  name: orders\n{ignored}", text))[1] == {}


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet"])
def test_other_workloads_are_checked_like_deployments(check, kind):
    names, found = check(changed("kind: Deployment", f"kind: {kind}").replace("/livez", "/readyz"))
    assert names == [f"{kind}/orders"]
    assert [*found] == ["liveness-depends"]


def test_pods_and_cron_jobs_are_found_also_in_lists(check):
    names, found = check("""\
    kind: List
    items:
      - kind: Pod
        metadata: {name: single}
        spec:
          containers: [{name: a, livenessProbe: {httpGet: {path: /readyz, port: 80}}}]
      - kind: CronJob
        metadata: {name: nightly}
        spec:
          jobTemplate:
            spec:
              template:
                spec:
                  terminationGracePeriodSeconds: 5
                  containers: [{name: b}]
      - kind: ConfigMap
        metadata: {name: other}
    """)
    assert names == ["Pod/single", "CronJob/nightly"]
    assert found["liveness-depends"]["of"] == "Pod/single"
    assert found["grace-period-short"]["of"] == "CronJob/nightly"


def test_sidecar_without_probes_is_not_checked_unless_it_is_named(check):
    sidecar = changed(
        "      containers:\n",
        "      containers:\n        - {name: proxy, livenessProbe: null, image: p}\n",
    )
    assert check(sidecar)[1] == {}
    bad = changed("path: /livez", "path: /readyz", sidecar)
    named = changed(
        "  name: orders\n", "  name: orders\n  annotations: {resilient-io/container: proxy}\n", bad
    )
    assert [*check(bad)[1]] == ["liveness-depends"]
    assert check(named)[1] == {}
    with pytest.raises(ConfigurationError, match="no container 'prxy'"):
        check(changed("container: proxy", "container: prxy", named))


def test_json_is_read_like_yaml(check):
    pod = {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "b"}]}}
    assert check(json.dumps(pod))[0] == ["Pod/a"]


def test_zero_means_the_default_as_in_kubernetes(check):
    zeroes = "timeoutSeconds: 0\n            periodSeconds: 0\n            failureThreshold: 0"
    text = changed(
        "httpGet: {path: /livez, port: http}",
        f"httpGet: {{path: /livez, port: http}}\n            {zeroes}",
    )
    assert check(text)[1] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "k8s.yaml:1: not valid YAML"),
        ("spec: {{ .Values.spec }}\nb", "render templates first"),
        ("just words", "not a Kubernetes object"),
        ("kind: ConfigMap", "no workloads found in k8s.yaml (expected Deployment, "),
        ("", "no workloads found in k8s.yaml"),
        ("kind: Pod\nspec: {containers: {a: b}}", "Pod/?: containers must be a list"),
        ("kind: Pod\nspec: x", "Pod/?: spec must be an object"),
        ("kind: Pod\nspec: {}", "Pod/? has no containers"),
        ("kind: Pod\nmetadata: {name: \x07}", "not valid YAML"),
        ("kind: Pod\nspec: &a [*a]", "must be an object"),
        ("&a\nkind: List\nitems: [*a]\n", "no workloads found"),
        ("- 1\n", "not a Kubernetes object"),
    ],
)
def test_file_that_is_not_a_manifest_is_refused(check, text, message):
    with pytest.raises(ConfigurationError) as refused:
        check(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("failureThreshold: 2", "failureThreshold: '2'"),
        ("failureThreshold: 2", "failureThreshold: -1"),
        ("periodSeconds: 2", "periodSeconds: true"),
        ("            httpGet:\n", "            timeoutSeconds: 1.5\n            httpGet:\n"),
    ],
)
def test_field_of_the_wrong_type_is_refused_with_its_place(check, old, new):
    with pytest.raises(ConfigurationError, match=r"^k8s.yaml: Deployment/orders readinessProbe"):
        check(changed(old, new))


def test_every_setting_changes_the_timeouts():
    for name in SETTINGS:
        assert times_from({name: 4.0}) != times_from({}), name


def test_unknown_setting_is_refused_with_the_closest():
    with pytest.raises(ConfigurationError, match="did you mean handler-timeout"):
        times_from({"handler-timout": 1.0})
    with pytest.raises(ConfigurationError, match="use one of grace-period"):
        times_from({"xyz": 1.0})


def test_exit_code_follows_from_the_findings(capsys, written):
    good = written(GOOD)
    assert main(["lint", good]) == 0
    assert capsys.readouterr().out == "Deployment/orders: no findings\n"
    bad = written(GOOD.replace("/livez", "/readyz").replace("orders", "bad"), "bad.yaml")
    assert main(["lint", good, bad]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{bad}: error [liveness-depends] Deployment/bad livenessProbe.")
    assert lines[-1] == "Deployment/orders, Deployment/bad: 1 error"


def test_lint_prints_json(capsys, written):
    path = written(GOOD)
    arguments = ["--json", "--set", "grace-period=60", "--set", "drain-delay=2"]
    assert main(["lint", path, *arguments]) == 1
    *findings, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert {each["code"] for each in findings} == {"grace-period-short", "drain-delay-missing"}
    assert findings[0]["file"] == path
    assert summary["workloads"] == ["Deployment/orders"]
    assert summary["findings"] == {"error": 2, "warning": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: Pod\nspec: {{ .Values.spec }}\nb", "k8s.yaml:3: not valid YAML"),
        (b"\xff\xfe\x00", "k8s.yaml: not a text file in UTF-8"),
        ("kind: ConfigMap", "no workloads found"),
    ],
)
def test_wrong_file_is_one_clear_line(capsys, written, text, message):
    assert main(["lint", written(text)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("resilient-io lint: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("grace-period", "must be NAME=SECONDS"),
        ("grace-period=soon", "must be NAME=SECONDS"),
        ("graze=1", "unknown setting 'graze'"),
        ("grace-period=-1", "out of range"),
    ],
)
def test_wrong_setting_is_one_clear_line_without_the_file(capsys, written, setting, message):
    assert main(["lint", written(GOOD), "--set", setting]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "k8s.yaml" not in shown.err
    assert shown.err.count("\n") == 1


def test_missing_file_is_one_clear_line(capsys, tmp_path):
    path = tmp_path / "none.yaml"
    assert main(["lint", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"resilient-io lint: cannot read {path}: No such file or directory\n"
    )


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(capsys, written):
    text = changed("name: orders", 'name: "or\\e[31mders"').replace("/livez", "/readyz")
    assert main(["lint", written(text)]) == 1
    assert "\x1b" not in capsys.readouterr().out
