"""A master with replicas and the Sentinels that watch them, to kill, freeze and fail over."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final, TypeAlias

from .process import Server
from .resp import ServerError
from .servers import RedisSentinel, RedisServer, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .servers import Binary, Certificates, Option

_POLL_INTERVAL: Final = 0.01
_SETTLE_TIMEOUT: Final = 30.0  # seconds
_FAILOVER_TIMEOUT: Final = 6.0  # seconds after which a planned failover counts as aborted

Address: TypeAlias = tuple[str, int]


class SentinelSetup(Server):
    """One master, its replicas, and Sentinels that fail over to one of them.

    `async with` starts it, which takes about half a second, and closes it. The servers keep their
    configuration when they are killed and started again, as an installed server does: a promoted
    replica is still a master, and a killed master comes back as one, until a Sentinel demotes it.

    Args:
        replicas: How many replicas the master has.
        sentinels: How many Sentinels there are.
        name: Name of the master, as clients ask for it.
        down_after: Seconds of silence after which a Sentinel takes a server for down.
        failover_timeout: Seconds that the steps of a failover may take, as Sentinel defines it.
        quorum: How many Sentinels have to agree that the master is down; None for most of them.
        password: Password of the servers (`requirepass`); None for none.
        sentinel_password: Password of the Sentinels; None for none.
        tls: Let clients connect with TLS, too. All servers and Sentinels have the same certificate,
            and the Sentinels still announce the ports without TLS: see `tls_address`.
        binary: The server program; None for the result of `find_redis`.
        options: Lines of the servers' configuration, as for `RedisServer`.
        sentinel_options: Lines of the Sentinels' configuration, except for those that begin with
            "sentinel": these are values of `sentinel_lines`.
        sentinel_lines: Further lines that begin with "sentinel", without this word.
        host: The address on which all of them listen.

    Attributes:
        nodes: The master of the beginning, and its replicas.
        sentinels: The Sentinels.
        name: Name of the master.
    """

    def __init__(
        self,
        *,
        replicas: int = 2,
        sentinels: int = 3,
        name: str = "mymaster",
        down_after: float = 1.0,
        failover_timeout: float = 10.0,
        quorum: int | None = None,
        password: str | None = None,
        sentinel_password: str | None = None,
        tls: bool = False,
        binary: Binary | None = None,
        options: Mapping[str, Option] | None = None,
        sentinel_options: Mapping[str, Option] | None = None,
        sentinel_lines: Sequence[str] = (),
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.password = password
        self.sentinel_password = sentinel_password
        first = _Node(None, password=password, tls=tls, binary=binary, options=options, host=host)
        shared = first.issue_certificates() if tls else False
        self.nodes: list[RedisServer] = [first]
        self.nodes += [
            _Node(first, password=password, tls=shared, binary=binary, options=options, host=host)
            for _ in range(replicas)
        ]
        lines = (
            f"down-after-milliseconds {name} {round(down_after * 1000)}",
            f"failover-timeout {name} {round(failover_timeout * 1000)}",
            *(f"known-replica {name} {node.host} {node.port}" for node in self.nodes[1:]),
            *sentinel_lines,
        )
        watching: list[_Watching] = [
            _Watching(
                first,
                name=name,
                quorum=sentinels // 2 + 1 if quorum is None else quorum,
                password=sentinel_password,
                tls=shared,
                binary=binary,
                options=sentinel_options,
                lines=lines,
                host=host,
            )
            for _ in range(sentinels)
        ]
        for each in watching:
            each.introduce(watching)
        self.sentinels: list[RedisSentinel] = [*watching]

    def __repr__(self) -> str:
        return f"<SentinelSetup {self.name!r}: {self.nodes}, {self.sentinels}>"

    @property
    def addresses(self) -> list[Address]:
        """Host and port of each Sentinel, as clients take them."""
        return [(sentinel.host, sentinel.port) for sentinel in self.sentinels]

    @property
    def tls_addresses(self) -> list[Address]:
        """Host and TLS port of each Sentinel."""
        return [self.tls_address((sentinel.host, sentinel.port)) for sentinel in self.sentinels]

    def tls_address(self, address: Address) -> Address:
        """Return the address for TLS of a server or Sentinel: an `address_map` for clients.

        Args:
            address: The one that the Sentinels announce. An unknown one is returned as it is.
        """
        for server in [*self.nodes, *self.sentinels]:
            if (server.host, server.port) == address and server.tls_port is not None:
                return server.host, server.tls_port
        return address

    async def start(self) -> None:
        """Start the processes that are not running, and wait until a failover is possible.

        If this fails or is cancelled, no process is left.

        Raises:
            NoServerError: This machine has no Redis.
            ServerDidNotStartError: A server exited, or did not answer.
            TimeoutError: The servers did not find each other within 30 s.
        """
        try:
            for server in [*self.nodes, *self.sentinels]:
                await server.start()
            await self.until_settled()
        except BaseException:  # also a cancellation must not leave processes behind; re-raised
            self.kill()
            raise

    def kill(self) -> None:
        """Kill all servers and Sentinels (SIGKILL)."""
        for server in [*self.sentinels, *self.nodes]:
            server.kill()

    async def aclose(self) -> None:
        """Kill all servers and Sentinels, and remove their folders. Idempotent."""
        for server in [*self.sentinels, *self.nodes]:
            await server.aclose()

    def node(self, address: Address) -> RedisServer:
        """Return the server at an address."""
        return next(node for node in self.nodes if (node.host, node.port) == address)

    async def master_address(self) -> Address:
        """Return the address of the master on which most of the running Sentinels agree.

        Raises:
            TimeoutError: They did not agree within 30 s.
        """
        async with asyncio.timeout(_SETTLE_TIMEOUT):
            while True:
                said = [await self._said_master(each) for each in self.sentinels if each.running]
                for address in said:
                    if address is not None and said.count(address) * 2 > len(said):
                        return address
                await asyncio.sleep(_POLL_INTERVAL)

    async def master(self) -> RedisServer:
        """Return the server that most of the running Sentinels take for the master."""
        return self.node(await self.master_address())

    async def begin_failover(self) -> None:
        """Begin a planned failover (`SENTINEL FAILOVER`) on the first Sentinel that does it.

        Raises:
            TimeoutError: No Sentinel was ready for it within 30 s.
        """
        async with asyncio.timeout(_SETTLE_TIMEOUT):
            while True:
                for sentinel in self.sentinels:
                    with contextlib.suppress(ServerError, OSError):  # in progress; no good replica
                        await sentinel.query("SENTINEL", "FAILOVER", self.name)
                        return
                await asyncio.sleep(0.1)

    async def fail_over(self) -> RedisServer:
        """Make a planned failover, wait until it is complete, and return the new master.

        It is begun again if the Sentinels abort it, as they do if their replicas are not ready.

        Raises:
            TimeoutError: That took longer than 30 s.
        """
        old = await self.master_address()
        async with asyncio.timeout(_SETTLE_TIMEOUT):
            while True:
                await self.begin_failover()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_FAILOVER_TIMEOUT):
                        return await self.until_switched(old)

    async def until_switched(self, old: Address) -> RedisServer:
        """Wait until every running Sentinel has another master than `old`, and return it.

        Raises:
            TimeoutError: That took longer than 30 s.
        """
        async with asyncio.timeout(_SETTLE_TIMEOUT):
            while True:
                said = [await self._said_master(each) for each in self.sentinels if each.running]
                address = said[0] if said else None
                if address is not None and address != old and said.count(address) == len(said):
                    return self.node(address)
                await asyncio.sleep(_POLL_INTERVAL)

    async def until_settled(self) -> None:
        """Wait until all running servers replicate one master, and the Sentinels know them.

        Raises:
            TimeoutError: That took longer than 30 s.
        """
        async with asyncio.timeout(_SETTLE_TIMEOUT):
            while not await self._is_settled():  # noqa: ASYNC110 - nothing notifies of it
                await asyncio.sleep(_POLL_INTERVAL)
            # For up to a second after its link is up, a replica may not get what is written.
            master = self.node(await self.master_address())
            await master.query("PUBLISH", "resilient-io:settled", "")  # it is replicated
            offset = await self._offset(master)
            for node in self.nodes:
                while node.running and await self._offset(node) < offset:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(_POLL_INTERVAL)

    @staticmethod
    async def _offset(node: RedisServer) -> int:
        """Return how much of the replicated data a server has."""
        info = await node.query("INFO", "replication")
        text = info.decode() if isinstance(info, bytes) else ""
        lines = (line.partition(":") for line in text.splitlines())
        facts = {name: value for name, _, value in lines}
        name = "slave_repl_offset" if facts.get("role") == "slave" else "master_repl_offset"
        return int(facts.get(name, "0"))

    async def _is_settled(self) -> bool:
        address = await self.master_address()
        try:
            role = await self.node(address).query("ROLE")
            followers = [
                await node.query("INFO", "replication")
                for node in self.nodes
                if node.running and (node.host, node.port) != address
            ]
            facts = [
                await sentinel.query("SENTINEL", "MASTER", self.name)
                for sentinel in self.sentinels
                if sentinel.running
            ]
            if len(facts) == len(self.sentinels):
                for sentinel in self.sentinels:
                    await sentinel.query("SENTINEL", "CKQUORUM", self.name)
        except (ServerError, OSError):
            return False
        follows = f"master_port:{address[1]}\r".encode()
        online = role[2] if isinstance(role, list) and role[0] == b"master" else []
        return (
            isinstance(online, list)
            and len(online) >= len(followers)
            and all(
                isinstance(info, bytes) and follows in info and b"master_link_status:up\r" in info
                for info in followers
            )
            and all(self._is_ready(fact, len(followers), len(facts) - 1) for fact in facts)
        )

    @staticmethod
    def _is_ready(fact: object, replicas: int, others: int) -> bool:
        """Return whether a Sentinel could begin a failover: it knows a good replica."""
        if not isinstance(fact, list):
            return False
        known = dict(zip(fact[::2], fact[1::2], strict=True))
        return (
            known.get(b"flags") == b"master"
            and int(known[b"num-slaves"]) >= replicas
            and int(known[b"num-other-sentinels"]) >= others
        )

    async def _said_master(self, sentinel: RedisSentinel) -> Address | None:
        try:
            said = await sentinel.query("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        except (ServerError, OSError):
            return None
        if not isinstance(said, list) or not isinstance(said[0], bytes):
            return None
        return said[0].decode(), int(said[1])  # type: ignore[arg-type]


class _KeepsConfiguration(RedisServer):
    """A server whose configuration file is kept over restarts: the programs rewrite it."""

    def _command(self) -> Sequence[str | Path]:
        file = self.folder / "server.conf"
        kept = file.read_text() if file.exists() else None
        command = super()._command()
        if kept is not None:
            file.write_text(kept)
        return command


class _Node(_KeepsConfiguration):
    """A server that Sentinels make a master or a replica."""

    def __init__(
        self,
        master: RedisServer | None,
        *,
        password: str | None,
        tls: bool | Certificates,
        binary: Binary | None,
        options: Mapping[str, Option] | None,
        host: str,
    ) -> None:
        # After a synchronization without a file, replicas get no commands for up to 3 s.
        lines: dict[str, Option] = {"repl-diskless-sync": "no"}
        if password is not None:
            lines["masterauth"] = quoted(password)
        if master is not None:
            lines["replicaof"] = f"{master.host} {master.port}"
        super().__init__(
            password=password, tls=tls, binary=binary, options=lines | dict(options or {})
        )
        self.host = host
        self._fixed_ports = True  # the others have its port in their configuration


class _Watching(_KeepsConfiguration, RedisSentinel):
    """A Sentinel that knows the others from the beginning. Otherwise they need 2 s to meet."""

    def __init__(
        self,
        master: RedisServer,
        *,
        name: str,
        quorum: int,
        password: str | None,
        tls: bool | Certificates,
        binary: Binary | None,
        options: Mapping[str, Option] | None,
        lines: Sequence[str],
        host: str,
    ) -> None:
        super().__init__(
            master,
            name=name,
            quorum=quorum,
            password=password,
            tls=tls,
            binary=binary,
            options=options,
        )
        self.host = host
        self._fixed_ports = True
        self.sentinel_id = secrets.token_hex(20)
        self._lines = list(lines)

    def introduce(self, all_of_them: Sequence[_Watching]) -> None:
        """Add the other Sentinels to the configuration."""
        self._lines += [
            f"known-sentinel {self._name} {other.host} {other.port} {other.sentinel_id}"
            for other in all_of_them
            if other is not self
        ]

    def _configuration(self) -> dict[str, Option]:
        lines = super()._configuration()
        monitored = lines["sentinel"]
        assert not isinstance(monitored, str | int), "a list of lines"
        return lines | {"sentinel": [f"myid {self.sentinel_id}", *monitored, *self._lines]}
