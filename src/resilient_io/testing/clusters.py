"""A Redis Cluster to test against: masters and replicas to kill, freeze, fail over and migrate."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .process import Server, ServerDidNotStartError, free_port
from .resp import InvalidReplyError, ServerError
from .servers import Option, RedisServer, quoted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from .resp import Reply
    from .servers import Binary, Certificates

SLOTS: Final = 16384

_START_TIMEOUT: Final = 30.0
_POLL_INTERVAL: Final = 0.02
_FAILOVER_TIMEOUT: Final = 5.5
_KEYS_PER_STEP: Final = 10
_MIGRATE_TIMEOUT: Final = 5000  # milliseconds, of MIGRATE itself
_NO_ANSWER: Final = (OSError, asyncio.IncompleteReadError, InvalidReplyError, ServerError)


class RedisClusterNode(RedisServer):
    """A server in cluster mode. `RedisServerCluster` creates it; alone it owns no slots.

    Attributes:
        node_id: Its id in the cluster, once it was started.
        bus_port: Port on which nodes talk to each other.

    Args:
        node_timeout: Seconds without an answer after which the other nodes suspect this one.
        port: As for `RedisServer`.
        binary: As for `RedisServer`.
        password: As for `RedisServer`; also sent to the node's master.
        tls: As for `RedisServer`.
        persist: As for `RedisServer`.
        options: Lines of the configuration, as for `RedisServer`.
    """

    def __init__(
        self,
        *,
        node_timeout: float = 2.0,
        port: int | None = None,
        binary: Binary | None = None,
        password: str | None = None,
        tls: bool | Certificates = False,
        persist: bool = False,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        super().__init__(
            port=port, binary=binary, password=password, tls=tls, persist=persist, options=options
        )
        self.node_timeout = node_timeout
        self.bus_port = free_port()
        self.node_id = ""

    async def start(self) -> None:
        """Start the server and wait until it answers. It keeps its id and its slots."""
        await super().start()
        reply = await self.query("CLUSTER", "MYID")
        self.node_id = _text(reply)

    async def change_address(self) -> None:
        """Restart the server on another port. The other nodes find it if they run meanwhile."""
        self.kill()
        self._choose_other_ports()
        self._fixed_ports = False  # another process may take one of them first
        await self.start()

    async def info(self) -> dict[str, str]:
        """Return the fields of CLUSTER INFO."""
        lines = _text(await self.query("CLUSTER", "INFO")).split("\r\n")
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def _configuration(self) -> dict[str, Option]:
        lines = super()._configuration()
        ours: dict[str, Option] = {
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "cluster-node-timeout": round(self.node_timeout * 1000),
            "cluster-port": self.bus_port,
        }
        if self.password is not None:
            ours["masterauth"] = quoted(self.password)
        if self.tls_port is not None:  # otherwise Redis 7.0 announces the ports without TLS
            ours |= {"tls-cluster": "yes", "tls-replication": "yes"}
        return ours | lines

    def _choose_other_ports(self) -> None:
        super()._choose_other_ports()
        self.bus_port = free_port()


@dataclass(frozen=True, slots=True)
class ClusterShard:
    """The slots of a master, and its replicas, as a node of the cluster sees them.

    Attributes:
        master: The node that owns the slots.
        replicas: Its replicas, also those that are not running.
        slots: The ranges of slots, each with its first and its last slot.
    """

    master: RedisClusterNode
    replicas: tuple[RedisClusterNode, ...]
    slots: tuple[tuple[int, int], ...]

    def owns(self, slot: int) -> bool:
        """Return whether a slot belongs to this shard."""
        return any(first <= slot <= last for first, last in self.slots)


class SlotMigration:
    """The migration of one slot, key by key. `RedisServerCluster.begin_migration` creates it."""

    def __init__(
        self,
        slot: int,
        source: RedisClusterNode,
        target: RedisClusterNode,
        cluster: RedisServerCluster,
    ) -> None:
        self.slot = slot
        self.source = source
        self.target = target
        self._cluster = cluster

    async def move(self, count: int = _KEYS_PER_STEP) -> int:
        """Move at most that many keys, and return how many were moved.

        Args:
            count: Number of keys.
        """
        keys = await self.source.query("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if not isinstance(keys, list) or not keys:
            return 0
        password = self.target.password
        auth = () if password is None else ("AUTH", password)
        await self.source.query(
            *("MIGRATE", self.target.host, self.target.tls_port or self.target.port),
            *("", 0, _MIGRATE_TIMEOUT),
            *(*auth, "KEYS", *(key for key in keys if isinstance(key, bytes))),
        )
        return len(keys)

    async def move_all(self, *, pause: float = 0.0, count: int = _KEYS_PER_STEP) -> int:
        """Move all keys, with a pause after each step, and return how many were moved.

        Args:
            pause: Seconds after each step.
            count: Number of keys in a step.
        """
        moved = 0
        while step := await self.move(count):
            moved += step
            await asyncio.sleep(pause)
        return moved

    async def finish(self) -> None:
        """Move the rest of the keys, and assign the slot to its new owner."""
        await self.move_all()
        # The new owner first: until the old one knows it, calls are redirected by ASK.
        others = [node for node in self._cluster.nodes if node.running]
        others.sort(key=lambda node: (node is not self.target, node is not self.source))
        for node in others:
            with contextlib.suppress(*_NO_ANSWER, TimeoutError):  # replicas learn it from masters
                await node.query("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.node_id)

    async def cancel(self) -> None:
        """Leave the slot with its owner. Keys that were moved stay where they are."""
        for node in (self.source, self.target):
            await node.query("CLUSTER", "SETSLOT", self.slot, "STABLE")


class RedisServerCluster(Server):
    """A Redis (or Valkey) Cluster on free ports of the loopback interface.

    `async with` starts it and closes it. Starting takes about three seconds, because a master waits
    for two seconds before it serves its slots. Its nodes are servers to kill, freeze and restart.

    Args:
        masters: Number of masters, which share the slots evenly.
        replicas: Number of replicas of each master.
        node_timeout: Seconds without an answer after which a node counts as failed.
        binary: The server program; None for the result of `find_redis`.
        password: Password of clients and replicas; None for none.
        tls: Let clients connect with TLS, too. All nodes have the same certificate.
        persist: Write every command to disk before it is answered.
        options: Lines of the configuration of every node.
    """

    def __init__(
        self,
        *,
        masters: int = 3,
        replicas: int = 0,
        node_timeout: float = 2.0,
        binary: Binary | None = None,
        password: str | None = None,
        tls: bool = False,
        persist: bool = False,
        options: Mapping[str, Option] | None = None,
    ) -> None:
        self._masters = masters
        self._node_options: dict[str, object] = {
            "node_timeout": node_timeout,
            "binary": binary,
            "password": password,
            "tls": tls,
            "persist": persist,
            "options": {"cluster-require-full-coverage": "yes", **(options or {})},
        }
        self.nodes = [self._new_node()]
        if tls:
            self._node_options["tls"] = self.nodes[0].issue_certificates()
        self.nodes += [self._new_node() for _ in range(masters * (1 + replicas) - 1)]
        self._created = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(map(str, self.ports))}>"

    @property
    def ports(self) -> list[int]:
        """The ports of all nodes."""
        return [node.port for node in self.nodes]

    @property
    def url(self) -> str:
        """URL of the first node, for clients."""
        return self.nodes[0].url

    @property
    def tls_url(self) -> str:
        """URL of the TLS port of the first node, with the authority to trust."""
        return self.nodes[0].tls_url

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node that runs."""
        return [(node.host, node.port) for node in self.nodes if node.running]

    async def start(self) -> None:
        """Start the nodes that do not run, and wait until every slot is served.

        Raises:
            NoServerError: This machine has no Redis.
            ServerDidNotStartError: A node exited, or the cluster was not complete within 30 s.
        """
        await asyncio.gather(*(node.start() for node in self.nodes))
        if not self._created:
            await self._create()
            self._created = True
        await self.wait_until_ok()

    def kill(self) -> None:
        """Kill every node (SIGKILL)."""
        for node in self.nodes:
            node.kill()

    async def aclose(self) -> None:
        """Kill every node and remove its folder."""
        for node in self.nodes:
            await node.aclose()

    # -- what the nodes know -----------------------------------------------------------------

    async def shards(self) -> list[ClusterShard]:
        """Return the masters with slots, in the order of their slots.

        Each slot belongs to the running master that claims it with the highest epoch.

        Raises:
            TimeoutError: No node answered.
        """
        best: tuple[int, list[ClusterShard]] | None = None
        for node, reply in await self._ask_all("CLUSTER", "NODES"):
            epoch = int((await node.info()).get("cluster_my_epoch", "0"))
            shards = self._shards_in(_text(reply))
            if best is None or epoch > best[0]:
                best = epoch, shards
        if best is None:
            raise TimeoutError("no node of the cluster answered CLUSTER NODES")
        return best[1]

    async def shard_of(self, slot: int) -> ClusterShard:
        """Return the shard that owns a slot.

        Args:
            slot: Number of the slot.

        Raises:
            LookupError: No node owns it.
        """
        for shard in await self.shards():
            if shard.owns(slot):
                return shard
        raise LookupError(f"no node of the cluster owns slot {slot}")

    async def masters(self) -> list[RedisClusterNode]:
        """Return the masters with slots, in the order of their slots."""
        return [shard.master for shard in await self.shards()]

    async def wait_until_ok(self, timeout: float = _START_TIMEOUT) -> None:
        """Wait until each running node serves, agrees about the slots, and has its master's data.

        Args:
            timeout: Seconds.

        Raises:
            ServerDidNotStartError: That did not happen in time.
        """
        await self._until(self._is_ok, "was not complete", timeout)

    # -- changes -----------------------------------------------------------------------------

    async def failover(self, replica: RedisClusterNode, mode: str | None = None) -> None:
        """Make a replica the master, without loss of data, and wait until both nodes know it.

        Args:
            replica: The replica.
            mode: "FORCE" if its master does not answer, "TAKEOVER" if most masters do not.
        """
        _, _, port, *_ = await _role(replica)
        former = next((node for node in self.nodes if node.port == port), None)
        sent_at = -math.inf

        async def is_done() -> bool:
            nonlocal sent_at
            now = asyncio.get_running_loop().time()
            if now - sent_at > _FAILOVER_TIMEOUT:  # the server has given up without saying so
                sent_at = now
                await replica.query("CLUSTER", "FAILOVER", *([] if mode is None else [mode]))
            if (await _role(replica))[0] != b"master":
                return False
            if mode is not None or former is None or not former.running:
                return True
            return (await _role(former))[0] == b"slave"

        await self._until(is_done, f"did not fail over to {replica}", _START_TIMEOUT)

    async def begin_migration(self, slot: int, target: RedisClusterNode) -> SlotMigration:
        """Begin to move a slot to another master, key by key.

        Args:
            slot: Number of the slot.
            target: The master that gets it.
        """
        source = (await self.shard_of(slot)).master
        await target.query("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        await source.query("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        return SlotMigration(slot, source, target, self)

    async def migrate(self, slot: int, target: RedisClusterNode, *, pause: float = 0.0) -> int:
        """Move a slot to another master, key by key, and return the number of keys moved.

        Args:
            slot: Number of the slot.
            target: The master that gets it.
            pause: Seconds after each ten keys.
        """
        migration = await self.begin_migration(slot, target)
        moved = await migration.move_all(pause=pause)
        await migration.finish()
        return moved

    async def migrate_atomically(self, first: int, last: int, target: RedisClusterNode) -> None:
        """Move slots to another master in one step, which only Valkey 9 and later can do.

        Args:
            first: The first slot.
            last: The last slot, which has the same owner.
            target: The master that gets them.

        Raises:
            ServerError: The server does not support it.
        """
        source = (await self.shard_of(first)).master
        await source.query(
            *("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target.node_id)
        )

        async def moved() -> bool:
            shard = await self.shard_of(first)
            return shard.master is target and shard.owns(last)

        await self._until(moved, f"did not move slots {first} to {last}", _START_TIMEOUT)

    async def add_node(self, *, replica_of: RedisClusterNode | None = None) -> RedisClusterNode:
        """Start another node, without slots, and wait until the others know it.

        Args:
            replica_of: The master whose replica it becomes; None for a master without slots.
        """
        node = self._new_node()
        self.nodes.append(node)
        await node.start()
        await self._introduce(node)
        await self._until(self._all_known, f"did not accept {node}", _START_TIMEOUT)
        if replica_of is not None:
            await node.query("CLUSTER", "REPLICATE", replica_of.node_id)
        await self.wait_until_ok()
        return node

    async def remove_node(self, node: RedisClusterNode) -> None:
        """Make the others forget a node, and kill it. A master must not own slots any more.

        Args:
            node: The node.
        """
        self.nodes.remove(node)
        for other in self.nodes:
            if other.running:
                with contextlib.suppress(ServerError):  # a replica does not forget its master
                    await other.query("CLUSTER", "FORGET", node.node_id)
        await node.aclose()

    async def change_addresses(self) -> None:
        """Kill every node, and start all of them on other ports."""
        self.kill()
        await asyncio.gather(*(node.change_address() for node in self.nodes))
        # Each to each other: gossip alone does not tell replicas where their master is.
        for node in self.nodes:
            for known in self.nodes:
                if known is not node:
                    await known.query("CLUSTER", "MEET", node.host, node.port, node.bus_port)
        await self.wait_until_ok()

    # -- internal ----------------------------------------------------------------------------

    def _new_node(self) -> RedisClusterNode:
        return RedisClusterNode(**self._node_options)  # type: ignore[arg-type]

    async def _create(self) -> None:
        masters, replicas = self.nodes[: self._masters], self.nodes[self._masters :]
        for number, node in enumerate(self.nodes, 1):
            await node.query("CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, node in enumerate(masters):
            first, end = (SLOTS * part // len(masters) for part in (number, number + 1))
            await node.query("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for node in self.nodes[1:]:
            await self._introduce(node)
        await self._until(self._all_known, "nodes did not meet", _START_TIMEOUT)
        for number, node in enumerate(replicas):
            master = masters[number % len(masters)]
            await node.query("CLUSTER", "REPLICATE", master.node_id)

    async def _introduce(self, node: RedisClusterNode) -> None:
        known = next(each for each in self.nodes if each.running and each is not node)
        await known.query("CLUSTER", "MEET", node.host, node.port, node.bus_port)

    async def _all_known(self) -> bool:
        running = [node for node in self.nodes if node.running]
        replies = await self._ask_all("CLUSTER", "NODES")
        texts = [_text(reply) for _, reply in replies]
        return len(texts) == len(running) and all(
            f"{node.node_id} {node.host}:{node.port}@{node.bus_port}" in text
            and "handshake" not in text
            for text in texts
            for node in running
        )

    async def _is_ok(self) -> bool:
        running = [node for node in self.nodes if node.running]
        states = await self._ask_all("CLUSTER", "INFO")
        if len(states) < len(running):
            return False
        if not all(b"cluster_state:ok" in _text(state).encode() for _, state in states):
            return False
        owners: list[object] = []
        for _, reply in await self._ask_all("CLUSTER", "NODES"):
            shards = self._shards_in(_text(reply))
            if not all(shard.master.running for shard in shards):
                return False
            owners.append([(shard.master.port, shard.slots) for shard in shards])
        if any(each != owners[0] for each in owners):
            return False
        for _, reply in await self._ask_all("INFO", "replication"):
            if "master_link_status:down" in _text(reply):
                return False
        return True

    async def _ask_all(
        self, *arguments: str | bytes | float
    ) -> list[tuple[RedisClusterNode, Reply]]:
        """Return the replies of the running nodes that answer within half a second."""
        running = [node for node in self.nodes if node.running]

        async def ask(node: RedisClusterNode) -> Reply:
            with contextlib.suppress(*_NO_ANSWER, TimeoutError):
                async with asyncio.timeout(0.5):
                    return await node.query(*arguments)
            return None

        replies = await asyncio.gather(*map(ask, running))
        pairs = zip(running, replies, strict=True)
        return [(node, reply) for node, reply in pairs if reply is not None]

    def _shards_in(self, text: str) -> list[ClusterShard]:
        """Return the shards that the reply to CLUSTER NODES describes."""
        by_id = {node.node_id: node for node in self.nodes}
        masters: dict[str, list[tuple[int, int]]] = {}
        replicas: dict[str, list[RedisClusterNode]] = {}
        for line in text.splitlines():
            node_id, _, flags, master_id, _, _, _, _, *slots = line.split()
            node = by_id.get(node_id)
            if node is None:
                continue
            if "slave" in flags:
                replicas.setdefault(master_id, []).append(node)
                continue
            ranges = [slot.partition("-") for slot in slots if not slot.startswith("[")]
            if ranges:
                masters[node_id] = [(int(first), int(last or first)) for first, _, last in ranges]
        shards = [
            ClusterShard(by_id[node_id], tuple(replicas.get(node_id, ())), tuple(slots))
            for node_id, slots in masters.items()
        ]
        return sorted(shards, key=lambda shard: shard.slots)

    async def _until(
        self, condition: Callable[[], Awaitable[bool]], failure: str, timeout: float
    ) -> None:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    with contextlib.suppress(*_NO_ANSWER):
                        if await condition():
                            return
                    await asyncio.sleep(_POLL_INTERVAL)
        except TimeoutError:
            reports = [f"{node!r}: {_tail(node.log.splitlines())}" for node in self.nodes]
            text = "\n".join(reports)
            raise ServerDidNotStartError(f"the cluster {failure}:\n{text}") from None


async def _role(node: RedisClusterNode) -> list[Reply]:
    role = await node.query("ROLE")
    if not isinstance(role, list):
        raise InvalidReplyError(f"expected a list, not {role!r}")
    return role


def _text(reply: Reply) -> str:
    if not isinstance(reply, bytes):
        raise InvalidReplyError(f"expected text, not {reply!r}")
    return reply.decode()


def _tail(lines: Sequence[str]) -> str:
    return lines[-1] if lines else "no log"
