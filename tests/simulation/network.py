"""The simulated network: names, hosts, connect attempts, and what goes wrong between them."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .connection import Connection, Peer, Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from .history import History
    from .loop import SimulatedLoop
    from .plan import NetworkSettings

__all__ = ["Connection", "Network", "Peer", "Server", "Session"]

SYN_ATTEMPTS = 6
"""Linux sends the first packet of a connection again after 1, 3, 7, 15, 31 and 63 s."""

RESOLVER_TIMEOUT = 5.0
"""Seconds after which the resolver asks again. It asks twice."""

GARBAGE = (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x46", b"@@\r\n")


class Server(Protocol):
    """What listens at an address."""

    name: str

    def accept(self, peer: Peer) -> Session | None:
        """Return the session of a new connection, or None to refuse it."""


@dataclass(slots=True, eq=False)
class Host:
    """A machine with servers, and the faults of its link.

    Attributes:
        connections: Those of which at least one end is open.
        requests_held, replies_held: Numbers of faults that hold packets of a direction.
        cuts: How many of them lose packets, so that TCP has to send them again.
        refusing, hanging: Numbers of faults that concern new connections.
        extra: Further latency in seconds.
    """

    address: str
    servers: dict[int, Server] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    requests_held: int = 0
    replies_held: int = 0
    cuts: int = 0
    refusing: int = 0
    hanging: int = 0
    extra: float = 0.0


@dataclass(slots=True, eq=False)
class _Attempt:
    """A connect attempt."""

    host: Host
    port: int
    future: asyncio.Future[Connection]
    connection: Connection | None = None


@dataclass(slots=True, eq=False)
class _Fault:
    """A fault that lasts."""

    kind: str
    undo: Callable[[], None]
    facts: dict[str, Any]


class Network:
    """All hosts, names and connections.

    Attributes:
        names: The addresses of each name. Assign to it to move a name.
        connections: The open connections of clients, in the order of their numbers.
    """

    def __init__(
        self, loop: SimulatedLoop, random: Random, history: History, settings: NetworkSettings
    ) -> None:
        self.loop = loop
        self.random = random
        self.history = history
        self.settings = settings
        self.names: dict[str, list[str]] = {}
        self.connections: list[Connection] = []
        self._hosts: dict[str, Host] = {}
        self._numbers = 0
        self._lookups: dict[str, list[str]] = {}
        self._faults: list[_Fault] = []
        loop.network = self

    def listen(self, address: str, port: int, server: Server) -> None:
        """Make a server accept connections at an address."""
        self.host(address).servers[port] = server

    def host(self, address: str) -> Host:
        """Return the host with an address; packets to an unknown address vanish."""
        host = self._hosts.get(address)
        if host is None:
            host = self._hosts[address] = Host(address)
        return host

    def note(self, kind: str, **facts: Any) -> None:
        """Add a line to the timeline."""
        self.history.event("network", kind, **facts)

    # -- names -----------------------------------------------------------------------------

    async def getaddrinfo(
        self, host: str | bytes | None, port: Any, *, family: int = 0
    ) -> list[tuple[Any, ...]]:
        """Look up a name, as `loop.getaddrinfo`."""
        name = host.decode() if isinstance(host, bytes) else host or "127.0.0.1"
        future = self.loop.create_future()
        self._look_up(name, int(port or 0), family, future, 0)
        infos: list[tuple[Any, ...]] = await future
        return infos

    def _look_up(
        self, name: str, port: int, family: int, future: asyncio.Future[Any], tries: int
    ) -> None:
        modes = self._lookups.get(name, ())
        random, now = self.random.random, self.loop.now
        if "hang" in modes and tries < 2:
            self.loop.push(
                now + RESOLVER_TIMEOUT, self._look_up, name, port, family, future, tries + 1
            )
            return
        delay = 100e-6 + random() * 1e-3
        if "slow" in modes:
            delay += 0.2 + random() * 3.0
        failed = "fail" in modes or "hang" in modes
        self.loop.at_poll(now + delay, self._answer, name, port, family, future, failed)

    def _answer(
        self, name: str, port: int, family: int, future: asyncio.Future[Any], failed: bool
    ) -> None:
        if future.done():
            return
        if failed:
            error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        elif name in self.names and family != socket.AF_INET6:
            addresses = self.names[name]
            if addresses:
                future.set_result([_info(address, port) for address in addresses])
                return
            error = socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
        elif is_address(name):
            future.set_result([_info(name, port)])
            return
        else:
            error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.note("lookup failed", name=name, error=error.errno)
        future.set_exception(error)

    # -- connecting ------------------------------------------------------------------------

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: str,
        port: int,
        *,
        family: int = 0,
        all_errors: bool = False,
        **_options: Any,
    ) -> tuple[Connection, Any]:
        """Connect, as `loop.create_connection`."""
        if is_address(host):
            infos = [_info(host, int(port))]
        else:
            infos = await self.getaddrinfo(host, port, family=family)
        errors: list[OSError] = []
        for info in infos:
            try:
                connection = await self._connect(*info[4])
                break
            except OSError as error:
                errors.append(error)
        else:
            if all_errors:
                raise ExceptionGroup("create_connection failed", errors)
            if all(str(error) == str(errors[0]) for error in errors):
                raise errors[0]
            raise OSError(f"Multiple exceptions: {', '.join(str(error) for error in errors)}")
        protocol = protocol_factory()
        waiter = self.loop.create_future()
        connection.attach(protocol, waiter)
        try:
            await waiter
        except BaseException:
            connection.close()
            raise
        return connection, protocol

    async def reach(self, address: str, port: int) -> None:
        """Open a connection and close it."""
        connection = await self._connect(address, port)
        connection.abandon()

    async def _connect(self, address: str, port: int) -> Connection:
        attempt = _Attempt(self.host(address), port, self.loop.create_future())
        self.loop.push(self.loop.now + self._latency(attempt.host), self._arrive, attempt, 1)
        try:
            return await attempt.future
        except BaseException:
            if attempt.connection is not None:
                attempt.connection.abandon()
            raise

    def _latency(self, host: Host) -> float:
        settings = self.settings
        return settings.latency + settings.jitter * self.random.random() + host.extra

    def _arrive(self, attempt: _Attempt, number: int) -> None:
        """Take the first packet of a connection, at the server's host."""
        if attempt.future.done():
            return
        host, now = attempt.host, self.loop.now
        if not host.servers or host.requests_held or host.replies_held or host.hanging:
            if number <= SYN_ATTEMPTS:
                self.loop.push(now + 2.0 ** (number - 1), self._arrive, attempt, number + 1)
            else:
                self.loop.at_poll(now, self._fail, attempt, errno.ETIMEDOUT)
            return
        connected = False
        if not host.refusing and attempt.port in host.servers:
            connected = self._accept(attempt, host.servers[attempt.port])
        at = now + self._latency(host)
        if connected:
            self.loop.at_poll(at, self._succeed, attempt)
        else:
            self.loop.at_poll(at, self._fail, attempt, errno.ECONNREFUSED)

    def _accept(self, attempt: _Attempt, server: Server) -> bool:
        connection = Connection(self, attempt.host, self._numbers + 1, attempt.port)
        session = server.accept(connection.peer)
        if session is None:
            return False
        self._numbers += 1
        if connection.peer.open:
            connection.session = session
        attempt.connection = connection
        attempt.host.connections.append(connection)
        self.connections.append(connection)
        self.note("connected", connection=connection.number, address=connection.address)
        return True

    def _succeed(self, attempt: _Attempt) -> None:
        if not attempt.future.done():
            attempt.future.set_result(attempt.connection)

    def _fail(self, attempt: _Attempt, code: int) -> None:
        if attempt.future.done():
            return
        address = (attempt.host.address, attempt.port)
        self.note("connect failed", address=address[0], error=errno.errorcode[code])
        attempt.future.set_exception(OSError(code, f"Connect call failed {address}"))

    def closed(self, connection: Connection, error: BaseException | None) -> None:
        """Note that a client's socket was closed."""
        self.connections.remove(connection)
        why = "closed" if error is None else type(error).__name__
        self.note("lost", connection=connection.number, why=why)

    # -- faults ----------------------------------------------------------------------------

    def _begin(
        self, kind: str, seconds: float | None, undo: Callable[[], None], **facts: Any
    ) -> None:
        fault = _Fault(kind, undo, facts)
        self._faults.append(fault)
        self.note(kind, **facts)
        if seconds is not None:
            self.loop.push(self.loop.now + seconds, self._end, fault)

    def _end(self, fault: _Fault) -> None:
        if fault in self._faults:
            self._faults.remove(fault)
            fault.undo()
            self.note(f"{fault.kind} ended", **fault.facts)

    def heal(self) -> None:
        """End all faults. Connections that were forgotten stay dead."""
        for fault in list(self._faults):
            self._end(fault)

    def _hold(
        self, kind: str, address: str, seconds: float | None, requests: int, replies: int, cuts: int
    ) -> None:
        host = self.host(address)

        def change(sign: int) -> None:
            host.requests_held += sign * requests
            host.replies_held += sign * replies
            host.cuts += sign * cuts
            for connection in host.connections:
                connection.hold(sign * requests, sign * replies, sign * cuts)

        change(1)
        self._begin(kind, seconds, lambda: change(-1), address=address)

    def cut(self, address: str, seconds: float | None = None) -> None:
        """Lose all packets to and from a host. TCP sends them again after the end."""
        self._hold("cut", address, seconds, 1, 1, 1)

    def drop_replies(self, address: str, seconds: float | None = None) -> None:
        """Lose all packets from a host. TCP sends them again after the end."""
        self._hold("replies dropped", address, seconds, 0, 1, 1)

    def hold(self, address: str, seconds: float | None, direction: str) -> None:
        """Delay all packets of a direction, "requests" or "replies", until the end."""
        requests = {"requests": 1, "replies": 0}[direction]
        self._hold(f"{direction} held", address, seconds, requests, 1 - requests, 0)

    def slow(self, address: str, extra: float, seconds: float | None = None) -> None:
        """Add to the latency of packets to and from a host."""
        host = self.host(address)
        host.extra += extra

        def undo() -> None:
            host.extra = max(0.0, host.extra - extra)

        self._begin("slow", seconds, undo, address=address, extra=extra)

    def forget(self, connection: Connection, seconds: float | None = None) -> None:
        """Lose all packets of a connection; without `seconds`, forever.

        In the latter case, what the client writes afterwards may be answered with a reset.
        """
        if seconds is None:
            self.note("forgotten", connection=connection.number)
            connection.forget(reset_on_write=self.random.random() < 0.3)
        else:
            connection.hold(1, 1, 1)
            self._begin(
                "connection cut",
                seconds,
                lambda: connection.hold(-1, -1, -1),
                connection=connection.number,
            )

    def reset(self, address: str) -> None:
        """Reset all connections of a host."""
        self.note("all reset", address=address)
        for connection in list(self.host(address).connections):
            connection.reset_both()

    def reset_one(self, connection: Connection) -> None:
        """Reset a connection."""
        self.note("reset", connection=connection.number)
        connection.reset_both()

    def close_one(self, connection: Connection) -> None:
        """Close a connection on behalf of the server."""
        self.note("closed by the server's side", connection=connection.number)
        connection.close_both()

    def hold_one(self, connection: Connection, seconds: float) -> None:
        """Delay what the client sends over one connection."""
        connection.hold(1, 0, 0)
        self._begin(
            "requests of one held",
            seconds,
            lambda: connection.hold(-1, 0, 0),
            connection=connection.number,
        )

    def break_off(self, connection: Connection, direction: str, seconds: float) -> None:
        """Reset a connection in the middle of its next "requests" or "replies"."""
        connection.break_off(direction)
        self._begin("breaks off", seconds, connection.stay_whole, connection=connection.number)

    def lose_at_client(self, connection: Connection) -> None:
        """Reset a connection at the client only. What the client has sent still arrives."""
        self.note("reset at the client", connection=connection.number)
        connection.lose_at_client()

    def refuse(self, address: str, seconds: float | None = None) -> None:
        """Refuse new connections to a host."""
        host = self.host(address)
        host.refusing += 1

        def undo() -> None:
            host.refusing -= 1

        self._begin("connects refused", seconds, undo, address=address)

    def hang_connects(self, address: str, seconds: float | None = None) -> None:
        """Lose the first packets of new connections to a host."""
        host = self.host(address)
        host.hanging += 1

        def undo() -> None:
            host.hanging -= 1

        self._begin("connects hang", seconds, undo, address=address)

    def lookup(self, name: str, mode: str, seconds: float | None = None) -> None:
        """Make lookups of a name fail, hang or take long: mode "fail", "hang" or "slow"."""
        if mode not in ("fail", "hang", "slow"):
            raise ValueError(f"unknown mode {mode!r}")
        modes = self._lookups.setdefault(name, [])
        modes.append(mode)
        self._begin(f"lookup: {mode}", seconds, lambda: modes.remove(mode), name=name)

    def garbage(self, connection: Connection) -> None:
        """Send bytes that are not RESP to the client."""
        self.note("garbage", connection=connection.number)
        connection.transmit_to_client(self.random.choice(GARBAGE))


@functools.cache
def is_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _info(address: str, port: int) -> tuple[Any, ...]:
    kind = socket.SOCK_STREAM
    return (socket.AF_INET, kind, socket.IPPROTO_TCP, "", (address, port))
