"""What a worker does to run fast."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTROL = Path("/sys/kernel/mm/transparent_hugepage/enabled")

PROGRAM = """
from pathlib import Path
from tests.simulation.worker import use_huge_pages

numbers = [10_000 + number for number in range(500_000)]  # 20 MB of small objects
use_huge_pages()
for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
    if line.startswith("AnonHugePages:"):
        print(line.split()[1], sum(numbers) == 500_000 * 10_000 + 500_000 * 499_999 // 2)
"""


def _has_huge_pages() -> bool:
    version = [int(part) for part in platform.release().split(".")[:2] if part.isdigit()]
    return (
        sys.platform == "linux"
        and version >= [6, 1]
        and CONTROL.exists()
        and "[never]" not in CONTROL.read_text()
    )


@pytest.mark.skipif(not _has_huge_pages(), reason="the kernel has no huge pages for a process")
def test_memory_of_a_worker_moves_to_huge_pages_and_keeps_its_contents():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes, unchanged = ended.stdout.split()
    assert int(kilobytes) >= 2048
    assert unchanged == "True"
