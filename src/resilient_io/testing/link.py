"""One direction of a proxied connection: delays, slows down or stops the bytes on their way."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

_HIGH_WATER: Final = 1 << 20  # bytes that may wait in a link before reading its source pauses
_PIECE_SECONDS: Final = 0.01  # a bandwidth limit passes pieces of this duration


Direction: TypeAlias = Literal["requests", "replies", "both"]
"""Which way bytes travel: to the server, to the client."""


@dataclass(slots=True)
class Traffic:
    """Settings of all links in one direction.

    Attributes:
        latency: Delay of every byte in seconds.
        bandwidth: Bytes per second; None for no limit.
        stalled: Whether links of new connections are stalled.
        cut_after: Bytes after which a new connection is reset; None for never.
    """

    latency: float = 0.0
    bandwidth: float | None = None
    stalled: bool = False
    cut_after: int | None = None


class Link:
    """Forwards bytes to one transport, according to the settings of its direction.

    Args:
        traffic: The settings; changes take effect immediately.
        set_reading: Called with False when too many bytes wait, and with True when they are gone.
        on_cut: Called after the byte at which the connection is to be reset.
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
        self._then: Callable[[], None] | None = None  # called once everything was forwarded
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.stalled = traffic.stalled
        self.cut_at = traffic.cut_after
        self.passed = 0
        """Bytes forwarded so far."""

    def attach(self, sink: asyncio.Transport) -> None:
        """Set the transport to write to, and forward what waits."""
        self._sink = sink
        self.pump()

    def feed(self, data: bytes) -> None:
        """Take bytes to forward."""
        self._queue.append((self._loop.time() + self._traffic.latency, data))
        self._waiting += len(data)
        self.pump()
        if self._waiting > _HIGH_WATER and not self._source_paused:
            self._source_paused = True
            self._set_reading(False)

    def finish(self, then: Callable[[], None]) -> None:
        """Call `then` once everything was forwarded; the source has ended."""
        self._then = then
        self.pump()

    def discard(self) -> None:
        """Drop what waits: the transport is gone."""
        self._queue.clear()
        self._waiting = 0
        self._sink = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._sink_full = True

    def resume_writing(self) -> None:
        """Continue writing."""
        self._sink_full = False
        self.pump()

    def pump(self) -> None:
        """Forward the bytes that are due."""
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
            piece = self._limit(due, data)
            self._waiting -= len(piece)
            self._write(self._sink, piece)
        if self._source_paused and self._waiting <= _HIGH_WATER // 2:
            self._source_paused = False
            self._set_reading(True)
        if self._then is not None and not self._queue and not self.stalled:
            then, self._then = self._then, None
            then()

    def _limit(self, due: float, data: bytes) -> bytes:
        """Return what the bandwidth lets through now, and put the rest back."""
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
    """Close with RST instead of FIN, after sending as much of the buffer as is possible now."""
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
