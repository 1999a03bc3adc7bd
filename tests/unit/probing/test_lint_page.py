"""What the docs and the example show of the linter is what it says."""

import re
from pathlib import Path

import pytest

from resilient_io.cli.entry import main
from resilient_io.probing.times import SETTINGS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "howto" / "lint.md").read_text()
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MANIFESTS = _YAML.findall(PAGE)
ON_KUBERNETES = _YAML.findall((ROOT / "docs" / "kubernetes.md").read_text())


def test_what_the_page_says_of_the_bad_manifest_is_what_the_linter_says(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("deployment.yaml").write_text(MANIFESTS[0])
    assert main(["lint", "deployment.yaml"]) == 1
    shown = capsys.readouterr().out
    assert f"$ resilient-io lint deployment.yaml\n{shown}```\n" in PAGE


def test_the_linter_has_nothing_to_say_about_the_good_one(tmp_path, capsys):
    path = tmp_path / "good.yaml"
    path.write_text(MANIFESTS[1])
    assert main(["lint", str(path)]) == 0
    assert capsys.readouterr().out == "Deployment/orders: nothing to say\n"


def test_the_linter_has_nothing_to_say_about_the_example(capsys):
    assert main(["lint", str(ROOT / "examples" / "order_service" / "kubernetes.yaml")]) == 0
    assert capsys.readouterr().out == "Deployment/orders: nothing to say\n"


@pytest.mark.parametrize("manifest", ON_KUBERNETES)
def test_the_linter_finds_nothing_wrong_with_the_manifests_of_the_docs(manifest, tmp_path, capsys):
    path = tmp_path / "page.yaml"
    path.write_text(manifest)
    assert main(["lint", str(path)]) == 0, capsys.readouterr().out


def test_the_page_names_every_code_and_every_setting():
    rules = ROOT / "src" / "resilient_io" / "probing"
    codes = {
        code
        for path in rules.glob("*.py")
        for code in re.findall(r'code="([\w-]+)"', path.read_text())
    }
    assert len(codes) > 20
    assert [code for code in sorted(codes) if f"`{code}`" not in PAGE] == []
    assert [name for name in SETTINGS if f"`resilient-io/{name}`" not in PAGE] == []
