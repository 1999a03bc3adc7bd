"""Numbers and tables as Markdown, and the document that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .statistics import Spread


def digits(value: float) -> str:
    """Write three significant digits, without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def times(ratio: Spread) -> str:
    """Write a ratio with its spread."""
    return f"{ratio.median:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def markers(suite: str) -> tuple[str, str]:
    """Return the lines between which a document contains the results."""
    return f"<!-- measured {suite}: begin -->", f"<!-- measured {suite}: end -->"


def replace_measured(document: str, suite: str, measured: str) -> str:
    """Put a report between the markers of a document.

    Raises:
        ValueError: The document has no such markers, or more than one pair.
    """
    begin, end = markers(suite)
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"the document must have one {begin} and one {end}")
    before, _, rest = document.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{measured.strip()}\n{end}{after}"


def write(path: Path, suite: str, measured: str) -> None:
    """Rewrite the tables of a document."""
    document = path.read_text(encoding="utf-8")
    path.write_text(replace_measured(document, suite, measured), encoding="utf-8")
