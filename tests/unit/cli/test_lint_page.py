"""The docs and the example show what the linter really prints."""

import re
from pathlib import Path

import pytest

from resilient_io.cli.__main__ import main
from resilient_io.cli.lint import SETTINGS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "lint.md").read_text()
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MANIFESTS = _YAML.findall(PAGE)
ON_KUBERNETES = _YAML.findall((ROOT / "docs" / "kubernetes.md").read_text())


def test_page_shows_the_findings_of_the_bad_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("deployment.yaml").write_text(MANIFESTS[0])
    assert main(["lint", "deployment.yaml"]) == 1
    shown = capsys.readouterr().out
    assert f"$ resilient-io lint deployment.yaml\n{shown}```\n" in PAGE


def test_good_manifest_of_the_page_has_no_findings(tmp_path, capsys):
    path = tmp_path / "good.yaml"
    path.write_text(MANIFESTS[1])
    assert main(["lint", str(path)]) == 0
    assert capsys.readouterr().out == "Deployment/orders: no findings\n"


def test_manifest_of_the_example_has_no_findings(capsys):
    assert main(["lint", str(ROOT / "examples" / "order_service" / "kubernetes.yaml")]) == 0
    assert capsys.readouterr().out == "Deployment/orders: no findings\n"


@pytest.mark.parametrize("manifest", ON_KUBERNETES)
def test_manifests_of_the_docs_have_no_findings(manifest, tmp_path, capsys):
    path = tmp_path / "page.yaml"
    path.write_text(manifest)
    assert main(["lint", str(path)]) == 0, capsys.readouterr().out


def test_page_names_every_code_and_every_setting():
    rules = (ROOT / "src" / "resilient_io" / "probing.py").read_text()
    codes = re.findall(r'^ +"([a-z]+(?:-[a-z]+)+)",$', rules, re.MULTILINE)
    assert len(codes) > 10
    assert [code for code in sorted(codes) if f"`{code}`" not in PAGE] == []
    assert [name for name in SETTINGS if f"`resilient-io/{name}`" not in PAGE] == []
