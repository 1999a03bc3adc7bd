"""Binding of a client to one event loop and one process, and what several of them may share."""

from __future__ import annotations

import asyncio
import os
import random
import weakref
from _thread import get_ident
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

SYSTEM_RANDOM: Final = random.SystemRandom()
"""The source of jitter, names and tokens of everything that was not given another one.

It has no state, so that clients, loops and forks can share it. A `random.Random` for each client
would take 2.5 KB, and continue alike in every forked process.
"""


class SocketOwner(Protocol):
    """An object whose sockets belong to the process that opened them."""

    def note_fork(self) -> None:
        """Use none of them: this process is a child of that one."""


_owners: weakref.WeakKeyDictionary[SocketOwner, None] = weakref.WeakKeyDictionary()


def notify_on_fork(owner: SocketOwner) -> None:
    """Call the `note_fork` of an object in every child process, for as long as the object exists.

    A child process shares the sockets of its parent, so it must not use them.
    """
    _owners[owner] = None


def _after_fork() -> None:
    for owner in list(_owners):
        owner.note_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class PerLoop(weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T]):
    """What the clients of each event loop share.

    The last user removes the entry of its loop. An entry that a closed loop has left is removed
    when another loop needs one.
    """

    def of(self, loop: asyncio.AbstractEventLoop, make: Callable[[], T]) -> T:
        """Return the entry of a loop, which `make` creates if there is none."""
        found = self.get(loop)
        if found is None:
            if self:
                for other in [other for other in self if other.is_closed()]:
                    del self[other]
            found = self[loop] = make()
        return found


class LoopBinding:
    """The event loop (None after a fork) and the process in which a client was first used.

    On a hot path, compare `thread` with `get_ident()` and call `is_running`: until Python 3.12,
    `get_running_loop` makes a system call.
    """

    __slots__ = ("__weakref__", "forked", "is_running", "loop", "thread")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.thread = get_ident()  # 0 after a fork
        self.is_running = loop.is_running
        self.forked = False
        notify_on_fork(self)

    @property
    def closed(self) -> bool:
        """Whether the event loop was closed: nothing in it can run any more."""
        return self.loop is not None and self.loop.is_closed()

    def note_fork(self) -> None:
        """Refuse every further use: the parent process uses the connections."""
        if not self.closed:
            self.forked, self.loop, self.thread = True, None, 0

    def check(self, client: str) -> None:
        """Raise RuntimeError in another event loop or process, where a call would never wake.

        `client` is the name of the class to instantiate instead.
        """
        if self.forked:
            raise RuntimeError(
                f"this client was used before a fork and its connections belong to the parent "
                f"process: create a new {client} in the child process"
            )
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                f"this client is in use in another running event loop: create one {client} for "
                f"each event loop"
            )
