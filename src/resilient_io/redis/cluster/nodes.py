"""The connections to the nodes of a cluster: a `Runtime` for each node, opened at its first use."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from resilient_io.health import Cause, ClientDependency
from resilient_io.histogram import Latencies
from resilient_io.text import format_address

from ..connect import RedisTarget, connect
from ..driver_connection import StallTolerantTimeout, abort, exchange
from ..errors import ConnectionFailure
from ..runtime import Runtime
from ..stats import RedisStats

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency, HealthSettings
    from resilient_io.retry import RetryPolicy

    from ..attempt import Search, Server
    from ..connection import MultiplexedConnection
    from ..executor import Executor
    from ..multiplexer import Multiplexer
    from ..options import ConnectionSettings
    from ..pool import ExclusivePool
    from ..scripts import ScriptBodies
    from .slots import Address

_POOL_ONLY = ("response_callbacks", "connection_class", "max_connections", "host", "port")
"""Options of redis-py 8.1's `ClusterNode` that are not those of its connections."""

_LAST_REPLIES = 0.05  # seconds between checks whether a node that left has calls in flight
_LONGEST_FAREWELL = 30.0  # seconds after which its connections are closed all the same

_TAKEN_OVER = ConnectionFailure(
    Cause.CONNECTION_LOST, "another node took over its slots while it was silent", definite=False
)


