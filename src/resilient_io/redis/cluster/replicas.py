"""Reads that replicas answer: which node of a shard gets them, and how old its data may be."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.cluster import LoadBalancingStrategy
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.utils import str_if_bytes

from resilient_io.errors import ConfigurationError
from resilient_io.tasks import describe_task_end, log_task_death
from resilient_io.validation import check_choice, check_number

from ..replicas import DEFAULT_MAX_LAG, LEAST_MAX_LAG, READ_FROM

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping, Sequence

    from .nodes import Member, Members
    from .router import Router
    from .slots import Node, Shard

_RECHECKED: Final = 0.1  # seconds for which the choice between the nodes of a shard is kept
_SAMPLES: Final = 64  # offsets of each master that are remembered
_ANSWER_TIMEOUT: Final = 1.0  # seconds for the answer to INFO
_FASTEST_CHECK: Final = 0.1  # seconds between two looks at the lag, at least
_SLOWEST_CHECK: Final = 5.0
_NEAR: Final = 1.5  # times the lowest latency, up to which a node counts as near
_NEAR_SECONDS: Final = 0.0005  # the same as a difference

_INFO: Final = b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"
_READONLY: Final = ("READONLY",)

_STRATEGIES: Mapping[LoadBalancingStrategy, str] = {
    LoadBalancingStrategy.ROUND_ROBIN: "any",
    LoadBalancingStrategy.RANDOM: "any",
    LoadBalancingStrategy.ROUND_ROBIN_REPLICAS: "replica",
    LoadBalancingStrategy.RANDOM_REPLICA: "replica",
}
"""redis-py's option, and what it means here."""


class ReadOptions(NamedTuple):
    """Which nodes answer reads."""

    read_from: str = "master"
    max_lag: float | None = DEFAULT_MAX_LAG  # seconds that a replica may lag behind
    zone: str | None = None  # the availability zone of this process

    @classmethod
    def of(
        cls,
        read_from: str | None,
        max_lag: float | None,
        zone: str | None,
        theirs: Mapping[str, Any],
    ) -> ReadOptions:
        """Return our options, checked, or what those of redis-py mean.

        Raises:
            ConfigurationError: They contradict each other, or an option has a wrong value.
        """
        meant: str | None = None
        if theirs.get("load_balancing_strategy") is not None:
            meant = _STRATEGIES.get(theirs["load_balancing_strategy"])
        elif theirs.get("read_from_replicas"):
            meant = "any"
        if read_from is not None:
            check_choice("read_from", read_from, READ_FROM)
        if read_from is not None and meant not in (None, read_from):
            raise ConfigurationError(
                f"read_from={read_from!r} contradicts read_from_replicas= or "
                f"load_balancing_strategy=: use only one of them"
            )
        found = read_from or meant or "master"
        if max_lag is not None:
            check_number("max_lag", max_lag, least=LEAST_MAX_LAG)
        if found != "nearest" and zone is not None:
            raise ConfigurationError(f'zone={zone!r} needs read_from="nearest"')
        return cls(found, max_lag, zone)

    def make(self, router: Router, rng: random.Random) -> ReplicaReads | None:
        """Return what chooses the nodes for reads, or None if masters get all."""
        return None if self.read_from == "master" else ReplicaReads(router, self, rng)


async def send_readonly(connection: Any) -> None:
    """Set up a connection on which a replica answers reads, as redis-py does (`on_connect`).

    A master ignores it.
    """
    await connection.on_connect()
    await connection.send_command(*_READONLY)
    if str_if_bytes(await connection.read_response()) != "OK":
        raise ConnectionLostError("the server refused READONLY")


class ReplicaReads:
    """Chooses the node that gets a read.

    A node qualifies while it is not suspected of a failure, and does not lag behind for too long.
    If no replica qualifies, the master gets the read.

    Args:
        router: Knows the shards and their nodes.
        options: Which nodes of a shard to use.
        rng: Begins the sequence of choices.
    """

    def __init__(self, router: Router, options: ReadOptions, rng: random.Random) -> None:
        self.lag = None if options.max_lag is None else ReplicaLag(router, options.max_lag)
        self._router = router
        self._read_from = options.read_from
        self._zone = options.zone
        self._choices: dict[int, _Choices] = {}  # by the identity of the shard
        self._random = rng.getrandbits(31)

    def choose(self, slot: int, avoid: Sequence[Member] = ()) -> Member | None:
        """Return the node for a read of a slot, or None for its master.

        Args:
            slot: The slot.
            avoid: Nodes that have just failed.
        """
        shard = self._router.table.slots[slot]
        if shard is None or not shard.replicas:
            return None
        choices = self._choices.get(id(shard))
        now = asyncio.get_running_loop().time()
        if choices is None or choices.shard is not shard or now >= choices.until:
            choices = self._choose_again(shard, now)
        members = choices.members
        if avoid:
            members = [member for member in members if member not in avoid]
        if not members:
            return None
        # Not in turn: a call may choose twice, and would skip every other node.
        self._random = (self._random * 1_103_515_245 + 12_345) & 0x7FFF_FFFF
        return members[(self._random >> 16) % len(members)]

    def _choose_again(self, shard: Shard, now: float) -> _Choices:
        if len(self._choices) > len(self._router.table.shards):
            self._choices.clear()
        members = self._router.members
        master = members.get(shard.master.address)
        nodes = [node for node in shard.replicas if self._qualifies(node, members, now)]
        found = [members.get(node.address) for node in nodes]
        if self._read_from != "replica" and not master.suspect:
            nodes, found = [shard.master, *nodes], [master, *found]
        if self._read_from == "nearest":
            found = self._nearest(nodes, found)
        choices = _Choices(shard, found, now + _RECHECKED)
        self._choices[id(shard)] = choices
        return choices

    def _qualifies(self, node: Node, members: Members, now: float) -> bool:
        member = members.get(node.address)
        if member.opened and member.suspect:
            return False
        if self.lag is None:
            return True
        if not member.opened:
            member.start()  # so that its lag can be found out
        return self.lag.is_low(node.address, now)

    def _nearest(self, nodes: Sequence[Node], members: list[Member]) -> list[Member]:
        """Return the nodes of the same zone, or else those that answer the fastest."""
        if self._zone is not None:
            pairs = zip(nodes, members, strict=True)
            same = [member for node, member in pairs if node.zone == self._zone]
            if same:
                return same
        latencies = [member.health.latency if member.opened else None for member in members]
        known = [latency for latency in latencies if latency is not None]
        if not known:
            return members
        most = max(min(known) * _NEAR, min(known) + _NEAR_SECONDS)
        return [
            member
            for member, latency in zip(members, latencies, strict=True)
            if latency is None or latency <= most
        ]


