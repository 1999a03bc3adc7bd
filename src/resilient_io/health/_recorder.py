"""The flight recorder: the latest events of every dependency, in fixed memory."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import _wall_clock
from resilient_io._checking import check_count
from resilient_io.errors import ConfigurationError
from resilient_io.health._states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health._states import Change

__all__ = ["FlightRecorder"]

_TOGETHER = 1.0
"""Seconds within which a repetition is counted instead of being written again."""

_QUIET = 10.0
"""Least seconds between the dumps that it makes by itself."""

_log = logging.getLogger("resilient_io.health")


class _Event:
    __slots__ = ("event", "fields", "first", "last", "serial", "source", "times")

    def __init__(
        self, source: str, event: str, fields: dict[str, object], now: float, serial: int
    ) -> None:
        self.source = source
        self.event = event
        self.fields = fields
        self.first = self.last = now
        self.serial = serial
        self.times = 1


class FlightRecorder:
    """Remembers the latest events, so that an outage can be understood afterwards.

    A `HealthMonitor` has one, and gives it to its dependencies. What repeats within a second is
    counted, not written again: a storm of failures does not push the beginning out. With a `sink`
    it writes itself out, as JSON lines, when a dependency goes down, at most every 10 s.

    Args:
        capacity: How many events are remembered.
        sink: Where dumps go: a file to append to (written outside the event loop), or a function
            that takes one line without its end, called in the event loop. None makes no dump by
            itself, and `dump()` write to standard error.

    Raises:
        ConfigurationError: An argument makes no sense.
    """

    def __init__(
        self, capacity: int = 512, *, sink: Path | str | Callable[[str], object] | None = None
    ) -> None:
        self._events: deque[_Event] = deque(maxlen=check_count("capacity", capacity))
        self._capacity = capacity
        self._newest: dict[tuple[str, str], _Event] = {}
        self._serial = 0
        if isinstance(sink, str):
            sink = Path(sink)
        if sink is not None and not callable(sink) and not isinstance(sink, Path):
            raise ConfigurationError(
                f"sink={sink!r} is neither a path nor a function: write "
                f'FlightRecorder(sink="/tmp/flight.jsonl") or sink=print'
            )
        self._sink = sink
        self._dumped: float | None = None
        self._writes: list[asyncio.Future[None]] = []
        self._complained = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def note(self, source: str, event: str, **fields: object) -> None:
        """Remember an event of the running loop's now.

        Args:
            source: Whose it is, for example a dependency's name.
            event: What happened, in the past tense, for example "retry scheduled".
            fields: More about it: plain data that `json.dumps` takes, without secrets.

        Raises:
            RuntimeError: No event loop runs.
        """
        loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        key = (source, event)
        newest = self._newest.get(key)
        if (
            newest is not None
            and 0 <= now - newest.last <= _TOGETHER
            and newest.serial > self._serial - self._capacity
            and newest.fields == fields
        ):
            newest.times += 1
            newest.last = now
            return
        self._serial += 1
        self._newest[key] = noted = _Event(source, event, fields, now, self._serial)
        self._events.append(noted)
        if len(self._newest) > 2 * self._capacity:
            self._newest = {(each.source, each.event): each for each in self._events}

    def changed(self, change: Change) -> None:
        """Remember a transition; one to DOWN makes it dump itself, if it has a sink."""
        cause = change.cause.value if change.cause is not None else None
        self.note(
            change.dependency,
            "state changed",
            state=change.state.value,
            previous=change.previous.value,
            cause=cause,
            detail=change.detail,
            after=round(change.after, 6),
        )
        if change.state is not State.DOWN or self._sink is None:
            return
        if self._dumped is None or not 0 <= change.at - self._dumped < _QUIET:
            self._dumped = change.at
            self.dump(f"{change.dependency} is down")

    def events(self, last: int | None = None) -> list[dict[str, object]]:
        """Return what is remembered, oldest first, as plain data that `json.dumps` takes.

        Each has `ago` (seconds since it happened, the latest time if several), `source`, `event`,
        its own fields, and, if it repeated, `times` and `for` (seconds from the first to the
        latest).

        Args:
            last: Only so many of the latest; None for all.
        """
        chosen = list(self._events)
        if last is not None:
            chosen = chosen[-last:] if last > 0 else []
        now = self._loop.time() if self._loop is not None else 0.0
        return [_plain(each, now) for each in chosen]

    def dump(self, reason: str) -> int:
        """Write out what is remembered: a line that says why, then a line per event.

        Each line is JSON, with the wall clock's time as `at`. What cannot be written is logged
        once, and harms nobody.

        Args:
            reason: Why, for the first line.

        Returns:
            The number of events.
        """
        wall = _wall_clock.now()
        events = self.events()
        lines = [json.dumps({"at": _wall_clock.iso(wall), "dump": reason, "events": len(events)})]
        for event in events:
            ago = event.pop("ago")
            at = _wall_clock.iso(wall - (ago if isinstance(ago, float) else 0.0))
            lines.append(json.dumps({"at": at, **event}, default=str))
        if isinstance(self._sink, Path):
            self._append(self._sink, "\n".join(lines) + "\n")
        elif self._sink is not None:
            self._hand(self._sink, lines)
        else:
            sys.stderr.write("\n".join(lines) + "\n")
        return len(events)

    async def aclose(self) -> None:
        """Wait until every dump is written. Cancelling this leaves at once."""
        while self._writes:
            await asyncio.wait(self._writes)

    def _append(self, path: Path, text: str) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or loop.is_closed():
            try:
                _write(path, text)
            except OSError as error:
                self._complain(error)
            return
        writing = loop.run_in_executor(None, _write, path, text)
        self._writes.append(writing)
        writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writes.remove(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            self._complain(error)

    def _hand(self, sink: Callable[[str], object], lines: list[str]) -> None:
        try:
            for line in lines:
                sink(line)
        # The boundary between us and a function of others.
        except Exception as error:  # noqa: BLE001 (a sink may raise anything)
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "the flight recorder could not be written out: %r",
                error,
                extra={"event": "recorder_not_written", "error": type(error).__name__},
            )


def _write(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _plain(event: _Event, now: float) -> dict[str, object]:
    plain: dict[str, object] = {
        "ago": round(max(0.0, now - event.last), 3),
        "source": event.source,
        "event": event.event,
        **event.fields,
    }
    if event.times > 1:
        plain["times"] = event.times
        plain["for"] = round(event.last - event.first, 3)
    return plain
