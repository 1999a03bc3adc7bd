"""`resilient-io watch`: looks at dependencies again and again, like ping, and sums up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.cli.exits import GOOD, PROBLEMS
from resilient_io.cli.tally import Tally
from resilient_io.cli.terminal import json_line, write_line
from resilient_io.health import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from resilient_io.cli.running import Interruption
    from resilient_io.cli.vantage import Vantage, Watched
    from resilient_io.health import Change

__all__ = ["JsonShow", "LineShow", "Look", "Show", "watched"]

_CLOSING = 0.25
"""Seconds for closing connections in good order; who pressed Ctrl-C does not wait for more."""


class Look:
    """What is shown of one dependency at a moment."""

    def __init__(self, health: Watched, tally: Tally) -> None:
        self.health = health
        self.tally = tally

    @property
    def name(self) -> str:
        """How it is called."""
        return self.health.name

    @property
    def age(self) -> float:
        """Seconds for which it has been in its state."""
        return asyncio.get_running_loop().time() - self.health.since

    @property
    def why(self) -> str:
        """Why it is not well; "" when it is."""
        cause = self.health.cause.value if self.health.cause is not None else ""
        return ": ".join(word for word in (cause, self.health.detail) if word)


class Show(Protocol):
    """How it is shown."""

    def running(self, looks: Sequence[Look]) -> contextlib.AbstractContextManager[object]:
        """Show it while something goes on."""
        ...

    def look(self, look: Look) -> None:
        """Show how one is, once in each interval."""

    def changed(self, change: Change) -> None:
        """Show a transition, when it happens."""

    def summary(self, tallies: Sequence[Tally]) -> None:
        """Show what there was, at the end."""


async def watched(
    places: Sequence[Vantage],
    show: Show,
    interruption: Interruption,
    *,
    interval: float,
    count: int | None,
) -> int:
    """Watch until interrupted, or for so many intervals.

    Args:
        places: From where to look.
        show: How to show it.
        interruption: Ends it.
        interval: Seconds between two looks that are shown.
        count: How many looks; None for no end.

    Returns:
        The exit code: good if each was heard from, and none was ever down.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    looks = [Look(place.health, Tally(place.health.name, began)) for place in places]
    async with _open(places), contextlib.AsyncExitStack() as stack:
        for look in looks:
            look.health.answered = look.tally.answered
            stack.enter_context(look.health.on_change(look.tally.changed))
            stack.enter_context(look.health.on_change(show.changed))
        with show.running(looks):
            await _look_on(looks, show, interruption, interval=interval, count=count)
        now = loop.time()
        for look in looks:
            look.tally.until(now)
        # Before the connections are closed: that may take a moment.
        show.summary([look.tally for look in looks])
    return GOOD if all(look.tally.well for look in looks) else PROBLEMS


async def _look_on(
    looks: Sequence[Look],
    show: Show,
    interruption: Interruption,
    *,
    interval: float,
    count: int | None,
) -> None:
    if await interruption.before(_heard_from(looks)):
        return
    loop = asyncio.get_running_loop()
    due = loop.time()
    shown = 0
    while True:
        for look in looks:
            look.tally.until(loop.time())
            show.look(look)
        shown += 1
        if shown == count:
            return
        due = max(due + interval, loop.time())
        if await interruption.before(asyncio.sleep(due - loop.time())):
            return


async def _heard_from(looks: Sequence[Look]) -> None:
    """Wait until something is known of each; a silent one is known when its probes timed out."""
    settings = looks[0].health.settings
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.timeout * settings.fall + settings.interval):
            for look in looks:
                async for change in look.health.watch():
                    if change.state is not State.UNKNOWN:
                        break


@contextlib.asynccontextmanager
async def _open(places: Sequence[Vantage]) -> AsyncIterator[None]:
    try:
        for place in places:
            await place.open()
        yield
    finally:
        closing = [
            asyncio.create_task(place.aclose(), name=f"close {place.health.name}")
            for place in places
        ]
        _, late = await asyncio.wait(closing, timeout=_CLOSING)
        for task in late:
            task.cancel()


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f" {seconds * 1000:.2f} ms"


class LineShow:
    """Shows it as lines, for pipes and logs."""

    def running(self, looks: Sequence[Look]) -> contextlib.AbstractContextManager[object]:
        """Need nothing."""
        del looks
        return contextlib.nullcontext()

    def look(self, look: Look) -> None:
        """Write how one is."""
        health = look.health
        if health.state is State.UP:
            told = _milliseconds(health.latency)
        else:
            told = f" for {look.age:.1f} s{': ' if look.why else ''}{look.why}"
        self._write(f"{look.name}: {health.state.value}{told}")

    def changed(self, change: Change) -> None:
        """Write a transition, unless it is the first news, which the look tells."""
        if change.previous is State.UNKNOWN:
            return
        cause = change.cause.value if change.cause is not None else ""
        why = "".join(f": {word}" for word in (cause, change.detail) if word)
        self._write(
            f"{change.dependency}: {change.previous.value} -> {change.state.value} "
            f"after {change.after:.1f} s{why}"
        )

    def summary(self, tallies: Sequence[Tally]) -> None:
        """Write one line for each."""
        write_line("---")
        for tally in tallies:
            write_line(tally.said())

    def _write(self, line: str) -> None:
        write_line(f"{time.strftime('%H:%M:%S')} {line}")


class JsonShow:
    """Shows it as lines of JSON; each has an `event`: "look", "change" or "summary"."""

    def running(self, looks: Sequence[Look]) -> contextlib.AbstractContextManager[object]:
        """Need nothing."""
        del looks
        return contextlib.nullcontext()

    def look(self, look: Look) -> None:
        """Write how one is."""
        health = look.health
        self._write(
            "look",
            dependency=look.name,
            state=health.state.value,
            age=round(look.age, 3),
            cause=health.cause.value if health.cause is not None else None,
            detail=health.detail,
            latency=health.latency if health.state.answering else None,
        )

    def changed(self, change: Change) -> None:
        """Write a transition."""
        self._write(
            "change",
            dependency=change.dependency,
            state=change.state.value,
            previous=change.previous.value,
            after=round(change.after, 3),
            cause=change.cause.value if change.cause is not None else None,
            detail=change.detail,
        )

    def summary(self, tallies: Sequence[Tally]) -> None:
        """Write one line for each."""
        for tally in tallies:
            self._write("summary", **tally.as_dict())

    def _write(self, event: str, **facts: Any) -> None:
        json_line({"event": event, "time": round(time.time(), 3), **facts})
