"""A server on a port of its own, in the service's event loop: it answers if the service can."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
from typing import TYPE_CHECKING, Any, Final, Literal

import uvicorn

from resilient_io.deadlines import context_without_deadline
from resilient_io.errors import ConfigurationError
from resilient_io.tasks import log_task_death
from resilient_io.text import format_address
from resilient_io.validation import check_count, check_number

from .asgi import build_app
from .endpoints import Endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from prometheus_client import CollectorRegistry
    from starlette.types import ASGIApp, Receive, Scope, Send

    from resilient_io.health import HealthMonitor
    from resilient_io.telemetry.clients import Clients

# Most connections at a time; they must not use up the service's file descriptors.
MAX_CONNECTIONS: Final = 256
# Seconds for a client to send a complete request, from the connection or the latest response.
REQUEST_TIMEOUT: Final = 10.0
STALL_TIMEOUT: Final = 30.0  # seconds after which a connection is closed whose client reads nothing
_CLOSE_TIMEOUT = 1.0  # seconds for responses in progress when the server closes
_DATE_SECONDS = 1.0
_BACKLOG = 128
_MAX_PORT = 65535
_UNAVAILABLE_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CONNECTION = "resilient_io_connection"

_log: Final = logging.getLogger("resilient_io.serve.http")
# uvicorn logs a warning for every malformed request, which is what port scanners send. Its reports
# of exceptions remain.
_log.setLevel(logging.ERROR)


def serve(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    status: bool = True,
    name: str = "service",
    host: str | None = "0.0.0.0",  # noqa: S104 (the kubelet connects from outside the container)
    port: int = 8080,
) -> HealthServer:
    """Return a server that answers probes on a port of its own, in the service's event loop.

    ```
    async with serve(monitor, clients=[redis, consumer], port=8080):
        await work()
    ```

    It listens when `async with`, or `start()`, has returned. It installs no signal handler and
    logs no request. It continues while the service drains: close it last.

    Everyone who can connect sees `/status` and `/events`: the names and addresses of servers,
    topics, consumer groups, error texts and counters. To show them only on another address, pass
    `status=False` here and start a second server, for example with `host="127.0.0.1"`.

    Args:
        monitor: The health of the service.
        clients: `ResilientRedis`, producers and consumers whose counters are shown and exported:
            a sequence, or a mapping of names to clients.
        metrics: None to serve the library's metrics if prometheus-client is installed, a registry
            of prometheus-client to serve its contents, False to serve no metrics.
        status: Whether to serve `/status` and `/events`.
        name: Service name shown on the page.
        host: Address or host name to listen on; None for all addresses, IPv6 included.
        port: Port; 0 for a free one, which `HealthServer.port` returns.

    Raises:
        ConfigurationError: An argument has a wrong value, or an extra is not installed.
        TypeError: An argument has the wrong type.
    """
    endpoints = Endpoints(
        monitor, clients=clients, metrics=metrics, status=status, name=name, closes_streams=True
    )
    return HealthServer(endpoints, host, port)


class HealthServer:
    """A server that answers probes; `serve` creates it."""

    def __init__(self, endpoints: Endpoints, host: str | None, port: int) -> None:
        if check_count("port", port, least=0) > _MAX_PORT:
            raise ConfigurationError(f"port must be at most {_MAX_PORT}, not {port}: use 0 for any")
        if host is not None and not isinstance(host, str):
            raise TypeError(f'host must be a str or None, not {host!r}: use "0.0.0.0" or None')
        self._endpoints = endpoints
        self._host = host or None
        self._requested_port = port
        self._port = port
        self._starting = False
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port on which the server listens, or will listen; 0 if it is not known yet."""
        return self._port

    async def start(self) -> None:
        """Start to listen; possible again after `aclose()`.

        If this is cancelled, nothing is left open.

        Raises:
            OSError: The server cannot listen there: the port is in use, the address belongs to
                another host, or the host name is unknown. The message contains the address.
            RuntimeError: The server is listening already.
        """
        if self._starting or self._task is not None:
            raise RuntimeError("the HealthServer is listening already: call aclose() first")
        self._starting = True
        try:
            addresses = await _resolve(self._host, self._requested_port)
            sockets = _bind(addresses, self._host, self._requested_port)
        finally:
            self._starting = False
        self._endpoints.events.reopen()
        self._port = sockets[0].getsockname()[1]
        self._server = _Server(self._endpoints, sockets)
        self._task = asyncio.get_running_loop().create_task(
            self._server.serve(sockets),
            name="resilient-io health server",
            context=context_without_deadline(),
        )
        self._task.add_done_callback(log_task_death)
        try:
            await self._server.listening.wait()
        except asyncio.CancelledError:
            self._server.abort()
            self._task.cancel()
            self._task = None
            raise

    async def aclose(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Stop listening, let responses in progress end, and close every connection.

        Event streams end immediately, and connections with a response in progress are aborted after
        `timeout` seconds. Closing is idempotent. If this is cancelled, it returns immediately,
        after aborting every connection.

        Raises:
            ConfigurationError: `timeout` is negative or not a number.
        """
        check_number("timeout", timeout)
        self._endpoints.events.close()
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._server.exit()
        try:
            await asyncio.wait([task], timeout=timeout)
        finally:
            self._server.abort()
            task.cancel()
        await asyncio.wait([task, *self._server.server_state.tasks], timeout=_CLOSE_TIMEOUT)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "listening" if self._task else "closed" if self._server else "not started"
        return f"<HealthServer {_describe_address(self._host, self._port)}: {state}>"


class _Server(uvicorn.Server):
    """uvicorn's server inside an application that has its own signal handlers and event loop.

    Written against uvicorn 0.54: `serve` calls `capture_signals`, `startup`, `main_loop` and
    `shutdown`. A contract test in tests/unit/serve fails if that changes.

    uvicorn's `limit_concurrency` is not used: above the limit it answers 503 to the newest
    request, so that idle connections could make probes fail. `MAX_CONNECTIONS` closes the
    connection that has waited longest instead.
    """

    servers: list[asyncio.Server]

    def __init__(self, endpoints: Endpoints, sockets: Sequence[socket.socket]) -> None:
        config = uvicorn.Config(
            _track_requests(build_app(endpoints)),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            workers=1,
        )
        super().__init__(config)
        self.connections = HttpConnections()
        self.servers = []
        self.listening = asyncio.Event()
        self._sockets = sockets
        self._exit = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers of the process as they are."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections on the sockets."""
        loop = asyncio.get_running_loop()
        try:
            for sock in sockets or []:
                # With start_serving=False this never suspends, so that a cancellation cannot lose
                # a server that `shutdown` or `abort` has to close.
                server = await loop.create_server(self._accept, sock=sock, start_serving=False)
                self.servers.append(server)
            for server in self.servers:
                await server.start_serving()
            self.started = True
        finally:
            self.listening.set()

    async def main_loop(self) -> None:
        """Refresh the Date header until `exit` is called, without uvicorn's polling (10 Hz)."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_SECONDS):
                    await self._exit.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Wait until every response is complete, without uvicorn's polling (at least 0.1 s)."""
        for connection in self.connections:
            connection.finish()
        await self.connections.empty.wait()
        if self.server_state.tasks:
            await asyncio.wait(list(self.server_state.tasks))

    def exit(self) -> None:
        """Stop listening, and start the graceful shutdown."""
        self._stop_listening()
        self.should_exit = True
        self._exit.set()

    def abort(self) -> None:
        """Stop listening and close every connection now."""
        self._stop_listening()
        for connection in self.connections:
            connection.abort()

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()
        for sock in self._sockets:  # those that `startup` has not reached
            sock.close()

    def _accept(self) -> asyncio.Protocol:
        return HttpConnection(self.connections, self.config, self.server_state)


class HttpConnections:
    """The open connections, those that wait for a request and those that are being answered.

    When there are too many, the connection that has waited longest without completing a request is
    closed. Rejecting the newest one instead would let a client that opens connections and sends
    half a request on each keep the kubelet out.
    """

    def __init__(self) -> None:
        # Dicts, because they keep the order in which the connections came into this state.
        self._waiting: dict[HttpConnection, None] = {}
        self._answering: dict[HttpConnection, None] = {}
        self.empty = asyncio.Event()
        self.empty.set()

    def __iter__(self) -> Iterator[HttpConnection]:
        return iter([*self._waiting, *self._answering])

    def __len__(self) -> int:
        return len(self._waiting) + len(self._answering)

    def wait(self, connection: HttpConnection) -> None:
        """Add a connection that waits for a request, or note that its response is complete."""
        self._answering.pop(connection, None)
        self._waiting.pop(connection, None)
        self._waiting[connection] = None
        self.empty.clear()
        if len(self) > MAX_CONNECTIONS:
            oldest = next(iter(self._waiting))
            if oldest is connection and self._answering:  # all others are slow to read
                oldest = next(iter(self._answering))
            self.discard(oldest)
            oldest.abort()

    def answer(self, connection: HttpConnection) -> None:
        """Note that a connection has received a request."""
        if connection in self._waiting:
            del self._waiting[connection]
            self._answering[connection] = None

    def discard(self, connection: HttpConnection) -> None:
        """Remove a connection."""
        self._waiting.pop(connection, None)
        self._answering.pop(connection, None)
        if not len(self):
            self.empty.set()


class HttpConnection(asyncio.Protocol):
    """uvicorn's HTTP protocol, with a limit for slow clients in both directions."""

    def __init__(
        self, connections: HttpConnections, config: uvicorn.Config, server_state: Any
    ) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        # `app_state` becomes the request's `scope["state"]`: that is how a request finds this.
        make: Any = config.http_protocol_class
        self._http: Any = make(
            config=config, server_state=server_state, app_state={_CONNECTION: self}
        )
        # Config(access_log=False, log_level=...) would change the loggers of the whole process,
        # also those of a uvicorn that runs the service itself.
        self._http.logger = _log
        self._http.access_log = False

    @property
    def unsent(self) -> int:
        """Bytes of responses that the client has not taken."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (for the type checker)
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            # asyncio sets this only for sockets created with IPPROTO_TCP, and
            # `socket.create_server` creates them with 0. uvicorn writes the head and the body
            # separately: without this option, the body waits for the client's delayed ACK (44 ms).
            with contextlib.suppress(OSError):  # the client may be gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http.connection_made(transport)
        self.end_request()

    def data_received(self, data: bytes) -> None:
        """Pass data on."""
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass the end of the client's data on."""
        keep_open: bool | None = self._http.eof_received()
        return keep_open

    def pause_writing(self) -> None:
        """Wait for a client that reads slowly, for a bounded time."""
        self._http.pause_writing()
        _cancel(self._stall_timer)
        self._stall_timer = self._loop.call_later(STALL_TIMEOUT, self.abort)

    def resume_writing(self) -> None:
        """Continue to write."""
        self._http.resume_writing()
        _cancel(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything."""
        self._connections.discard(self)
        _cancel(self._request_timer)
        _cancel(self._stall_timer)
        self._http.connection_lost(exc)
        # uvicorn leaves the keep-alive timer of a connection that was reset.
        self._http._unset_keepalive_if_required()  # noqa: SLF001

    def begin_request(self) -> None:
        """Note that a request has been received."""
        _cancel(self._request_timer)
        self._connections.answer(self)

    def end_request(self) -> None:
        """Wait for the next request, if the connection stays open."""
        if self._transport is None or self._transport.is_closing():
            return
        self._connections.wait(self)
        _cancel(self._request_timer)
        self._request_timer = self._loop.call_later(REQUEST_TIMEOUT, self.abort)

    def finish(self) -> None:
        """Close the connection after the response in progress; without a request, now."""
        if self._transport is not None and not self._transport.is_closing():
            self._http.shutdown()

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abort()


def _track_requests(app: ASGIApp) -> ASGIApp:
    """Return an application that reports each request to its `HttpConnection`."""

    async def tracked(scope: Scope, receive: Receive, send: Send) -> None:
        connection: HttpConnection = scope["state"].pop(_CONNECTION)
        connection.begin_request()
        try:
            await app(scope, receive, send)
        finally:
            connection.end_request()

    return tracked


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


# --- sockets


async def _resolve(host: str | None, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if host is None:
        dual = socket.has_dualstack_ipv6()
        return [(socket.AF_INET6 if dual else socket.AF_INET, "")]
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, host)]  # noqa: PLR2004
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _bind_error(error, host, port) from error
    # A dict, because a name may have an address twice, and the order matters.
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _bind(
    addresses: Sequence[tuple[socket.AddressFamily, str]], host: str | None, port: int
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    skipped: OSError | None = None
    for family, address in addresses:
        try:
            found = socket.create_server(
                (address, port),
                family=family,
                backlog=_BACKLOG,
                dualstack_ipv6=family is socket.AF_INET6 and not address,
            )
        except OSError as error:
            if error.errno in _UNAVAILABLE_ADDRESS:  # "localhost" is also ::1, even without IPv6
                skipped = error
                continue
            for each in bound:
                each.close()
            raise _bind_error(error, host, port) from error
        bound.append(found)
        port = found.getsockname()[1]  # the same port for all addresses
    if skipped is not None and not bound:
        raise _bind_error(skipped, host, port) from skipped
    return bound


def _bind_error(error: OSError, host: str | None, port: int) -> OSError:
    reason = error.strerror or str(error)
    if error.errno is not None and not isinstance(error, socket.gaierror):
        reason = os.strerror(error.errno)  # the standard library's text repeats the address
    return OSError(
        error.errno,
        f"cannot serve probes on {_describe_address(host, port)}: {reason}; "
        f"use another host= or port=, or port=0 for a free port",
    )


def _describe_address(host: str | None, port: int) -> str:
    if host is None:
        return f"all addresses, port {port}"
    return format_address(host, port)
