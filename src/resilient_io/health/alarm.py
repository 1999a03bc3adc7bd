"""Alarms that may ring a little early, so that one timer of the event loop serves many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.binding import PerLoop
from resilient_io.tasks import beat_before

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_groups: PerLoop[dict[tuple[float, float], _Group]] = PerLoop()
"""By loop. Only the timer of a group refers to the loop, and ends with the group."""


class Alarm:
    """Calls a function once at the time that is set.

    A thousand probes a second would otherwise wake the process a thousand times. Alarms that are
    due at about the same time ring together, when the first of them is due, or on the beat before
    if that is not too early.

    Args:
        loop: The event loop.
        ring: What to call. It must not raise.
    """

    __slots__ = ("_call", "_group", "_groups", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._groups = _groups.of(loop, dict)
        self._call = ring
        self._group: _Group | None = None

    def set(self, when: float, early: float) -> None:
        """Ring once at the loop time `when`, or up to `early` seconds before, unless set again."""
        beat = beat_before(when)
        if beat >= when - early:
            when = beat
        key = (early, when // early)
        group, current = self._groups.get(key), self._group
        if group is None:
            group = self._groups[key] = _Group(self._loop, self._groups, key, when)
        elif when < group.when:
            group.move(self._loop, when)
        if group is current:
            return
        if current is not None:
            current.remove(self)
        group.alarms[self] = None
        self._group = group

    def stop(self) -> None:
        """Do not ring. Idempotent."""
        group, self._group = self._group, None
        if group is not None:
            group.remove(self)

    def ring(self) -> None:
        """Call the function now."""
        self._group = None
        self._call()


class _Group:
    """Alarms that ring together."""

    __slots__ = ("_groups", "_key", "_timer", "alarms", "when")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        groups: dict[tuple[float, float], _Group],
        key: tuple[float, float],
        when: float,
    ) -> None:
        self._groups = groups
        self._key = key
        self.alarms: dict[Alarm, None] = {}  # in the order in which they were set
        self.when = when
        self._timer = loop.call_at(when, self._run)

    def move(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        """Ring earlier."""
        self._timer.cancel()
        self.when = when
        self._timer = loop.call_at(when, self._run)

    def remove(self, alarm: Alarm) -> None:
        """Leave the others, if there are any."""
        self.alarms.pop(alarm, None)
        if not self.alarms:
            self._timer.cancel()
            if self._groups.get(self._key) is self:
                del self._groups[self._key]

    def _run(self) -> None:
        self._groups.pop(self._key, None)
        while self.alarms:
            alarm = next(iter(self.alarms))
            del self.alarms[alarm]
            alarm.ring()
