"""Which node has which slot: the table that a client reads from CLUSTER SLOTS.

CLUSTER SHARDS reports the same. Valkey 9.1 added the availability zones to both replies, and only
CLUSTER SLOTS leaves out the replicas that have failed.

A reply of a thousand nodes takes some tens of milliseconds to read. `read_table` therefore returns
to the event loop every 2 ms.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Address: TypeAlias = "tuple[str, int]"

SLOTS: Final = REDIS_CLUSTER_HASH_SLOTS

_SLICE = 0.002
"""Seconds after which reading a reply lets other tasks run."""

_FEW = 0.5
"""Share of the slots below which an answer is not believed on its own."""


@dataclass(frozen=True, slots=True)
class Node:
    """One server of a cluster.

    Attributes:
        host: Where to connect: an address or a name, after the address map.
        port: The port, of TLS if the client uses it.
        id: The node ID, or an empty string if only the address is known.
        zone: The availability zone, or None if it is not known.
    """

    host: str
    port: int
    id: str = ""
    zone: str | None = None

    @property
    def address(self) -> Address:
        """Host and port."""
        return self.host, self.port

    @property
    def name(self) -> str:
        """Host and port as redis-py joins them: `127.0.0.1:7001`."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Shard:
    """A master and its replicas, which all have the same slots."""

    master: Node
    replicas: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The master, then the replicas."""
        return (self.master, *self.replicas)


def starts(values: Sequence[object]) -> list[int]:
    """Return the slots whose value is another object than that of the slot before.

    Few nodes have many slots, in ranges: to look at the first of each range takes a tenth of the
    time that it takes to compare or count the values of all slots.
    """
    following = itertools.islice(values, 1, None)
    changes = map(operator.is_not, values, following)
    return [0, *itertools.compress(range(1, len(values)), changes)]


class AddressRules:
    """How the addresses in the replies of a cluster become addresses to connect to.

    Args:
        address_map: Where nodes can be reached, by the address that the cluster reports: a mapping,
            or a function as redis-py's `address_remap`. Other addresses stay as they are.
        zone_of: Returns the availability zone of a node, if the cluster does not report it.
    """

    def __init__(
        self,
        *,
        address_map: Mapping[Address, Address] | Callable[[Address], Address] | None = None,
        zone_of: Callable[[Node], str | None] | None = None,
    ) -> None:
        self._map: Callable[[Address], Address] | None
        if address_map is None or callable(address_map):
            self._map = address_map
        else:
            known = dict(address_map)
            self._map = lambda address: known.get(address, address)
        self._zone_of = zone_of

    def resolve(self, host: str, port: int, asked: str) -> Address:
        """Return where to connect to.

        Args:
            host: The host of a reply, MOVED or ASK. It is empty if the server does not say.
            port: The port of the same.
            asked: The host at which the server that replied was reached, not mapped again.
        """
        if host in ("", "?"):
            return asked, port
        return (host, port) if self._map is None else self._map((host, port))

    def node(self, host: str, port: int, asked: str, *, id: str, zone: str | None) -> Node:  # noqa: A002
        """Return a node of a reply.

        Args:
            host: As for `resolve`, as are `port` and `asked`.
            port: Not 0.
            asked: The host at which the server that replied was reached.
            id: The node ID.
            zone: The availability zone that the reply reports.
        """
        node = Node(*self.resolve(host, port, asked), id=id, zone=zone)
        if zone is None and self._zone_of is not None:
            node = replace(node, zone=self._zone_of(node))
        return node


class SlotTable:
    """The shard of each slot.

    Attributes:
        slots: By slot, the shard that has it, or None. The hot path reads this list; only `move`
            changes it.
        shards: All shards, also those without slots.
        nodes: All nodes, by address.
        epoch: The configuration epoch of the answer (`cluster_current_epoch`), or None.
    """

    def __init__(
        self,
        slots: list[Shard | None] | None = None,
        shards: Iterable[Shard] = (),
        *,
        epoch: int | None = None,
    ) -> None:
        self.slots: list[Shard | None] = [None] * SLOTS if slots is None else slots
        self.shards = list(shards)
        self.epoch = epoch
        self.nodes: dict[Address, Node] = {}
        self._of_master: dict[Address, Shard] = {}
        for shard in self.shards:
            self._of_master[shard.master.address] = shard
            for node in shard.nodes:
                self.nodes[node.address] = node

    @property
    def owned(self) -> int:
        """How many slots have a master."""
        return sum(map(operator.is_not, self.slots, itertools.repeat(None)))

    @property
    def masters(self) -> list[Node]:
        """The masters, also those without slots."""
        return [shard.master for shard in self.shards]

    @property
    def replicas(self) -> list[Node]:
        """The replicas of all shards."""
        return [node for shard in self.shards for node in shard.replicas]

    def slots_of(self, address: Address) -> list[int]:
        """Return the slots of a master, in ascending order. Takes about a millisecond."""
        return [
            slot
            for slot, shard in enumerate(self.slots)
            if shard is not None and shard.master.address == address
        ]

    def move(self, slot: int, address: Address) -> Shard:
        """Assign one slot to the master at an address, as MOVED says, and return its shard.

        A replica at that address is a master from now on. An unknown node becomes a new shard.
        """
        shard = self._of_master.get(address)
        if shard is None:
            shard = self._shard_of_new_master(slot, address)
            self.shards.append(shard)
            self._of_master[address] = shard
            self.nodes.setdefault(address, shard.master)
        self.slots[slot] = shard
        return shard

    def _shard_of_new_master(self, slot: int, address: Address) -> Shard:
        node = self.nodes.get(address) or Node(*address)
        before = self.slots[slot]
        if before is None or node not in before.replicas:
            return Shard(node)
        # The old master is a replica now, although it still has the other slots here.
        self._of_master.pop(before.master.address, None)
        self.shards = [shard for shard in self.shards if shard is not before]
        return Shard(node, tuple(each for each in before.nodes if each != node))


def newest(answers: Sequence[SlotTable], known: SlotTable | None = None) -> SlotTable | None:
    """Return the answer to replace the known table, or None to keep that.

    Answers with an older epoch than another answer, or than the known table, are ignored. So are
    those in which far fewer slots have a master than in most others: a node that was reset, or was
    cut off, knows less. A single answer is compared with the known table.
    """
    epochs = [each.epoch for each in (*answers, known) if each is not None and each.epoch]
    current = max(epochs, default=0)
    fresh = [answer for answer in answers if answer.epoch is None or answer.epoch >= current]
    if not fresh:
        return None
    counts = sorted(answer.owned for answer in fresh)
    expected = counts[len(counts) // 2]
    if len(fresh) == 1 and known is not None:
        expected = max(expected, known.owned)
    believed = [answer for answer in fresh if answer.owned >= expected * _FEW]
    return max(believed, key=lambda answer: (answer.epoch or 0, answer.owned), default=None)


def epoch_of(info: str | bytes) -> int | None:
    """Return the current epoch from a reply to CLUSTER INFO, or None if it lacks one."""
    for line in _text(info).splitlines():
        name, _, value = line.partition(":")
        if name == "cluster_current_epoch" and value.isdigit():
            return int(value)
    return None


async def read_table(
    reply: Any,
    *,
    asked: str,
    rules: AddressRules | None = None,
    epoch: int | None = None,
    known: SlotTable | None = None,
) -> SlotTable:
    """Return the table that a reply to CLUSTER SLOTS describes.

    Cancelling has no effect on any table.

    Args:
        reply: The reply as the server sent it, in RESP2 or RESP3, with bytes or str.
        asked: The host at which the server was asked. A server that does not know its own address
            leaves it out.
        rules: How to reach the nodes.
        epoch: The epoch of the same server, from CLUSTER INFO.
        known: The current table; shards that have not changed are the same objects.

    Raises:
        redis.exceptions.InvalidResponse: The reply has another form.
    """
    reader = _Reader(asked, rules or AddressRules(), known)
    try:
        await reader.read(reply)
    except (TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise InvalidResponse(f"not a reply to CLUSTER SLOTS: {error}") from error
    return SlotTable(reader.slots, reader.shards, epoch=epoch)


class _Reader:
    """Reads one reply, in slices of the event loop's time."""

    def __init__(self, asked: str, rules: AddressRules, known: SlotTable | None) -> None:
        self.slots: list[Shard | None] = [None] * SLOTS
        self.shards: list[Shard] = []
        self._asked = asked
        self._rules = rules
        self._known = {} if known is None else {shard: shard for shard in known.shards}
        self._of_range: dict[Any, Shard] = {}  # by the addresses of its nodes
        self._distinct: dict[Shard, Shard] = {}
        self._time = asyncio.get_running_loop().time
        self._until = self._time() + _SLICE

    async def read(self, reply: Any) -> None:
        for entry in reply:
            self._read_range(entry)
            if self._time() >= self._until:
                await asyncio.sleep(0)
                self._until = self._time() + _SLICE

    def _read_range(self, entry: Sequence[Any]) -> None:
        first, last, *nodes = entry
        if not isinstance(first, int):
            raise TypeError(f"{first!r} is not a slot")
        key = tuple([(node[0], node[1]) for node in nodes])
        shard = self._of_range.get(key)
        if shard is None:
            master, *replicas = [self._node(*node) for node in nodes] or [None]
            if master is None:
                return
            shard = self._same(Shard(master, tuple(node for node in replicas if node is not None)))
            self._of_range[key] = shard
        self._assign(first, last, shard)

    def _node(
        self, host: Any, port: int, identity: Any = "", metadata: Any = (), *_: Any
    ) -> Node | None:
        if not port:
            return None  # it has no port for clients such as this one, with TLS or without
        facts, text = _mapping(metadata), _text(host or "")
        if text == "?":  # the node has no host name, and the cluster prefers names
            text = facts.get("ip") or ""
        zone = facts.get("availability-zone") or None
        return self._rules.node(text, port, self._asked, id=_text(identity), zone=zone)

    def _same(self, shard: Shard) -> Shard:
        """Return the object of an equal shard, if there is one."""
        known = self._distinct.get(shard)
        if known is None:
            known = self._distinct[shard] = self._known.get(shard, shard)
            self.shards.append(known)
        return known

    def _assign(self, first: int, last: int, shard: Shard) -> None:
        if not 0 <= first <= last < SLOTS:
            raise ValueError(f"slots {first} to {last}")
        self.slots[first : last + 1] = [shard] * (last + 1 - first)


def _mapping(entry: Any) -> dict[str, Any]:
    """Return a map, or a list of names and values (RESP2), with text for bytes."""
    pairs = entry.items() if isinstance(entry, dict) else zip(entry[::2], entry[1::2], strict=True)
    return {
        _text(name): _text(value) if isinstance(value, bytes) else value for name, value in pairs
    }


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
