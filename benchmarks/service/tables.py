"""The table of what seeing costs, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.markdown import digits, table
from benchmarks.statistics import ratios, spread
from benchmarks.targets import verdict

from .plan import WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite import Results

    from .plan import Work

OURS = "resilient-io"


def cost_table(results: Results) -> list[str]:
    """Render what was measured against what must be reached."""
    rows = [_row(work, results[work.name][OURS]) for work in WORKS if work.name in results]
    return table(("work", "compared with", "must reach", "measured (each round)", ""), rows)


def _row(work: Work, rounds: Sequence[dict[str, float]]) -> Sequence[str]:
    ours, base = ([each[side] for each in rounds] for side in ("with", "without"))
    mine, theirs = spread(ours), spread(base)
    compared = f"{work.base}: {digits(theirs.median)} {work.unit}"
    figure = f"{digits(mine.median)} {work.unit} ({digits(mine.low)}-{digits(mine.high)})"
    if work.most_more is not None:
        more = ratios(ours, base)
        figure += f", {more.median - 1:+.1%} ({more.low - 1:+.1%} to {more.high - 1:+.1%})"
        reached = verdict(more.median - 1 <= work.most_more)
        return (work.title, compared, f"≤{work.most_more:.0%} more", figure, reached)
    if work.most is not None:
        wanted = f"≤{work.most:g} {work.unit}"
        return (work.title, compared, wanted, figure, verdict(mine.median <= work.most))
    return (work.title, compared, "", figure, "")
