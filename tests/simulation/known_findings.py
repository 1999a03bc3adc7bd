"""Violations with a known cause that is not fixed yet: they are counted, but do not fail a search.

Remove an entry together with the fix, and record a plan that found it in `plans/`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .history import Violation


class KnownFinding(NamedTuple):
    """A known violation.

    Attributes:
        name: A short name, for the table at the end of a search.
        rule: The name of the broken rule.
        text: Regular expression that occurs in the detail of the violation.
        why: The cause.
    """

    name: str
    rule: str
    text: str
    why: str


KNOWN: tuple[KnownFinding, ...] = ()


def known_finding(
    violation: Violation, known: Sequence[KnownFinding] = KNOWN
) -> KnownFinding | None:
    """Return the known finding that this violation shows, or None."""
    for finding in known:
        if finding.rule == violation.rule and re.search(finding.text, violation.detail):
            return finding
    return None
