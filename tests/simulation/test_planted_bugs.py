"""The planted bugs fit the source, and only the process in which one is planted has it."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import resilient_io.redis
from tests.simulation.bugs import BUGS
from tests.simulation.planted_bugs import find, plant, source_of

AREAS = {
    "retries",
    "fencing",
    "ordering",
    "reply matching",
    "budget",
    "health",
    "closing",
    "cancellation",
    "deadlines",
    "pipelines",
    "locks and scripts",
    "sharing",
}


def run(program, tmp_path):
    root = Path(resilient_io.__file__).parents[1]
    here = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(root), str(here))),
        "PYTHONPYCACHEPREFIX": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_bug_fits_its_file_and_compiles(bug):
    source = source_of(bug)
    changed = bug.change(source)
    assert changed != source
    compile(changed, bug.file, "exec", dont_inherit=True)


def test_names_are_unique_and_each_area_has_five_bugs():
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
    areas = Counter(bug.area for bug in BUGS)
    assert set(areas) == AREAS
    assert min(areas.values()) >= 5


def test_effect_is_one_sentence():
    for bug in BUGS:
        assert bug.effect.endswith("."), bug.name
        assert ". " not in bug.effect, bug.name


def test_planted_bug_changes_the_module_without_bytecode(tmp_path):
    program = """
from tests.simulation.planted_bugs import plant
plant("budget-overdrawn")
from resilient_io.retry import RetryBudget, RetryPolicy
budget = RetryBudget(4.0, lambda: 0)
print(budget.try_spend(5.0), budget.tokens, RetryPolicy().attempts)
"""
    assert run(program, tmp_path) == "True -1.0 3"
    cached = {path.name.partition(".")[0] for path in tmp_path.rglob("resilient_io/*.pyc")}
    assert "errors" in cached
    assert "retry" not in cached


def test_planted_bug_reaches_names_that_the_package_imports(tmp_path):
    program = """
from tests.simulation.planted_bugs import plant
plant("deadline-ignored-by-shortcut")
from resilient_io import ResilientRedis
import resilient_io.redis
print(
    1.5 in ResilientRedis.execute_command.__code__.co_consts,
    ResilientRedis is resilient_io.redis.ResilientRedis is resilient_io.redis.client.ResilientRedis,
)
"""
    assert run(program, tmp_path) == "False True"
    assert 1.5 in resilient_io.ResilientRedis.execute_command.__code__.co_consts


def test_second_bug_in_a_process_is_an_error(tmp_path):
    program = """
from tests.simulation.planted_bugs import plant
plant("budget-overdrawn")
try:
    plant("put-back-reversed")
except RuntimeError as error:
    print(error)
"""
    assert "'budget-overdrawn' is planted in this process" in run(program, tmp_path)


def test_planting_after_the_import_is_an_error():
    with pytest.raises(RuntimeError, match="must be called before resilient_io is imported"):
        plant(BUGS[0].name)


def test_unknown_bug_is_an_error():
    with pytest.raises(KeyError, match="no planted bug has the name 'x'"):
        find("x")


def test_bug_that_does_not_fit_is_an_error():
    bug = BUGS[0]
    for source in ("", bug.old * 2):
        with pytest.raises(ValueError, match="must occur once"):
            bug.change(source)
