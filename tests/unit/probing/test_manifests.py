"""Manifests: which containers are looked at, with which times, and where the findings are."""

import json
import textwrap

import pytest

from resilient_io.probing.cursor import NotAManifestError
from resilient_io.probing.manifests import lint_manifests

DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: orders
spec:
  replicas: 2
  template:
    metadata:
      labels: {app: orders, tier: back}
    spec:
      containers:
        - name: orders
          ports:
            - name: http
              containerPort: 8080
          livenessProbe:
            httpGet: {path: /livez, port: http}
          readinessProbe:
            periodSeconds: 2
            failureThreshold: 2
            httpGet:
              path: /readyz
              port: http
"""
BUDGET = """\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: orders}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {app: orders}}
"""
GOOD = f"{DEPLOYMENT}---\n{BUDGET}"


def lint(text, told=None):
    names, findings = lint_manifests({"k8s.yaml": textwrap.dedent(text)}, told)
    return names, {finding.code: finding for finding in findings}


def codes(text, told=None):
    return [*lint(text, told)[1]]


def changed(old, new, text=GOOD):
    assert old in text
    return text.replace(old, new)


def test_good_manifests_have_no_findings():
    assert lint(GOOD) == (["Deployment/orders"], {})


def test_a_finding_tells_the_line_of_the_field_it_is_about():
    finding = lint(changed("path: /readyz", "path: /livez"))[1]["readiness-blind"]
    assert (finding.file, finding.line) == ("k8s.yaml", 22)
    assert finding.of == "Deployment/orders"
    assert GOOD.splitlines()[22 - 1].strip() == "path: /readyz"


def test_a_finding_about_a_missing_field_tells_the_line_of_what_should_have_it():
    finding = lint(GOOD, {"grace": 40.0})[1]["grace-short"]
    assert GOOD.splitlines()[finding.line - 1].strip() == "spec:"
    assert finding.line == 10


def test_the_grace_of_the_pod_and_its_hook_are_read():
    graceful = changed(
        "      containers:", "      terminationGracePeriodSeconds: 60\n      containers:"
    )
    assert codes(graceful, {"grace": 40.0}) == []
    hook = "          lifecycle: {preStop: {sleep: {seconds: 30}}}\n          ports:"
    assert codes(changed("          ports:", hook, graceful), {"grace": 40.0, "notice": 0.0}) == [
        "grace-short"
    ]


@pytest.mark.parametrize(
    "hook",
    [
        "{sleep: {seconds: 4}}",
        "{exec: {command: [sleep, '4']}}",
        "{exec: {command: [sh, -c, 'echo bye; sleep 4']}}",
    ],
)
def test_a_hook_that_sleeps_is_read_in_each_way_it_is_written(hook):
    with_hook = changed(
        "          ports:", f"          lifecycle: {{preStop: {hook}}}\n          ports:"
    )
    assert "4 s by the preStop hook" in lint(with_hook)[1]["notice-twice"].found


def test_times_come_from_annotations_then_the_environment_then_the_command_line():
    annotated = changed(
        "metadata:\n  name: orders\n",
        'metadata:\n  name: orders\n  annotations: {resilient-io/grace: "50"}\n',
    )
    assert "up to 50 s" in lint(annotated)[1]["grace-short"].found
    of_pods = changed(
        "      labels:", '      annotations: {resilient-io/grace: "51"}\n      labels:', annotated
    )
    assert "up to 51 s" in lint(of_pods)[1]["grace-short"].found
    environment = changed(
        "          ports:",
        '          env: [{name: RESILIENT_IO_GRACE, value: "52"}, {name: OTHER, value: x}]\n'
        "          ports:",
        of_pods,
    )
    assert "up to 52 s" in lint(environment)[1]["grace-short"].found
    assert "up to 53 s" in lint(environment, {"grace": 53.0})[1]["grace-short"].found


def test_the_environment_may_hold_what_is_not_known_here():
    others = (
        "          env:\n"
        "            - {name: RESILIENT_IO_LOG, value: debug}\n"
        "            - {name: RESILIENT_IO_GRACE, valueFrom: {fieldRef: {fieldPath: a}}}\n"
        "          ports:"
    )
    assert codes(changed("          ports:", others)) == []


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        ('resilient-io/graze: "25"', "did you mean grace"),
        ('resilient-io/grace: "soon"', "no number of seconds"),
        ('resilient-io/grace: "-1"', "out of range"),
    ],
)
def test_an_annotation_that_says_nothing_is_an_error(annotation, said):
    wrong = changed("  name: orders\n", f"  name: orders\n  annotations: {{{annotation}}}\n")
    finding = lint(wrong)[1]["setting-wrong"]
    assert said in f"{finding.found} {finding.advice}"


def test_findings_can_be_ignored_by_their_codes():
    text = changed("path: /livez", "path: /healthz", DEPLOYMENT)
    assert codes(text) == ["liveness-unclear", "budget-missing"]
    ignored = "  annotations: {resilient-io/lint-ignore: 'liveness-unclear, budget-missing'}\n"
    assert codes(changed("  name: orders\n", f"  name: orders\n{ignored}", text)) == []


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet"])
def test_other_workloads_that_last_are_linted_like_deployments(kind):
    names, found = lint(changed("kind: Deployment", f"kind: {kind}").replace("/livez", "/readyz"))
    assert names == [f"{kind}/orders"]
    assert [*found] == ["liveness-depends"]


def test_a_pod_and_a_cron_job_are_found_and_lists_are_looked_into():
    text = """\
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
    """
    names, found = lint_manifests({"all.yaml": textwrap.dedent(text)})
    assert names == ["Pod/single", "CronJob/nightly"]
    of = {(finding.of, finding.code) for finding in found}
    assert ("Pod/single", "liveness-depends") in of
    assert ("CronJob/nightly", "grace-short") in of
    # A job ends by itself: nobody restarts it, and it serves nobody.
    assert (
        not {("CronJob/nightly", code) for code in ("liveness-missing", "readiness-missing")} & of
    )


def test_a_container_serves_if_it_has_ports_or_a_service_leads_to_it():
    bare = """\
    kind: Pod
    metadata: {name: a, labels: {app: a}}
    spec:
      containers: [{name: a, livenessProbe: {httpGet: {path: /livez, port: 80}}}]
    """
    assert codes(bare) == []
    service = "---\nkind: Service\nspec: {selector: {app: a}}\n"
    assert codes(textwrap.dedent(bare) + service) == ["readiness-missing"]
    elsewhere = "---\nkind: Service\nspec: {selector: {app: b}}\n"
    assert codes(textwrap.dedent(bare) + elsewhere) == []


def test_a_sidecar_without_probes_is_not_ours_unless_it_is_named():
    sidecar = changed(
        "      containers:\n", "      containers:\n        - {name: proxy, image: p}\n"
    )
    assert codes(sidecar) == []
    named = changed(
        "  name: orders\n",
        "  name: orders\n  annotations: {resilient-io/container: proxy}\n",
        sidecar,
    )
    assert "liveness-missing" in codes(named)
    with pytest.raises(NotAManifestError, match="no container 'prxy'"):
        lint(changed("container: proxy", "container: prxy", named))


def test_a_probe_that_asks_a_port_that_is_not_there_is_an_error():
    finding = lint(
        changed("httpGet: {path: /livez, port: http}", "httpGet: {path: /livez, port: htp}")
    )
    assert "Write one of http" in finding[1]["port-unknown"].advice
    assert finding[1]["port-unknown"].line == 17


@pytest.mark.parametrize(
    ("budget", "blocks"),
    [
        ("maxUnavailable: 0", True),
        ("maxUnavailable: 0%", True),
        ("maxUnavailable: 50%", False),
        ("minAvailable: 2", True),
        ("minAvailable: 100%", True),
        ("minAvailable: 1", False),
    ],
)
def test_a_budget_that_lets_no_pod_go_blocks_its_nodes(budget, blocks):
    found = lint(changed("maxUnavailable: 1", budget))[1]
    assert [*found] == ["budget-blocks"] * blocks
    if blocks:
        assert GOOD.splitlines()[found["budget-blocks"].line - 1].strip() == "maxUnavailable: 1"


def test_replicas_without_a_budget_and_a_single_replica_are_noted():
    assert codes(DEPLOYMENT) == ["budget-missing"]
    assert codes(changed("app: orders}}", "app: other}}")) == ["budget-missing"]
    assert codes(changed("replicas: 2", "replicas: 1", DEPLOYMENT)) == ["replicas-one"]


@pytest.mark.parametrize(
    ("strategy", "stops"),
    [
        ("{type: Recreate}", True),
        ("{rollingUpdate: {maxUnavailable: 100%}}", True),
        ("{rollingUpdate: {maxUnavailable: 2}}", True),
        ("{rollingUpdate: {maxUnavailable: 1}}", False),
    ],
)
def test_an_update_that_stops_all_replicas_is_a_warning(strategy, stops):
    text = changed("  replicas: 2\n", f"  replicas: 2\n  strategy: {strategy}\n")
    assert codes(text) == ["update-stops"] * stops


def test_the_cpu_limit_of_the_container_counts_for_commands():
    command = (
        "exec: {command: [resilient-io, probe, --live, --file, x]}\n            timeoutSeconds: 3"
    )
    text = changed("httpGet: {path: /livez, port: http}", command)
    assert codes(text) == []
    limited = changed(
        "          ports:", "          resources: {limits: {cpu: 20m}}\n          ports:", text
    )
    assert codes(limited) == ["probe-timeout"]


def test_json_and_anchors_are_read_like_all_of_yaml():
    pod = {"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "b"}]}}
    assert lint(json.dumps(pod))[0] == ["Pod/a"]
    merged = """\
    kind: Pod
    metadata: {name: a}
    spec:
      containers:
        - name: a
          livenessProbe: &probe {httpGet: {path: /livez, port: 80}}
          readinessProbe:
            <<: *probe
            periodSeconds: 2
    """
    assert codes(merged) == ["readiness-blind"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "k8s.yaml:1: this is no YAML"),
        ("spec: {{ .Values.spec }}\nb", "has to be rendered first"),
        ("just words", "an object of Kubernetes"),
        ("kind: [Pod]", "k8s.yaml:1: kind has to be a string"),
        ("kind: ConfigMap", "nothing in k8s.yaml makes pods"),
        ("", "nothing in k8s.yaml makes pods"),
        ("kind: Pod\nspec: {containers: {a: b}}", "k8s.yaml:2: spec.containers has to be a list"),
        ("kind: Pod\nspec: x", "k8s.yaml:2: spec has to be fields"),
        ("kind: Pod\nspec: {}", "has no containers"),
        ("kind: Pod\nmetadata: {name: \x07}", "this is no YAML"),
        ("kind: Pod\nspec: &a [*a]", "has to be"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_place(text, said):
    with pytest.raises(NotAManifestError) as refused:
        lint(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("failureThreshold: 2", "failureThreshold: '2'"),
        ("failureThreshold: 2", "failureThreshold: -1"),
        ("periodSeconds: 2", "periodSeconds: true"),
        ("replicas: 2", "replicas: two"),
        ("maxUnavailable: 1", "maxUnavailable: some"),
        ("            httpGet:", "            timeoutSeconds: 1.5\n            httpGet:"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_with_its_line(old, new):
    with pytest.raises(NotAManifestError, match=r"^k8s.yaml:\d+: "):
        lint(changed(old, new))


def test_several_files_are_one_whole():
    names, found = lint_manifests({"app.yaml": DEPLOYMENT, "budget.yaml": BUDGET})
    assert names == ["Deployment/orders"]
    assert found == []


def test_times_that_contradict_each_other_are_refused():
    with pytest.raises(NotAManifestError, match="cannot be"):
        lint(GOOD, {"grace": -1.0})


def test_what_a_merge_or_a_later_field_overrides_does_not_count():
    probe = "          livenessProbe:\n            httpGet: {path: /livez, port: http}\n"
    twice = probe.replace("/livez", "/readyz") + probe
    assert codes(changed(probe, twice)) == []
    base = "x: &x\n  ports: [{name: a, containerPort: 1}, {name: b, containerPort: 2}]\n"
    merged = changed("        - name: orders\n", "        - <<: *x\n          name: orders\n")
    assert codes(base + merged) == []
    finding = lint(base + merged.replace("path: /livez", "path: /readyz"))[1]["liveness-depends"]
    assert "readyz" in (base + merged.replace("/livez", "/readyz")).splitlines()[finding.line - 1]


def test_zeroes_are_the_defaults_as_in_kubernetes():
    zeroes = "timeoutSeconds: 0\n            periodSeconds: 0\n            failureThreshold: 0"
    text = changed(
        "httpGet: {path: /livez, port: http}",
        "httpGet: {path: /livez, port: http}\n"
        f"            {zeroes}\n            successThreshold: 0",
    )
    assert codes(text) == []


def test_a_cpu_limit_of_zero_is_none():
    limit = "        - name: orders\n          resources: {limits: {cpu: 0}}\n"
    assert codes(changed("        - name: orders\n", limit)) == []


@pytest.mark.parametrize("text", ["&a\nkind: List\nitems: [*a]\n", "- 1\n", "word\n"])
def test_what_is_no_object_is_said_in_one_line(text):
    with pytest.raises(NotAManifestError, match=r"^k8s.yaml:\d+: \w"):
        lint(text)


@pytest.mark.parametrize(
    ("share", "blocks"),
    [("minAvailable: 90%", True), ("minAvailable: 50%", False), ("maxUnavailable: 10%", False)],
)
def test_shares_of_a_budget_are_rounded_up_as_kubernetes_does(share, blocks):
    text = changed("maxUnavailable: 1", share, changed("replicas: 2", "replicas: 3"))
    assert codes(text) == ["budget-blocks"] * blocks


def test_a_workload_that_is_scaled_to_nothing_is_blocked_by_nothing():
    text = changed("maxUnavailable: 1", "minAvailable: 1", changed("replicas: 2", "replicas: 0"))
    assert codes(text) == []


def test_an_autoscaler_says_how_many_replicas_there_are():
    text = changed("maxUnavailable: 1", "minAvailable: 1", changed("  replicas: 2\n", ""))
    assert codes(text) == ["budget-blocks", "replicas-one"]
    scaler = """\
