"""One direction of a proxied connection: what comes in goes on later, slower, or not at all."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

_HIGH_WATER: Final = 1 << 20  # bytes that may wait in a link before its source is no longer read
_PIECE_SECONDS: Final = 0.01  # a bandwidth limit lets through this much time's worth at once


Direction: TypeAlias = Literal["requests", "replies", "both"]
"""Which way bytes travel: to the server, to the client."""


@dataclass(slots=True)
class Traffic:
    """What all links of one direction obey.

    Attributes:
        latency: Seconds that every byte is late.
        bandwidth: Bytes a second, None for no limit.
        stalled: Whether links of new connections start stalled.
        cut_after: Bytes after which a new connection is reset, None for never.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    stalled: bool = False
    cut_after: int | None = None


class Link:
    """Carries bytes to one transport, as its traffic's settings say.

    Args:
        traffic: The settings of its direction; changes take effect at once.
        set_reading: Called with False when too much waits here, with True when it has drained.
        on_cut: Called when the byte was passed after which the connection is to be reset.
    """

    def __init__(
        self,
        traffic: Traffic,
        set_reading: Callable[[bool], None],
        on_cut: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._traffic = traffic
        self._set_reading = set_reading
        self._on_cut = on_cut
        self._sink: asyncio.Transport | None = None
        self._sink_full = False
        self._queue: deque[tuple[float, bytes]] = deque()  # due at, bytes
        self._waiting = 0
        self._source_paused = False
        self._then: Callable[[], None] | None = None  # what to do once all has gone on
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.stalled = traffic.stalled
        self.cut_at = traffic.cut_after
        self.passed = 0
        """Bytes that went on."""

    def attach(self, sink: asyncio.Transport) -> None:
        """Give it the transport to write to; what waited goes on."""
        self._sink = sink
        self.pump()

    def feed(self, data: bytes) -> None:
        """Take bytes to carry."""
        self._queue.append((self._loop.time() + self._traffic.latency, data))
        self._waiting += len(data)
        self.pump()
        if self._waiting > _HIGH_WATER and not self._source_paused:
            self._source_paused = True
            self._set_reading(False)

    def finish(self, then: Callable[[], None]) -> None:
        """Do this once all that was fed has gone on; the source has ended."""
        self._then = then
        self.pump()

    def discard(self) -> None:
        """Forget what waits: there is nobody to carry it to."""
        self._queue.clear()
        self._waiting = 0
        self._sink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """The transport has enough to write."""
        self._sink_full = True

    def resume_writing(self) -> None:
        """The transport takes more."""
        self._sink_full = False
        self.pump()

    def pump(self) -> None:
        """Let go on what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue and self._sink and not self.stalled and not self._sink_full:
            due, data = self._queue[0]
            at = max(due, self._free_at)
            if at > self._loop.time():
                self._timer = self._loop.call_at(at, self.pump)
                break
            self._queue.popleft()
            piece = self._slow_down(due, data)
            self._waiting -= len(piece)
            self._write(self._sink, piece)
        if self._source_paused and self._waiting <= _HIGH_WATER // 2:
            self._source_paused = False
            self._set_reading(True)
        if self._then is not None and not self._queue and not self.stalled:
            then, self._then = self._then, None
            then()

    def _slow_down(self, due: float, data: bytes) -> bytes:
        """Give what the bandwidth lets through now, and put the rest back."""
        rate = self._traffic.bandwidth
        if rate is None:
            return data
        size = max(1, int(rate * _PIECE_SECONDS))
        if len(data) > size:
            self._queue.appendleft((due, data[size:]))
            data = data[:size]
        self._free_at = max(self._loop.time(), self._free_at) + len(data) / rate
        return data

    def _write(self, sink: asyncio.Transport, data: bytes) -> None:
        cut = self.cut_at is not None and self.passed + len(data) >= self.cut_at
        if cut and self.cut_at is not None:
            data = data[: self.cut_at - self.passed]
            self.cut_at = None
        self.passed += len(data)
        sink.write(data)
        if cut:
            self.discard()
            self._on_cut()


def reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN, once what was written has left, as far as it can now."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
