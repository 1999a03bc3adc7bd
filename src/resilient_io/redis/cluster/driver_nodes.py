"""The slot table as redis-py's cluster client shows it: its nodes, and its cache of slots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from redis.asyncio.cluster import ClusterNode, NodesManager
from redis.cluster import PRIMARY, REPLICA
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS

from .slots import SlotTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from .slots import Address, Node, Shard


class DriverNodes(NodesManager):
    """redis-py's `NodesManager`, which reads the slot table of the router and connects nowhere.

    Its nodes are made when they are asked for. They have the settings of connections, but none
    open: a `ClusterNode` names the target of a command.
    """

    def __init__(self, like: NodesManager) -> None:
        # Not redis-py's own constructor: it assigns attributes that are properties here.
        self.connection_kwargs = like.connection_kwargs
        self.startup_nodes = like.startup_nodes
        self.require_full_coverage = like.require_full_coverage
        self.address_remap = like.address_remap
        self.read_load_balancer = like.read_load_balancer
        self._initialize_lock = like._initialize_lock
        self._dynamic_startup_nodes = like._dynamic_startup_nodes
        self._event_dispatcher = like._event_dispatcher
        self._background_tasks = like._background_tasks
        self._epoch = 0
        self._table = SlotTable()
        self._made: dict[str, ClusterNode] = {}
        self._addresses: dict[str, Address] = {}
        self._default: ClusterNode | None = None
        self._listeners: list[Callable[[], None]] = []

    def use(self, table: SlotTable) -> None:
        """Show another table from now on."""
        self._table = table
        self._epoch += 1
        if not self._made:
            return
        names = {node.name for node in table.nodes.values()}
        self._made = {name: node for name, node in self._made.items() if name in names}
        kept = [node.name for node in self._made.values()]
        self._addresses = {name: self._addresses[name] for name in kept}
        if self._default is not None and self._default.name not in names:
            self._default = None

    def node(self, node: Node, server_type: str) -> ClusterNode:
        """Return redis-py's object for a node."""
        made = self._made.get(node.name)
        if made is None:
            made = self._made[node.name] = ClusterNode(
                node.host, node.port, server_type, **self.connection_kwargs
            )
            # redis-py 8.1 replaces the name "localhost" by its address.
            self._addresses[made.name] = node.address
        made.server_type = server_type
        return made

    def address_of(self, node: ClusterNode) -> Address:
        """Return where to connect to for redis-py's object."""
        return self._addresses.get(node.name) or (node.host, int(node.port))

    async def aclose(self, attr: str = "nodes_cache") -> None:  # noqa: ARG002 (redis-py's signature)
        """Close the connections that redis-py's own methods have opened to nodes, if any."""
        made, self._made, self._default = list(self._made.values()), {}, None
        for node in made:
            if node._connections:
                await node.disconnect()

    def of_shard(self, shard: Shard | None) -> list[ClusterNode]:
        """Return the nodes of a shard, the master first."""
        if shard is None:
            return []
        replicas = [self.node(node, REPLICA) for node in shard.replicas]
        return [self.node(shard.master, PRIMARY), *replicas]

    if not TYPE_CHECKING:  # redis-py has plain attributes

        @property
        def nodes_cache(self) -> dict[str, ClusterNode]:
            """All nodes by name, as redis-py keeps them."""
            nodes = [node for shard in self._table.shards for node in self.of_shard(shard)]
            return {node.name: node for node in nodes}

        @property
        def slots_cache(self) -> Mapping[int, list[ClusterNode]]:
            """The nodes of each slot that has any."""
            return _Slots(self)

        @property
        def default_node(self) -> ClusterNode | None:
            """The node for commands without keys, as redis-py has one."""
            if self._default is None:
                shards = self._table.shards
                self._default = self.node(shards[0].master, PRIMARY) if shards else None
            return self._default

        @default_node.setter
        def default_node(self, node: ClusterNode | None) -> None:
            self._default = node

    @property
    def table(self) -> SlotTable:
        """The slot table."""
        return self._table


class _Slots(Mapping[int, Any]):
    """redis-py's `slots_cache`, made of the slot table."""

    def __init__(self, nodes: DriverNodes) -> None:
        self._nodes = nodes

    def __getitem__(self, slot: int) -> list[ClusterNode]:
        shard = self._nodes.table.slots[slot] if 0 <= slot < SLOTS else None
        if shard is None:
            raise KeyError(slot)
        return self._nodes.of_shard(shard)

    def __iter__(self) -> Iterator[int]:
        slots = self._nodes.table.slots
        return (slot for slot, shard in enumerate(slots) if shard is not None)

    def __len__(self) -> int:
        return self._nodes.table.owned
