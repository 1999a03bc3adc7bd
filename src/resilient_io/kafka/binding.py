"""Where a client lives: one event loop, in one process."""

from __future__ import annotations

import asyncio

from resilient_io.binding import notify_on_fork


class Residence:
    """The running event loop and this process, from now on.

    Attributes:
        loop: The event loop; None once the process was forked.
        forked: Whether it belongs to the process that this one was forked from.
    """

    __slots__ = ("__weakref__", "forked", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.forked = False
        notify_on_fork(self)

    @property
    def over(self) -> bool:
        """Whether nothing of it can run any more: the loop is closed."""
        return self.loop is not None and self.loop.is_closed()

    def note_fork(self) -> None:
        """Take note, in a child process, that the parent uses all of it."""
        if not self.over:
            self.forked, self.loop = True, None

    def check(self, client: str) -> None:
        """Refuse a use from elsewhere: what waits there would never be woken.

        Args:
            client: The class of which one is to be made instead.

        Raises:
            RuntimeError: It lives in another event loop, or in the process before a fork.
        """
        if self.forked:
            raise RuntimeError(
                f"this client was in use before a fork, and its connections belong to the parent "
                f"process: make a new {client} in the child process"
            )
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"this client is in use in another running event loop: make one {client} for "
                f"each event loop"
            )
