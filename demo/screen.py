"""The screen: redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import textwrap
from typing import TYPE_CHECKING, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from demo.timeline import Event

_WIDTH: Final = 80
_REDRAW: Final = 0.125
_STATUS: Final = 2.0
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_ASCII_BLOCKS: Final = " .:-=+*#@"
_WIDEST_CURVE: Final = 64
_STYLES: Final = {"fault": "yellow", "good": "green", "bad": "red", "error": "red"}


class Screen:
    """Writes to the standard output."""

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal
        if not self._console.is_terminal or self._console.width > _WIDTH:
            self._console.width = _WIDTH
        utf8 = self._console.encoding.lower().replace("-", "") == "utf8"
        self._blocks = _BLOCKS if utf8 else _ASCII_BLOCKS

    def say(self, *renderables: RenderableType) -> None:
        """Print lines or tables."""
        for each in renderables:
            self._console.print(each, soft_wrap=isinstance(each, str | Text))

    def event(self, event: Event) -> None:
        """Print a line of the timeline, unless the live display shows it."""
        if not self.live:
            self.say(event_line(event))

    @contextlib.asynccontextmanager
    async def showing(
        self, frame: Callable[[], RenderableType], status: Callable[[], RenderableType]
    ) -> AsyncIterator[None]:
        """Redraw a frame in place while the body runs; elsewhere print a line every two seconds."""
        live = Live(
            console=self._console,
            auto_refresh=False,
            vertical_overflow="crop",
            redirect_stdout=False,
            redirect_stderr=False,
        )

        async def redraw() -> None:
            while True:
                live.update(frame(), refresh=True)
                await asyncio.sleep(_REDRAW)

        async def report() -> None:
            while True:
                await asyncio.sleep(_STATUS)
                self.say(status())

        with live if self.live else contextlib.nullcontext():
            task = asyncio.create_task(redraw() if self.live else report(), name="demo screen")
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait([task])
                if self.live:
                    live.update(frame(), refresh=True)
            if not task.cancelled():
                task.result()

    def curves(
        self,
        curves: Mapping[str, Sequence[int]],
        step: float,
        signs: Sequence[tuple[float, str]],
        legend: str,
    ) -> Group:
        """Draw counts over time, all to the same scale, and the faults below them."""
        # Steps are merged until the widest curve fits.
        merged = -(-max(map(len, curves.values())) // _WIDEST_CURVE) or 1
        shown = {
            label: [sum(counts[place : place + merged]) for place in range(0, len(counts), merged)]
            for label, counts in curves.items()
        }
        highest = max([max(counts, default=0) for counts in shown.values()] + [1])
        width = max([10, *map(len, shown)])
        lines = []
        for label, counts in shown.items():
            heights = [-(-count * (len(self._blocks) - 1) // highest) for count in counts]
            lines.append(Text(f"  {label:<{width}} {''.join(self._blocks[h] for h in heights)}"))
        places = {int(at / step / merged): sign for at, sign in signs}
        below = "".join(places.get(place, " ") for place in range(max(places, default=-1) + 1))
        lines.append(Text(f"  {'':<{width}} {below}", "yellow"))
        lines.append(Text(f"  {'':<{width}} {legend if below else ''}", "dim"))
        return Group(*lines)


def verdict(of: str, *, balanced: bool) -> Text:
    """Return whether a ledger balances."""
    words, color = ("balances", "green") if balanced else ("DOES NOT BALANCE", "red")
    return Text(f"The ledger of {of} {words}.", color)


def event_line(event: Event) -> Text:
    """Return a line of the timeline. The lines that continue a long one are indented."""
    line = f"  {event.at:7.3f} s  {event.text}"
    lines = textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 13)
    return Text("\n".join(lines), _STYLES[event.kind])


def heading(title: str, seconds: float, total: float) -> Text:
    """Return a heading with the time that has passed."""
    return Text(f"{title:<60}{f'{seconds:.1f} of {total:.0f} s':>19}", "bold")


def table(*headings: str, rows: Sequence[Sequence[str]], widths: Sequence[int]) -> Table:
    """Return a table whose first column is on the left and whose others are on the right."""
    found = Table(box=None, padding=0, show_header=any(headings), header_style="bold")
    for number, (name, width) in enumerate(zip(headings, widths, strict=True)):
        found.add_column(name, width=width, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        found.add_row(*row)
    return found


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds, or in seconds from one second on."""
    if seconds is None:
        return "   -    "
    return f"{seconds * 1000:5.1f} ms" if seconds < 1.0 else f"{seconds:6.1f} s"


def delay(begin: float | None, at: float | None) -> str:
    """Return how long after `begin` something happened; "-" if it did not."""
    if begin is None or at is None:
        return "-"
    seconds = at - begin
    return f"{seconds * 1e3:.0f} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of the ordered values lies; None of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
