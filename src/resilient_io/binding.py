"""Tells whoever holds connections that the process was forked: they belong to the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["notify_on_fork"]


class Forkable(Protocol):
    """What has to know of a fork."""

    def note_fork(self) -> None:
        """Take note, in the child process, that it is a copy of what the parent goes on using."""
        raise NotImplementedError


_told: list[weakref.ref[Forkable]] = []


def notify_on_fork(owner: Forkable) -> None:
    """Call an object's `note_fork()` in every child process, for as long as it exists."""
    _told[:] = [known for known in _told if known() is not None]
    _told.append(weakref.ref(owner))


def _after_fork() -> None:
    for known in _told:
        owner = known()
        if owner is not None:
            owner.note_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
