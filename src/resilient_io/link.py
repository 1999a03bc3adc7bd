"""The kernel's view of a TCP connection (`TCP_INFO`), and what it says about the path to the host.

When a server process is frozen, its host still acknowledges our bytes. When the network is cut,
nothing is acknowledged, and the kernel retransmits. So the kernel knows within a second what a
timeout can only suspect. On systems other than Linux, and for sockets other than TCP, nothing is
known, and nothing changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import sys
from contextvars import Context
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_HEAD = struct.Struct("=8B24I")
"""The part of `struct tcp_info` that every kernel has: eight bytes, then 32-bit words."""

_DATA_SEGMENTS = 152  # offset of `tcpi_data_segs_in` and `tcpi_data_segs_out`, since Linux 4.6
_WORDS = struct.Struct("=2I")
_ESTABLISHED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """What the kernel knows about a connection, or about all connections of a client together.

    Attributes:
        rtt: Smoothed round-trip time, in seconds.
        rttvar: Mean deviation of the round-trip time, in seconds.
        retransmits: Retransmissions in a row, after timeouts, without an acknowledgement.
        retransmitted: Segments retransmitted since the connection was opened.
        segments: Data segments sent since then, retransmissions included; None if not known.
        unacked: Segments that the host has not acknowledged.
        unacked_bytes: Bytes that the host has not acknowledged, those not sent yet included.
        ack_age: Seconds since the latest acknowledgement of the host.
        sent_age: Seconds since data was last sent.
        received_age: Seconds since data was last received, or since the connection was opened.
        received: Data segments received since then; None if not known.
    """

    rtt: float
    rttvar: float
    retransmits: int
    retransmitted: int
    segments: int | None
    unacked: int
    unacked_bytes: int
    ack_age: float
    sent_age: float
    received_age: float
    received: int | None = None

    @property
    def loss(self) -> float | None:
        """The share of the segments that were retransmitted (0 to 1); None if not known."""
        return self.retransmitted / self.segments if self.segments else None

    @property
    def silent_server(self) -> bool:
        """Whether the host has acknowledged everything, and the server has not answered it."""
        # The kernel counts in ticks: a connection may have sent its first data as it was opened.
        never = self.received == 0 and bool(self.segments)
        return not self.unacked and (never or self.sent_age < self.received_age)

    def describe(self) -> str:
        """Return the state in words, for example "rtt 0.2 ms, 1 of 40 segments lost"."""
        words = [f"rtt {self.rtt * 1000:.1f} ms"]
        if self.retransmitted:
            words.append(describe_losses(self))
        if self.unacked:
            words.append(f"{self.unacked_bytes} bytes unacknowledged for {self.ack_age:.1f} s")
        return ", ".join(words)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for `json.dumps`, with `loss`."""
        loss = self.loss
        return {**asdict(self), "loss": None if loss is None else round(loss, 6)}


def describe_losses(link: LinkState) -> str:
    """Return how many segments had to be sent again, for example "1 of 40 segments lost"."""
    of = "" if link.segments is None else f" of {link.segments}"
    return f"{link.retransmitted}{of} segments lost"


def read_link(sock: Any) -> LinkState | None:
    """Return what the kernel knows about a connection, or None if it does not tell.

    `sock` is a socket, or what a transport returns for `get_extra_info("socket")`. It costs about
    3 µs.
    """
    if sys.platform != "linux" or sock is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        descriptor = sock.fileno()
    except (OSError, AttributeError, TypeError):  # not TCP, closed, or a simulated socket
        return None
    if not isinstance(info, bytes) or len(info) < _HEAD.size:
        return None
    fields = _HEAD.unpack_from(info)
    if fields[0] != _ESTABLISHED:
        return None
    words = fields[8:]
    received, segments = None, None
    if len(info) >= _DATA_SEGMENTS + _WORDS.size:
        received, segments = _WORDS.unpack_from(info, _DATA_SEGMENTS)
    return LinkState(
        rtt=words[15] / 1e6,
        rttvar=words[16] / 1e6,
        retransmits=fields[2],
        retransmitted=words[23],
        segments=segments,
        unacked=words[4],
        unacked_bytes=send_queue_size(descriptor),
        ack_age=words[12] / 1e3,
        sent_age=words[9] / 1e3,
        received_age=words[11] / 1e3,
        received=received,
    )


