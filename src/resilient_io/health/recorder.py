"""The flight recorder: the latest events of every dependency, in bounded memory."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import wall_clock
from resilient_io.text import clean_text
from resilient_io.validation import check_count

from .states import State, clean_detail

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.link import LinkState

    from .states import Change

_MERGE_WITHIN = 1.0  # seconds within which a repeated event is counted instead of recorded again
_VARIANTS = 8
"""Number of recent events of the same source, name and cause that are recorded although only their
details differ. Further ones are counted: their details say nothing new."""

_MAX_FILE_SIZE = 8 << 20  # size of a dump file, in bytes, above which it is renamed
_DUMP_SPACING = 10.0  # shortest time between automatic dumps, in seconds

_log = logging.getLogger("resilient_io.health")


@dataclass(slots=True, eq=False)
class _Event:
    source: str
    event: str
    fields: dict[str, object]
    first: float
    last: float
    serial: int
    times: int = 1
    others: int = 0  # the number of later events that differed only in their details

    @property
    def kind(self) -> tuple[str, str, object]:
        """The key of events that differ only in their details."""
        return _kind(self.source, self.event, self.fields)

    def as_dict(self, now: float) -> dict[str, object]:
        """Return the event as `FlightRecorder.events` does."""
        plain: dict[str, object] = {
            "ago": round(max(0.0, now - self.last), 3),
            "source": self.source,
            "event": self.event,
            **self.fields,
        }
        if self.times > 1:
            plain["times"] = self.times
        if self.others:
            plain["others"] = self.others
        if self.last > self.first or self.times > 1:
            plain["for"] = round(self.last - self.first, 3)
        return plain


class FlightRecorder:
    """Records the latest events, to analyze an outage afterwards.

    A `HealthMonitor` has one and adds it to its dependencies. A storm of failures does not displace
    its beginning: an event that repeats within a second is counted, and of events that differ only
    in their details the first few are recorded. With a `sink`, the recorder dumps its events as
    JSON lines when a dependency goes down, at most every 10 s.

    Args:
        capacity: Number of events to keep.
        sink: Where to dump: a file to append to (written outside the event loop; above 8 MiB it is
            renamed to `….1`, replacing the previous one), or a function that takes one line without
            its line break, called in the event loop. None disables automatic dumps, and `dump()`
            then writes to standard error.

    Raises:
        ConfigurationError: `capacity` is not an integer of at least 1.
        TypeError: `sink` is neither a path nor a function.
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
            raise TypeError(
                f"sink must be a path or a function, not {type(sink).__name__}: use "
                f'FlightRecorder(sink="/tmp/flight.jsonl") or sink=print'
            )
        self._sink = sink
        self._dumped: float | None = None
        self._writes: list[asyncio.Future[None]] = []
        self._logged_failure = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def note(self, source: str, event: str, **fields: object) -> None:
        """Record an event that happened now.

        Args:
            source: For example the name of a dependency.
            event: The event, in the past tense, for example "retry scheduled".
            fields: Plain data for `json.dumps`, without secrets. Texts are shortened to one line.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        fields = {
            name: clean_detail(value) if isinstance(value, str) else value
            for name, value in fields.items()
        }
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
        self._record(source, event, fields, now)

    def _recent(self, kind: tuple[str, str, object], now: float) -> list[_Event]:
        """Return the recent events of a kind. If one is recent, so are those before it."""
        recent = self._newest.get(kind, [])
        displaced = self._serial - self._capacity
        if recent and recent[0].serial <= displaced:
            recent = self._newest[kind] = [each for each in recent if each.serial > displaced]
        if any(0 <= now - each.last <= _MERGE_WITHIN for each in recent):
            return recent
        self._newest.pop(kind, None)
        return []

    def _record(self, source: str, event: str, fields: dict[str, object], now: float) -> None:
        self._serial += 1
        recorded = _Event(source, event, fields, now, now, self._serial)
        self._newest.setdefault(recorded.kind, []).append(recorded)
        self._events.append(recorded)
        if len(self._newest) > 2 * self._capacity:
            self._newest = {}
            for each in self._events:
                self._newest.setdefault(each.kind, []).append(each)

    def changed(self, change: Change, link: LinkState | None = None) -> None:
        """Record a change of state, and what the kernel knows about the connections at that time.

        A change to DOWN triggers a dump if there is a sink.
        """
        loop = self._loop = asyncio.get_running_loop()
        fields: dict[str, object] = {
            "state": change.state.value,
            "previous": change.previous.value,
            "cause": change.cause and change.cause.value,
            "detail": clean_detail(change.detail),
            "after": round(change.after, 6),
        }
        if link is not None:
            fields["link"] = link.as_dict()
        self._record(change.dependency, "state changed", fields, loop.time())
        if change.state is not State.DOWN or self._sink is None:
            return
        if self._dumped is None or not 0 <= change.at - self._dumped < _DUMP_SPACING:
            self._dumped = change.at
            self.dump(f"{change.dependency} is down")

    def events(self, last: int | None = None) -> list[dict[str, object]]:
        """Return the recorded events, oldest first, as plain data for `json.dumps`.

        Each has `ago` (seconds since it happened, the latest time if it repeated), `source`,
        `event` and its own fields. `times` is the number of repetitions, `others` the number of
        later events that differed only in details and were not recorded, and `for` the seconds from
        the first to the latest. With `last`, only the latest events are returned.
        """
        chosen = list(self._events)
        if last is not None:
            chosen = chosen[-last:] if last > 0 else []
        now = self._loop.time() if self._loop is not None else 0.0
        return [each.as_dict(now) for each in chosen]

    def dump(self, reason: str) -> int:
        """Write all events: one line with the reason, then one line per event; return their number.

        Each line is JSON, with the time of the wall clock as `at`. A failure to write is logged
        once and never raised.
        """
        wall = wall_clock.now()
        events = self.events()
        lines = [json.dumps({"at": wall_clock.iso(wall), "dump": reason, "events": len(events)})]
        for event in events:
            ago = event.pop("ago")
            at = wall_clock.iso(wall - (ago if isinstance(ago, float) else 0.0))
            lines.append(_json_line({"at": at, **event}))
        if isinstance(self._sink, Path):
            self._append(self._sink, "\n".join(lines) + "\n")
        elif self._sink is not None:
            try:
                for line in lines:
                    self._sink(line)
            # The boundary to the application's function, which may raise anything.
            except Exception as error:  # noqa: BLE001
                self._log_failure(error)
        else:
            sys.stderr.write("\n".join(lines) + "\n")
        return len(events)

    async def aclose(self, timeout: float | None = None) -> None:
        """Wait until every dump is written, or for `timeout` seconds; it may be written later."""
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
                self._log_failure(error)
            return
        writing = loop.run_in_executor(None, _write, path, text)
        self._writes.append(writing)
        writing.add_done_callback(self._written)

    def _written(self, writing: asyncio.Future[None]) -> None:
        self._writes.remove(writing)
        if not writing.cancelled() and (error := writing.exception()) is not None:
            self._log_failure(error)

    def _log_failure(self, error: BaseException) -> None:
        if not self._logged_failure:
            self._logged_failure = True
            _log.warning(
                "could not write the flight recorder's dump: %s",
                clean_text(repr(error)),
                extra={"event": "recorder_not_written", "error": type(error).__name__},
            )


def _write(path: Path, text: str) -> None:
    # A link may lead to a special file, /dev/stderr for example, which must not be renamed.
    if path.is_file() and not path.is_symlink() and path.stat().st_size > _MAX_FILE_SIZE:
        path.replace(path.with_name(f"{path.name}.1"))
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def _json_line(event: dict[str, object]) -> str:
    try:
        return json.dumps(event, default=str)
    except (TypeError, ValueError):  # keys that are not strings, or a circular reference
        return json.dumps({name: str(value) for name, value in event.items()})


def _kind(source: str, event: str, fields: dict[str, object]) -> tuple[str, str, object]:
    """Return the key of events that differ only in their details."""
    cause = fields.get("cause")
    return source, event, cause if isinstance(cause, str) else None