class NodeTarget(RedisTarget):
    """How to connect to a node of a cluster, whose redirections the client follows."""

    def explain_reply(self, error: Exception, *, known: bool) -> Exception:  # noqa: ARG002
        """Return an error reply as it is."""
        return error


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the connections to all nodes of a cluster have in common.

    Attributes:
        options: Options of redis-py's connections, as `RedisCluster` collects them.
        policy: Times and retries.
        connections: The number of shared connections to each node, and their limits.
        health: Times and thresholds of the probe of each node; None for the defaults.
        name: Name of the cluster in logs and errors.
        rng: Source of jitter and names.
        updated: Called after each change of a node's availability.
        scripts: The scripts that the client knows.
    """

    options: Mapping[str, Any]
    policy: RetryPolicy
    connections: ConnectionSettings
    health: HealthSettings | None
    name: str
    rng: random.Random
    updated: Callable[[Dependency], object]
    scripts: ScriptBodies

    def pool(self, address: Address) -> ConnectionPool:
        """Return a pool of redis-py that is never connected: it holds the settings of a node."""
        options = {name: value for name, value in self.options.items() if name not in _POOL_ONLY}
        host, port = address
        return ConnectionPool(
            connection_class=self.options["connection_class"],
            max_connections=self.options["max_connections"],
            host=host,
            port=port,
            **options,
        )

    async def ask(
        self, address: Address, *commands: Sequence[str]
    ) -> list[Any] | ConnectionFailure:
        """Send commands to a node on a new connection, and return the replies, or why not."""
        target, policy = NodeTarget(self.pool(address)), self.policy
        connection: AbstractConnection | None = None
        try:
            connection = await connect(
                target, timeout=policy.connect_timeout, user_timeout=policy.response_timeout
            )
            async with StallTolerantTimeout(policy.connect_timeout):
                return await exchange(connection, *commands)
        except (RedisError, OSError) as error:
            return target.failure(error)
        finally:
            if connection is not None:
                abort(connection)
            await target.aclose()


class NodeDependency(ClientDependency):
    """The availability of one node, whose failures are also a reason to look at the slot table."""

    def __init__(self, *args: Any, suspected: Callable[[], None], **options: Any) -> None:
        self._suspected = suspected
        super().__init__(*args, **options)

    def failed(
        self, cause: Cause, detail: str = "", *, definite: bool = False, answered: bool = False
    ) -> None:
        """Report the failure of a call or a connection."""
        super().failed(cause, detail, definite=definite, answered=answered)
        self._suspected()

    def note(self, event: str, **fields: object) -> None:
        """Record an event. A failed probe may not have changed the state yet."""
        super().note(event, **fields)
        if event == "probe failed":
            self._suspected()


class _Unopened:
    """Stands in for the multiplexer of a node to which no call was sent yet."""

    fast = None


_UNOPENED = _Unopened()


class NoOwner:
    """Stands in for the owner of a slot that no node serves, as far as is known."""

    hot = _UNOPENED


NO_OWNER = NoOwner()


class Member:
    """One node and the connections to it, which are made when the first call is sent to it.

    Attributes:
        address: Host and port.
        hot: Its multiplexer, for the hot path: `hot.fast` is None unless everything is well.
        suspected_at: Loop time at which it last failed, or -inf if it has answered since.
        left: Whether it has left the cluster, so it must not be opened again.
    """

    hot: Multiplexer | _Unopened

    def __init__(
        self,
        address: Address,
        settings: NodeSettings,
        *,
        search: Search,
        suspected: Callable[[Member], None],
        may_open: Callable[[], bool],
    ) -> None:
        self.address = address
        self.suspected_at = -math.inf
        self.left = False
        self.hot = _UNOPENED
        self._may_open = may_open
        self._settings = settings
        self._search = search
        self._suspected = suspected
        self._runtime: Runtime | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @property
    def name(self) -> str:
        """Host and port as text."""
        return format_address(*self.address)

    @property
    def runtime(self) -> Runtime:
        """Its connections, which are not open before `open`."""
        if self._runtime is None:
            settings = self._settings
            pool = settings.pool(self.address)
            health = NodeDependency(
                f"{settings.name} node {self.name}",
                settings=settings.health,
                rng=settings.rng,
                suspected=partial(self._suspected, self),
            )
            self._runtime = Runtime(
                target=NodeTarget(pool),
                policy=settings.policy,
                health=health,
                settings=settings.connections,
                template=pool,
                rng=settings.rng,
                bound=False,
                search=self._search,
                scripts=settings.scripts,
            )
            health.on_update(settings.updated)
        return self._runtime

    @property
    def opened(self) -> bool:
        """Whether its connections were ever needed."""
        return self._runtime is not None

    @property
    def health(self) -> Dependency:
        """Its availability."""
        return self.runtime.health

    @property
    def server(self) -> Server:
        """What the executor knows about it."""
        return self.runtime.server

    @property
    def multiplexer(self) -> Multiplexer:
        """Its multiplexed connections."""
        return self.runtime.multiplexer

    @property
    def pool(self) -> ExclusivePool:
        """Its exclusive connections."""
        return self.runtime.pool

    @property
    def suspect(self) -> bool:
        """Whether it has failed, and not answered since."""
        if self._runtime is None:
            return False
        if self.suspected_at > -math.inf and self.multiplexer.last_byte() > self.suspected_at:
            self.suspected_at = -math.inf
        return self.suspected_at > -math.inf or not self.health.available

    @property
    def lost(self) -> bool:
        """Whether its slots are not served, as far as is known."""
        if not self.opened:
            return False
        health = self.health
        return not health.available or (health.refusing and health.cause is Cause.CLUSTER_DOWN)

    @property
    def connection(self) -> MultiplexedConnection | None:
        """An open connection for a question of the library itself, or None."""
        running = self._runtime is not None and self._runtime.running
        return self.multiplexer.open_connection if running else None

    @property
    def ready(self) -> bool:
        """Whether its connections are open, or are being opened, in the running event loop."""
        runtime = self._runtime
        return runtime is not None and self.hot is runtime.multiplexer and runtime.ready

    @property
    def idle(self) -> bool:
        """Whether no call uses it."""
        multiplexer = self.multiplexer
        in_flight = sum(connection.in_flight for connection in multiplexer.connections)
        return not (in_flight or multiplexer.waiting or self.pool.in_use)

    async def open(self) -> None:
        """Open its connections, unless they are, or the client is closed meanwhile."""
        if self.runtime.executor.closed:
            await self.runtime.reopen()
        self.start()

    def start(self) -> None:
        """Open its connections in the running loop, unless the client is closed. Idempotent."""
        if self.left or not self._may_open():
            return
        self.runtime.start()
        self.hot = self.runtime.multiplexer

    def give_up(self) -> None:
        """Close its connections: another node has its slots, so its late replies mean nothing."""
        if self._runtime is None:
            return
        for connection in self.multiplexer.connections:
            connection.close(_TAKEN_OVER)
        self.pool.drop_all()
        self.pool.end_waits(_TAKEN_OVER)

    async def close_when_idle(self) -> None:
        """Close it after the last reply: it has left the cluster."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LONGEST_FAREWELL
        await asyncio.sleep(_LAST_REPLIES)  # a call may be about to use it
        while not self.idle and loop.time() < until:  # noqa: ASYNC110 (several events end it)
            await asyncio.sleep(_LAST_REPLIES)
        await self.aclose()

    async def aclose(self) -> None:
        """Close its connections. Calls without a reply end as closed."""
        if self._runtime is not None:
            await self._runtime.aclose(_nothing_else)


async def _nothing_else() -> None:
    """Close nothing more."""


