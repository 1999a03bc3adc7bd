"""A failover, as a client goes through it: calls are held, and continue on the new master.

Every client has a `Failover`. Only Sentinels (`sentinel_monitor`) report to it; without them, it
stays idle.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from resilient_io.health import FailoverRecord
from resilient_io.tasks import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Reporter

_log = logging.getLogger("resilient_io.redis")

HOLD = 4.5
"""Longest time, in seconds, for which calls are held for one attempt to fail over.

If it fails, a call with the default deadline of 5 s can still be sent to the known master.
"""


def log_failover(name: str, record: FailoverRecord) -> None:
    """Write the log record of a failover that a client went through."""
    _log.info(
        "%s continues on %s, %.2f s after the failover was noticed; %d calls waited for it",
        name,
        record.master,
        record.duration,
        record.held,
        extra={
            "event": "failed_over",
            "dependency": name,
            "master": record.master,
            "duration": record.duration,
            "held": record.held,
        },
    )


class Failover:
    """Whether a failover is in progress, whether one can be expected, and the latest ones.

    Args:
        reports: What the client reports to its health.
        name: Name of the dependency, for the log.
    """

    __slots__ = (
        "_began",
        "_held",
        "_listeners",
        "_master",
        "_name",
        "_over",
        "_reports",
        "_timer",
        "count",
        "expected_within",
        "held",
        "latest",
        "seconds",
    )

    def __init__(self, reports: Reporter, name: str) -> None:
        self._reports = reports
        self._name = name
        self._timer: asyncio.TimerHandle | None = None
        self._over = Signal()  # set while calls are not held
        self._over.set()
        self._listeners: list[Callable[[], None]] = []
        self._began: float | None = None
        self._held = 0
        self._master = ""  # the new one, while the client connects to it
        self.expected_within = 0.0
        """Seconds of an outage within which a failover can be expected."""
        self.count = 0
        self.seconds = 0.0
        """How long all failovers took together."""
        self.held = 0
        """How many calls waited for them together."""
        self.latest: FailoverRecord | None = None

    @property
    def in_progress(self) -> bool:
        """Whether the client waits for a new master, or for a connection to it."""
        return self._began is not None

    @property
    def holding(self) -> bool:
        """Whether no call may be sent, because the master is about to be replaced."""
        return not self._over.is_set()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call a function whenever calls begin or end to be held."""
        self._listeners.append(listener)

    def expect(self, seconds: float) -> None:
        """Note within how many seconds of an outage a failover can be expected."""
        self.expected_within = seconds

    async def until_over(self) -> None:
        """Wait until calls are not held."""
        while self.holding:
            await self._over.wait()

    def begin(self, detail: str) -> None:
        """Hold calls for at most 4.5 seconds: a failover has begun."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began, self._held, self._master = loop.time(), 0, ""
        self._start_timer()
        self._over.clear()
        self._reports.failover_began(detail)
        self._notify()

    def switch(self, master: str, detail: str, *, held: int) -> None:
        """Hold calls no longer: they are sent to the new master when a connection to it is open."""
        loop = asyncio.get_running_loop()
        if self._began is None:
            self._began = loop.time()
        self._master, self._held = master, held
        self._start_timer()
        self._over.set()
        self._reports.failover_began(detail)
        self._notify()

    def connected(self) -> None:
        """End the failover: a connection was opened, to the new master if there is one."""
        if self._began is None or self.holding:
            return
        now = asyncio.get_running_loop().time()
        record = FailoverRecord(self._began, now - self._began, self._held, self._master)
        self.latest = record
        self.count += 1
        self.seconds += record.duration
        self.held += record.held
        log_failover(self._name, record)
        self.end()

    def end(self) -> None:
        """Stop holding calls: the failover was aborted, or took too long. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._began is not None:
            self._began = None
            self._over.set()
            self._reports.failover_ended()
            self._notify()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(HOLD, self.end)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
