"""A TCP proxy that causes the failures of networks and servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from .faults import Effect, Ending, Fault, MadeUp, Which
from .kafka.frames import KafkaReplyStream, KafkaRequestScanner, check_name
from .link import Direction, Link, Traffic, reset
from .resp import ReplyStream, RequestScanner

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .faults import ProxiedRequest

_BACKLOG = 1024

Protocol: TypeAlias = Literal["redis", "kafka"]
"""A protocol that a proxy reads."""


class FaultProxy:
    """A proxy with a port of its own in front of a server, with faults to script.

    Faults of single requests (`drop_reply`, `half_reply`, `hold`, `answer`, `reset_on`) count the
    matching requests from the creation of the fault, on all connections together. Faults of the
    network (`stall`, `latency`, `bandwidth`, `reset_after` ...) do not read the bytes. `restore`
    ends all faults.

    A fault that never hits a request usually means that the test tests nothing: redis-py sends
    INCRBY for `incr()`, so `drop_reply("INCR")` never takes effect. Leaving `async with` therefore
    raises AssertionError for such faults, unless `remove` or `restore` has withdrawn them.

    The proxy counts replies. Therefore it forwards everything unchanged after a connection has
    subscribed or sent MONITOR, and CLIENT REPLY must not be used.

    The proxy does not rewrite the addresses in Kafka's metadata: set the broker's
    `advertised_port` so that clients connect to the proxy again.

    Args:
        target_port: Port of the server.
        target_host: Address of the server.
        port: Port to listen on; None for a free port.
        protocol: The protocol to read: "redis" or "kafka"; None for other bytes (TLS), where only
            faults of the network work.
        allow_unused_faults: Do not report faults that never hit a request.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = "127.0.0.1",
        port: int | None = None,
        protocol: Protocol | None = "redis",
        allow_unused_faults: bool = False,
    ) -> None:
        self.target = (target_host, target_port)
        """Address for new connections to the server; may be changed."""
        self.port = port or 0
        self.protocol: Protocol | None = protocol
        self.requests: Counter[str] = Counter()
        """Number of requests of each name (SET, Produce) that were forwarded to the server."""
        self.connections: list[ProxiedConnection] = []
        """The open connections, oldest first."""
        self.accepted = 0
        """Number of connections accepted since the start."""
        self.to_server = Traffic()
        self.to_client = Traffic()
        self.faults: list[Fault] = []
        """The faults that wait for requests."""
        self._allow_unused_faults = allow_unused_faults
        self._silent = False
        self._listener: socket.socket | None = None
        self._listening = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
        if error is None and not self._allow_unused_faults:
            self.assert_faults_used()

    def __repr__(self) -> str:
        host, port = self.target
        return f"<FaultProxy {self.host}:{self.port} to {host}:{port}>"

    @property
    def url(self) -> str:
        """URL for Redis clients, without a password."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def bootstrap_servers(self) -> str:
        """Address for Kafka clients."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Start to listen. A listening proxy is left alone."""
        self.accept()

    async def aclose(self) -> None:
        """Close the port and all connections. Idempotent.

        If this is cancelled, the connections still close.
        """
        self._close_port()
        for connection in list(self.connections):
            connection.abort()
        for connection in list(self.connections):
            await connection.wait_ended()

    def assert_faults_used(self) -> None:
        """Raise AssertionError if a fault is waiting that never hit a request."""
        unused = [repr(fault) for fault in self.faults if not (fault.struck or fault.spent)]
        if unused:
            seen = ", ".join(sorted(self.requests)) or "none"
            raise AssertionError(
                f"these faults never hit a request: {', '.join(unused)}; forwarded requests: "
                f"{seen}. Withdraw a fault with remove() or restore() if this is intended"
            )

    # Faults of single requests

    def drop_reply(self, which: Which = None, *, nth: int = 1, times: int | None = 1) -> Fault:
        """Forward the request to the server, and drop the reply.

        After that the connection delivers nothing to the client, but stays open. Further requests
        of the client still reach the server.

        Args:
            which: The name of a command or of a Kafka request ("Produce"), a function of the
                `Request` or `KafkaRequest`, or None for every request.
            nth: The first matching request to hit, counted from now.
            times: How many requests to hit; None for no limit.
        """
        return self._add(Fault(Effect.DROP_REPLY, which, nth=nth, times=times), which)

    def half_reply(
        self,
        which: Which = None,
        *,
        nth: int = 1,
        times: int | None = 1,
        keep: int | None = None,
        then: Ending = "close",
    ) -> Fault:
        """Deliver the first part of the reply, and end the connection.

        Args:
            which: As for `drop_reply`.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            keep: Bytes to deliver; None for half of the reply.
            then: How the connection ends: "close", "reset" or "silence".
        """
        fault = Fault(Effect.HALF_REPLY, which, nth=nth, times=times, keep=keep, ending=then)
        return self._add(fault, which)

    def hold(self, which: Which = None, *, nth: int = 1, times: int | None = 1) -> Fault:
        """Hold back the request, and everything after it on its connection.

        `release()` of the fault forwards the held requests, even if the client has closed its
        connection. The arguments are those of `drop_reply`.
        """
        return self._add(Fault(Effect.HOLD, which, nth=nth, times=times), which)

    def answer(
        self,
        which: Which,
        reply: MadeUp,
        *,
        nth: int = 1,
        times: int | None = 1,
        forward: bool = False,
    ) -> Fault:
        r"""Answer in place of the server, in the order of the requests.

        Args:
            which: As for `drop_reply`.
            reply: The bytes of the reply, such as `b"-LOADING ...\r\n"`, or a function that makes
                them from the request. They may be invalid. For Kafka: the bytes after the
                correlation id.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            forward: Forward the request to the server too, and drop the server's reply.
        """
        effect = Effect.REPLACE_REPLY if forward else Effect.ANSWER
        return self._add(Fault(effect, which, nth=nth, times=times, data=reply), which)

    def reset_on(
        self, which: Which = None, *, nth: int = 1, times: int | None = 1, forward: bool = False
    ) -> Fault:
        """Reset the connection (RST) when the request arrives.

        Args:
            which: As for `drop_reply`.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            forward: Forward the request to the server first.
        """
        effect = Effect.RESET_AFTER if forward else Effect.RESET_BEFORE
        return self._add(Fault(effect, which, nth=nth, times=times), which)

    def _add(self, fault: Fault, which: Which) -> Fault:
        if self.protocol is None:
            raise ValueError(
                "faults of requests need a protocol: use protocol='redis' or 'kafka', not None"
            )
        if self.protocol == "kafka" and isinstance(which, str):
            check_name(which)
        self.faults.append(fault)
        return fault

    def fault_for(self, request: ProxiedRequest) -> Fault | None:
        """Return the fault that hits this request, if any. For the connections."""
        chosen = next((fault for fault in self.faults if fault.strikes(request)), None)
        if chosen is not None and chosen.spent:
            self.faults.remove(chosen)
        return chosen

    # Faults of the network

    def stall(
        self, direction: Direction = "both", *, existing: bool = True, new: bool = True
    ) -> None:
        """Forward nothing until `resume`. No byte is lost, and the connections stay open.

        Args:
            direction: "requests", "replies" or "both".
            existing: Stall the open connections.
            new: Stall future connections.
        """
        self._set_stalled(direction, stalled=True, existing=existing, new=new)

    def resume(self, direction: Direction = "both") -> None:
        """Forward what was stalled, and what arrives from now on."""
        self._set_stalled(direction, stalled=False, existing=True, new=True)

    def latency(self, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Delay what arrives from now on by this many seconds; 0 ends the delay."""
        self.to_server.latency = requests
        self.to_client.latency = replies

    def bandwidth(self, *, requests: float | None = None, replies: float | None = None) -> None:
        """Limit each connection to this many bytes per second; None ends the limit."""
        self.to_server.bandwidth = requests
        self.to_client.bandwidth = replies
        for link in self._links("both"):
            link.pump()

    def inject(self, data: bytes) -> None:
        """Send these bytes to all connected clients, as if they came from the server."""
        for connection in list(self.connections):
            connection.inject(data)

    def reset(self) -> None:
        """Reset all connections now (RST to the clients)."""
        for connection in list(self.connections):
            connection.reset()

    def reset_after(self, count: int, direction: Literal["requests", "replies"]) -> None:
        """Reset every connection, open or future, after this many more bytes.

        Args:
            count: Bytes that are still forwarded; at least 1.
            direction: The direction that counts.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}; use reset() to reset now")
        traffic = self.to_server if direction == "requests" else self.to_client
        traffic.cut_after = count
        for link in self._links(direction):
            link.cut_at = link.passed + count

    def refuse(self) -> None:
        """Refuse new connections, without giving up the port. Open connections continue."""
        self._close_port()
        # Bound but not listening: it refuses, and no other process can take the port.
        self._listener = self._bind()

    def accept_silently(self) -> None:
        """Accept new connections, but do not read from them, and do not answer."""
        self._silent = True
        self._listen()

    def accept(self) -> None:
        """Accept new connections as usual, on the same port. Silent connections stay silent."""
        self._silent = False
        self._listen()

    def restore(self) -> None:
        """End all faults. What has happened stays: held requests stay held."""
        self.faults.clear()
        self.to_server.cut_after = self.to_client.cut_after = None
        for link in self._links("both"):
            link.cut_at = None
        self.latency()
        self.bandwidth()
        self.resume()
        self.accept()

    def _set_stalled(
        self, direction: Direction, *, stalled: bool, existing: bool, new: bool
    ) -> None:
        if new:
            if direction != "replies":
                self.to_server.stalled = stalled
            if direction != "requests":
                self.to_client.stalled = stalled
        if existing:
            for connection in list(self.connections):
                connection.set_stalled(direction, stalled=stalled)

    def _links(self, direction: Direction) -> list[Link]:
        return [link for each in self.connections for link in each.links(direction)]

    # The port

    def _bind(self) -> socket.socket:
        # The protocol is explicit, because otherwise asyncio does not disable Nagle's algorithm.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setblocking(False)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        return listener

    def _listen(self) -> None:
        if not self._listening:
            self._listener = self._listener or self._bind()
            self._listener.listen(_BACKLOG)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
            self._listening = True

    def _close_port(self) -> None:
        if self._listener is not None:
            if self._listening:
                asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._listening = False

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                connection = ProxiedConnection(self, self.accepted)
                self.connections.append(connection)
                connection.open(client, silent=self._silent)


