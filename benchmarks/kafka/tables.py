"""The Markdown table of Kafka clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.markdown import digits, table, times
from benchmarks.statistics import ratios, spread
from benchmarks.targets import verdict

from .plan import BARE, CLIENTS, IDLE, IDLE_TARGET, OURS, WORKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.statistics import Spread
    from benchmarks.suite import Results, Rounds
    from benchmarks.targets import Target

    from .plan import Work

_NONE = "-"


def speed_table(results: Results) -> list[str]:
    """Return the table of measurements and targets."""
    rows = [row for work in WORKS if work.name in results for row in _rows(work, results)]
    rows += [row for name in IDLE if name in results for row in _idle_rows(name, results[name])]
    head = (
        "records per second / CPU µs per record",
        *CLIENTS,
        "must reach",
        "measured (each round)",
        "",
    )
    return table(head, rows)


def _rows(work: Work, results: Results) -> list[Sequence[str]]:
    measured = results[work.name]
    cells = [work.title, *(_rate_and_cpu(measured, client) for client in CLIENTS)]
    rows: list[Sequence[str]] = []
    for target in work.targets:
        ratio = _ratio(measured, target)
        rows.append((*cells, target.wording, times(ratio), target.verdict(ratio.median)))
        cells = [""] * len(cells)
    if work.most_cpu is not None:
        cpu = spread([got["cpu"] for got in measured[OURS]])
        figures = f"{cpu.median:.2f} ({cpu.low:.2f}-{cpu.high:.2f})"
        reached = verdict(cpu.median <= work.most_cpu)
        rows.append((*cells, f"CPU ≤{work.most_cpu:g} µs", figures, reached))
        cells = [""] * len(cells)
    if BARE in measured:
        cpu = spread([got["cpu"] for got in measured[BARE]])
        figures = f"{cpu.median:.2f} µs ({cpu.low:.2f}-{cpu.high:.2f})"
        rows.append((*cells, "CPU without a network", figures, ""))
    return rows


def _ratio(measured: Rounds, target: Target) -> Spread:
    key = target.of.lower() or "rate"
    ours, theirs = ([got[key] for got in measured[client]] for client in (OURS, target.against))
    return ratios(ours, theirs)


def _rate_and_cpu(measured: Rounds, client: str) -> str:
    if client not in measured:
        return _NONE
    rate, cpu = (spread([got[key] for got in measured[client]]).median for key in ("rate", "cpu"))
    return f"{digits(rate)} / {digits(cpu)}"


def _share_and_waits(measured: Rounds, client: str) -> str:
    if client not in measured:
        return _NONE
    share, waits = (
        spread([got[key] for got in measured[client]]).median for key in ("share", "waits")
    )
    return f"{share:.2%} / {digits(waits)}"


def _idle_rows(name: str, measured: Rounds) -> list[Sequence[str]]:
    cells = [_share_and_waits(measured, client) for client in CLIENTS]
    ours = spread([got["share"] for got in measured[OURS]])
    return [
        (
            f"{IDLE[name].title}, of a core / waits per second",
            *cells,
            f"≤{IDLE_TARGET:.1%}",
            f"{ours.median:.2%} ({ours.low:.2%}-{ours.high:.2%})",
            verdict(ours.median <= IDLE_TARGET),
        )
    ]
