"""Whether this consumer takes part in its group: confirmed by it, refused, or waiting for it."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from resilient_io.health import Cause, State

from ..errors import classify_error, describe_driver_error, quoted_error
from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency

    from ..driver import ConsumerDriver

_GROUP_FULL = 81  # the error code GROUP_MAX_SIZE_REACHED


class SessionWatch:
    """Detects that the group may have expelled this member, until the group confirms it again.

    Without an answer from the coordinator for a whole session, the group may have assigned the
    partitions to other members: records handled then cannot be committed and are handled twice.
    The doubt cannot begin before the first confirmation, and so never without a group. `changed` is
    called when the doubt begins or ends.
    """

    def __init__(self, session: float, changed: Callable[[], None]) -> None:
        self._session = session
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.doubtful = False
        self.valid_until = math.inf
        """Loop time until which the group has confirmed the membership."""

    def check(self) -> None:
        """Begin to doubt if a session has passed: the event loop was blocked beyond the timer."""
        if self._timer is not None and asyncio.get_running_loop().time() >= self.valid_until:
            self._cancel_timer()
            self._doubt()

    def confirm(self, requested_at: float) -> None:
        """Note that the group has confirmed the membership, requested at this loop time."""
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() >= requested_at + self._session:
            return  # the answer is so old that the session may have expired since
        self._cancel_timer()
        self.valid_until = requested_at + self._session
        self._timer = loop.call_at(self.valid_until, self._doubt)
        if self.doubtful:
            self.doubtful = False
            self._changed()

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self.valid_until = math.inf
        self._cancel_timer()

    def _doubt(self) -> None:
        self._timer = None
        self.doubtful = True
        self._changed()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class GroupDetector:
    """Makes health DEGRADED while the group refuses this member, or does not end a rebalance."""

    def __init__(self, health: Dependency, after: float | None, group: str) -> None:
        self._health = health
        self._reporter = health.reporter()
        self._after = after
        self._group = group
        self._waiting_since: float | None = None
        self._reported: list[str] = []

    def instance_failed(self, error: BaseException) -> None:
        """Report that the group refuses this member for now, if the error says so."""
        if classify_error(error).kind != "refused":
            return
        detail = describe_driver_error(quoted_error(error))
        if getattr(quoted_error(error), "errno", None) == _GROUP_FULL:
            detail = "full (group.max.size of the brokers): run fewer consumers, or raise it"
        self._report("membership", Cause.OVERLOADED, f"the group {self._group!r}: {detail}")

    def check(self, instance: ConsumerDriver | None, now: float) -> None:
        """Check whether this member takes part in the group, or waits for it."""
        if self._health.state is State.DOWN:
            self._waiting_since, self._reported = None, []  # DOWN forgets what was reported
        if instance is None:
            return
        if not internals.rebalancing(instance):
            self._waiting_since = None
            for part in self._reported:
                self._reporter.part_back(part)
            self._reported = []
        elif self._waiting_since is None:
            self._waiting_since = now
        elif self._after is not None and now - self._waiting_since >= self._after:
            self._report(
                "rebalance",
                Cause.REBALANCING,
                f"the group {self._group!r} has been rebalancing for "
                f"{now - self._waiting_since:.0f} s: another member does not join",
            )

    def close(self) -> None:
        """Withdraw all reports."""
        self._reporter.close()
        self._reported = []

    def _report(self, what: str, cause: Cause, detail: str) -> None:
        part = f"{self._group}: {what}"
        if part not in self._reported:
            self._reported.append(part)
            self._reporter.part_lost(part, cause, detail)
