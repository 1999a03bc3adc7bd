"""The live table of `watch`, on a terminal."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilient_io.cli.terminal import STATE_STYLES
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console, RenderableType

    from resilient_io.cli.tally import Tally
    from resilient_io.cli.watch import Look
    from resilient_io.health import Change

__all__ = ["TableShow"]

_NEWS = 6
"""How many transitions stand below the table."""

_REFRESH = 4.0


class TableShow:
    """Shows a table that is redrawn in place, the latest transitions below it.

    Args:
        console: A terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: deque[Text] = deque(maxlen=_NEWS)
        self._live: Live | None = None
        self._looks: Sequence[Look] = ()

    @contextlib.contextmanager
    def running(self, looks: Sequence[Look]) -> Iterator[None]:
        """Redraw it, until the end: then the summary takes its place."""
        self._looks = looks
        # Redrawn by us, not by a thread of rich's, which would read what the loop is changing.
        with Live(self._drawn(), console=self._console, auto_refresh=False, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def look(self, look: Look) -> None:
        """Redraw."""
        del look
        self._redraw()

    def changed(self, change: Change) -> None:
        """Remember a transition, and redraw."""
        cause = change.cause.value if change.cause is not None else ""
        line = Text(f"{time.strftime('%H:%M:%S')} {change.dependency}: ", no_wrap=True)
        line.append(change.state.value, style=STATE_STYLES[change.state.value])
        if change.previous is not State.UNKNOWN:
            line.append(f" after {change.after:.1f} s {change.previous.value}")
        line.append("".join(f": {word}" for word in (cause, change.detail) if word))
        self._news.append(line)
        self._redraw()

    def summary(self, tallies: Sequence[Tally]) -> None:
        """Say what there was."""
        for line in self._news:
            self._console.print(line, overflow="ellipsis")
        for tally in tallies:
            self._console.print(Text(tally.said(), style="" if tally.well else "red"))

    def _redraw(self) -> None:
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> RenderableType:
        table = Table(title="Ctrl-C ends it", title_justify="left", title_style="dim")
        table.add_column("dependency", overflow="fold")
        table.add_column("state")
        for name in ("for", "answered", "last", "avg"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("why", overflow="fold", ratio=1)
        for look in self._looks:
            table.add_row(*self._row(look))
        return Group(table, *self._news)

    def _row(self, look: Look) -> list[RenderableType]:
        health, tally = look.health, look.tally
        share = tally.availability
        state = health.state.value
        return [
            Text(look.name),
            Text(state, style=STATE_STYLES[state]),
            f"{look.age:.0f} s",
            "" if share is None else f"{share:.2%}",
            _ms(health.latency if health.state.answering else None),
            _ms(tally.mean),
            Text(look.why),
        ]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"
