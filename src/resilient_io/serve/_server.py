"""A server of our own, in the service's own loop: it answers as long as the service does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from typing import TYPE_CHECKING, Literal

from uvicorn import Config

from resilient_io.errors import ConfigurationError
from resilient_io.serve._answers import Answers
from resilient_io.serve._asgi import asgi_of
from resilient_io.serve._protocol import Connections, Protocol
from resilient_io.validation import check_count, check_number

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from prometheus_client import CollectorRegistry

    from resilient_io.health import HealthMonitor
    from resilient_io.serve._status import Clients

__all__ = ["HealthServer", "serve"]

_CLOSING = 1.0
"""Seconds that answers under way get when the server closes."""

_BACKLOG = 128
_HIGHEST_PORT = 65535

_NOT_OURS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def serve(
    monitor: HealthMonitor,
    *,
    clients: Clients = (),
    metrics: CollectorRegistry | Literal[False] | None = None,
    name: str = "service",
    host: str | None = "0.0.0.0",  # noqa: S104 (the kubelet comes from outside of the container)
    port: int = 8080,
) -> HealthServer:
    """Serve how the service is, on a port of its own, in the service's own event loop.

    ```
    async with serve(monitor, clients=[redis, consumer], port=8080):
        await work()
    ```

    It listens when `async with`, or `start()`, has returned. It installs no signal handler, logs
    no request, and goes on while the service drains: close it last.

    Args:
        monitor: How the service is.
        clients: `ResilientRedis`, producers and consumers, whose counters are shown and exported:
            a sequence, or a mapping that names them.
        metrics: None serves the library's metrics if prometheus-client is installed; a registry
            of prometheus-client serves what is in it; False serves none.
        name: How the service is called.
        host: The address to listen on, or a name of it; None is every address, IPv6 included.
        port: The port; 0 takes a free one, which `HealthServer.port` tells.

    Raises:
        ConfigurationError: An argument makes no sense, or an extra is not installed.
        TypeError: `monitor` is no `HealthMonitor`.
    """
    answers = Answers(monitor, clients=clients, metrics=metrics, name=name, lasting=True)
    return HealthServer(answers, host, port)


class HealthServer:
    """A server that tells how the service is; made by `serve`."""

    def __init__(self, answers: Answers, host: str | None, port: int) -> None:
        if check_count("port", port, least=0) > _HIGHEST_PORT:
            message = f"port={port} is too high: write one up to {_HIGHEST_PORT}, or 0 for any"
            raise ConfigurationError(message)
        if host is not None and not isinstance(host, str):
            message = f'host={host!r} is no address: write host="0.0.0.0", or None for all'
            raise ConfigurationError(message)
        self._answers = answers
        self._host = host or None
        self._port = port
        self._connections = Connections()
        self._servers: list[asyncio.Server] = []
        self._begun = False

    @property
    def port(self) -> int:
        """The port on which it listens, or is going to listen; 0 if that is not known yet."""
        return self._port

    async def start(self) -> None:
        """Begin to listen.

        Cancelling this leaves nothing behind.

        Raises:
            OSError: Nobody can listen there: the port is in use, the address is not ours, or its
                name is not known. The message names the address.
            RuntimeError: It was started before.
        """
        if self._begun:
            raise RuntimeError("a HealthServer starts once: write serve(...) for another")
        self._begun = True
        listening = False
        try:
            await self._listen()
            listening = True
        finally:
            if not listening:
                self._begun = False
                self._stop_listening()

    async def aclose(self, timeout: float = _CLOSING) -> None:
        """Stop listening, let the answers under way end, and close every connection.

        Streams of events end at once. Closing twice is fine. Cancelling this leaves at once; then
        every connection is cut.

        Args:
            timeout: Seconds that answers under way get; then they are cut.

        Raises:
            ConfigurationError: `timeout` is negative or no number.
        """
        check_number("timeout", timeout)
        self._begun = True
        self._stop_listening()
        self._answers.events.close()
        connections = self._connections
        try:
            connections.finish()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await connections.emptied()
        finally:
            connections.cut()
        await connections.settled(_CLOSING)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        how = "listening" if self._servers else "closed" if self._begun else "not started"
        return f"<HealthServer {_written(self._host, self._port)}: {how}>"

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        config = _configure(self._answers)

        def accept() -> Protocol:
            return Protocol(config=config, server_state=self._connections, app_state={})

        addresses = await _resolve(loop, self._host, self._port)
        sockets = _bind(addresses, self._host, self._port)
        self._port = sockets[0].getsockname()[1]
        for sock in sockets:
            # Without serving at once it never suspends, so that no socket is lost to a cancel.
            server = await loop.create_server(accept, sock=sock, start_serving=False)
            self._servers.append(server)
        for server in self._servers:
            await server.start_serving()

    def _stop_listening(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()


def _configure(answers: Answers) -> Config:
    """Tell uvicorn all that it would otherwise take from elsewhere, or do to the process.

    `access_log=False` and `log_config` change loggers of the whole process, among them those of
    a uvicorn that runs the service itself: `Protocol` does without instead.
    """
    config = Config(
        asgi_of(answers),
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        workers=1,
    )
    config.load()
    return config


async def _resolve(
    loop: asyncio.AbstractEventLoop, host: str | None, port: int
) -> list[tuple[socket.AddressFamily, str]]:
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
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _refusal(error, host, port) from error
    # A dict, for a name may have an address twice, and an order that matters.
    return list(dict.fromkeys((family, str(address[0])) for family, *_, address in found))


def _bind(
    addresses: Sequence[tuple[socket.AddressFamily, str]], host: str | None, port: int
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    passed_over: OSError | None = None
    for family, address in addresses:
        try:
            found = socket.create_server(
                (address, port),
                family=family,
                backlog=_BACKLOG,
                dualstack_ipv6=family is socket.AF_INET6 and not address,
            )
        except OSError as error:
            if error.errno in _NOT_OURS:  # "localhost" is ::1, too, where there is no IPv6
                passed_over = error
                continue
            for each in bound:
                each.close()
            raise _refusal(error, host, port) from error
        bound.append(found)
        port = found.getsockname()[1]  # one port for all of them
    if passed_over is not None and not bound:
        raise _refusal(passed_over, host, port) from passed_over
    return bound


def _refusal(error: OSError, host: str | None, port: int) -> OSError:
    words = error.strerror or str(error)
    if error.errno is not None and not isinstance(error, socket.gaierror):
        words = os.strerror(error.errno)  # the standard library's own repeat the address
    return OSError(
        error.errno,
        f"cannot serve probes on {_written(host, port)}: {words}; "
        f"write another host= or port=, or port=0 for a free one",
    )


def _written(host: str | None, port: int) -> str:
    if host is None:
        return f"every address, port {port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
