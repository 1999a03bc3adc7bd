"""The flight recorder: the latest events of every dependency, in fixed memory."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import wall_clock
from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_count

from .states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from .states import Change


_TOGETHER = 1.0
"""Seconds within which a repetition is counted instead of being written again."""

_VARIANTS = 8
"""So many events of one source, name and cause that differ in something else are kept apart while
they follow each other within that time; more are only counted, for their details tell nothing new.
"""

_LONGEST = 8 << 20
"""Bytes of a file before it is set aside for a new one."""

_QUIET = 10.0
"""Least seconds between the dumps that it makes by itself."""

_log = logging.getLogger("resilient_io.health")


class _Event:
    __slots__ = ("event", "fields", "first", "last", "others", "serial", "source", "times")

    def __init__(
        self, source: str, event: str, fields: dict[str, object], now: float, serial: int
    ) -> None:
        self.source = source
        self.event = event
        self.fields = fields
        self.first = self.last = now
        self.serial = serial
        self.times = 1
        self.others = 0


class FlightRecorder:
    """Remembers the latest events, so that an outage can be understood afterwards.

    A `HealthMonitor` has one, and gives it to its dependencies. What repeats within a second is
    counted, not written again, and of what differs in its details only the first few are: a storm
    of failures does not push the beginning out. With a `sink`
    it writes itself out, as JSON lines, when a dependency goes down, at most every 10 s.

    Args:
        capacity: How many events are remembered.
        sink: Where dumps go: a file to append to (written outside the event loop; beyond 8 MiB it
            is renamed to `….1`, in place of the one before), or a function that takes one line
            without its end, called in the event loop. None makes no dump by itself, and `dump()`
            write to standard error.

    Raises:
        ConfigurationError: An argument makes no sense.
    """

    def __init__(
        self, capacity: int = 512, *, sink: Path | str | Callable[[str], object] | None = None
    ) -> None:
        self._events: deque[_Event] = deque(maxlen=check_count("capacity", capacity))
        self._capacity = capacity
        self._newest: dict[tuple[str, str, object], list[_Event]] = {}
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
        recent = self._recent(_kind(source, event, fields), now)
        for each in recent:
            if each.fields == fields:
                each.times += 1
                each.last = now
                return
        if len(recent) >= _VARIANTS:
            recent[-1].others += 1
            recent[-1].last = now
            return
        self._remember(source, event, fields, now)

    def _recent(self, kind: tuple[str, str, object], now: float) -> list[_Event]:
        """Give those of a kind that are still counted: while one is, those before it are, too."""
        recent = self._newest.get(kind, [])
        pushed_out = self._serial - self._capacity
        if recent and recent[0].serial <= pushed_out:
            recent = self._newest[kind] = [each for each in recent if each.serial > pushed_out]
        if any(0 <= now - each.last <= _TOGETHER for each in recent):
            return recent
        self._newest.pop(kind, None)
        return []

    def _remember(self, source: str, event: str, fields: dict[str, object], now: float) -> None:
        self._serial += 1
        noted = _Event(source, event, fields, now, self._serial)
        self._newest.setdefault(_kind(source, event, fields), []).append(noted)
        self._events.append(noted)
        if len(self._newest) > 2 * self._capacity:
            self._newest = {}
            for each in self._events:
                kind = _kind(each.source, each.event, each.fields)
                self._newest.setdefault(kind, []).append(each)

    def changed(self, change: Change) -> None:
        """Remember a transition; one to DOWN makes it dump itself, if it has a sink."""
        cause = change.cause.value if change.cause is not None else None
        loop = self._loop = asyncio.get_running_loop()
        fields: dict[str, object] = {
            "state": change.state.value,
            "previous": change.previous.value,
            "cause": cause,
            "detail": change.detail,
            "after": round(change.after, 6),
        }
        self._remember(change.dependency, "state changed", fields, loop.time())
        if change.state is not State.DOWN or self._sink is None:
            return
        if self._dumped is None or not 0 <= change.at - self._dumped < _QUIET:
            self._dumped = change.at
            self.dump(f"{change.dependency} is down")

    def events(self, last: int | None = None) -> list[dict[str, object]]:
        """Return what is remembered, oldest first, as plain data that `json.dumps` takes.

        Each has `ago` (seconds since it happened, the latest time if several), `source`, `event`
        and its own fields. If it repeated, it has `times`; `others` counts those after it that
        differed in their details and were too many to keep; `for` is the seconds from the first to
        the latest.

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
        wall = wall_clock.now()
        events = self.events()
        lines = [json.dumps({"at": wall_clock.iso(wall), "dump": reason, "events": len(events)})]
        for event in events:
            ago = event.pop("ago")
            at = wall_clock.iso(wall - (ago if isinstance(ago, float) else 0.0))
            lines.append(_line({"at": at, **event}))
        if isinstance(self._sink, Path):
            self._append(self._sink, "\n".join(lines) + "\n")
        elif self._sink is not None:
            self._hand(self._sink, lines)
        else:
            sys.stderr.write("\n".join(lines) + "\n")
        return len(events)

    async def aclose(self, timeout: float | None = None) -> None:
        """Wait until every dump is written. Cancelling this leaves at once.

        Args:
            timeout: Longest wait in seconds; what is not written by then may be yet. None waits for
                ever.
        """
        if self._writes:
            await asyncio.wait(self._writes, timeout=timeout)

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
    # A link may lead to what is no file of ours, /dev/stderr for example.
    if path.is_file() and not path.is_symlink() and path.stat().st_size > _LONGEST:
        path.replace(path.with_name(f"{path.name}.1"))
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _line(event: dict[str, object]) -> str:
    try:
        return json.dumps(event, default=str)
    except (
        TypeError,
        ValueError,
    ):  # keys that are no text, or a circle
        return json.dumps({name: str(value) for name, value in event.items()})


def _kind(source: str, event: str, fields: dict[str, object]) -> tuple[str, str, object]:
    """Say what counts as the same but for its details."""
    cause = fields.get("cause")
    return source, event, cause if isinstance(cause, str) else None


def _plain(event: _Event, now: float) -> dict[str, object]:
    plain: dict[str, object] = {
        "ago": round(max(0.0, now - event.last), 3),
        "source": event.source,
        "event": event.event,
        **event.fields,
    }
    if event.times > 1:
        plain["times"] = event.times
    if event.others:
        plain["others"] = event.others
    if event.last > event.first or event.times > 1:
        plain["for"] = round(event.last - event.first, 3)
    return plain
