"""Versions of Python and of the libraries beneath us that are known to matter."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import ssl
from typing import TYPE_CHECKING, Final

from resilient_io.doctor.looking import Finding, merged, note, ok, problem

from .files import text_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["look_at_versions"]

_NAMED: Final = ("redis", "hiredis", "aiokafka", "tenacity")
_WANTED: Final = {"redis": ((8, 1), (9, 0)), "aiokafka": ((0, 14), (0, 15))}
"""From this version on, and below that one."""

_RESOLVES_OVER_TCP: Final = (3, 18)
"""The first Alpine with musl 1.2.4."""

_LINE: Final = re.compile(r'^(\w+)="?([^"\n]*)"?$', re.MULTILINE)


def look_at_versions(root: Path) -> Finding:
    """Name the versions of what runs here, and what is known of them."""
    versions = {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION.split()[1]}
    findings: list[Finding] = []
    for name in _NAMED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            findings.append(_missing(name))
            continue
        findings += _judge_library(name, versions[name])
    findings += judge_system(text_of(root / "etc/os-release") or "")
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    if not findings:
        return ok(named, **versions)
    told = merged(findings, **versions)
    return Finding(told.status, f"{told.found} ({named})", told.advice, told.data)


def _missing(name: str) -> Finding:
    if name == "hiredis":
        return note(
            "hiredis is missing, so replies of Redis are read in Python",
            "Install redis[hiredis]: it is several times as fast.",
        )
    return problem(f"{name} is missing", "Install it: pip install --force-reinstall resilient-io")


def _judge_library(name: str, version: str) -> list[Finding]:
    wanted = _WANTED.get(name)
    if wanted is None or wanted[0] <= numbers_of(version)[:2] < wanted[1]:
        return []
    least, below = (".".join(map(str, bound)) for bound in wanted)
    return [
        problem(
            f"{name} {version} is not one that resilient-io was made for",
            f"Install {name}>={least},<{below}: parts of us stand on its inside.",
        )
    ]


def judge_system(release: str) -> list[Finding]:
    """Say what is known of the distribution's C library, which looks names up.

    Args:
        release: What /etc/os-release says.
    """
    said = dict(_LINE.findall(release))
    version = numbers_of(said.get("VERSION_ID", ""))
    if said.get("ID") != "alpine" or not version or version >= _RESOLVES_OVER_TCP:
        return []
    return [
        note(
            f"the musl of Alpine {said['VERSION_ID']} cannot look up names with many addresses",
            "It does not ask again over TCP when an answer is large: use Alpine 3.18 or later, or "
            "an image with glibc.",
        )
    ]


def numbers_of(version: str) -> tuple[int, ...]:
    """Give the numbers at the beginning of a version: (8, 1, 0) of "8.1.0rc1"."""
    numbers = []
    for part in version.split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        numbers.append(int(digits[0]))
        if digits[0] != part:
            break
    return tuple(numbers)
