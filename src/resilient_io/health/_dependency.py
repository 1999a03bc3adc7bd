"""A dependency: its availability, and how clients feed it."""

from __future__ import annotations

import asyncio
import functools
import random
from typing import TYPE_CHECKING

from resilient_io.health._availability import Availability
from resilient_io.health._feed import Feed
from resilient_io.health._probing import Client
from resilient_io.health._wording import first_change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resilient_io.health._settings import HealthSettings
    from resilient_io.health._states import Cause

__all__ = ["Attachment", "Dependency"]

CLOSE_GRACE = 1.0
"""Seconds that callbacks get to end when their owner is closed."""


class Dependency(Availability):
    """How one dependency is, as its clients' calls and a probe task see it.

    Several clients of one server may share it. It belongs to the event loop in which its first
    client attaches; when that loop is closed, it starts anew in the next.

    Args:
        name: How logs, errors and snapshots call it, for example "redis".
        settings: Times and thresholds.
        rng: Source of the jitter; give a seeded one to replay a schedule.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: HealthSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(name, settings, rng if rng is not None else random.Random())

    def start(
        self, probe: Callable[[bool], Awaitable[float]], *, last_reply: Callable[[], float]
    ) -> Attachment:
        """Attach a client; the first one's probe task starts now, in the running loop.

        Of several clients the longest attached one's probe is used, and the newest of all their
        replies counts.

        Args:
            probe: Asks the dependency and returns the seconds it took, or raises `ProbeFailed`
                or `ProbeDegraded`. Its argument says whether something was seen to fail: then
                it must use a connection of its own, made for it. It is cancelled when it takes
                too long.
            last_reply: Returns the loop time at which the client last received anything from
                it; `-math.inf` for never.

        Returns:
            A handle; await its `detach()` when the client closes.

        Raises:
            RuntimeError: It is in use in another living event loop.
        """
        _check_functions(probe, last_reply)
        self._bind()
        if self._feed.closed:
            self._feed = Feed(self._feed.newest)
        client = Client(probe, last_reply)
        self._prober.add(client)
        return Attachment(functools.partial(self._detach, client))

    def failed(self, cause: Cause, detail: str = "", *, definite: bool = False) -> None:
        """Report a failure that a client saw (not a cancellation, not an error reply).

        While it is watched, this never makes it DOWN by itself: it makes the probe look at once,
        on its own connection.

        Args:
            cause: What was seen.
            detail: In words, without secrets.
            definite: Refused or reset rather than timed out; matters only when nobody probes.
        """
        now = self._bind()
        self.note("call failed", cause=cause.value, detail=detail)
        self._take(
            self._machine.failed(now, cause, detail, definite=definite, probed=self._prober.running)
        )
        self._prober.suspect()

    async def judged(self, timeout: float) -> None:
        """Wait until the probe that a reported failure asked for has ended.

        So a client can let it know of an outage before its callers do. Returns at once when no
        probe was asked for, or when it is DOWN already. Cancelling leaves at once.

        Args:
            timeout: Longest wait in seconds; then it returns, too.
        """
        verdict = self._prober.verdict()
        if verdict is not None:
            await asyncio.wait([verdict], timeout=timeout)

    def succeeded(self, latency: float | None = None) -> None:
        """Report good news that cost something, for example that a connection was made.

        Replies need no report: `last_reply` tells of them. While it is DOWN this counts as one
        good probe.

        Args:
            latency: Seconds it took.
        """
        self._take(self._machine.succeeded(self._bind(), latency))

    def refused(self, cause: Cause, detail: str = "") -> None:
        """Report that it answered, but refused a write: DEGRADED until one is accepted.

        Also ends after `HealthSettings.refusal_hold` without another refusal.

        Args:
            cause: For example `Cause.READ_ONLY`.
            detail: In words, without secrets.
        """
        now = self._bind()
        self.note("write refused", cause=cause.value, detail=detail)
        self._take(self._machine.refused(now, cause, detail))

    def accepted(self) -> None:
        """Report an accepted write; needed only while `refusing`."""
        self._take(self._machine.accepted(self._bind()))

    def part_lost(self, part: str, cause: Cause, detail: str = "") -> None:
        """Report that a part is lost, for example one of several connections.

        DEGRADED while any is, once the probe has found that the whole is not DOWN. Going DOWN
        forgets the parts: report one that is still lost afterwards again.

        Args:
            part: Its name.
            cause: What was seen.
            detail: In words, without secrets.
        """
        now = self._bind()
        self.note("part lost", part=part, cause=cause.value, detail=detail)
        self._take(self._machine.part_lost(now, part, cause, detail, probed=self._prober.running))
        self._prober.suspect()

    def part_back(self, part: str) -> None:
        """Report that a lost part is back; one that was not lost does no harm."""
        self._take(self._machine.part_back(self._bind(), part))

    async def aclose(self) -> None:
        """Detach every client, end every `watch()`, and end the probe.

        Async callbacks get one second, then they are cancelled. Closing twice is fine, and a
        later `start()` begins anew; callbacks stay registered. Cancelling this leaves at once;
        what it began ends by itself.
        """
        leaving = [task for client in self._prober.clients if (task := self._detach(client))]
        self._feed.close()
        if leaving:
            await asyncio.wait(leaving)
        await self._subscriptions.finish(CLOSE_GRACE)

    # --- inside

    def _detach(self, client: Client) -> asyncio.Task[None] | None:
        if self._loop is None or self._loop.is_closed():
            self._prober.abandon()  # its task ended, or will never end, with its loop
            return None
        leaving = self._prober.remove(client)
        if leaving is not None and not self._prober.running:
            self._take(self._machine.forget(self._loop.time()))
        return leaving

    def _bind(self) -> float:
        """Belong to the running loop; return its time."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._adopt(loop)
        return loop.time()

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        forgotten = None
        if self._loop is not None:
            if self._prober.running and not self._loop.is_closed():
                raise RuntimeError(
                    f"the dependency {self.name!r} is in use in another running event loop: "
                    f"make one Dependency per loop"
                )
            # What that loop knew, and who waited in it, is gone with it.
            self._prober.abandon()
            self._feed = Feed(first_change(self.name, now))
            self._machine.since = now  # the times of two loops cannot be compared
            forgotten = self._machine.forget(now)
        self._machine.since = now
        self._loop = loop
        self._take(forgotten)


class Attachment:
    """A client's hold on a `Dependency`, given by `start()`."""

    __slots__ = ("_leave",)

    def __init__(self, leave: Callable[[], asyncio.Task[None] | None]) -> None:
        self._leave = leave

    async def detach(self) -> None:
        """Let go; returns when this client's probe is no longer under way.

        After the last one the dependency is UNKNOWN and nothing of it runs. Detaching twice is
        fine. Cancelling leaves at once; the probe still ends by itself.
        """
        leaving = self._leave()
        if leaving is not None:
            await asyncio.wait([leaving])


def _check_functions(*given: object) -> None:
    for function in given:
        if not callable(function):
            raise TypeError(f"{function!r} is no function: write start(probe, last_reply=...)")
