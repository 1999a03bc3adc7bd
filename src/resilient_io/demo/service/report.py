"""The final words: only what was measured and found."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from resilient_io.demo.screen import Line
from resilient_io.demo.service.frame import curves

if TYPE_CHECKING:
    from resilient_io.demo.service.ledger import Audit
    from resilient_io.demo.service.run import Fault, Run
    from resilient_io.kafka import ConsumerStats

_LABEL: Final = 58
_WIDTH: Final = 80


def report(run: Run, audit: Audit, stats: ConsumerStats, blocks: str) -> list[Line]:
    """Say in numbers and words what happened."""
    return [
        Line(),
        Line("Orders sent and handled over time:"),
        *curves(run, blocks),
        Line(),
        *_faults(run),
        Line(),
        *_ledger(audit),
        Line(),
        *[Line(line) for line in textwrap.wrap(_words(run, audit, stats), _WIDTH)],
        Line(),
        _verdict(audit),
    ]


def _faults(run: Run) -> list[Line]:
    """Tell of each fault how soon it was known, how soon it was over, and whom it hit."""
    head = f"{'':<23}{'down':>12}{'goes on':>12}{'orders':>10}{'handlers':>10}{'our log':>11}"
    names = f"{'':<23}{'published':>12}{'after':>12}{'failed':>10}{'failed':>10}{'records':>11}"
    lines = [Line(head, "bold"), Line(names)]
    for fault in run.faults:
        cells = (
            f"{_after(fault.at, fault.down_at):>12}{_goes_on(fault):>12}"
            f"{fault.orders_failed:>10,}{fault.calls_failed:>10,}{fault.logged:>11,}"
        )
        lines.append(Line(f"{fault.scene.short:<23}{cells}"))
    return lines


def _goes_on(fault: Fault) -> str:
    return "-" if fault.ended_at is None else _after(fault.ended_at, fault.handled_at)


def _after(begin: float, at: float | None) -> str:
    if at is None:
        return "-"
    seconds = at - begin
    return f"{seconds * 1e3:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def _ledger(audit: Audit) -> list[Line]:
    def row(label: str, count: int) -> Line:
        return Line(f"{label:<{_LABEL}}{count:>{_WIDTH - _LABEL},}")

    return [
        Line("The ledger: orders by their ids, read back from Kafka and Redis by a third party"),
        row("  acknowledged by Kafka", audit.acknowledged),
        row("  unknown (perhaps in Kafka)", audit.unknown),
        row("  not sent (told: not in Kafka)", audit.not_sent),
        row("  found in Kafka", audit.found),
        row("  repeated in Kafka", audit.repeated),
        row("  acknowledged, but not in Kafka", audit.missing),
        row("  told not to be in Kafka, but found", audit.contradicted),
        row("  handled (booked in Redis)", audit.handled),
        row("  dead letters", audit.dead),
        row("  lost (in Kafka, but not handled)", audit.lost),
        row("  booked, but not in Kafka", audit.strangers),
        row("  booked twice (the second time changed nothing)", audit.twice),
        row("    after an outcome that nobody could know", audit.twice_unknown),
        row("    delivered again after they were handled", audit.twice_delivered),
        row("    unexplained", audit.unexplained),
        row("  handled, but not committed", audit.uncommitted),
    ]


def _words(run: Run, audit: Audit, stats: ConsumerStats) -> str:
    share = run.cpu / run.seconds
    return (
        f"Of {audit.found:,} orders in Kafka {audit.found - audit.lost - audit.dead:,} were "
        f"handled, {audit.lost:,} lost and {audit.twice:,} booked twice, through "
        f"{len(run.faults)} faults. {run.out_of_order:,} were handled before an earlier one of the "
        f"same customer. No customer waited longer than {run.longest:.1f} s for an answer. "
        f"We logged {run.logged:,} records, {stats.log_records_dropped:,} of the driver's "
        f"were dropped and {run.logged_by_drivers:,} passed. Instances of the driver's consumer: "
        f"{stats.instances:,}. All of it took {share:.0%} of a processor core."
    )


def _verdict(audit: Audit) -> Line:
    if audit.balanced:
        return Line("The ledger of the service balances.", "green")
    return Line("The ledger of the service DOES NOT BALANCE.", "red")
