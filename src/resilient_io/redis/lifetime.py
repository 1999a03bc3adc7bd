"""The time for which a runtime runs in one event loop, and how it is opened again after a close."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from resilient_io.binding import LoopBinding
from resilient_io.deadlines import context_without_deadline

from .errors import RedisClosed

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Lifetime:
    """Binds a runtime to the event loop of its first use, until it is closed.

    Args:
        client: The class of the client, for errors: "ResilientRedis".
        dependency: The name of its health, for errors.

    Attributes:
        binding: The event loop; None before the start, and after a close.
        closing: The task that closes; None while nothing is being closed.
    """

    __slots__ = ("_client", "_closes", "_dependency", "_reopening", "binding", "closing")

    def __init__(self, client: str, dependency: str) -> None:
        self._client = client
        self._dependency = dependency
        self.binding: LoopBinding | None = None
        self.closing: asyncio.Task[None] | None = None
        self._closes = 0
        self._reopening: list[object] = []  # the calls in `until_closed`, in their order

    @property
    def running(self) -> bool:
        """Whether it was started, in a loop that is still open, and not closed since."""
        binding = self.binding
        return binding is not None and not (binding.closed or binding.forked)

    @property
    def forked(self) -> bool:
        """Whether the connections belong to the parent process."""
        return self.binding is not None and self.binding.forked

    @property
    def loop_closed(self) -> bool:
        """Whether its event loop was closed, so that nothing of it can be ended any more."""
        return self.binding is not None and self.binding.closed

    @property
    def usable_here(self) -> bool:
        """Whether it is not in use in another running event loop or process."""
        binding = self.binding
        if binding is None or binding.closed:
            return True
        try:
            return binding.loop is asyncio.get_running_loop()
        except RuntimeError:  # no loop runs yet
            return not binding.forked

    @property
    def here(self) -> bool:
        """Whether it was started in the running event loop."""
        return self.binding is not None and self.binding.loop is asyncio.get_running_loop()

    def check_loop(self) -> None:
        """Raise RuntimeError if it is in use in another event loop of this process."""
        if self.binding is not None and not self.binding.forked:
            self.binding.check(self._client)

    def begin(self) -> None:
        """Bind to the running event loop. Raise RuntimeError if it is in use in another one."""
        if self.binding is not None:
            self.binding.check(self._client)
        self.binding = LoopBinding()

    def note_close(self) -> None:
        """Note that the client is closed: calls that are opening it again must not."""
        self._closes += 1

    def close_with(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Close in a task that a cancelled caller does not end."""
        self.closing = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io {name}", context=context_without_deadline()
        )
        return self.closing

    def end(self) -> None:
        """Forget the event loop: everything in it has ended, or the loop was closed."""
        self.binding = self.closing = None

    async def until_closed(self) -> None:
        """Wait for a close that is under way, after which the client can be opened again.

        Calls that wait for it continue in their order. Raise `RedisClosed` if the client is closed
        again meanwhile: the later call counts.
        """
        closes, place = self._closes, object()
        self._reopening.append(place)
        try:
            if self.closing is not None:
                await asyncio.wait([self.closing])
            while self._closes == closes and self._reopening[0] is not place:  # noqa: ASYNC110
                await asyncio.sleep(0)  # earlier calls are about to go on
        finally:
            self._reopening.remove(place)
        if self._closes != closes:
            raise RedisClosed(
                "the client was closed again before it was open",
                dependency=self._dependency,
                operation="initialize",
            )
