"""Check text for forms that are not plain English: `check_wording.py [PATH...]`, from the root.

Each form below made readers decode a sentence instead of reading it. The check covers names,
docstrings, comments, messages and prose. Without arguments it reads the whole repository.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PATHS = (
    *("src", "tests", "docs", "examples", "benchmarks", "demo", "scripts"),
    *("README.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
    *("Makefile", "pyproject.toml", "mkdocs.yml", ".ci", ".github"),
)
SUFFIXES = {".py", ".md", ".sh", ".toml", ".yaml", ".yml", ".html", ".xml", ""}
SKIPPED_FOLDERS = {"__pycache__", "node_modules"}

# Each form, and what to write instead. A space also matches a line break in a comment or docstring.
FORMS = {
    "is no ": "is not a; has no; unknown",
    "are no ": "are not; have no",
    "nobody": "no one; name the subject",
    "somebody": "someone; name the subject",
    "whoever": "name the subject",
    "for who": "if you; for services that",
    "told": "notified; passed; reported",
    "anew": "again; new",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "mending": "fixing",
    "for ever": "forever",
    "of a bug": "because of a bug; crashed",
    "lean on": "rely on",
    "leans on": "relies on",
    "leant on": "relied on",
}
DOCSTRING_STARTS = re.compile(r"(Give|Say|Tell|Let)s?\b")
TEST_NAMES = re.compile(r"test_(it|what|who|whoever)_")


class Allowed(NamedTuple):
    """Text that may contain a form.

    Attributes:
        files: Pattern of the files' paths, from the root.
        text: Regular expression; a form within a match is allowed.
        reason: Why.
    """

    files: str
    text: str
    reason: str


EXCEPTIONS = (
    Allowed("*", r"(?:is|are)[\s#]+no[\s#]+longer\b", "the standard way to say that a state ended"),
    Allowed("*", r"\bthere[\s#]+(?:is|are)[\s#]+no\b", "the standard way to say that none exists"),
    Allowed("*", r"because[\s#]+of[\s#]+a[\s#]+bug", "the form to write"),
    Allowed("scripts/check_wording.py", r"(?s).+", "contains the forms themselves"),
    Allowed("tests/unit/scripts/test_check_wording.py", r"(?s).+", "as above"),
)

PATTERNS = {
    form: re.compile(
        r"(?<![A-Za-z])" + r"[\s#]+".join(form.split()) + r"(?![A-Za-z])", re.IGNORECASE
    )
    for form in FORMS
}


class Finding(NamedTuple):
    """A form in a file, and what to write instead."""

    line: int
    text: str


def in_text(text: str, path: str) -> Iterator[Finding]:
    allowed = [
        match.span()
        for exception in EXCEPTIONS
        if fnmatch.fnmatch(path, exception.files)
        for match in re.finditer(exception.text, text, re.IGNORECASE)
    ]
    for form, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            if not any(start <= match.start() and match.end() <= end for start, end in allowed):
                line = text.count("\n", 0, match.start()) + 1
                yield Finding(line, f"{form.strip()!r}: write {FORMS[form]}")


def in_code(text: str) -> Iterator[Finding]:
    """Find docstrings and names of tests that start badly."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            start = DOCSTRING_STARTS.match(ast.get_docstring(node) or "")
            if start:
                line = node.body[0].lineno
                yield Finding(line, f"the docstring starts with {start[0]!r}: write Return ...")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and TEST_NAMES.match(node.name):
            yield Finding(node.lineno, f"{node.name}: start the name of a test with its subject")


def files(paths: list[str]) -> Iterator[Path]:
    for given in map(Path, paths):
        found = given.rglob("*") if given.is_dir() else [given]
        for path in sorted(found):
            if path.is_file() and path.suffix in SUFFIXES and not SKIPPED_FOLDERS & {*path.parts}:
                yield path


def main() -> None:
    paths = sys.argv[1:] or [path for path in PATHS if Path(path).exists()]
    count = checked = 0
    for path in files(paths):
        text = path.read_text()
        name = path.resolve()
        name = name.relative_to(Path.cwd()) if name.is_relative_to(Path.cwd()) else path
        checked += 1
        findings = list(in_text(text, str(name)))
        if path.suffix == ".py":
            findings += in_code(text)
        for finding in sorted(findings):
            print(f"{name}:{finding.line}: {finding.text}")
        count += len(findings)
    if count:
        sys.exit(f"{count} forms to rewrite in plain English (see {Path(__file__).name})")
    print(f"The wording of {checked} files is plain")


if __name__ == "__main__":
    main()
