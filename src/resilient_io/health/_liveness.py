"""Is this process stuck? Only what a restart would heal counts; a dependency never does."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from resilient_io.errors import ConfigurationError
from resilient_io.health._lag import LoopLag
from resilient_io.validation import check_number, check_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Liveness", "LivenessCheck", "LivenessSettings"]

_log = logging.getLogger("resilient_io.health")


@runtime_checkable
class LivenessCheck(Protocol):
    """Something that has to go on for the process to be of use, such as a consumer."""

    def liveness_failure(self) -> str | None:
        """Return why only a restart helps, in words; None while all is well."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessSettings:
    """When the process counts as stuck.

    Attributes:
        window: Seconds over which the event loop is looked at.
        share: Part of them (0 to 1) for which it may have been blocked.

    Raises:
        ConfigurationError: A value is out of range.
    """

    window: float = 30.0
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check_seconds("window", self.window)
        if check_number("share", self.share, above=True) > 1:
            raise ConfigurationError(
                f"share={self.share:g} is more than all of the time: write it as a part of 1, for "
                f"example share=0.5"
            )


class Liveness:
    """Judges whether the process is stuck.

    Args:
        settings: How much blocking of the event loop is too much.
        vital: What has to go on.
    """

    def __init__(self, settings: LivenessSettings, vital: Sequence[LivenessCheck]) -> None:
        self._settings = settings
        self._vital = tuple(vital)
        self._lag: LoopLag | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False
        self._broken: list[LivenessCheck] = []

    def look(self) -> None:
        """Begin, unless that was ended: who still asks then has nobody to end it again."""
        if not self._over:
            self.begin()

    def begin(self) -> None:
        """Look at the running loop, if one runs."""
        self._over = False
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if loop is not self._loop:
            self._let_go()
            self._loop = loop
            self._lag = LoopLag.acquire()

    def end(self) -> None:
        """Look no more."""
        self._over = True
        self._let_go()

    def _let_go(self) -> None:
        if self._lag is not None:
            self._lag.release()
        self._lag = self._loop = None

    def reasons(self) -> tuple[str, ...]:
        """Return why the process is stuck, in words; nothing while it is not."""
        found = [why for each in self._vital if (why := self._ask(each)) is not None]
        lag, window = self._lag, self._settings.window
        blocked = lag.stalled_within(window) if lag is not None else 0.0
        if blocked > self._settings.share * window:
            found.append(f"the event loop was blocked for {blocked:.1f} s of the last {window:g} s")
        return tuple(found)

    def _ask(self, part: LivenessCheck) -> str | None:
        try:
            return part.liveness_failure()
        # The boundary between us and a function of others. A bug in it is in the next process, too:
        # restarts would not heal it.
        except Exception:  # noqa: BLE001 (a part may raise anything)
            if part not in self._broken:
                self._broken.append(part)
                _log.exception(
                    "liveness_failure() of %s raised; further failures of it are not logged",
                    type(part).__name__,
                    extra={"event": "stuck_raised", "part": type(part).__name__},
                )
            return None
