"""What the other connections do while the current one is blocked or carries large values.

The server, or a huge reply, may keep the calls of a connection waiting while other connections are
answered: CLIENT PAUSE WRITE delays a write, and so every call behind it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .response_queue import LARGE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from .connection import MultiplexedConnection, PendingRequest

PING = b"*1\r\n$4\r\nPING\r\n"

_LARGEST_SHARED = 1024 * 1024 + LARGE
"""Bytes of a request above which a server may refuse a value in it, and close the connection.

`proto-max-bulk-len` cannot be less than 1 MiB.
"""

_MOST_SHARED = 16 * 1024 * 1024  # bytes of large requests that share one connection


def choose_for_large(
    request: PendingRequest,
    connections: Sequence[MultiplexedConnection],
    current: MultiplexedConnection,
) -> MultiplexedConnection | None:
    """Return the connection for a large request, or None if it needs one of its own.

    Large requests share one connection, so that another one is free for small calls.
    """
    if len(request.data) > _LARGEST_SHARED:
        return None
    busy = [each for each in connections if each.busy]
    if not busy:
        return current
    for each in busy:
        if not each.hogged and not each.full and each.load < _MOST_SHARED:
            return each
    return None


class DelayedReplies:
    """Notices that the server answers on another connection, but sends nothing on the current one.

    Args:
        changed: Called when that begins, and if the other connection no longer answers.
    """

    __slots__ = ("_answering", "_asking", "_changed")

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._answering: MultiplexedConnection | None = None
        self._asking = False

    def instead_of(self, connection: MultiplexedConnection) -> MultiplexedConnection | None:
        """Return the connection for reads while replies on the current one are delayed."""
        other = self._answering
        if not connection.delayed or other is None or other.lost is not None:
            return None
        return None if other.busy or other.full or other.retired else other

    def ask(
        self,
        silent: MultiplexedConnection,
        connections: Sequence[MultiplexedConnection],
        current: MultiplexedConnection | None,
    ) -> None:
        """Ask on another connection whether the server answers, unless that was asked already."""
        if silent is self._answering:
            self._answering = None  # it answers no longer
            self._changed()
        if silent is not current or silent.delayed or self._asking:
            return
        others = (each for each in connections if each is not silent)
        other = next((each for each in others if not each.busy and not each.in_flight), None)
        if other is None:
            return
        self._asking = True
        answer = other.ask(PING)
        answer.add_done_callback(partial(self._answered, silent, other, silent.last_byte))

    def _answered(
        self,
        silent: MultiplexedConnection,
        other: MultiplexedConnection,
        last_byte: float,
        answer: asyncio.Future[object],
    ) -> None:
        self._asking = False
        if answer.cancelled() or isinstance(answer.result(), Exception):
            return
        if silent.lost is None and silent.last_byte == last_byte and silent.in_flight:
            self._answering, silent.delayed = other, True
            self._changed()
            silent.check_clocks()
