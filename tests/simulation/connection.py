"""One simulated TCP connection between the client under test and a server.

Each direction delivers in order. What the client's kernel has accepted still reaches the server
after the client closes its end, unless the connection is reset first.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import math
import os
import socket
import struct
from asyncio.transports import _FlowControlMixin
from heapq import heappush
from typing import TYPE_CHECKING, Any, Protocol

from .loop import IOEvent
from .plan import SEND_BUFFER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .loop import SimulatedLoop
    from .network import Host, Network

LARGEST_READ = 256 * 1024

_HANDSHAKE = 512  # bytes that a handshake takes at most

USER_TIMEOUT = 18  # socket.TCP_USER_TIMEOUT of Linux
KEEPIDLE = 4  # socket.TCP_KEEPIDLE of Linux
TCP_INFO = 11  # socket.TCP_INFO of Linux

FIRST_RETRANSMISSION = 0.2
"""Seconds without an acknowledgement after which data is sent again; each time twice as long."""

_TCP_INFO = struct.Struct("=8B24I88x")

FIN = "FIN"
RST = "RST"


class Session(Protocol):
    """What a server has for each connection."""

    def receive(self, data: bytes) -> None:
        """Take bytes from the client."""

    def lost(self, *, reset: bool = False) -> None:
        """Note that the client closed or reset the connection."""


class SimulatedSocket:
    """What `get_extra_info("socket")` returns: it takes options, and has no descriptor.

    Attributes:
        user_timeout: Seconds after which unacknowledged data ends the connection, or None.
        keepalive: Seconds of silence after which the kernel probes an idle connection, or None.
    """

    __slots__ = ("_connection", "keepalive", "user_timeout")

    family = socket.AF_INET

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.user_timeout: float | None = None
        self.keepalive: float | None = None

    def getpeername(self) -> tuple[str, int]:
        """Return the address of the server."""
        self._check()
        return self._connection.address, self._connection.port

    def getsockname(self) -> tuple[str, int]:
        """Return the address of the client. A plan without `kernel` behaves as with a proxy."""
        self._check()
        host, _, port = self._connection.peer.address.rpartition(":")
        return host, int(port)

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        """Return TCP_INFO."""
        if (level, option, size) != (socket.IPPROTO_TCP, TCP_INFO, 192):
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        self._check()
        return self._connection.tcp_info()

    def _check(self) -> None:
        connection = self._connection
        if not connection.tells or connection.is_closing():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def fileno(self) -> int:
        """Return -1, as for a closed socket."""
        return -1

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Use TCP_USER_TIMEOUT and TCP_KEEPIDLE, and ignore other options."""
        if level == socket.IPPROTO_TCP and option == KEEPIDLE:
            self.keepalive = float(value)
        if level == socket.IPPROTO_TCP and option == USER_TIMEOUT:
            self.user_timeout = value / 1000 or None


class Peer:
    """The server's end of a connection.

    Attributes:
        address: The address and port of the client, for example "10.9.0.1:40001".
        open: Whether the server can still send.
    """

    __slots__ = ("_connection", "address", "open")

    def __init__(self, connection: Connection, address: str) -> None:
        self._connection = connection
        self.address = address
        self.open = True

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self.open and data:
            self._connection.transmit_to_client(data)

    def close(self) -> None:
        """Close the connection after everything that was sent has arrived."""
        if self.open:
            self.open = False
            self._connection.close_at_server(FIN)

    def reset(self) -> None:
        """Reset the connection."""
        if self.open:
            self.open = False
            self._connection.close_at_server(RST)


