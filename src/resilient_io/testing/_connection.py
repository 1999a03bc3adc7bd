"""One connection through the proxy: a client on one side, the server on the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from resilient_io.testing._link import Link, reset
from resilient_io.testing._replies import ReplyStream
from resilient_io.testing._resp import RequestScanner
from resilient_io.testing.faults import Effect
from resilient_io.testing.kafka.frames import KafkaReplyStream, KafkaRequestScanner

if TYPE_CHECKING:
    import socket
    from collections import Counter
    from collections.abc import Callable

    from resilient_io.testing._link import Direction, Traffic
    from resilient_io.testing.faults import Ending, Fault, ProxiedRequest

Spoken: TypeAlias = Literal["redis", "kafka"]
"""A protocol that a proxy reads."""


class Proxy(Protocol):
    """What a connection needs of its proxy."""

    to_server: Traffic
    to_client: Traffic
    protocol: Spoken | None
    requests: Counter[str]
    connections: list[ProxiedConnection]

    @property
    def target(self) -> tuple[str, int]:
        """Where the server is."""
        ...

    def fault_for(self, request: ProxiedRequest) -> Fault | None:
        """Return the fault that strikes this request."""


class _Side(asyncio.Protocol):
    """Protocol of one of the two transports; hands on what happens there."""

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


class ProxiedConnection:
    """A connection through a `FaultProxy`, to be listed and struck.

    Attributes:
        number: Its place in the order of acceptance, counted from 1.
    """

    def __init__(self, proxy: Proxy, number: int) -> None:
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
        """Address of the client's socket, to tell clients apart."""
        address = self._client.get_extra_info("peername") if self._client else None
        return address and (address[0], address[1])

    @property
    def server_side_address(self) -> tuple[str, int] | None:
        """Address that the server sees, as in its CLIENT LIST."""
        address = self._server.get_extra_info("sockname") if self._server else None
        return address and (address[0], address[1])

    # What a test may do to it

    def reset(self) -> None:
        """Reset it towards the client (RST); the server reads what was sent to it, then EOF.

        What is held for it stays held.
        """
        self._end("reset")

    def close(self) -> None:
        """Close it towards the client (FIN), else as `reset`."""
        self._end("close")

    def mute(self) -> None:
        """Deliver nothing more to the client, but stay open, whatever the server does."""
        self._muted = True

    def inject(self, data: bytes) -> None:
        """Send these bytes to the client, as if they came from the server."""
        self._deliver(data)

    def stall(self, direction: Direction = "both") -> None:
        """Let nothing through, until `resume`; nothing is lost."""
        self.set_stalled(direction, stalled=True)

    def resume(self, direction: Direction = "both") -> None:
        """Let through what was stalled, and what comes."""
        self.set_stalled(direction, stalled=False)

    # What the proxy does with it

    def set_stalled(self, direction: Direction, *, stalled: bool) -> None:
        """Stall or resume its links."""
        for link in self.links(direction):
            link.stalled = stalled
            link.pump()

    def links(self, direction: Direction) -> list[Link]:
        """Give its links of this direction."""
        one = {"requests": [self._to_server], "replies": [self._to_client]}
        return one.get(direction) or [self._to_server, self._to_client]

    def open(self, client: socket.socket, *, silent: bool) -> None:
        """Take the client's socket, and connect to the server unless it should stay silent."""
        self._opening = asyncio.create_task(self._open(client, silent=silent), name=f"{self!r}")

    def abort(self) -> None:
        """End both sides now; what waits or is held is lost."""
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
        """Let the held requests go on; tell whether the server is still there to take them."""
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
                self.reset()  # takes effect after this piece has been sent on
            case Effect.ANSWER:
                self._replies.expect(request, fault)
                return
            case _:
                self._forward(request, fault)
                return
        if fault is not None:
            fault.note(self)

    def _forward(self, request: ProxiedRequest, fault: Fault | None) -> None:
        if request.name:
            self._proxy.requests[request.name] += 1
            self._replies.expect(request, fault)
        self._outgoing.append(request.raw)

    def _flush(self) -> None:
        """Send on together what came together."""
        if self._outgoing:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            self._to_server.feed(data)

    # From the server to the client

    def _strike(self, fault: Fault, reply: bytes, made_up: bytes) -> None:
        """Do to a complete reply what is to be done to it."""
        if fault.effect is Effect.DROP_REPLY:
            self.mute()
        elif fault.effect is Effect.HALF_REPLY:
            self._deliver(reply[: len(reply) // 2 if fault.keep is None else fault.keep])
            self.mute()
            if fault.ending != "silence":
                self._to_client.finish(lambda: self._end(fault.ending))
        else:
            self._deliver(made_up)
        fault.note(self)

    def _deliver(self, data: bytes) -> None:
        if data and not self._muted and not self._client_over:
            self._to_client.feed(data)

    # Its end

    def _end(self, ending: Ending) -> None:
        """End the client's side; the server's follows when it has all that went on to it."""
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