class NodeTotals:
    """The counters of nodes that were left, so that totals never decrease."""

    def __init__(self) -> None:
        self.replies = self.sent = self.received = 0
        self.latencies = Latencies()

    def add(self, member: Member) -> None:
        """Add the counters of a node."""
        multiplexer = member.multiplexer
        replies, sent, received = multiplexer.traffic
        self.replies += replies
        self.sent += sent
        self.received += received
        self.latencies.add(multiplexer.latencies)

    def copy(self) -> NodeTotals:
        """Return a copy, to which the counters of the present nodes can be added."""
        copied = NodeTotals()
        copied.replies, copied.sent, copied.received = self.replies, self.sent, self.received
        copied.latencies.add(self.latencies)
        return copied


class Members:
    """The nodes of a cluster that are known, by address.

    A `Member` is created for each node that a call is sent to, and opened at its first call.
    """

    def __init__(
        self, settings: NodeSettings, *, search: Search, suspected: Callable[[Member], None]
    ) -> None:
        self._settings = settings
        self._search = search
        self._suspected = suspected
        self._known: dict[Address, Member] = {}
        self._leaving: dict[Member, asyncio.Task[None]] = {}
        self.closed = False
        self.left = NodeTotals()
        """The counters of the nodes that have left."""

    def __iter__(self) -> Iterator[Member]:
        """Iterate over the members."""
        return iter(list(self._known.values()))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._known)

    def find(self, address: Address) -> Member | None:
        """Return the member at an address, or None."""
        return self._known.get(address)

    def get(self, address: Address) -> Member:
        """Return the member at an address, which may be new."""
        member = self._known.get(address)
        if member is None:
            member = self._known[address] = Member(
                address,
                self._settings,
                search=self._search,
                suspected=self._suspected,
                may_open=self._may_open,
            )
        return member

    def current(self, member: Member) -> Member:
        """Return a member, or if it has left, the one at its address that replaces it."""
        return self.get(member.address) if member.left else member

    def _may_open(self) -> bool:
        return not self.closed

    def carrying(self, connection: object) -> Member | None:
        """Return the member whose shared connection this is, or None."""
        owner = getattr(connection, "owner", None)
        opened = (each for each in self.all if each.opened)
        return next((each for each in opened if each.multiplexer is owner), None)

    def keep(self, addresses: Sequence[Address]) -> list[Member]:
        """Begin to close the members at other addresses, and return them."""
        wanted = dict.fromkeys(addresses)
        gone = [member for member in self if member.address not in wanted]
        for member in gone:
            self._leave(member)
        return gone

    def _leave(self, member: Member) -> None:
        del self._known[member.address]
        member.left = True
        if not member.opened:
            return
        task = asyncio.get_running_loop().create_task(
            member.close_when_idle(), name=f"resilient-io redis leave {member.name}"
        )
        self._leaving[member] = task
        task.add_done_callback(partial(self._left, member))

    def _left(self, member: Member, _task: asyncio.Task[None]) -> None:
        """Keep only the counters of a member that was closed."""
        self._leaving.pop(member, None)
        self.left.add(member)

    @property
    def all(self) -> list[Member]:
        """The members, also those that left and have calls in flight."""
        return [*self._known.values(), *self._leaving]

    def forget_loop(self) -> None:
        """Forget the tasks and times of a loop that was closed."""
        self._leaving.clear()
        for member in self:
            member.suspected_at = -math.inf

    async def aclose(self) -> None:
        """Close every member. None is opened before `closed` is reset."""
        self.closed = True
        leaving = list(self._leaving.values())
        for task in leaving:
            task.cancel()
        closing = [asyncio.ensure_future(member.aclose()) for member in self.all]
        if leaving or closing:
            await asyncio.wait([*leaving, *closing])


def read_stats(members: Members, executor: Executor) -> RedisStats:
    """Return the counters of a cluster client: those of all nodes together."""
    totals = members.left.copy()
    opened = [member for member in members.all if member.opened]
    for member in opened:
        totals.add(member)
    connections = [each for member in opened for each in member.multiplexer.connections]
    return RedisStats(
        replies=totals.replies,
        ended=dict(executor.ended),
        refused=executor.refusals,
        retries=executor.retries,
        connections=len(connections),
        exclusive=sum(member.pool.open for member in opened),
        in_flight=sum(connection.in_flight for connection in connections),
        waiting=sum(member.multiplexer.waiting for member in opened),
        bytes_sent=totals.sent,
        bytes_received=totals.received,
        budget=executor.budget.tokens,
        latency=totals.latencies.quantiles,
        latency_total=totals.latencies.total,
        latency_counts=totals.latencies.counts,
    )