def send_queue_size(descriptor: int) -> int:
    """Return the bytes in a socket's send queue, or 0 where the platform does not tell."""
    if descriptor < 0:
        return 0  # the socket is closed
    try:
        import fcntl  # noqa: PLC0415 (not on Windows)
        import termios  # noqa: PLC0415

        queued: bytes = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (ModuleNotFoundError, OSError, TypeError, ValueError):  # macOS refuses it for sockets
        return 0
    return int.from_bytes(queued, sys.byteorder)


def combine(links: Iterable[LinkState | None]) -> LinkState | None:
    """Return the worst of several connections, and the sums of what can be summed."""
    known = [link for link in links if link is not None]
    if not known:
        return None
    waiting = [link.ack_age for link in known if link.unacked]
    segments = [link.segments for link in known if link.segments is not None]
    received = [link.received for link in known if link.received is not None]
    return LinkState(
        rtt=max(link.rtt for link in known),
        rttvar=max(link.rttvar for link in known),
        retransmits=max(link.retransmits for link in known),
        retransmitted=sum(link.retransmitted for link in known),
        segments=sum(segments) if segments else None,
        unacked=sum(link.unacked for link in known),
        unacked_bytes=sum(link.unacked_bytes for link in known),
        ack_age=max(waiting) if waiting else min(link.ack_age for link in known),
        sent_age=min(link.sent_age for link in known),
        received_age=min(link.received_age for link in known),
        received=sum(received) if received else None,
    )


SERVER_SILENT = "the host is reachable, the server does not answer"


def describe_silence(links: Iterable[LinkState | None], *, within: float = math.inf) -> str:
    """Return what the kernel knows about requests that are not answered, or an empty string.

    Only acknowledgements of the last `within` seconds show that the host is reachable.
    """
    known = [link for link in links if link is not None]
    lost = [link for link in known if link.unacked and link.retransmits]
    if lost:
        worst = max(lost, key=lambda link: link.ack_age)
        return _describe_loss(worst, worst.ack_age)
    silent = any(link.silent_server and link.ack_age <= within for link in known)
    return SERVER_SILENT if silent else ""


def _describe_loss(link: LinkState, seconds: float) -> str:
    times = "1 retransmission" if link.retransmits == 1 else f"{link.retransmits} retransmissions"
    return f"no acknowledgement from the host for {seconds:.1f} s, {times}"


# --- the path to the host

INTERVAL = 0.2
"""Seconds without an answer after which a connection is looked at, and between two looks."""

_UNACKED_INTERVAL = 0.1  # seconds between two looks while something is not acknowledged
_SUSPECT_INTERVAL = 0.025  # the same after a retransmission
_CONFIRMATION = 0.005  # seconds in which the event loop takes note of an answered attempt

_RETRANSMITS = 2  # a lossy link alone may cause one
_SILENCE = 0.8  # seconds without an acknowledgement
_ATTEMPTS = (0.0, 0.15)  # seconds after the suspicion at which new connections are tried
_LEAST_ATTEMPT = 0.1  # shortest time, in seconds, in which a new connection may be answered
_LONGEST_ATTEMPT = 2.0


