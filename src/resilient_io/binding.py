"""Binding of a client to one event loop and one process."""

from __future__ import annotations

import asyncio
import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    """An object that must know when the process was forked."""

    def note_fork(self) -> None:
        """Handle a fork. Called in the child process, which shares the parent's sockets."""
        raise NotImplementedError


_owners: list[weakref.ref[Forkable]] = []


def notify_on_fork(owner: Forkable) -> None:
    """Call an object's `note_fork()` in every child process, for as long as the object exists."""
    _owners[:] = [known for known in _owners if known() is not None]
    _owners.append(weakref.ref(owner))


def _after_fork() -> None:
    for known in _owners:
        owner = known()
        if owner is not None:
            owner.note_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class LoopBinding:
    """The event loop and the process in which a client was first used.

    Attributes:
        loop: The event loop, or None after a fork.
        forked: Whether the client was first used in the process that this one was forked from.
    """

    __slots__ = ("__weakref__", "forked", "loop")

    def __init__(self) -> None:
        """Bind to the running event loop and this process."""
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self.forked = False
        notify_on_fork(self)

    @property
    def closed(self) -> bool:
        """Whether the event loop was closed: nothing in it can run any more."""
        return self.loop is not None and self.loop.is_closed()

    def note_fork(self) -> None:
        """Refuse every further use: the parent process uses the connections."""
        if not self.closed:
            self.forked, self.loop = True, None

    def check(self, client: str) -> None:
        """Refuse a use in another event loop or process, where a waiting call would never wake.

        Args:
            client: The name of the class to instantiate instead.

        Raises:
            RuntimeError: The client is bound to another event loop, or was used before a fork.
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
