"""The check for wording finds the forms in prose, names and docstrings, and only there."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "check_wording.py"


def check(folder, text, name="page.md"):
    (folder / name).write_text(text)
    return subprocess.run(
        [sys.executable, SCRIPT, name], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "text",
    [
        "This is no YAML.",
        "These are\nno files.",
        "# A file for services, and there nobody\n# reads it.",
        "Somebody else",
        "Whoever calls",
        "for who has no HTTP",
        "callers are told",
        "def _told(): ...",
        "It is made anew",
        "make format mends it",
        "it runs for ever",
        "# It ended of a\n# bug.",
        "parts that are leant on",
    ],
)
def test_forms_are_found(tmp_path, text):
    done = check(tmp_path, text)
    assert done.returncode == 1
    assert "page.md:" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "It is no longer there, because there is no server.",
        "It crashed because of a bug.",
        "We recommend to amend it forever.",
        "It is not a heartbeat file.",
    ],
)
def test_plain_sentences_are_accepted(tmp_path, text):
    done = check(tmp_path, text)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('def age():\n    """Give the age."""\n', "starts with 'Give'"),
        ('"""Says what it does."""\n', "starts with 'Says'"),
        ('class A:\n    """Let it be."""\n', "starts with 'Let'"),
        ("async def test_it_works(): ...\n", "test_it_works"),
        ("def test_what_is_sent(): ...\n", "test_what_is_sent"),
    ],
)
def test_docstrings_and_test_names_are_checked(tmp_path, code, found):
    done = check(tmp_path, code, "module.py")
    assert done.returncode == 1
    assert found in done.stdout


def test_docstrings_and_test_names_in_plain_form_are_accepted(tmp_path):
    code = 'def test_item_is_sent():\n    """Return it; letting go is fine."""\n'
    done = check(tmp_path, code, "module.py")
    assert done.returncode == 0, done.stdout