class PathMonitor:
    """Decides whether the path to a host is gone. There is one for each client.

    The path is gone if, on an established connection, nothing was acknowledged for 0.8 s and two
    retransmissions, and attempts to open a new connection are not answered, either. These begin at
    the first retransmission, so that their result is known in time. Nothing is read while replies
    arrive.

    Args:
        gone: Called with the reason and the absolute loop time since when nothing is acknowledged.
        others: For a service of several hosts: returns the sockets of the client's connections.
        partly_gone: Called with the reason instead of `gone` if another host answers.
    """

    def __init__(
        self,
        gone: Callable[[str, float], None],
        *,
        others: Callable[[], Iterable[Any]] = tuple,
        partly_gone: Callable[[str], None] | None = None,
    ) -> None:
        self._gone = gone
        self._others = others
        self._partly_gone = partly_gone
        self._checks: dict[object, _HostCheck] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    def look(self, sock: Any, waited: float) -> float:
        """Look at a connection on which nothing was received for `waited` seconds.

        Requests on it are unanswered for at least as long. Return after how many seconds to look
        again if that lasts.
        """
        link = read_link(sock)
        if link is None or not link.unacked or self._closed:
            return INTERVAL
        if not link.retransmits:
            return _UNACKED_INTERVAL
        try:
            return self._suspect(link, min(link.ack_age, waited), sock.family, sock.getpeername())
        except OSError:
            return INTERVAL  # the connection was lost meanwhile

    def _suspect(self, link: LinkState, silence: float, family: int, peer: Any) -> float:
        """Try new connections; the path is gone if they fail, too. Return when to look again."""
        now = asyncio.get_running_loop().time()
        check = self._checks.get(peer)
        if check is None or check.began < now - silence or check.outdated(now):
            check = self._checks[peer] = _HostCheck(now, peer)
            hosts = {peer: family}
            for sock in self._others():
                with contextlib.suppress(OSError):  # a connection that was lost
                    hosts.setdefault(sock.getpeername(), sock.family)
            self._tasks += check.start(hosts, self._tasks.remove)
            return _SUSPECT_INTERVAL
        if link.retransmits < _RETRANSMITS or silence < _SILENCE or not check.failed(now, link):
            return _SUSPECT_INTERVAL
        if not check.confirming:
            check.confirming = True
            return _CONFIRMATION
        if not check.published:
            check.published = True
            if check.other_answered and self._partly_gone is not None:
                self._partly_gone(_describe_loss(link, silence))
            else:
                self._gone(_describe_loss(link, silence), now - silence)
        return INTERVAL

    async def aclose(self) -> None:
        """End the attempts to connect. Idempotent."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _HostCheck:
    """Attempts to open a connection to a host, of which one answer suffices, and to others."""

    __slots__ = ("_peer", "answered", "began", "confirming", "other_answered", "published")

    def __init__(self, now: float, peer: Any) -> None:
        self._peer = peer
        self.began = now
        self.answered: float | None = None
        self.other_answered = False
        self.confirming = False
        self.published = False

    def start(
        self, hosts: Mapping[Any, int], ended: Callable[[asyncio.Task[None]], None]
    ) -> list[asyncio.Task[None]]:
        """Start the attempts to connect to these addresses, each with its family."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(
                self._try(family, peer, delay),
                name="resilient-io link check",
                context=Context(),
            )
            for peer, family in hosts.items()
            for delay in _ATTEMPTS
        ]
        for task in tasks:
            task.add_done_callback(ended)
        return tasks

    def failed(self, now: float, link: LinkState) -> bool:
        """Return whether an answer is overdue."""
        enough = max(_LEAST_ATTEMPT, 2 * (link.rtt + 4 * link.rttvar))
        return self.answered is None and now - self.began >= enough

    def outdated(self, now: float) -> bool:
        """Return whether the host has answered too long ago to be sure that it still would."""
        return self.answered is not None and now - self.answered > _SILENCE

    async def _try(self, family: int, peer: Any, delay: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(delay)
            if self.answered is not None or (self.other_answered and peer != self._peer):
                return
            async with asyncio.timeout(_LONGEST_ATTEMPT):
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, peer)
        except (ConnectionRefusedError, ConnectionResetError):
            pass  # the host has answered
        except OSError:  # TimeoutError included
            return
        if peer == self._peer:
            self.answered = loop.time()
        else:
            self.other_answered = True
