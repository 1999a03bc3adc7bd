"""The settings that all tests share."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_sigint_works_in_tests_started_with_sigint_ignored():
    code = "signal.getsignal(2) is signal.default_int_handler"
    test = f"import signal\ndef test_handler(): assert {code}\n"
    folder = ROOT / "tests" / "unit"
    path = folder / "test_started_by_test_conftest.py"
    path.write_text(test)
    try:
        done = subprocess.run(
            ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
            + [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.unlink()
    assert "1 passed" in done.stdout, done.stdout
