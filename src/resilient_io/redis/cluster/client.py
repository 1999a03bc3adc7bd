"""`ResilientRedisCluster`: redis-py's cluster client, whose commands pass through the executor."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import warnings
from _thread import get_ident
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, NoReturn, Self

import hiredis
import redis.asyncio as driver
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import AskError, RedisClusterException, RedisError, WatchError
from redis.maint_notifications import MaintNotificationsConfig

from resilient_io.binding import SYSTEM_RANDOM
from resilient_io.deadlines import current_deadline
from resilient_io.errors import ConfigurationError
from resilient_io.health import ClientDependency, HealthSettings
from resilient_io.text import format_address, quote_url, redact_credentials
from resilient_io.validation import check_name, check_number, check_seconds

from ..attempt import BULK_HEADERS, KEY_ONLY, LONG_KEY, SIZED, Command, MultiplexedCall, Packer
from ..callbacks import shorten_for_ok
from ..commands import SPECS, Route, lookup
from ..connect import driver_info
from ..errors import RouteRefused
from ..exclusive_call import ExclusiveCall
from ..frequent import FrequentCommands
from ..instrumentation import operation_of, traced
from ..lock import ResilientLock
from ..options import (
    ConnectionSettings,
    check_address,
    check_conflicts,
    check_types,
    explain_options,
    policy_from_options,
    pool_from_url,
    probe_interval,
)
from ..replicas import DEFAULT_MAX_LAG
from ..response_queue import LARGE
from ..scripts import ScriptBodies
from ..sentinel_options import is_sentinel_url
from .call import ClusterCall, TableCall
from .driver_nodes import DriverNodes
from .keys import KeySlots, merge_replies, node_flag, replica_may_answer
from .multi_key import MultiKeyCommands
from .nodes import read_stats
from .pipeline import ResilientClusterPipeline
from .pubsub import ResilientClusterPubSub
from .replicas import ReadOptions, send_readonly
from .runtime import ClusterRuntime
from .slots import AddressRules

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from redis.asyncio.lock import Lock
    from redis.typing import KeyT

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from ..attempt import Call
    from ..commands import CommandSpec
    from ..instrumentation import Tracing
    from ..large_values import Packed
    from ..stats import RedisStats
    from .nodes import Member
    from .slots import Node

_NO_OPTIONS: dict[str, Any] = {}

_pack: Callable[[Any], bytes] = hiredis.pack_command
_spec_of = SPECS.get
_get_callback: Callable[[Any, str], Callable[..., Any] | None] = dict.get

_RETRY_OPTIONS = ("retry", "retry_on_error", "retry_on_timeout")
_DRIVER_OPTIONS = ("driver_info", "lib_name", "lib_version")
_NODES = "use startup_nodes=[redis.asyncio.cluster.ClusterNode('localhost', 6379)]"


def _check_nodes(host: object, port: object, startup_nodes: object) -> None:
    check_address({"host": host, "port": port})
    if not host and not startup_nodes:
        raise ConfigurationError(
            "no node given: use ResilientRedisCluster.from_url('redis://localhost:6379'), host= "
            "and port=, or startup_nodes=[ClusterNode('localhost', 6379)] for several nodes"
        )
    if startup_nodes is not None and not isinstance(startup_nodes, list | tuple):
        raise TypeError(f"startup_nodes must be a list, not {_kind(startup_nodes)}: {_NODES}")
    for node in startup_nodes or ():
        if not isinstance(node, ClusterNode):
            raise TypeError(
                f"startup_nodes must contain ClusterNode objects, not {_kind(node)}: {_NODES}"
            )


def _kind(value: object) -> str:
    return type(value).__name__


class ResilientRedisCluster(FrequentCommands, MultiKeyCommands):  # type: ignore[misc] # in redis-py
    """A `redis.asyncio.RedisCluster` that never repeats a non-idempotent write.

    Every command, type and constructor is redis-py's. `async with` looks for the nodes; without it
    the first command does. If no node answers, the client neither raises nor waits for longer than
    the connect timeout: `redis.health` shows the state. While some slots are lost, it is DEGRADED.

    A call fails with one of the errors in `resilient_io.redis.errors`, which are also redis-py's.
    Redirections (MOVED, ASK) are followed, and calls that the cluster refuses for now (TRYAGAIN,
    CLUSTERDOWN, LOADING) are repeated until the deadline. Cancelling a call returns immediately.

    Args:
        policy: How often and how long to try. By default, `RetryPolicy()` with the times and
            retries of redis-py's own options (`socket_timeout`, `retry`).
        health: The dependency of the whole cluster, if the application creates it.
        connections: The number of shared connections to each node, and how much may be in flight.
        name: The name of the client and of its dependency in logs, errors and metrics. By default,
            "redis cluster" and the address of the first node.
        rng: Source of jitter, client names and lock tokens; pass a seeded one to replay a schedule.
        reopen: Whether a call after `aclose()` opens the client again, as in redis-py. Otherwise it
            raises `RedisClosed`.
        refresh_interval: Seconds between two looks at the slot table while nothing changes. Every
            redirection and every failure of a node is a reason for an earlier one.
        down_share: Share of the slots, above 0 and up to 1, whose loss makes the state DOWN. With
            less, it is DEGRADED, and `HealthMonitor` is ready.
        read_from: Which nodes answer reads: "master" (default), "replica", "any" of a shard, or the
            "nearest", by zone or else by latency. If no replica qualifies, the master does. The
            data of a replica is older. redis-py's options for this have the same effect.
        max_lag: Longest time in seconds by which the data of a replica may be older, at least 0.1;
            None for any.
        zone: The availability zone of this process, for "nearest".
        zone_of: Returns the zone of a node (`host`, `port`, `id`) that reports none.
        **options: All options of `redis.asyncio.RedisCluster`. `require_full_coverage`,
            `reinitialize_steps` and `dynamic_startup_nodes` have no effect: the client serves the
            slots that the cluster serves, and never reconnects to healthy nodes.

    Raises:
        ConfigurationError: An option is unknown, contradicts another, or cannot be supported.
        TypeError: `policy`, `health` or `connections` has the wrong type.
    """

    health: Dependency
    _origin: ResilientRedisCluster | None = None
    """The client of which this is a view. A view keeps it from being collected."""
    _closed: bool = False  # whether `aclose` was the last that was called
    _tracing: Tracing | None = None

    def __init__(
        self,
        host: str | None = None,
        port: str | int = 6379,
        startup_nodes: Sequence[ClusterNode] | None = None,
        *,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        connections: ConnectionSettings | None = None,
        name: str | None = None,
        rng: random.Random | None = None,
        reopen: bool = True,
        refresh_interval: float = 60.0,
        down_share: float = 1.0,
        read_from: str | None = None,
        max_lag: float | None = DEFAULT_MAX_LAG,
        zone: str | None = None,
        zone_of: Callable[[Node], str | None] | None = None,
        **options: Any,
    ) -> None:
        check_types(policy, health, connections)
        check_seconds("refresh_interval", refresh_interval)
        if not 0 < check_number("down_share", down_share) <= 1:
            raise ConfigurationError(
                f"down_share={down_share!r} is not a share of the slots: use a number above 0 and "
                f"up to 1, for example down_share=0.5"
            )
        reads = ReadOptions.of(read_from, max_lag, zone, options)
        check_conflicts(options, policy)
        if policy is None:
            policy = policy_from_options(options)
        given = {key: value for key, value in options.items() if key not in _RETRY_OPTIONS}
        interval = probe_interval(given.pop("health_check_interval", 0))
        if not any(option in given for option in _DRIVER_OPTIONS):
            given["driver_info"] = driver_info()
        if given.get("db"):
            raise ConfigurationError(
                f"db={given['db']!r} does not exist in a cluster, which has only database 0: omit "
                f"it, and use a prefix for keys instead"
            )
        _check_nodes(host, port, startup_nodes)
        # Its handler would refer to this client, and reconnect healthy nodes.
        given["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
        with explain_options():
            super().__init__(
                host=host,
                port=port,
                startup_nodes=list(startup_nodes or ()),
                retry=Retry(NoBackoff(), 0),
                **given,
            )
        self.response_callbacks["SET"] = shorten_for_ok(self.response_callbacks["SET"])
        self._reopen = reopen
        self._policy = policy
        self._deliberate = False  # whether the policy was chosen for the call, as in a view
        self._rng = rng if rng is not None else SYSTEM_RANDOM
        startup = [(node.host, int(node.port)) for node in self.startup_nodes]
        if name is not None:
            check_name("name", name)
        if health is None:
            health = ClientDependency(
                name if name is not None else f"redis cluster {format_address(*startup[0])}",
                rng=self._rng,
            )
        self.health = health
        self.name = health.name if name is None else redact_credentials(name)
        self._packer = Packer(self.encoder)
        self._hot = self._packer.direct  # whether commands may take the hot path at all
        self._slots = KeySlots(self.encoder.encode)
        self._driver_nodes = self.nodes_manager = DriverNodes(self.nodes_manager)
        if reads.read_from != "master":
            # redis-py's own is a method of the client, which then could not be collected.
            self.connection_kwargs["redis_connect_func"] = send_readonly
        self._runtime = ClusterRuntime(
            startup=startup,
            options=self.connection_kwargs,
            policy=policy,
            health=health,
            node_health=HealthSettings(interval=interval) if interval else None,
            connections=connections if connections is not None else ConnectionSettings(),
            rules=AddressRules(
                address_map=given.get("address_remap"),
                zone_of=zone_of,
            ),
            changed=self._driver_nodes.use,
            also_close=self._driver_nodes.aclose,
            scripts=ScriptBodies(self.encoder.encode),
            rng=self._rng,
            refresh_interval=refresh_interval,
            down_share=down_share,
            reads=reads,
        )
        self._reads = self._runtime.reads
        self._router = self._runtime.router

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """Return a client for the URL of one node (`redis://`, `rediss://`), as redis-py does.

        Args:
            url: The URL of any node. A password in it is never shown.
            **options: Those of the constructor and of `redis.asyncio.RedisCluster`.

        Raises:
            ConfigurationError: The URL or an option is invalid.
        """
        pool_from_url(url, {})  # which explains an invalid URL, without its password
        if is_sentinel_url(url):
            raise ConfigurationError(
                f"{quote_url(url)} names Sentinels, which a cluster does not have: use "
                f"ResilientRedis.from_url(...), or redis://host:port of one node of the cluster"
            )
        settings: dict[str, Any] = dict(parse_url(url))
        if "path" in settings:
            raise ConfigurationError(
                "a cluster client cannot use unix sockets: use redis://host:port of one node"
            )
        if settings.pop("connection_class", None) is driver.SSLConnection:
            settings["ssl"] = True
        settings.setdefault("host", "localhost")
        return cls(**{**options, **settings})

    # -- commands --------------------------------------------------------------------------

    async def execute_command(  # noqa: C901, PLR0911, PLR0912 (the hot path)
        self, *args: Any, **options: Any
    ) -> Any:
        """Send one command to the node that has its keys, and return its reply, as redis-py does.

        Args:
            args: The command and its arguments.
            **options: `target_nodes=` chooses the nodes, as in redis-py.

        Raises:
            ResilientIOError: One of the errors in `resilient_io.redis.errors`.
            CrossSlotKeys: The keys belong to several slots. Nothing was sent.
            redis.exceptions.RedisError: The server refused the command.
        """
        # The hot path: one slot, one node, one shared connection, one row of the command table.
        operation = args[0]
        spec = _spec_of(operation)
        if spec is None or not spec.simple or not spec.key_at or not self._hot:
            return await self._execute(args, options)
        try:
            slot = self._slots[args[spec.key_at]]
        except (IndexError, TypeError):
            return await self._execute(args, options)
        member: Any = self._router.owners[slot]
        if self._reads is not None and replica_may_answer(spec):
            member = self._reads.choose(slot) or member
        multiplexer = member.hot
        connection = multiplexer.fast
        if (
            connection is None
            or get_ident() != multiplexer.thread
            or not (connection.continuing or multiplexer.is_running())
            or (options and ("target_nodes" in options or NEVER_DECODE in options))
            or (len(args) > KEY_ONLY and type(args[2]) in SIZED and len(args[2]) > LARGE)
        ):
            return await self._execute(args, options)
        limit = current_deadline()
        if limit is not None and limit < multiplexer.time() + 1.5 * self._policy.response_timeout:
            return await self._execute(args, options)
        key = args[-1]
        if len(args) == KEY_ONLY and type(key) is str and key.isascii() and len(key) < LONG_KEY:
            # hiredis formats numbers with `sprintf`, which takes longer than joining strings.
            data = f"{spec.head}{BULK_HEADERS[len(key)]}{key}\r\n".encode()
        else:
            try:
                data = _pack(args)
            except TypeError:
                data = bytes(self._packer.pack(spec.words, args))
            if len(data) > LARGE:
                return await self._execute(args, options)
        if not options or (len(options) == 1 and "keys" in options):
            options = _NO_OPTIONS
        else:
            options.pop("keys", None)
        create_future = multiplexer.create_future  # called as an attribute, it would take longer
        future = create_future()
        connection.send(future, data)
        started = connection.clock
        try:
            reply = await future
        except CancelledError:
            multiplexer.abandon_future(future)
            raise
        if type(reply) is not bytes and isinstance(reply, Exception):
            command = Command(spec, args, options)
            call = self._call_after(reply, member, command, data, slot)
            return await self._runtime.executor.run(call, self._policy, started=started)
        callback = _get_callback(self.response_callbacks, operation)
        if callback is None:
            return reply
        reply = callback(reply, **options)
        return await reply if hasattr(reply, "__await__") else reply

    def _call_after(
        self, reply: Exception, member: Member, command: Command, data: Packed, slot: int
    ) -> ClusterCall:
        """Return the call that continues after an unusual reply on the hot path."""
        if type(reply) is AskError:  # not MOVED, which is a subclass
            # While a slot moves, this is the usual reply, so it is followed without a retry.
            self._runtime.executor.note_redirected()
            importing = self._router.importing(reply, member)
            return self._cluster_call(command, data, slot=slot, importing=importing)
        first = self._multiplexed_call(member, command, data, slot=slot, first=reply)
        return self._cluster_call(command, data, slot=slot, member=member, first=first)

    async def _execute(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Send a command that cannot take the hot path."""
        tracing = self._tracing
        if tracing is None:
            return await self._execute_untraced(args, options)
        before = tracing.current()
        with traced(tracing), tracing.command(operation_of(args), before):
            return await self._execute_untraced(args, options)

    async def _execute_untraced(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        options.pop("keys", None)
        targets = options.pop("target_nodes", None)
        await self._ensure_open(args[0])
        spec = SPECS.get(args[0]) or lookup(args)
        self._runtime.check_available(spec.name, self._policy)
        if spec.route in (Route.REFUSED, Route.BOUND):
            raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        self._note_script(spec, args)
        command = Command(spec, args, options)
        if targets is None or targets == []:
            slot = self._slots.of_call(spec, args)
            if slot is not None:
                return await self._run(command, slot=slot)
            flag: Any = node_flag(spec, args, self.command_flags)
            if isinstance(flag, int):
                return await self._run(command, slot=flag)
        elif self._is_node_flag(targets):
            flag = targets
        else:
            nodes = self._parse_target_nodes(targets)
            return await self._run_on_nodes(command, nodes)
        if flag in (self.RANDOM, self.DEFAULT_NODE):
            return await self._run_on_any(command)
        await self._until_known(spec.name)
        return await self._run_on_nodes(command, self._flagged(flag))

    def _note_script(self, spec: CommandSpec, args: Sequence[Any]) -> None:
        """Remember the script that a command contains."""
        if spec.name in _CONTAINS_SCRIPT and len(args) > 1:
            self._runtime.scripts.remember(args[_CONTAINS_SCRIPT[spec.name]])

    async def _run(
        self, command: Command, *, slot: int | None, member: Member | None = None
    ) -> Any:
        """Execute a command on one node."""
        data: Packed = b""
        if command.spec.route is not Route.EXCLUSIVE:
            data = self._packer.pack(command.spec.words, command.args)
        call = self._cluster_call(command, data, slot=slot, member=member)
        return await self._runtime.executor.run(
            call,
            self._policy,
            started=asyncio.get_running_loop().time(),
            deliberate=self._deliberate,
        )

    async def _run_on_any(self, command: Command) -> Any:
        """Execute a command without keys on any master, and convert its reply as redis-py does."""
        reply = await self._run(command, slot=None)
        convert = self.result_callbacks.get(command.args[0])
        if convert is None:
            return reply
        return merge_replies(command.args, {"": reply}, self.result_callbacks, command.options)

    async def _run_on_nodes(self, command: Command, nodes: Sequence[ClusterNode]) -> Any:
        """Execute a command on several nodes at the same time, and merge the replies.

        If one fails, its error is raised after the others have ended. Cancelling cancels all.
        """
        if not nodes:
            raise RedisClusterException(
                f"{command.spec.name}: the cluster has no such nodes: check target_nodes="
            )
        if len(nodes) == 1:
            replies = [await self._execute_on(nodes[0], command)]
        else:
            replies = await all_of([self._execute_on(node, command) for node in nodes])
        named = {node.name: reply for node, reply in zip(nodes, replies, strict=True)}
        return merge_replies(command.args, named, self.result_callbacks, command.options)

    async def _execute_on(self, node: ClusterNode, command: Command) -> Any:
        address = self._driver_nodes.address_of(node)
        own = Command(command.spec, command.args, dict(command.options))
        return await self._run(own, slot=None, member=self._router.members.get(address))

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **options: Any) -> Any:
        """Send a command to one node, as redis-py's own methods do."""
        return await self.execute_command(*args, target_nodes=[target_node], **options)

    def _flagged(self, flag: str) -> list[ClusterNode]:
        """Return the nodes of one of redis-py's node flags."""
        if flag == self.PRIMARIES:
            return self.get_primaries()
        if flag == self.REPLICAS:
            return self.get_replicas()
        if flag == self.ALL_NODES:
            return self.get_nodes()
        raise RedisClusterException(f"unknown node flag {flag!r}")

    async def _until_known(self, operation: str) -> None:
        """Wait for the slot table, within the deadline of the call."""
        call = TableCall(self._router, operation)
        started = asyncio.get_running_loop().time()
        await self._runtime.executor.run(call, self._policy, started=started)

    def _cluster_call(
        self,
        command: Command,
        data: Packed,
        *,
        slot: int | None,
        member: Member | None = None,
        first: Call | None = None,
        importing: Member | None = None,
    ) -> ClusterCall:
        spec = command.spec
        make: Callable[[Member, bool], Call]
        if spec.route is Route.EXCLUSIVE:
            make = functools.partial(self._exclusive_call, command)
        else:
            make = functools.partial(self._multiplexed_call_to, command, data, slot)
        return ClusterCall(
            self._router,
            make,
            spec.name,
            slot=slot,
            member=member,
            first=first,
            importing=importing,
            reads=self._reads if replica_may_answer(spec) else None,
            bounded=spec.block is None,
        )

    def _multiplexed_call_to(
        self, command: Command, data: Packed, slot: int | None, member: Member, asking: bool
    ) -> MultiplexedCall:
        return self._multiplexed_call(member, command, data, slot=slot, asking=asking)

    def _multiplexed_call(
        self,
        member: Any,
        command: Command,
        data: Packed,
        *,
        slot: int | None,
        asking: bool = False,
        first: Exception | None = None,
    ) -> MultiplexedCall:
        runtime = member.runtime
        return MultiplexedCall(
            runtime.multiplexer,
            self.callback_table,
            self._policy,
            command,
            data,
            exchange=runtime.pool.exchange,
            scripts=runtime.scripts,
            fallback=functools.partial(self._exclusive_call, command, member, False),
            first=first,
            asking=asking,
            slot=slot,
        )

    def _exclusive_call(self, command: Command, member: Member, asking: bool) -> ExclusiveCall:
        runtime = member.runtime
        return ExclusiveCall(
            runtime.multiplexer,
            runtime.pool,
            self._policy,
            command,
            self,
            scripts=runtime.scripts,
            asking=asking,
        )

    # -- pipelines -------------------------------------------------------------------------

    def pipeline(
        self, transaction: bool | None = None, shard_hint: Any = None
    ) -> ResilientClusterPipeline:
        """Return a pipeline, whose commands are sent to their nodes at the same time.

        Args:
            transaction: Wrap the commands in MULTI and EXEC. Then all keys must be in one slot.
            shard_hint: Not supported by redis-py in a cluster.
        """
        if shard_hint:
            raise RedisClusterException("shard_hint is deprecated in cluster mode")
        return ResilientClusterPipeline(self, transaction)

    def pubsub(
        self,
        node: ClusterNode | None = None,
        host: str | None = None,
        port: int | None = None,
        **options: Any,
    ) -> ResilientClusterPubSub:
        """Return a subscriber, whose connections are replaced when they are lost.

        Args:
            node: The node for channels and patterns; None for any.
            host: Its host, instead of `node`.
            port: Its port.
            **options: Those of `ResilientClusterPubSub`.

        Raises:
            ConfigurationError: A limit is not a positive integer.
            redis.exceptions.RedisClusterException: The cluster does not have the node.
        """
        return ResilientClusterPubSub(
            self, self._runtime, node=node, host=host, port=port, **options
        )

    async def transaction(self, func: Any, *watches: Any, **options: Any) -> Any:
        """Call a function with a pipeline that watches keys, again if they changed meanwhile.

        Args:
            func: Asynchronous function of the pipeline. It reads, calls `multi` and queues writes.
            watches: Keys of one slot.
            **options: `value_from_callable=True` returns the result of the function instead of the
                replies; `watch_delay=` is the pause in seconds before the next call.
        """
        delay = options.get("watch_delay") or 0.0
        async with self.pipeline(True, options.get("shard_hint")) as pipe:
            while True:
                try:
                    if watches:
                        await pipe.watch(*watches)  # type: ignore[no-untyped-call]
                    value = await func(pipe)
                    replies = await pipe.execute()
                except WatchError:
                    await asyncio.sleep(delay)
                else:
                    return value if options.get("value_from_callable") else replies

    def lock(  # noqa: PLR0917 (redis-py's signature)
        self,
        name: KeyT,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        lock_class: type[Lock] | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
        **options: Any,
    ) -> ResilientLock:
        """Return a lock, with redis-py's options and those of `ResilientLock`.

        The lock follows its key to another node. If a failover loses the key, the holder is
        notified, as it is when the key expires.

        Args:
            name: The name of the key.
            timeout: Seconds after which the server releases the lock; None for never.
            sleep: Seconds between attempts where the server does not report changes of the key.
            blocking: Whether `acquire` waits for the lock.
            blocking_timeout: Maximum wait in seconds; None for no limit.
            lock_class: Another class of locks.
            thread_local: Whether the token belongs to the thread that acquired the lock.
            raise_on_release_error: Whether `async with` raises if the lock was not held any more.
            **options: `renew`, `fencing` and `cancel_on_loss` of `ResilientLock`.
        """
        kind: type[Any] = lock_class if lock_class is not None else ResilientLock
        lock: ResilientLock = kind(
            self,
            name,
            timeout=timeout,
            sleep=sleep,
            blocking=blocking,
            blocking_timeout=blocking_timeout,
            thread_local=thread_local,
            raise_on_release_error=raise_on_release_error,
            **options,
        )
        return lock

    @property
    def _is_closed(self) -> bool:
        return (self._origin or self)._closed or self._runtime.executor.closed

    # -- what redis-py reads ---------------------------------------------------------------

    @property
    def callback_table(self) -> Any:
        """The response callbacks: read only."""
        return self.response_callbacks

    async def _send_command_parse_response(
        self, connection: Any, command_name: Any, *args: Any, **options: Any
    ) -> Any:
        """Send a command on an exclusive connection, and convert the reply."""
        await connection.send_command(*args)
        # redis-py 8.1 `Redis.parse_response` uses `response_callbacks` only.
        return await driver.Redis.parse_response(
            self,  # type: ignore[arg-type]
            connection,
            command_name,
            **options,
        )

    def keyslot(self, key: Any) -> int:
        """Return the hash slot of a key."""
        return self._slots.of_key(key)

    async def _determine_slot(self, command: str, *args: Any) -> int:
        slot = self._slots.of_call(SPECS.get(command) or lookup((command, *args)), (command, *args))
        if slot is None:
            raise RedisClusterException(f"{command} has no key: pass target_nodes=")
        return slot

    # -- views, state ----------------------------------------------------------------------

    def with_policy(self, policy: RetryPolicy | None = None, **changes: Any) -> Self:
        """Return a view of this client with another policy on the same connections.

        The policy counts as chosen for each call: with `repeat="any"` it also covers FLUSHALL and
        other dangerous commands. Closing the view does nothing.

        Args:
            policy: The other policy; None for this client's own.
            **changes: Fields of the policy to change, for example `repeat="any"`.

        Raises:
            ConfigurationError: The policy contradicts itself.
        """
        check_types(policy, None, None)
        view = copy.copy(self)
        view._policy = (policy if policy is not None else self._policy).replace(**changes)
        view._deliberate, view._hot = True, False
        return view

    def __copy__(self) -> Self:
        """Return a view of this client: a copy that shares its connections."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        for kind in type(self).__mro__:
            for slot in getattr(kind, "__slots__", ()):
                with contextlib.suppress(AttributeError):
                    setattr(view, slot, getattr(self, slot))
        view._origin = self._origin or self
        return view

    @property
    def node_health(self) -> Mapping[str, Dependency]:
        """The availability of each node to which a call was sent, by `host:port`."""
        opened = (member for member in self._router.members if member.opened)
        return {member.name: member.health for member in opened}

    def stats(self) -> RedisStats:
        """Return the counters of all nodes together: calls, outcomes, retries, latencies."""
        return read_stats(self._router.members, self._runtime.executor)

    def trace_with(self, tracing: Tracing) -> None:
        """Create spans of all commands from now on, and of those of later views."""
        self._tracing, self._hot = tracing, False

    def set_retry(self, retry: Any) -> NoReturn:  # noqa: ARG002 (redis-py's signature)
        """Refuse: the policy decides about retries.

        Raises:
            ConfigurationError: Always; it names `with_policy`.
        """
        raise ConfigurationError(
            "set_retry() is not supported: use redis.with_policy(attempts=3) instead"
        )

    def liveness_failure(self) -> str | None:
        """Return why only a restart helps (a task of the client crashed), or None."""
        return self._runtime.liveness_failure()

    # -- lifecycle -------------------------------------------------------------------------

    async def initialize(self, *_: Any, **__: Any) -> Self:
        """Look for the nodes, for at most the connect timeout. It does not raise if none answers.

        Afterwards `get_nodes()` and the like know the nodes, as in redis-py.

        Raises:
            RuntimeError: The client is in use in another event loop, or the process was forked.
        """
        await self._ensure_open("initialize", deliberate=True)
        if not self._router.slots:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.connect_timeout):
                    await self._router.first_attempt()
        return self

    async def _ensure_open(self, operation: object, *, deliberate: bool = False) -> None:
        runtime = self._runtime
        origin = self._origin or self
        if origin._closed and not (origin._reopen or deliberate):
            raise runtime.executor.closed_error(operation)
        if runtime.executor.closed:
            await runtime.reopen()
        if origin._closed:
            origin._mark_open()
        runtime.start()

    def _mark_open(self) -> None:
        self._closed = False
        self._hot = self._packer.direct and not self._deliberate and self._tracing is None

    async def aclose(self) -> None:
        """Close: every waiting call raises `Closed`, and every connection and task ends.

        Takes at most the connect timeout. Idempotent. Cancelling returns immediately; the closing
        continues in the background. A later call opens the client again, unless it has
        `reopen=False`.
        """
        if self._deliberate:
            return
        self._closed, self._hot = True, False
        await self._runtime.aclose()

    async def __aenter__(self) -> Self:
        """Look for the nodes, as `initialize` does."""
        await self.initialize()
        self._usage_counter += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close when the last `async with` block is left."""
        self._usage_counter -= 1
        if self._usage_counter == 0:
            await self.aclose()

    def __del__(self, _warnings: Any = warnings, *_: Any) -> None:
        """Close in the background if the client is collected unclosed."""
        runtime = self.__dict__.get("_runtime")
        if runtime is None or self._origin is not None or self._closed or not runtime.running:
            return
        _warnings.warn(
            f"unclosed client {self!r}: use `async with`, or await aclose()",
            ResourceWarning,
            stacklevel=1,
            source=self,
        )
        runtime.close_later()

    def __repr__(self) -> str:
        """Return the address and the state, without secrets."""
        return f"<{type(self).__name__} {self.name} {self.health.state.value}>"


async def all_of(calls: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return the results of calls that run at the same time, after all of them have ended.

    The first error is raised then. Cancelling cancels all calls.
    """

    async def outcome(call: Coroutine[Any, Any, Any]) -> Any:
        try:
            return await call
        except (RedisError, OSError) as error:
            return _Failed(error)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(call)) for call in calls]
    results = [task.result() for task in tasks]
    for result in results:
        if isinstance(result, _Failed):
            raise result.error
    return results


class _Failed:
    """The error of one of several calls."""

    def __init__(self, error: Exception) -> None:
        self.error = error


_CONTAINS_SCRIPT = {"EVAL": 1, "EVAL_RO": 1, "SCRIPT LOAD": -1}
"""Commands that contain a script, and its position in their arguments."""
