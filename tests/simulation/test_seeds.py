"""The seeds that have failed do not fail again."""

import pytest

from tests.simulation import checks
from tests.simulation.draw import THEMES, draw_plan
from tests.simulation.known_findings import KNOWN, known_finding
from tests.simulation.run import run
from tests.simulation.seeds import failed_seeds

RULES = {check.__name__ for check in checks.ALL}


@pytest.mark.parametrize("failed", failed_seeds(), ids=lambda failed: f"{failed.seed}")
def test_failed_seed_does_not_fail_again(failed):
    result = run(draw_plan(failed.seed, failed.theme))
    broken = [each for each in result.violations if known_finding(each) is None]
    assert not broken, f"{failed.finding}\n{broken}"


def test_list_of_seeds_names_existing_themes_and_rules():
    for failed in failed_seeds():
        assert failed.theme is None or failed.theme in THEMES
        assert failed.rule in RULES
    assert {finding.rule for finding in KNOWN} <= RULES


def test_line_of_another_format_is_refused():
    assert failed_seeds("# comment\n\n17 - some_rule A write was lost.\n") == [
        (17, None, "some_rule", "A write was lost.")
    ]
    with pytest.raises(ValueError, match=r"line 2: must be SEED THEME RULE FINDING"):
        failed_seeds("17 pops some_rule A write was lost.\nseventeen pops some_rule why\n")
