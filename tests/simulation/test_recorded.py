"""The plans that have failed do not fail again."""

import pytest

from tests.simulation import checks
from tests.simulation.draw import draw_plan
from tests.simulation.known_findings import KNOWN, known_finding
from tests.simulation.recorded import Recorded, files, load, save
from tests.simulation.run import run
from tests.simulation.themes import THEMES

RULES = {check.__name__ for check in checks.ALL}


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_recorded_plan_does_not_fail_again(path):
    recorded = load(path)
    assert recorded.rule in RULES
    result = run(recorded.plan)
    broken = [each for each in result.violations if known_finding(each) is None]
    assert not broken, f"{recorded.finding}\n{broken}"


def test_known_findings_name_existing_rules():
    assert {finding.rule for finding in KNOWN} <= RULES


@pytest.mark.parametrize("theme", THEMES)
def test_plan_from_a_file_is_the_same_plan(tmp_path, theme):
    plan = draw_plan(17, theme)
    path = tmp_path / "plan.json"
    save(path, Recorded("A write was lost.", "some_rule", plan))
    loaded = load(path)
    assert loaded.plan == plan
    assert run(loaded.plan).digest == run(plan).digest


def test_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"plan": {}}', encoding="utf-8")
    with pytest.raises(ValueError, match="is not a recorded plan: KeyError"):
        load(path)
