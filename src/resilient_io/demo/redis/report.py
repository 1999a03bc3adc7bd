"""The final words: only what was measured."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from resilient_io.demo.redis.frame import curves
from resilient_io.demo.redis.speed import CALLERS
from resilient_io.demo.screen import Line
from resilient_io.demo.timeline import quantile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilient_io.demo.redis.ledger import Audit
    from resilient_io.demo.redis.run import Fault, Run

_LABEL: Final = 36
_COLUMN: Final = 22
_WIDTH: Final = 80


def speed_line(speeds: Sequence[float]) -> Line:
    """Say how fast both are without faults."""
    plain, ours = speeds
    return Line(
        f"{CALLERS} callers, no fault, reads/s: redis-py {plain:,.0f}, ResilientRedis {ours:,.0f}."
    )


def report(runs: Sequence[tuple[Run, Audit]], speeds: Sequence[float], blocks: str) -> list[Line]:
    """Compare both clients, and say in words what happened."""
    (plain, _), (ours, audit) = runs
    return [
        Line(),
        Line(_cells("", [run.side.title for run, _ in runs]), "bold"),
        *_load([plain, ours]),
        Line(),
        *_faults(plain, ours),
        Line(),
        Line("Calls answered over time:"),
        *curves([plain, ours], blocks),
        Line(),
        *_ledger([audit for _, audit in runs]),
        Line(),
        *[line for run, found in runs for line in _words(run, found)],
        Line(
            f"Reading for {CALLERS} callers, without faults, ResilientRedis was "
            f"{speeds[1] / speeds[0]:.1f} times as fast."
        ),
        Line(),
        _verdict(audit),
    ]


def _cells(label: str, values: Sequence[str]) -> str:
    return f"{label:<{_LABEL}}" + "".join(f"{value:>{_COLUMN}}" for value in values)


def _load(runs: Sequence[Run]) -> list[Line]:
    def row(label: str, value: Callable[[Run], str]) -> Line:
        return Line(_cells(label, [value(run) for run in runs]))

    def typical(run: Run) -> str:
        took = sorted(run.answered)
        p50, p99 = quantile(took, 0.5), quantile(took, 0.99)
        return "-" if p50 is None or p99 is None else f"{p50 * 1e3:.1f} / {p99 * 1e3:,.1f} ms"

    def ended_by(name: str) -> Line:
        return row(f"calls ended by {name}", lambda run: f"{run.errors[name]:,}")

    return [
        row("calls made", lambda run: f"{run.calls:,}"),
        row("calls answered a second", lambda run: f"{len(run.answered) / run.seconds:,.0f}"),
        row("p50 / p99 of the answered", typical),
        row("longest call", lambda run: f"{run.longest:.2f} s"),
        row("calls that took over 1 s", lambda run: f"{run.hung:,}"),
        row("retries", lambda run: _or(run.side.retries(), "not told", ",")),
        *[ended_by(name) for name in sorted({name for run in runs for name in run.errors})],
    ]


def _faults(plain: Run, ours: Run) -> list[Line]:
    """Tell of each fault how long calls took, and how soon somebody knew."""
    head = f"{'':<26}{'longest call':>18}{'down published':>18}{'first error':>18}"
    names = f"{'':<26}" + f"{'plain':>10}{'ours':>8}" * 3
    lines = [Line(head, "bold"), Line(names)]
    for one, other in zip(plain.faults, ours.faults, strict=True):
        pairs = [
            (f"{one.longest:.2f} s", f"{other.longest:.2f} s"),
            (_after(one, one.down_at), _after(other, other.down_at)),
            (_after(one, one.error_at), _after(other, other.error_at)),
        ]
        cells = "".join(f"{left:>10}{right:>8}" for left, right in pairs)
        lines.append(Line(f"{one.scene.short:<26}{cells}"))
    return lines


def _after(fault: Fault, at: float | None) -> str:
    if at is None:
        return "-"
    seconds = at - fault.at
    return f"{seconds * 1e3:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def _or(count: int | None, otherwise: str, form: str) -> str:
    return otherwise if count is None else format(count, form)


def _ledger(audits: Sequence[Audit]) -> list[Line]:
    def row(label: str, value: Callable[[Audit], int]) -> Line:
        return Line(_cells(label, [f"{value(audit):,}" for audit in audits]))

    return [
        Line("The ledger: writes by their ids, read back from the server by a third party"),
        row("  acknowledged", lambda audit: audit.acknowledged),
        row("  unknown (perhaps done)", lambda audit: audit.unknown),
        row("  refused (told: not done)", lambda audit: audit.not_done),
        row("  found in the server", lambda audit: audit.found),
        row("  repeated (done more than once)", lambda audit: audit.repeated),
        row("  lost (acknowledged, not found)", lambda audit: audit.lost),
        row("  refused, but found", lambda audit: audit.contradicted),
    ]


def _words(run: Run, audit: Audit) -> list[Line]:
    open_ends = f"{_some(audit.unknown).capitalize()} ended in an error that leaves open "
    open_ends += "whether they were done"
    if audit.not_done:
        open_ends += f", and {audit.not_done:,} in one that says they were not"
        open_ends += f" (but {audit.contradicted:,} were)" if audit.contradicted else ""
    were = "were" if audit.repeated > 1 else "was"
    repeated = f"{_some(audit.repeated)} of {audit.writes:,} writes {were} done more than once"
    sentences = [
        f"{run.side.name}: {repeated}.",
        f"{audit.lost:,} acknowledged ones were missing." if audit.lost else "",
        f"{open_ends}.",
        f"The longest call took {run.longest:.1f} s, and {run.hung:,} took over a second.",
        _outages(run),
    ]
    text = " ".join(sentence for sentence in sentences if sentence)
    return [Line(line) for line in [*textwrap.wrap(text, _WIDTH), ""]]


def _outages(run: Run) -> str:
    outages = [fault for fault in run.faults if fault.scene.what != "lost replies"]
    published = [(fault, fault.down_at) for fault in outages if fault.down_at is not None]
    if not published:
        return f"It published none of the {len(outages)} outages."
    delays = " and ".join(f"{(at - fault.at) * 1e3:,.0f} ms" for fault, at in published)
    failed = sum(fault.errors for fault, _ in published)
    before = sum(fault.errors_before_down for fault, _ in published)
    return (
        f"It published {len(published)} of the {len(outages)} outages, {delays} after the server "
        f"was gone; {_some(failed)} of the calls made then failed, {before:,} before that moment."
    )


def _some(count: int) -> str:
    return f"{count:,}" if count else "none"


def _verdict(audit: Audit) -> Line:
    if audit.balanced:
        return Line("The ledger of ResilientRedis balances.", "green")
    return Line("The ledger of ResilientRedis DOES NOT BALANCE.", "red")
