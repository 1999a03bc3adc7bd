"""Whether the group may have gone on without us: then nothing new is begun."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Standing"]


class Standing:
    """Doubts the place in the group once its coordinator was not heard for a session.

    By then it may have given our partitions to others: what is handled after that cannot be
    committed, and is handled again. There is no doubt before the first confirmation, so never
    without a group.

    Args:
        session: Seconds (`session_timeout_ms`) after which the group gives a member up.
        moved: Called when the doubt begins or ends.

    Attributes:
        doubtful: Whether nobody knows if the partitions are still ours.
    """

    __slots__ = ("_closed", "_moved", "_session", "_timer", "doubtful")

    def __init__(self, session: float, moved: Callable[[], None]) -> None:
        self._session = session
        self._moved = moved
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.doubtful = False

    def confirm(self, asked: float) -> None:
        """The group has said that we belong to it.

        Args:
            asked: Loop time at which it was asked; it has counted from then, or from later.
        """
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() >= asked + self._session:
            return  # such an old answer tells nothing of now
        self._disarm()
        self._timer = loop.call_at(asked + self._session, self._doubt)
        if self.doubtful:
            self.doubtful = False
            self._moved()

    def close(self) -> None:
        """Look no more; twice is fine."""
        self._closed = True
        self._disarm()

    def _doubt(self) -> None:
        self._timer = None
        self.doubtful = True
        self._moved()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
