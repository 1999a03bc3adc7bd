"""What happened when: lines of a timeline, and curves over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from resilient_io.demo.screen import Colour, Line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TICK: Final = 0.4
"""Seconds of each step of a curve."""

_WIDEST: Final = 64
"""Steps of a curve on the screen."""

Kind = Literal["fault", "good", "bad", "error"]

_COLOURS: Final[dict[Kind, Colour]] = {
    "fault": "yellow",
    "good": "green",
    "bad": "red",
    "error": "red",
}


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the timeline; `at` is in seconds since the run began."""

    at: float
    kind: Kind
    text: str


class Curve:
    """Counts what happens in each step of time.

    Args:
        began: Loop time of the first step's beginning.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self.counts: list[int] = []

    def add(self, now: float) -> None:
        """Count one."""
        place = int((now - self._began) / TICK)
        self.counts += [0] * (place + 1 - len(self.counts))
        self.counts[place] += 1


def event_line(event: Event) -> Line:
    """Show a line of the timeline."""
    return Line(f"  {event.at:7.3f} s  {event.text}", _COLOURS[event.kind])


def curve_lines(
    curves: Mapping[str, Sequence[int]],
    signs: Sequence[tuple[float, str]],
    legend: str,
    blocks: str,
) -> list[Line]:
    """Draw counts over time, all to the same scale, and the faults below them.

    Args:
        curves: The counts of each step, by their labels.
        signs: Seconds since the beginning, and a letter for the fault that began then.
        legend: What the letters mean.
        blocks: Characters from nothing to the most.
    """
    # Steps are merged until the widest curve fits.
    steps = -(-max(map(len, curves.values())) // _WIDEST) or 1
    curves = {
        label: [sum(counts[place : place + steps]) for place in range(0, len(counts), steps)]
        for label, counts in curves.items()
    }
    highest = max([max(counts, default=0) for counts in curves.values()] + [1])
    width = max([10, *map(len, curves)]) if len(curves) == 1 else max(map(len, curves))
    lines = []
    for label, counts in curves.items():
        heights = [-(-count * (len(blocks) - 1) // highest) for count in counts]
        lines.append(Line(f"  {label:<{width}} {''.join(blocks[height] for height in heights)}"))
    places = {int(at / TICK / steps): sign for at, sign in signs}
    below = "".join(places.get(place, " ") for place in range(max(places, default=-1) + 1))
    lines.append(Line(f"  {'':<{width}} {below}", "yellow"))
    lines.append(Line(f"  {'':<{width}} {legend if below else ''}", "dim"))
    return lines


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which this share of the ordered values lies; None of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def ms(seconds: float | None) -> str:
    """Show a duration in milliseconds, or that there is none."""
    if seconds is None:
        return "   -    "
    return f"{seconds * 1000:5.1f} ms" if seconds < 1.0 else f"{seconds:6.1f} s"