class Connection(_FlowControlMixin, asyncio.Transport):
    """The client's transport, the kernels on both sides, and the way between them.

    Attributes:
        number: The number of the connection in the history, from 1.
        address, port: The address of the server.
    """

    __slots__ = (
        "_acknowledged_at",
        "_broken",
        "_buffer",
        "_closing",
        "_conn_lost",
        "_dead",
        "_end_received",
        "_error",
        "_first_unacknowledged",
        "_forgotten",
        "_gives_up_at",
        "_giving_up",
        "_jitter",
        "_late_acknowledged",
        "_latency",
        "_network",
        "_order",
        "_outside",
        "_paused",
        "_protocol",
        "_push",
        "_random",
        "_read_armed",
        "_readable",
        "_reading",
        "_received",
        "_received_at",
        "_replies_last",
        "_replies_waiting",
        "_requests_last",
        "_requests_waiting",
        "_reset_on_write",
        "_send_buffer",
        "_sent",
        "_sent_at",
        "_socket",
        "_socket_closed",
        "_split",
        "_unacknowledged",
        "_writable",
        "_write_armed",
        "_wrote",
        "address",
        "cuts",
        "host",
        "number",
        "peer",
        "port",
        "replies_held",
        "requests_held",
        "session",
        "tells",
    )

    _loop: SimulatedLoop
    _maybe_pause_protocol: Callable[[], None]
    _maybe_resume_protocol: Callable[[], None]

    def __init__(self, network: Network, host: Host, number: int, port: int) -> None:
        local = ("10.9.0.1", 40000 + number)
        self._socket = SimulatedSocket(self)
        extra = {"peername": (host.address, port), "sockname": local, "socket": self._socket}
        super().__init__(extra, network.loop)
        self.number = number
        self.host = host
        self.address = host.address
        self.port = port
        self.peer = Peer(self, f"{local[0]}:{local[1]}")
        self.session: Session | None = None
        self._network = network
        self._wrote = network.history.wrote
        self._push = network.loop.push
        self._outside, self._order = network.loop.outside, network.loop.order
        self._random = network.random.random
        settings = network.settings
        self._latency, self._jitter, self._split = (
            settings.latency,
            settings.jitter,
            settings.split,
        )
        # The transport.
        self._protocol: Any = None
        self._buffer = bytearray()
        self._conn_lost = 0
        self._closing = False
        self._reading = False  # whether the loop polls for data
        self._paused = False
        # The client's kernel.
        self.tells = settings.kernel
        self._send_buffer = settings.send_buffer
        now = network.loop.now
        self._sent_at = self._received_at = self._acknowledged_at = now
        self._first_unacknowledged = now
        self._received: list[bytes] = []
        self._end_received = False
        self._error: OSError | None = None
        self._unacknowledged = 0
        self._sent = 0  # bytes
        self._late_acknowledged = 0  # of these, the bytes that the server has
        self._socket_closed = False
        self._dead = False  # no packet leaves any more: it was reset or timed out
        # The way to the server, and back. Held packets wait.
        self._requests_last = self._replies_last = 0.0
        self.requests_held = host.requests_held
        self.replies_held = host.replies_held
        self.cuts = host.cuts
        self._requests_waiting: list[bytes | str] = []
        self._replies_waiting: list[bytes | str] = []
        self._forgotten = False
        self._reset_on_write = False
        self._broken: str | None = None  # the direction whose next packet arrives in part
        self._giving_up = 0  # counts the times at which everything was acknowledged
        self._gives_up_at: float | None = None

    def __repr__(self) -> str:
        return f"<connection {self.number} to {self.address}>"

    # -- the transport ---------------------------------------------------------------------

    def attach(self, protocol: Any, waiter: asyncio.Future[None]) -> None:
        """Begin to use the transport, in the same steps as asyncio's own."""
        loop = self._loop
        context = contextvars.copy_context()
        self._readable = IOEvent(loop, (self._read_ready,), None, context)
        self._read_armed = False
        self._writable = IOEvent(loop, (self._write_ready,), None, context)
        self._write_armed = False
        self._protocol = protocol
        loop.call_soon(protocol.connection_made, self)
        loop.call_soon(self._start_reading)
        loop.call_soon(_set_result_unless_done, waiter)

    def set_protocol(self, protocol: Any) -> None:
        """Deliver to another protocol from now on."""
        self._protocol = protocol

    def get_protocol(self) -> Any:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Return whether the transport is closing or closed."""
        return self._closing

    def is_reading(self) -> bool:
        """Return whether data is delivered."""
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        """Leave data in the kernel."""
        if not self._closing and not self._paused:
            self._paused = True
            self._reading = False

    def resume_reading(self) -> None:
        """Deliver data again."""
        if not self._closing and self._paused:
            self._paused = False
            self._start_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set when the protocol pauses. A small buffer of the kernel makes these small, too."""
        if self._send_buffer < SEND_BUFFER:
            high, low = self._send_buffer, None
        super().set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return the number of bytes that the kernel has not accepted."""
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        """Return False: half-closed connections are not simulated."""
        return False

    def write_eof(self) -> None:
        """Raise SimulationEscape."""
        self._loop.escape("write_eof()")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the server."""
        if not data:
            return
        self._wrote(self.number, data)
        if self._conn_lost:
            self._conn_lost += 1
            return
        if not self._buffer:
            if self._error is not None:
                self._force_close(self._error)
                return
            room = self._room()
            if len(data) <= room:
                self._transmit_to_server(bytes(data))
                return
            if room > 0:
                self._transmit_to_server(bytes(data[:room]))
                data = data[room:]
        self._buffer += data
        self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send bytes to the server."""
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """Close the connection after the kernel has accepted everything that was written."""
        if self._closing:
            return
        self._closing = True
        self._reading = False
        if not self._buffer:
            self._conn_lost += 1
            self._loop.call_soon(self._call_connection_lost, None)

    def abort(self) -> None:
        """Close the connection now. What the kernel has accepted still reaches the server."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        if self._conn_lost:
            return
        self._buffer.clear()
        self._closing = True
        self._reading = False
        self._conn_lost += 1
        self._loop.call_soon(self._call_connection_lost, error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._close_socket(error)
            self._protocol = None

    def _fail(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})
        self._force_close(error)

    def _start_reading(self) -> None:
        if not self._closing and not self._paused:
            self._reading = True
            if self._received or self._end_received or self._error is not None:
                self._arm_reading()

    def _arm_reading(self) -> None:
        if not self._read_armed:
            self._read_armed = True
            self._loop.poll_results.append(self._readable)

    def _read_ready(self) -> None:
        self._read_armed = False
        if not self._reading:
            return
        received = self._received
        if received:
            data = received[0]
            if len(received) == 1:
                received.clear()
            elif self._random() < 0.3:  # a short read
                del received[0]
            else:
                data = b"".join(received)
                received.clear()
            protocol, most = self._protocol, LARGEST_READ
            buffered = isinstance(protocol, asyncio.BufferedProtocol)
            if buffered:
                buffer = protocol.get_buffer(-1)
                most = min(most, len(buffer))
            if len(data) > most:
                received.insert(0, data[most:])
                data = data[:most]
            if received or self._end_received or self._error is not None:
                self._arm_reading()
            try:
                if buffered:
                    buffer[: len(data)] = data
                    protocol.buffer_updated(len(data))
                else:
                    protocol.data_received(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (as asyncio's transport)
                self._fail(error, "Fatal error: the protocol's call for received data failed.")
        elif self._error is not None:
            self._force_close(self._error)
        elif self._end_received:
            try:
                keep_open = self._protocol.eof_received()
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (as asyncio's transport)
                self._fail(error, "Fatal error: protocol.eof_received() call failed.")
                return
            self._reading = False
            if not keep_open:
                self.close()

    def _room(self) -> int:
        """Return how many bytes the kernel accepts. The handshake fits into any buffer."""
        accepted = SEND_BUFFER if self._sent < _HANDSHAKE else self._send_buffer
        return accepted - self._unacknowledged

    def _arm_writing(self) -> None:
        if self._buffer and not self._write_armed:
            self._write_armed = True
            self._loop.poll_results.append(self._writable)

    def _write_ready(self) -> None:
        self._write_armed = False
        if self._conn_lost or not self._buffer:
            return
        if self._error is not None:
            self._force_close(self._error)
            return
        room = self._room()
        if room <= 0:
            return
        self._transmit_to_server(bytes(self._buffer[:room]))
        del self._buffer[:room]
        self._maybe_resume_protocol()
        if not self._buffer and self._closing:
            self._conn_lost += 1
            self._call_connection_lost(None)

    @property
    def last_sent(self) -> float:
        """The time at which the last packet of the client arrives at the server's host."""
        return self._requests_last

    # -- the client's kernel ---------------------------------------------------------------

    def _close_socket(self, error: BaseException | None) -> None:
        if self._socket_closed:
            return
        self._socket_closed = True
        self._network.closed(self, error)
        if self.session is None:
            self.host.connections.remove(self)
        if self._dead:
            return
        if self._received:
            self._reset_from_client()
        else:
            self._send_request(FIN)
        self._received.clear()

    def abandon(self) -> None:
        """Close the socket of a connect attempt that was cancelled."""
        self._closing = True
        self._conn_lost += 1
        self._close_socket(None)

    def _reset_from_client(self) -> None:
        """Reset the connection. Packets that would have to be sent again are not sent any more."""
        self._dead = True
        if self.cuts:
            self._requests_waiting.clear()
        self._send_request(RST)

    def _transmit_to_server(self, data: bytes) -> None:
        size = len(data)
        if self._broken is not None and self._broken.startswith("requests"):
            data = self._break_off(data)
            size = len(data)
            if not size:
                return
        now = self._loop.now
        if not self._unacknowledged:
            self._first_unacknowledged = now
        self._unacknowledged += size
        self._sent += size
        self._sent_at = now
        if size > 1 and self._random() < self._split:
            middle = 1 + int(self._random() * (size - 1))
            self._send_request(data[:middle])
            data = data[middle:]
        self._send_request(data)

    def _acknowledge(self, size: int) -> None:
        if self.replies_held:
            self._late_acknowledged += size
            self._expect_give_up()
            return
        self._unacknowledged -= size
        self._acknowledged_at = self._first_unacknowledged = self._loop.now
        if self._buffer:
            self._push(self._loop.now + self._latency, self._arm_writing)

    def _expect_give_up(self, after: float = 0.0) -> None:
        if self._gives_up_at is None and not self._socket_closed:
            limit = self._socket.user_timeout
            if limit is None:
                limit = 2.0 + 18.0 * self._random()
            else:
                limit *= 1.0 + 0.2 * self._random()
            self._gives_up_at = at = self._loop.now + after + limit
            self._push(at, self._give_up, self._giving_up)

    def _give_up(self, number: int) -> None:
        """Lose the connection if the server's host has acknowledged nothing for too long."""
        if number != self._giving_up or self._dead or self._socket_closed:
            return
        self._network.note("gave up", connection=self.number)
        if self._random() < 0.5:
            self._requests_waiting.clear()
        self._lose(OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))

    def _lose(self, error: OSError) -> None:
        """Make the next use of the socket fail."""
        self._dead = True
        self._error = error
        if self._reading:
            self._arm_reading()
        elif self._buffer:
            self._arm_writing()

    def _receive(self, item: bytes | str) -> None:
        """Take a packet from the server."""
        if self._socket_closed or self._dead:
            if not self._dead and item is not RST and item is not FIN:
                self._reset_from_client()
            elif self._error is not None and item is not RST and self.session is not None:
                self._send_request(RST)  # it had timed out
            return
        if item is RST:
            if self._end_received:
                self._lose(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
            else:
                code = errno.ECONNRESET
                self._lose(ConnectionResetError(code, os.strerror(code)))
            return
        if item is FIN:
            self._end_received = True
        else:
            self._received.append(item)
            self._received_at = self._loop.now
        if self._reading:
            self._arm_reading()

    def tcp_info(self) -> bytes:
        """Return the part of Linux's `struct tcp_info` that the client reads."""
        now, size = self._loop.now, self._unacknowledged
        retransmits = 0
        if size:
            waited = now - self._first_unacknowledged
            retransmits = int(math.log2(waited / FIRST_RETRANSMISSION + 1.0))
        rtt = 2 * (self._latency + self._jitter / 2 + self.host.extra)
        heard = max(self._acknowledged_at, self._received_at)
        words = [0] * 24
        words[4] = 1 + size // 1448 if size else 0
        words[9] = int(1e3 * (now - self._sent_at))
        words[11] = int(1e3 * (now - self._received_at))
        words[12] = int(1e3 * (now - heard))
        words[15], words[16] = int(1e6 * rtt), int(1e6 * self._jitter)
        words[23] = retransmits
        return _TCP_INFO.pack(1, 0, retransmits, 0, 0, 0, 0, 0, *words)

    # -- the way to the server -------------------------------------------------------------

    def _send_request(self, item: bytes | str) -> None:
        at = self._loop.now + self._latency + self._random() * self._jitter + self.host.extra
        if at < self._requests_last:  # noqa: PLR1730 (faster than `max`)
            at = self._requests_last
        self._requests_last = at
        # As `SimulatedLoop.push`, without its frame.
        heappush(self._outside, (at, next(self._order), self._arrive_at_server, (item,)))

    def _arrive_at_server(self, item: bytes | str) -> None:
        if self.requests_held or self._requests_waiting:
            self._hold_request(item)
        elif item is FIN or item is RST or self.replies_held or self._buffer:
            self._serve(item)
        else:  # the usual case of `_serve`
            self._unacknowledged -= len(item)
            session = self.session
            if session is not None and self.peer.open:
                session.receive(item)
            elif not self._dead:
                self._send_reply(RST)

    def _hold_request(self, item: bytes | str) -> None:
        data = item is not FIN and item is not RST
        if data:
            self._expect_give_up()
        if self._forgotten:
            if data and self._reset_on_write:
                self._push(self._loop.now + self._latency, self._receive, RST)
            return
        if item is RST and self.cuts:
            return  # it is sent only once
        self._requests_waiting.append(item)

    def _serve(self, item: bytes | str) -> None:
        session = self.session
        if item is FIN or item is RST:
            self._lose_at_server(reset=item is RST)
            return
        self._acknowledge(len(item))
        if session is not None and self.peer.open:
            session.receive(item)
        elif not self._dead:
            self._send_reply(RST)

    def _lose_at_server(self, *, reset: bool) -> None:
        session = self.session
        if session is not None:
            self._end_session()
            if self.peer.open:
                self.peer.open = False
                session.lost(reset=reset)
        self.peer.open = False

    def _end_session(self) -> None:
        """Forget the session. Without a session and a socket, faults of the host do not matter."""
        self.session = None
        if self._socket_closed:
            self.host.connections.remove(self)

    # -- the way to the client -------------------------------------------------------------

    def transmit_to_client(self, data: bytes) -> None:
        """Send bytes of the server."""
        if self._broken is not None and self._broken.startswith("replies"):
            data = self._break_off(data)
            if not data:
                return
        size = len(data)
        if size > 1 and self._random() < self._split:
            middle = 1 + int(self._random() * (size - 1))
            self._send_reply(data[:middle])
            data = data[middle:]
        self._send_reply(data)

    def close_at_server(self, item: str) -> None:
        """End the server's side with FIN or RST. The session is not informed."""
        if self.session is not None:
            self._end_session()
        self._send_reply(item)

    def _send_reply(self, item: bytes | str) -> None:
        at = self._loop.now + self._latency + self._random() * self._jitter + self.host.extra
        if at < self._replies_last:  # noqa: PLR1730 (faster than `max`)
            at = self._replies_last
        self._replies_last = at
        heappush(self._outside, (at, next(self._order), self._arrive_at_client, (item,)))

    def _arrive_at_client(self, item: bytes | str) -> None:
        if self.replies_held or self._replies_waiting:
            if not self._forgotten and not (item is RST and self.cuts):
                self._replies_waiting.append(item)
        elif item is FIN or item is RST or self._socket_closed or self._dead:
            self._receive(item)
        else:  # the usual case of `_receive`
            self._received.append(item)
            self._received_at = self._loop.now
            if self._reading and not self._read_armed:
                self._read_armed = True
                self._loop.poll_results.append(self._readable)

    # -- faults ----------------------------------------------------------------------------

    def hold(self, requests: int, replies: int, cuts: int) -> None:
        """Add to the numbers of faults that hold packets; negative numbers end them."""
        self.requests_held += requests
        self.replies_held += replies
        self.cuts += cuts
        if self.tells and self._socket.keepalive is not None and (requests > 0 or replies > 0):
            self._expect_give_up(after=self._socket.keepalive)
        if requests < 0 or replies < 0:
            # TCP sends lost packets again after a while.
            delay = 0.3 * self._random()
            self._push(self._loop.now + delay, self._release)

    def _release(self) -> None:
        if not self.requests_held and self._requests_waiting:
            waiting, self._requests_waiting = self._requests_waiting, []
            for item in waiting:
                self._serve(item)
        if not self.replies_held:
            size, self._late_acknowledged = self._late_acknowledged, 0
            if size:
                self._acknowledge(size)
            waiting, self._replies_waiting = self._replies_waiting, []
            for item in waiting:
                self._receive(item)
        if not self.requests_held and not self.replies_held:
            self._giving_up += 1
            self._gives_up_at = None

    def forget(self, *, reset_on_write: bool) -> None:
        """Lose all packets from now on, as after a middlebox forgot the connection."""
        self._forgotten = True
        self._reset_on_write = reset_on_write
        self._requests_waiting.clear()
        self._replies_waiting.clear()
        self.hold(1, 1, 1)

    def reset_both(self) -> None:
        """Reset the connection at both ends."""
        self._lose_at_server(reset=True)
        self._send_reply(RST)

    def close_both(self) -> None:
        """Close the connection on behalf of the server, which is informed."""
        self._lose_at_server(reset=False)
        self._send_reply(FIN)

    def break_off(self, direction: str) -> None:
        """Reset the connection after a part of the next "requests" or "replies"."""
        if self._broken is None:
            self._broken = direction

    def stay_whole(self) -> None:
        """End the fault, if it has not happened."""
        if self._broken in ("requests", "replies"):
            self._broken = None

    def _break_off(self, data: bytes) -> bytes:
        """Return the part of a packet that still arrives. The reset follows it."""
        if self._broken in ("requests ended", "replies ended"):
            return b""
        self._broken = f"{self._broken} ended"
        delay = self._latency + self._jitter + self.host.extra
        self._push(self._loop.now + delay, self.reset_both)
        return data[: 1 + int(self._random() * (len(data) - 1))]

    def lose_at_client(self) -> None:
        """Reset the connection at the client only. What it has sent still reaches the server."""
        if not self._dead and not self._socket_closed:
            if self.cuts:
                self._requests_waiting.clear()  # they would have to be sent again
            self._lose(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))


def _set_result_unless_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
