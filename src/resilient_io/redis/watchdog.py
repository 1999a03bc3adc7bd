"""Judging the silence of a lane: when its callers must wait no longer, and when it is dead."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from typing import TYPE_CHECKING, Protocol

from resilient_io.health import Cause

if TYPE_CHECKING:
    from .outstanding import Outstanding
    from .replies import Replies
    from .ticket import Ticket

SECOND_LOOK = 0.005
"""Seconds between a verdict and its execution: a reply that lies in the socket is read first."""


class Watched(Protocol):
    """What a watchdog needs of its lane."""

    response_timeout: float
    bytes_sent: int
    deadline: float | None
    allowance: float
    transport: asyncio.Transport

    def fall_silent(self) -> None:
        """Hear that half of the patience is over."""

    def close(self, cause: Cause, detail: str) -> None:
        """Die."""

    def own(self, ticket: Ticket, from_end: int) -> None:
        """Take over a ticket for a call that was sent with a bare future."""


class Watchdog:
    """One timer a lane, armed while calls are outstanding.

    It looks twice within the response timeout: a large request that is still leaving is no
    silence, and only what lies between two looks shows that it is. That holds for the oldest one
    alone: that those behind it leave (a ping of ours, say) tells nothing about the peer.
    """

    __slots__ = ("_lane", "_left", "_loop", "_outstanding", "_replies", "_timer", "_written")

    def __init__(self, lane: Watched, outstanding: Outstanding, replies: Replies) -> None:
        """Watch a lane.

        Args:
            lane: Told when half of its patience passed in silence, and closed when all of it did.
            outstanding: What it wrote and did not hear back about.
            replies: Those who wait on it.
        """
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        self._outstanding = outstanding
        self._replies = replies
        self._timer: asyncio.TimerHandle | None = None
        # At the latest look: the bytes that the lane had written, and those that had left.
        self._written = self._left = 0

    def arm(self, now: float) -> None:
        """Watch from `now` on, unless it is watched already."""
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._lane.response_timeout / 2, self._watch)

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _patience(self) -> float:
        return self._lane.response_timeout + self._lane.allowance

    def _watch(self) -> None:
        self._timer, lane = None, self._lane
        if not self._replies.waiting:
            return
        written = lane.bytes_sent
        left = written - self._leaving()
        if self._left < self._outstanding.writes[0].end <= self._written and left > self._left:
            self._outstanding.moved()
        self._written, self._left = written, left
        patience, silence = self._patience, self._outstanding.silence()
        if silence >= patience:
            self._timer = self._loop.call_later(
                SECOND_LOOK, self._judge, self._outstanding.last_byte
            )
            return
        # Not later than their deadline, though the next look is half of the patience away.
        age = patience if lane.deadline is None else min(patience, lane.deadline - patience / 2)
        late = self._outstanding.written_before(self._loop.time() - age)
        self._replies.hand_over(late, lane.own)
        if silence < patience / 2:
            next_look = patience / 2 - silence
        else:
            next_look = patience - silence
            lane.fall_silent()
        self._timer = self._loop.call_later(max(next_look, SECOND_LOOK), self._watch)

    def _judge(self, last_byte: float) -> None:
        self._timer = None
        outstanding = self._outstanding
        quiet = outstanding.last_byte == last_byte and bool(self._replies.waiting)
        if quiet and outstanding.silence() >= self._patience:
            seconds = self._lane.response_timeout
            self._lane.close(Cause.TIMED_OUT, f"no byte came within {seconds:g} s")
        else:
            self._watch()

    def _leaving(self) -> int:
        """Bytes of ours that the peer has not acknowledged yet."""
        transport = self._lane.transport
        size = transport.get_write_buffer_size()
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return size
        queued: bytes = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        return size + int.from_bytes(queued, sys.byteorder)
