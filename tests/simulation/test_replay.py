"""A seed has the same history in every process and after any other seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.draw import draw_plan
from tests.simulation.run import run

ROOT = Path(__file__).parents[2]
SEEDS = range(20)

PROGRAM = """
import json
from tests.simulation.test_replay import digests, SEEDS
print(json.dumps(digests(SEEDS[::{step}])))
"""


def digests(seeds):
    return {str(seed): run(draw_plan(seed)).digest for seed in seeds}


def digests_of_process(step, hash_seed):
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(step=step)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        },
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return json.loads(process.stdout)


def test_seeds_have_the_same_histories_in_other_processes_and_in_reverse_order():
    forward = digests_of_process(1, "1")
    assert len(set(forward.values())) == len(SEEDS)
    assert digests_of_process(-1, "2") == forward


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_seed_has_the_same_history_twice_in_one_process(seed):
    assert digests([seed]) == digests([seed])
