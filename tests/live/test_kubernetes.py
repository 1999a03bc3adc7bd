"""`resilient-io lint` finds nothing in the manifests of the docs and of the example."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "order_service"
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
MANIFESTS = {
    "orders": (EXAMPLE / "kubernetes.yaml").read_text(),
    **{
        yaml.safe_load(text.partition("\n---")[0])["metadata"]["name"]: text
        for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    },
}


def lint(manifest):
    return subprocess.run(
        [sys.executable, "-m", "resilient_io.cli", "lint", "-"],
        input=manifest, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_no_findings(name):
    found = lint(MANIFESTS[name])
    assert (found.returncode, found.stdout) == (0, f"Deployment/{name}: no findings\n")


def test_spoilt_manifest_has_findings():
    spoilt = MANIFESTS["orders"].replace("terminationGracePeriodSeconds: 25", "")
    spoilt = spoilt.replace('resilient-io/grace-period: "20"', 'resilient-io/grace-period: "60"')
    found = lint(spoilt)
    assert found.returncode == 1
    assert "grace-period-short" in found.stdout


def test_timeouts_of_the_manifest_are_those_of_the_service(monkeypatch):
    spec = importlib.util.spec_from_file_location("order_settings", EXAMPLE / "settings.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "order_settings", module)  # dataclasses look there
    spec.loader.exec_module(module)
    defaults = module.Settings()
    deployment = next(yaml.safe_load_all(MANIFESTS["orders"]))
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    annotations.pop("resilient-io/lint-ignore")
    assert {name: float(text) for name, text in annotations.items()} == {
        "resilient-io/grace-period": defaults.grace_seconds,
        "resilient-io/drain-delay": defaults.drain_delay_seconds,
        "resilient-io/drain-timeout": defaults.drain_seconds,
        "resilient-io/handler-timeout": defaults.handler_seconds,
    }
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    for each in container["env"]:
        assert hasattr(defaults, each["name"].lower())
    assert container["ports"] == [{"name": "probes", "containerPort": defaults.port}]
    user = re.search(r"--uid (\d+)", (EXAMPLE / "Dockerfile").read_text())[1]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(user)
