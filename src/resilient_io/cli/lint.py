"""`resilient-io lint`: manifests against the times of the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from resilient_io.cli.exits import GOOD, PROBLEMS
from resilient_io.cli.terminal import json_line, write_line
from resilient_io.errors import ConfigurationError
from resilient_io.probing import Finding, Severity
from resilient_io.probing.manifests import lint_manifests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

__all__ = ["lint", "read", "settings"]

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def lint(files: dict[str, str], told: dict[str, float], *, console: Console, as_json: bool) -> int:
    """Lint, and show what was found.

    Args:
        files: Manifests by the names of their files.
        told: Times of the service.
        console: Where to show it.
        as_json: As lines of JSON.

    Returns:
        The exit code: problems are errors and warnings.

    Raises:
        ConfigurationError: A file is no manifest.
    """
    names, findings = lint_manifests(files, told)
    for finding in findings:
        if as_json:
            json_line({"event": "finding", **finding.as_dict()})
        elif console.is_terminal:
            _show(console, finding)
        else:
            write_line(_line(finding))
    counts = {
        severity: sum(each.severity is severity for each in findings) for severity in Severity
    }
    if as_json:
        json_line({"event": "summary", "looked_at": names, "findings": counts})
    else:
        told_of = ", ".join(
            f"{count} {severity}{'s' * (count != 1)}" for severity, count in counts.items() if count
        )
        write_line(f"{', '.join(names)}: {told_of or 'nothing to say'}")
    return PROBLEMS if counts[Severity.ERROR] or counts[Severity.WARNING] else GOOD


def read(paths: Sequence[str]) -> dict[str, str]:
    """Read files; "-" is standard input.

    Raises:
        ConfigurationError: One cannot be read.
    """
    found = {}
    for path in paths:
        try:
            text = _standard_input() if path == "-" else Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path} is no text in UTF-8") from None
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        found["standard input" if path == "-" else path] = text
    return found


def _standard_input() -> str:
    if sys.stdin is None:
        raise ConfigurationError("standard input cannot be read: it is closed")
    return sys.stdin.buffer.read().decode("utf-8")


def settings(given: Sequence[str]) -> dict[str, float]:
    """Read NAME=SECONDS.

    Raises:
        ConfigurationError: One is none of that.
    """
    told = {}
    for each in given:
        name, equals, value = each.partition("=")
        try:
            told[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ConfigurationError(f"--set {each!r} cannot be read: write --set grace=25")
    return told


def _place(finding: Finding) -> str:
    return f"{finding.file}:{finding.line}" if finding.line else finding.file


def _line(finding: Finding) -> str:
    return (
        f"{_place(finding)}: {finding.severity} [{finding.code}] {finding.of} {finding.where}: "
        f"{finding.found} {finding.advice}"
    )


def _show(console: Console, finding: Finding) -> None:
    head = Text(f"{_place(finding)}: ")
    head.append(str(finding.severity), style=_STYLES[finding.severity])
    head.append(f" [{finding.code}] {finding.of} ")
    head.append(finding.where, style="bold")
    console.print(head, soft_wrap=True)
    console.print(Text(f"  {finding.found}"))
    console.print(Text(f"  -> {finding.advice}", style="cyan"))
