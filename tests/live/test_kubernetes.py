"""The manifests of the docs and of the example pass the lint that the library comes with."""

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
def test_lint_has_nothing_to_say_about_a_manifest_of_ours(name):
    found = lint(MANIFESTS[name])
    assert (found.returncode, found.stdout) == (0, f"Deployment/{name}: nothing to say\n")


def test_lint_has_something_to_say_when_it_is_spoilt():
    spoilt = MANIFESTS["orders"].replace("terminationGracePeriodSeconds: 25", "")
    spoilt = spoilt.replace('resilient-io/grace: "20"', 'resilient-io/grace: "60"')
    found = lint(spoilt)
    assert found.returncode == 1
    assert "grace-short" in found.stdout


def test_the_times_that_the_manifest_tells_are_those_of_the_service(monkeypatch):
    spec = importlib.util.spec_from_file_location("order_settings", EXAMPLE / "settings.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "order_settings", module)  # dataclasses look there
    spec.loader.exec_module(module)
    defaults = module.Settings()
    deployment = next(yaml.safe_load_all(MANIFESTS["orders"]))
    told = deployment["spec"]["template"]["metadata"]["annotations"]
    told.pop("resilient-io/lint-ignore")
    assert {name: float(text) for name, text in told.items()} == {
        "resilient-io/grace": defaults.grace_seconds,
        "resilient-io/notice": defaults.drain_delay_seconds,
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
