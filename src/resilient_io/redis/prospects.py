"""Whether waiting for a connection makes sense, after dialling has failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .ticket import Undeliverable

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.health import Dependency

    from .classification import Failure

_DOUBT = 0.5
"""Seconds that callers wait at most for health to confirm that dialling fails for good."""


class Prospects:
    """What the latest failed dial means for the calls that wait for a connection.

    A failure for good (a wrong password, say) ends their waiting, but health is to know of it
    before they do. When health gets better, they may hope again.
    """

    def __init__(self, health: Dependency, give_up: Callable[[Undeliverable], None]) -> None:
        """Begin without a failure.

        Args:
            health: Asked whether it knows of the failure, or got better since.
            give_up: Called when waiting is of no use any more.
        """
        self._health = health
        self._give_up = give_up
        self._latest: Failure | None = None
        self._failed_at = 0.0
        self._doubt: Undeliverable | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.undeliverable: Undeliverable | None = None
        """Why dialling fails for good, once health agrees or had its time to."""

    @property
    def detail(self) -> str:
        """Why the latest dial failed, in words; empty without one."""
        return self._latest.detail if self._latest is not None else ""

    @property
    def better(self) -> bool:
        """Whether health has become better since dialling failed."""
        health = self._health
        return (
            self._latest is not None and health.state.answering and health.since > self._failed_at
        )

    def failed(self, failure: Failure, error: BaseException) -> None:
        """Take a failed dial."""
        loop = asyncio.get_running_loop()
        self._latest, self._failed_at = failure, loop.time()
        if failure.permanent and self.undeliverable is None:
            self._doubt = Undeliverable(failure, error)
            self._stop_timer()
            self._timer = loop.call_later(_DOUBT, self.conclude)

    def conclude(self) -> None:
        """Give up, if dialling failed for good and there was no success since."""
        if self._doubt is not None:
            self.undeliverable = self._doubt
            self._give_up(self._doubt)

    def brighten(self) -> None:
        """Forget what failed: a connection was made, or health got better."""
        self.undeliverable = self._doubt = None
        self._stop_timer()

    def succeeded(self) -> None:
        """Take a successful dial."""
        self._latest = None
        self.brighten()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
