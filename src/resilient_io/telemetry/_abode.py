"""In which event loop to read: what is read changes there, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from resilient_io.binding import notify_on_fork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.health import Dependency

__all__ = ["Abode"]


class Abode:
    """Finds the event loop.

    Args:
        dependencies: The loop that they are watched in is the one; until there is one, it is the
            loop in which this was made, or else in which is asked first.

    Attributes:
        forked: Whether all this belongs to the process that this one was forked from.
    """

    def __init__(self, dependencies: Sequence[Dependency]) -> None:
        self._dependencies = tuple(dependencies)
        self._first: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(RuntimeError):
            self._first = asyncio.get_running_loop()
        self.forked = False
        notify_on_fork(self)

    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop to read in; None when none runs, or it is the one that runs here."""
        here = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        found = self._running()
        if found is None:
            found = self._first = here
        return None if found is here else found

    def _running(self) -> asyncio.AbstractEventLoop | None:
        # No public fact: who uses a Dependency is always in its loop.
        loops = [dependency._loop for dependency in self._dependencies]  # noqa: SLF001
        return next((loop for loop in (*loops, self._first) if loop and loop.is_running()), None)

    def note_fork(self) -> None:
        """Take note, in a child process, that what is read is counted in the parent."""
        # A copy of a loop that ran says that it runs.
        self.forked = self.forked or self._running() is not None
        self._first = None