---
kind: HorizontalPodAutoscaler
spec:
  minReplicas: 3
  scaleTargetRef: {kind: Deployment, name: orders}
"""
    assert codes(text + scaler) == []
    assert "budget-blocks" in codes(text + scaler.replace("minReplicas: 3", "minReplicas: 1"))


@pytest.mark.parametrize(
    ("script", "lost"),
    [
        ("|\n              python main.py\n", False),
        ("|\n              migrate\n              python main.py\n", True),
        ("|\n              migrate\n              exec python main.py\n", False),
    ],
)
def test_the_end_of_a_line_is_not_another_command(script, lost):
    name = "        - name: orders\n"
    command = (
        f"{name}          command:\n            - sh\n            - -c\n            - {script}"
    )
    assert codes(changed(name, command)) == ["signal-lost"] * lost


@pytest.mark.parametrize("sleep", ["60", "60s", "1m", "60.0"])
def test_the_sleep_of_a_hook_may_be_in_minutes(sleep):
    hook = f"          lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'sleep {sleep}']}}}}}}\n"
    found = lint(changed("          ports:\n", f"{hook}          ports:\n"))[1]
    assert "the preStop hook takes 60 s" in found["grace-short"].found


def test_a_finding_about_another_file_names_that_one():
    budget = changed("maxUnavailable: 1", "maxUnavailable: 0", BUDGET)
    _, (finding,) = lint_manifests({"app.yaml": DEPLOYMENT, "budget.yaml": budget})
    assert (finding.file, finding.line) == ("budget.yaml", 5)


@pytest.mark.parametrize("port", ["metrics", "health", "http-metrics", "probes"])
def test_a_port_for_those_who_look_on_is_no_traffic(port):
    worker = DEPLOYMENT.replace("http", port).replace(f"{port}Get", "httpGet")
    worker = worker.partition("          readinessProbe")[0]
    assert "readiness-missing" not in codes(worker)
    assert "readiness-missing" in codes(worker.replace(port, "http"))
    service = "---\nkind: Service\nspec: {selector: {app: orders}}\n"
    assert "readiness-missing" in codes(worker + service)