class _Choices:
    """The nodes of a shard that may get reads, for a short time."""

    __slots__ = ("members", "shard", "until")

    def __init__(self, shard: Shard, members: list[Member], until: float) -> None:
        self.shard = shard
        self.members = members
        self.until = until


class ReplicaLag:
    """How old the data of each replica is, from the replication offsets in INFO.

    A replica has all that its master had when the offset of the master was what the replica has
    now. So its lag is the time since then.

    Args:
        router: Knows the shards and their nodes.
        most: The longest lag in seconds.
    """

    def __init__(self, router: Router, most: float) -> None:
        self._router = router
        self._most = most
        self._interval = min(max(most / 4, _FASTEST_CHECK), _SLOWEST_CHECK)
        self._offsets: dict[tuple[str, int], deque[tuple[float, int]]] = {}  # of masters, by time
        self._current: dict[tuple[str, int], float] = {}
        """The latest loop time of which a replica has all data, by address."""
        self._complete = False  # whether the lag of every replica that answers is known
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to look at the lag in the running loop. Idempotent."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(
                self._watch(), name="resilient-io redis replica lag", context=Context()
            )
            self._task.add_done_callback(log_task_death)

    def failure(self) -> str | None:
        """Return why the task ended, or None."""
        return describe_task_end(self._task)

    def forget_loop(self) -> None:
        """Forget the task of a loop that was closed."""
        self._task = None
        self._offsets.clear()
        self._current.clear()

    async def aclose(self) -> None:
        """End the task. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.forget_loop()

    def is_low(self, address: tuple[str, int], now: float) -> bool:
        """Return whether a replica has all data of a master that is not too old."""
        current = self._current.get(address)
        return current is not None and now - current <= self._most

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    await self._look()
            # Until the lag of every replica in use is known, their masters get the reads.
            await asyncio.sleep(self._interval if self._complete else _FASTEST_CHECK)

    async def _look(self) -> None:
        """Ask the nodes of all shards whose replicas are in use: masters first."""
        shards = [shard for shard in self._router.table.shards if self._in_use(shard)]
        known = {node.address for shard in shards for node in shard.nodes}
        for table in (self._offsets, self._current):
            for address in [address for address in table if address not in known]:
                del table[address]
        now = asyncio.get_running_loop().time()
        masters = await self._ask(shard.master for shard in shards)
        for address, facts in masters.items():
            if facts.get("role") == "master":
                samples = self._offsets.setdefault(address, deque(maxlen=_SAMPLES))
                samples.append((now, int(facts.get("master_repl_offset", 0))))
        replicas = await self._ask(itertools.chain(*(shard.replicas for shard in shards)))
        for shard in shards:
            samples = self._offsets.get(shard.master.address, deque())
            for node in shard.replicas:
                facts = replicas.get(node.address, {})
                if facts.get("role") == "slave":
                    offset = int(facts.get("slave_repl_offset", -1))
                    reached = [at for at, sample in samples if sample <= offset]
                    if reached:
                        self._current[node.address] = reached[-1]
        self._complete = self._current.keys() >= replicas.keys()

    def _in_use(self, shard: Shard) -> bool:
        found = (self._router.members.find(node.address) for node in shard.replicas)
        return any(member is not None and member.opened for member in found)

    async def _ask(self, nodes: Iterable[Node]) -> dict[tuple[str, int], dict[str, str]]:
        """Return the facts of INFO of the nodes that answer in time, by address."""
        futures: dict[tuple[str, int], asyncio.Future[object]] = {}
        for node in nodes:
            member = self._router.members.find(node.address)
            connection = member.connection if member is not None and member.opened else None
            if connection is not None:
                futures[node.address] = connection.ask(_INFO)
        if futures:
            await asyncio.wait(futures.values(), timeout=_ANSWER_TIMEOUT / 4)
        replies = {address: each.result() for address, each in futures.items() if each.done()}
        return {
            address: _facts(reply)
            for address, reply in replies.items()
            if isinstance(reply, str | bytes)
        }


def _facts(info: str | bytes) -> dict[str, str]:
    lines = (info if isinstance(info, str) else info.decode()).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