class ProxiedConnection:
    """A connection through a `FaultProxy`: a client on one side, the server on the other.

    Attributes:
        number: Position in the order of acceptance, counted from 1.
    """

    def __init__(self, proxy: FaultProxy, number: int) -> None:
        self.number = number
        self._proxy = proxy
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._client_over = False
        self._server_over = False
        self._ending: Ending | None = None
        self._opening: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._to_server = Link(proxy.to_server, self._read_client, self.reset)
        self._to_client = Link(proxy.to_client, self._read_server, self.reset)
        self._requests: RequestScanner | KafkaRequestScanner
        self._replies: ReplyStream | KafkaReplyStream
        if proxy.protocol == "kafka":
            self._requests = KafkaRequestScanner(number)
            self._replies = KafkaReplyStream(self._deliver, self._strike)
        else:
            counting = proxy.protocol is not None
            self._requests = RequestScanner(number)
            self._replies = ReplyStream(self._deliver, self._strike, counting=counting)
        self._outgoing: list[bytes] = []
        self._held: list[ProxiedRequest] | None = None
        self._muted = False

    def __repr__(self) -> str:
        client = "gone" if self._client_over else self.client_address
        return f"<ProxiedConnection {self.number}, client {client}>"

    @property
    def client_address(self) -> tuple[str, int] | None:
        """Address of the client's socket, to distinguish clients."""
        address = self._client.get_extra_info("peername") if self._client else None
        return address and (address[0], address[1])

    @property
    def server_side_address(self) -> tuple[str, int] | None:
        """Address that the server sees, as in its CLIENT LIST."""
        address = self._server.get_extra_info("sockname") if self._server else None
        return address and (address[0], address[1])

    # Methods for tests

    def reset(self) -> None:
        """Reset the client's side (RST). The server reads what was sent to it, then EOF.

        Held requests stay held.
        """
        self._end("reset")

    def close(self) -> None:
        """Close the client's side (FIN), otherwise like `reset`."""
        self._end("close")

    def mute(self) -> None:
        """Deliver nothing to the client from now on, but stay open, whatever the server does."""
        self._muted = True

    def inject(self, data: bytes) -> None:
        """Send these bytes to the client, as if they came from the server."""
        self._deliver(data)

    def stall(self, direction: Direction = "both") -> None:
        """Forward nothing until `resume`. No byte is lost."""
        self.set_stalled(direction, stalled=True)

    def resume(self, direction: Direction = "both") -> None:
        """Forward what was stalled, and what arrives from now on."""
        self.set_stalled(direction, stalled=False)

    # Methods for the proxy

    def set_stalled(self, direction: Direction, *, stalled: bool) -> None:
        """Stall or resume the links."""
        for link in self.links(direction):
            link.stalled = stalled
            link.pump()

    def links(self, direction: Direction) -> list[Link]:
        """Return the links of a direction."""
        one = {"requests": [self._to_server], "replies": [self._to_client]}
        return one.get(direction) or [self._to_server, self._to_client]

    def open(self, client: socket.socket, *, silent: bool) -> None:
        """Take the client's socket, and connect to the server unless `silent`."""
        self._opening = asyncio.create_task(self._open(client, silent=silent), name=f"{self!r}")

    def abort(self) -> None:
        """End both sides now, and drop what waits or is held."""
        self._held = None
        self._end("reset")
        self._to_client.discard()
        self._to_server.discard()
        self._end_server()

    async def wait_ended(self) -> None:
        """Wait until both sides are closed."""
        await self._ended.wait()
        if self._opening is not None:
            await asyncio.wait([self._opening])

    def release(self) -> bool:
        """Forward the held requests; return whether the server still accepts them."""
        held, self._held = self._held or [], None
        for place, request in enumerate(held):
            if self._held is not None:
                self._held.append(request)  # the next fault holds from here
            elif place == 0:
                self._forward(request, None)
            else:
                self._take(request)
        self._flush()
        if self._client_over and self._held is None:
            self._to_server.finish(self._end_server)
        return bool(held) and not self._server_over

    async def _open(self, client: socket.socket, *, silent: bool) -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(
            lambda: _Side(self._from_client, self._on_client_lost, self._to_client), client
        )
        self._client = transport
        try:
            if self._ending is not None:
                self._end(self._ending)
            elif silent:
                transport.pause_reading()
            else:
                self._to_client.attach(transport)
                await self._connect(loop)
        finally:
            if self._server is None:
                self._server_over = True
                self._forget_if_ended()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> None:
        host, port = self._proxy.target
        try:
            self._server, _ = await loop.create_connection(
                lambda: _Side(self._replies.feed, self._on_server_lost, self._to_server), host, port
            )
        except OSError:
            self._end("reset")
        else:
            self._to_server.attach(self._server)

    # From the client to the server

    def _from_client(self, data: bytes) -> None:
        if self._proxy.protocol is None:
            self._to_server.feed(data)
            return
        for request in self._requests.feed(data):
            if self._held is not None:
                self._held.append(request)
            elif self._ending is None:
                self._take(request)
        self._flush()

    def _take(self, request: ProxiedRequest) -> None:
        fault = self._proxy.fault_for(request) if request.name else None
        match fault and fault.effect:
            case None:
                self._forward(request, None)
                return
            case Effect.HOLD:
                self._held = [request]
            case Effect.RESET_BEFORE:
                self.reset()
            case Effect.RESET_AFTER:
                self._forward(request, None)
                self.reset()  # takes effect after this piece has been forwarded
            case Effect.ANSWER:
                self._replies.expect(request, fault)
                return
            case _:
                self._forward(request, fault)
                return
        if fault is not None:
            fault.took_effect(self.release)

    def _forward(self, request: ProxiedRequest, fault: Fault | None) -> None:
        if request.name:
            self._proxy.requests[request.name] += 1
            self._replies.expect(request, fault)
        self._outgoing.append(request.raw)

    def _flush(self) -> None:
        """Forward in one piece what arrived in one piece."""
        if self._outgoing:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._to_server.feed(data)

    # From the server to the client

    def _strike(self, fault: Fault, reply: bytes, made_up: bytes) -> None:
        """Apply a fault to a complete reply."""
        if fault.effect is Effect.DROP_REPLY:
            self.mute()
        elif fault.effect is Effect.HALF_REPLY:
            self._deliver(reply[: len(reply) // 2 if fault.keep is None else fault.keep])
            self.mute()
            if fault.ending != "silence":
                self._to_client.finish(lambda: self._end(fault.ending))
        else:
            self._deliver(made_up)
        fault.took_effect(self.release)

    def _deliver(self, data: bytes) -> None:
        if data and not self._muted and not self._client_over:
            self._to_client.feed(data)

    # The end of the connection

    def _end(self, ending: Ending) -> None:
        """End the client's side; the server's side ends when everything was forwarded to it."""
        self._ending = ending
        if self._client is None or self._client_over:
            return
        if ending == "reset":
            reset(self._client)
        else:
            self._client.close()

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.close()
        elif self._client is not None and self._opening is not None:
            self._opening.cancel()

    def _on_client_lost(self, _: Exception | None) -> None:
        self._client_over = True
        self._to_client.discard()
        if self._held is None:
            self._to_server.finish(self._end_server)
        self._forget_if_ended()

    def _on_server_lost(self, exc: Exception | None) -> None:
        self._server_over = True
        self._to_server.discard()
        if not self._muted:
            ending: Ending = "reset" if isinstance(exc, ConnectionResetError) else "close"
            self._to_client.finish(lambda: self._end(ending))
        self._forget_if_ended()

    def _forget_if_ended(self) -> None:
        if self._client_over and self._server_over and not self._ended.is_set():
            self._ended.set()
            self._proxy.connections.remove(self)

    def _read_client(self, reading: bool) -> None:  # noqa: FBT001 - the one argument of a callback
        if self._client is not None and not self._client.is_closing():
            (self._client.resume_reading if reading else self._client.pause_reading)()

    def _read_server(self, reading: bool) -> None:  # noqa: FBT001 - as above
        if self._server is not None and not self._server.is_closing():
            (self._server.resume_reading if reading else self._server.pause_reading)()


class _Side(asyncio.Protocol):
    """Protocol of one of the two transports, which calls back for each event."""

    def __init__(
        self,
        received: Callable[[bytes], None],
        lost: Callable[[Exception | None], None],
        outgoing: Link,
    ) -> None:
        self._received = received
        self._lost = lost
        self._outgoing = outgoing

    def data_received(self, data: bytes) -> None:
        self._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    def pause_writing(self) -> None:
        self._outgoing.pause_writing()

    def resume_writing(self) -> None:
        self._outgoing.resume_writing()
