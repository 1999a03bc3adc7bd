"""A TCP proxy that does to a connection what networks and servers do at their worst."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import TYPE_CHECKING, Literal, Self

from resilient_io.testing._connection import ProxiedConnection
from resilient_io.testing._link import Direction, Link, Traffic
from resilient_io.testing.faults import Effect, Ending, Fault, MadeUp, Which
from resilient_io.testing.kafka.frames import check_name

if TYPE_CHECKING:
    from types import TracebackType

    from resilient_io.testing._connection import Spoken
    from resilient_io.testing.faults import ProxiedRequest

_BACKLOG = 1024


class FaultProxy:
    """A proxy on a port of its own in front of a server, with faults to script.

    Faults of single requests (`drop_reply`, `half_reply`, `hold`, `answer`, `reset_on` …) count
    the requests that match from the moment they are made, on all connections together. Faults of
    the line (`stall`, `latency`, `bandwidth`, `reset_after` …) do not look at the bytes. `restore`
    ends them all. To keep count of replies, connections that subscribe or MONITOR have
    everything after that passed on as it comes, and CLIENT REPLY must not be used.

    In front of a broker of Kafka it rewrites nothing: give the broker `advertised_port` so that
    clients come back to the proxy.

    Args:
        target_port: Port of the server.
        target_host: Its address.
        port: Port to listen on, None for a free one.
        protocol: What to read: "redis" or "kafka"; None for bytes of any other kind (TLS), on
            which only the faults of the line work.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        target_port: int,
        *,
        target_host: str = "127.0.0.1",
        port: int | None = None,
        protocol: Spoken | None = "redis",
    ) -> None:
        self.target = (target_host, target_port)
        """Where new connections lead; may be changed."""
        self.port = port or 0
        self.protocol: Spoken | None = protocol
        self.requests: Counter[str] = Counter()
        """How many requests of each name (SET, Produce) went on to the server."""
        self.connections: list[ProxiedConnection] = []
        """The connections that live, oldest first."""
        self.accepted = 0
        """How many connections were accepted since the start."""
        self.to_server = Traffic()
        self.to_client = Traffic()
        self.faults: list[Fault] = []
        """The faults that wait for their requests."""
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

    def __repr__(self) -> str:
        host, port = self.target
        return f"<FaultProxy {self.host}:{self.port} to {host}:{port}>"

    @property
    def url(self) -> str:
        """Address for Redis clients, without a password."""
        return f"redis://{self.host}:{self.port}/0"

    @property
    def bootstrap_servers(self) -> str:
        """Address for Kafka clients."""
        return f"{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen; nothing if it does."""
        self.accept()

    async def aclose(self) -> None:
        """Close the port and all connections; twice is fine.

        A cancel leaves connections closing, none open.
        """
        self._close_port()
        for connection in list(self.connections):
            connection.abort()
        for connection in list(self.connections):
            await connection.wait_ended()

    # Faults of single requests

    def drop_reply(self, which: Which = None, *, nth: int = 1, times: int | None = 1) -> Fault:
        """Let the request reach the server, and lose the reply.

        The connection delivers nothing more to the client after that, but stays open. What the
        client goes on to send still reaches the server.

        Args:
            which: A command's name or what a request of Kafka is called ("Produce"), a function
                of the `Request` or `KafkaRequest`, or None for every request.
            nth: Strike the n-th that matches, from now on.
            times: How many to strike from there; None for no end.
        """
        return self._script(Effect.DROP_REPLY, which, nth=nth, times=times)

    def half_reply(
        self,
        which: Which = None,
        *,
        nth: int = 1,
        times: int | None = 1,
        keep: int | None = None,
        then: Ending = "close",
    ) -> Fault:
        """Deliver the beginning of the reply, and end the connection.

        Args:
            which: As for `drop_reply`.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            keep: Bytes to deliver; None for half of the reply.
            then: What becomes of the connection: "close", "reset" or "silence".
        """
        fault = Fault(Effect.HALF_REPLY, which, nth=nth, times=times, keep=keep, ending=then)
        return self._wait_for(fault, which)

    def hold(self, which: Which = None, *, nth: int = 1, times: int | None = 1) -> Fault:
        """Keep the request, and all that follows it on its connection, from the server.

        `release()` of the fault lets them go on, also when the client has closed meanwhile. The
        arguments are as for `drop_reply`.
        """
        return self._script(Effect.HOLD, which, nth=nth, times=times)

    def answer(
        self,
        which: Which,
        reply: MadeUp,
        *,
        nth: int = 1,
        times: int | None = 1,
        forward: bool = False,
    ) -> Fault:
        r"""Answer in the server's place, in the order of the requests.

        Args:
            which: As for `drop_reply`.
            reply: The bytes to answer with, as `b"-LOADING ...\r\n"`, or a function that makes
                them from the request; garbage is fine. For Kafka: those after the correlation id.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            forward: Let the request reach the server too, and lose its own reply.
        """
        effect = Effect.REPLACE_REPLY if forward else Effect.ANSWER
        return self._wait_for(Fault(effect, which, nth=nth, times=times, data=reply), which)

    def reset_on(
        self, which: Which = None, *, nth: int = 1, times: int | None = 1, forward: bool = False
    ) -> Fault:
        """Reset the connection (RST) when the request comes.

        Args:
            which: As for `drop_reply`.
            nth: As for `drop_reply`.
            times: As for `drop_reply`.
            forward: Let the request reach the server before.
        """
        effect = Effect.RESET_AFTER if forward else Effect.RESET_BEFORE
        return self._script(effect, which, nth=nth, times=times)

    def _script(self, effect: Effect, which: Which, *, nth: int, times: int | None) -> Fault:
        return self._wait_for(Fault(effect, which, nth=nth, times=times), which)

    def _wait_for(self, fault: Fault, which: Which) -> Fault:
        if self.protocol is None:
            raise ValueError("this proxy reads no requests: leave protocol=None out")
        if self.protocol == "kafka" and isinstance(which, str):
            check_name(which)
        self.faults.append(fault)
        return fault

    def fault_for(self, request: ProxiedRequest) -> Fault | None:
        """Give the fault that strikes this request, if one does. For its connections."""
        chosen = next((fault for fault in self.faults if fault.strikes(request)), None)
        if chosen is not None and chosen.spent:
            self.faults.remove(chosen)
        return chosen

    # Faults of the line

    def stall(
        self, direction: Direction = "both", *, existing: bool = True, new: bool = True
    ) -> None:
        """Let nothing through until `resume`; nothing is lost, and the connections stay.

        Args:
            direction: "requests", "replies" or "both".
            existing: Stall the connections that there are.
            new: Stall those still to come.
        """
        self._set_stalled(direction, stalled=True, existing=existing, new=new)

    def resume(self, direction: Direction = "both") -> None:
        """Let through what was stalled, and what comes."""
        self._set_stalled(direction, stalled=False, existing=True, new=True)

    def latency(self, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Make what comes from now on late by so many seconds; 0 ends it."""
        self.to_server.latency = requests
        self.to_client.latency = replies

    def bandwidth(self, *, requests: float | None = None, replies: float | None = None) -> None:
        """Let through so many bytes a second on each connection; None ends it."""
        self.to_server.bandwidth = requests
        self.to_client.bandwidth = replies
        for link in self._links("both"):
            link.pump()

    def inject(self, data: bytes) -> None:
        """Send these bytes to all connected clients, as if they came from the server."""
        for connection in list(self.connections):
            connection.inject(data)

    def reset(self) -> None:
        """Reset all connections (RST towards the clients) now."""
        for connection in list(self.connections):
            connection.reset()

    def reset_after(self, count: int, direction: Literal["requests", "replies"]) -> None:
        """Reset every connection, present or new, that has carried so many more bytes.

        Args:
            count: Bytes that still pass; at least 1.
            direction: The direction that counts.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}; for now there is reset()")
        self._traffic(direction).cut_after = count
        for link in self._links(direction):
            link.cut_at = link.passed + count

    def refuse(self) -> None:
        """Refuse new connections (the port stays ours); those that there are go on."""
        self._close_port()
        # Bound but not listening: it refuses, and no other process can take the port.
        self._listener = self._bind()

    def accept_silently(self) -> None:
        """Accept new connections, but lead them nowhere: nothing is read, nothing answers."""
        self._silent = True
        self._listen()

    def accept(self) -> None:
        """Accept new connections as usual, on the same port; the silent ones stay silent."""
        self._silent = False
        self._listen()

    def restore(self) -> None:
        """End all faults, except for what has happened: what is held stays held."""
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

    def _traffic(self, direction: Literal["requests", "replies"]) -> Traffic:
        return self.to_server if direction == "requests" else self.to_client

    def _links(self, direction: Direction) -> list[Link]:
        return [link for each in self.connections for link in each.links(direction)]

    # The port

    def _bind(self) -> socket.socket:
        # The protocol is spelled out, for else asyncio leaves Nagle's algorithm on.
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
