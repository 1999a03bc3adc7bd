"""The tables of the Redis benchmarks, as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.markdown import digits, table, times
from benchmarks.statistics import Spread, ratios, spread
from benchmarks.targets import verdict

from .plan import (
    CLIENTS,
    CONSTRUCT_TARGET,
    COST_TARGET,
    CROWD_TARGET,
    DEPENDENCIES_TARGET,
    DOWN_TARGET,
    FLOOR,
    FLOORS,
    FUTURES_TARGET,
    MEMORY_TARGET,
    OURS,
    OVERHEAD_TARGET,
    PEERS,
    RATE_TARGETS,
    START_TARGET,
    TAIL_TARGET,
    WORKS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite import Results

_UNBOUNDED = 5e6
"""µs after which a worker abandons a call."""


def speed_table(results: Results) -> list[str]:
    """Return the table that compares the measurements with the targets."""
    rows = [row for work in WORKS if work.name in results for row in _rate_rows(work.name, results)]
    rows += _cost_row(results)
    rows += _tail_row(results)
    rows += _down_row(results)
    rows += _overhead_rows(results)
    head = ("work", *PEERS, OURS, "must reach", "measured (each round)", "")
    return table(head, rows)


def resource_table(results: Results) -> list[str]:
    """Return the table of CPU per call, and of bytes and connections per idle client."""
    rows: list[Sequence[str]] = []
    for work in WORKS:
        if work.name in results:
            cells = _cells(results, work.name, "cpu")
            rows.append((f"CPU µs per call: {work.title}", *cells))
    if "idle" in results:
        weights = [_of(results, "idle", name, "bytes").median for name in CLIENTS]
        rows.append(("bytes per idle client", *(f"{weight:,.0f}" for weight in weights)))
        counts = [_of(results, "idle", name, "connections").median for name in CLIENTS]
        rows.append(("connections of an idle client", *(digits(count) for count in counts)))
    return table(("", *CLIENTS), rows)


def floor_table(results: Results) -> list[str]:
    """Return the table of what the bare minimum of a client reaches, compared with the targets."""
    rows: list[Sequence[str]] = []
    for work in FLOORS:
        name = f"floor of {work.name}"
        title, cells = (
            work.title,
            [digits(_of(results, name, c, "cpu").median) for c in work.clients],
        )
        for target in RATE_TARGETS[work.name]:
            reached = [
                times(
                    ratios(*(_values(results, name, c, "rate") for c in (client, target.against)))
                )
                for client in (FLOOR, OURS)
            ]
            rows.append((title, *cells, target.wording, *reached))
            title, cells = "", [""] * len(cells)
    clients = FLOORS[0].clients
    return table(("CPU µs per call", *clients, "rate must reach", FLOOR, OURS), rows)


def scale_table(results: Results) -> list[str]:
    """Return the table of what clients and dependencies cost that do nothing."""
    ours, theirs = (results["scale"][client][0] for client in (OURS, "redis-py"))
    rows: list[Sequence[str]] = [
        _scale_row(
            "CPU of constructing a client, µs",
            ours["construct"],
            CONSTRUCT_TARGET,
            ",.0f",
            theirs=theirs["construct"],
        ),
        _scale_row(
            "bytes that Python allocates for an idle client",
            ours["traced"],
            MEMORY_TARGET,
            ",.0f",
            theirs=theirs["traced"],
        ),
        _scale_row("CPU of 1,000 idle clients, of a core", ours["crowd"], CROWD_TARGET, ".1%"),
        _scale_row(
            "CPU of 1,000 probed dependencies, of a core",
            ours["dependencies"],
            DEPENDENCIES_TARGET,
            ".1%",
        ),
        _scale_row("1,000 clients started at once: UP after, s", ours["up"], START_TARGET, ".1f"),
        _scale_row("how many of them were DOWN meanwhile", ours["down"], 0, ".0f"),
    ]
    return table(("", "redis-py", OURS, "must reach", ""), rows)


def _scale_row(
    title: str, ours: float, most: float, form: str, *, theirs: float | None = None
) -> Sequence[str]:
    peer = "-" if theirs is None else format(theirs, form)
    return (title, peer, format(ours, form), f"≤{most:{form}}", verdict(ours <= most))


def _rate_rows(name: str, results: Results) -> list[Sequence[str]]:
    work = next(work for work in WORKS if work.name == name)
    if work.kind == "latency":
        return []
    cells = _cells(results, name, "rate")
    rows: list[Sequence[str]] = []
    title = f"{work.title}, per second"
    for target in RATE_TARGETS.get(name, ()):
        ours, theirs = (_values(results, name, client, "rate") for client in (OURS, target.against))
        ratio = ratios(ours, theirs)
        rows.append((title, *cells, target.wording, times(ratio), target.verdict(ratio.median)))
        title, cells = "", [""] * len(CLIENTS)
    return rows or [(title, *cells, "", "", "")]


def _cost_row(results: Results) -> list[Sequence[str]]:
    if not {"get-500", "get-10000"} <= results.keys():
        return []
    few, many = ({c: _values(results, n, c, "rate") for c in CLIENTS} for n in _CROWDS)
    costs = {client: ratios(few[client], many[client]) for client in CLIENTS}
    ours = costs[OURS]
    return [
        (
            "cost of a call at 10,000 callers, against 500",
            *(f"{cost.median:.2f}x" for cost in costs.values()),
            f"≤{COST_TARGET:g}x",
            times(ours),
            verdict(ours.median <= COST_TARGET),
        )
    ]


_CROWDS = ("get-500", "get-10000")


def _tail_row(results: Results) -> list[Sequence[str]]:
    name = "latency-50"
    if name not in results:
        return []
    cells = [
        "{:,.0f} / {:,.0f}".format(*(_of(results, name, client, q).median for q in ("p50", "p99")))
        for client in CLIENTS
    ]
    ratio = ratios(_values(results, name, OURS, "p99"), _values(results, name, "redis-py", "p50"))
    reached = verdict(ratio.median <= TAIL_TARGET)
    return [
        (
            "GET, 50 callers: p50 / p99, µs",
            *cells,
            "our p99 ≤ redis-py's p50",
            times(ratio),
            reached,
        )
    ]


def _down_row(results: Results) -> list[Sequence[str]]:
    if "down" not in results:
        return []
    cells = []
    for client in CLIENTS:
        cost = _of(results, "down", client, "refused").median
        cells.append(digits(cost) if cost < _UNBOUNDED else f"over {_UNBOUNDED:,.0f}")
    ours = _of(results, "down", OURS, "refused")
    return [
        (
            "a call while the server is dead, µs",
            *cells,
            f"≤{DOWN_TARGET:g} µs",
            f"{ours.median:.2f} ({ours.low:.2f}-{ours.high:.2f})",
            verdict(ours.median <= DOWN_TARGET),
        )
    ]


def _overhead_rows(results: Results) -> list[Sequence[str]]:
    if "overhead" not in results:
        return []
    added, ours, bare = (
        _of(results, "overhead", OURS, key) for key in ("overhead", "ours", "bare")
    )
    cpu, futures, multiple = (
        _of(results, "overhead", OURS, key) for key in ("ours CPU", "futures CPU", "CPU multiple")
    )
    return [
        (
            "policy, health, statistics against a bare connection, µs per GET",
            *[""] * len(PEERS),
            f"{ours.median:.2f} against {bare.median:.2f}",
            f"≤{OVERHEAD_TARGET:.0%} more",
            f"{added.median:.0%} ({added.low:.0%} to {added.high:.0%})",
            verdict(added.median <= OVERHEAD_TARGET),
        ),
        (
            "against futures of the same loop, without a server, CPU µs per GET",
            *[""] * len(PEERS),
            f"{cpu.median:.2f} against {futures.median:.2f}",
            f"≤{FUTURES_TARGET:g}x",
            times(multiple),
            verdict(multiple.median <= FUTURES_TARGET),
        ),
    ]


def _cells(results: Results, work: str, key: str) -> list[str]:
    """Return the median of each client, or a dash for one that does not do this work."""
    return [
        digits(_of(results, work, client, key).median) if client in results[work] else "-"
        for client in CLIENTS
    ]


def _values(results: Results, work: str, client: str, key: str) -> list[float]:
    return [measured[key] for measured in results[work][client]]


def _of(results: Results, work: str, client: str, key: str) -> Spread:
    return spread(_values(results, work, client, key))
