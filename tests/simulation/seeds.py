"""Reads the list of the seeds that have failed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("seeds.txt")


class FailedSeed(NamedTuple):
    """A seed that has failed.

    Attributes:
        seed: The seed.
        theme: Its theme; None if the seed draws one.
        rule: The name of the rule that it broke.
        finding: What was wrong.
    """

    seed: int
    theme: str | None
    rule: str
    finding: str


def failed_seeds(text: str | None = None) -> list[FailedSeed]:
    """Return the seeds of the file, or of a text with its format.

    Raises:
        ValueError: A line has another format.
    """
    seeds = []
    lines = (FILE.read_text(encoding="utf-8") if text is None else text).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=3)
        if len(words) < 4 or not words[0].isdecimal():
            raise ValueError(f"{FILE.name}, line {number}: must be SEED THEME RULE FINDING")
        seed, theme, rule, finding = words
        seeds.append(FailedSeed(int(seed), None if theme == "-" else theme, rule, finding.strip()))
    return seeds
