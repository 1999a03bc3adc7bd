"""Check requirements/*.txt: every pin has hashes, no index is named, nothing is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "requirements"

# A name as pip compares it, without extras and versions.
NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)")


def names(lines: list[str]) -> set[str]:
    found = (NAME.match(line) for line in lines)
    return {re.sub(r"[-_.]+", "-", match.group(1)).lower() for match in found if match}


def pins(lock: str) -> list[str]:
    """Return the lines that pin a package, each joined with its continuation lines."""
    joined = (LOCKS / f"{lock}.txt").read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if NAME.match(line)]


def faults_of(lock: str, wanted: set[str]) -> list[str]:
    text = (LOCKS / f"{lock}.txt").read_text()
    pinned = pins(lock)
    faults = [
        f"line {number} names an address or an option: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if "://" in line or re.match(r"\s*--(?!hash=)", line) or re.match(r"-\w", line)
    ]
    faults += [f"no hash: {line}" for line in pinned if "--hash=sha256:" not in line]
    faults += [f"no exact version: {line}" for line in pinned if not re.match(r"\S+==\S+ ", line)]
    faults += [f"{name} is not pinned" for name in sorted(wanted - names(pinned))]
    return [f"requirements/{lock}.txt: {fault}" for fault in faults]


def main() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = names(pyproject["project"]["dependencies"])
    extras = pyproject["project"]["optional-dependencies"]
    wanted = {source.stem: names(source.read_text().splitlines()) for source in LOCKS.glob("*.in")}
    wanted["runtime"] = runtime
    wanted["test"] |= (
        runtime | names(extras["testing"]) | names(pyproject["build-system"]["requires"])
    )
    faults = [fault for lock in sorted(wanted) for fault in faults_of(lock, wanted[lock])]
    if faults:
        sys.exit("\n".join([*faults, "Run `make lock`."]))
    print(f"{len(wanted)} locks are complete, hashed, and name no index")


if __name__ == "__main__":
    main()
