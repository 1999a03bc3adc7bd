"""`ResilientRedis`: redis-py's asyncio client, whose commands pass through the executor."""

from __future__ import annotations

import asyncio
import copy
import functools
import warnings
from _thread import get_ident
from asyncio import CancelledError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, Unpack

import redis.asyncio as driver
import redis.asyncio.client as driver_client
from redis.client import NEVER_DECODE

from resilient_io.binding import SYSTEM_RANDOM
from resilient_io.deadlines import current_deadline, deadline, earlier
from resilient_io.errors import ConfigurationError, Progress, ResilientIOError
from resilient_io.health import ClientDependency, HealthSettings
from resilient_io.text import redact_credentials
from resilient_io.validation import check_name

from .attempt import BULK_HEADERS, KEY_ONLY, LONG_KEY, Command, MultiplexedCall, confirm_idle
from .callbacks import SharedCallbacks
from .commands import SPECS, Effect, Route, lookup
from .connect import RedisTarget, driver_info, secrets_in
from .durability import is_replicated
from .errors import RouteRefused
from .exclusive_call import ExclusiveCall
from .frequent import FrequentCommands
from .instrumentation import is_patched, trace_command
from .lock import ResilientLock
from .messages import MOST_BYTES, MOST_MESSAGES
from .options import (
    ConnectionSettings,
    Durability,
    check_address,
    check_conflicts,
    check_target,
    check_types,
    explain_options,
    policy_from_options,
    pool_from_url,
    pool_settings,
    probe_interval,
)
from .pipeline import ResilientPipeline
from .pubsub import ResilientPubSub
from .replicas import DEFAULT_MAX_LAG, ReadFrom
from .runtime import Runtime
from .sentinel_options import pool_from_sentinels
from .session import SETTINGS, check_client_name, read_client_name
from .sharing import PoolRuntimes
from .stats import RedisStats, read_stats
from .views import ClientViews
from .wrong_server import check_pushes, needs_pushes

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping

    from redis.asyncio.client import Monitor
    from redis.asyncio.connection import ConnectionPool
    from redis.asyncio.lock import Lock
    from redis.typing import KeyT

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .addresses import Address, AddressMap
    from .attempt import Callbacks
    from .commands import CommandSpec
    from .instrumentation import Tracing
    from .large_values import Packed
    from .options import PoolOptions, ReadFromName, RedisOptions, SentinelOptions, UrlOptions


class _OwnOptions(NamedTuple):
    """The options that are not redis-py's. Clients with the same may share their connections."""

    policy: RetryPolicy | None
    health: Dependency | None
    connections: ConnectionSettings | None
    name: str | None
    rng: random.Random | None
    interval: float  # of the health probe, or 0.0 for the default


_NO_OPTIONS: dict[str, Any] = {}

_CALLBACKS: Callbacks = {"CLIENT GETNAME": read_client_name}

_spec_of = SPECS.get
_get_callback: Callable[[Any, str], Callable[..., Any] | None] = dict.get


class ResilientRedis(FrequentCommands, SharedCallbacks, ClientViews, driver.Redis):  # type: ignore[misc] # in redis-py itself
    """A `redis.asyncio.Redis` that never repeats a non-idempotent write and knows its server.

    Every command, type and constructor is redis-py's. `async with` opens the connections and
    starts the health probe; without it the first command does. If the server is down at startup,
    the client neither raises nor hangs: `redis.health` shows the state.

    A call fails with one of the errors in `resilient_io.redis.errors`, which are also redis-py's.
    Permanent refusals by the server (WRONGTYPE, NOPERM) are raised as redis-py raises them.
    Cancelling a call returns immediately. A command that was not written yet is never sent; one
    that was written may be applied.

    Args:
        policy: How often and how long to try. By default, `RetryPolicy()` with the times and
            retries of redis-py's own options (`socket_timeout`, `retry`).
        health: The dependency, if another client of the same server shares it.
        connections: The number of shared connections, and how much may be in flight.
        name: The name of the client and of its dependency in logs, errors and metrics. By default,
            "redis" and the address.
        rng: Source of jitter, client names and lock tokens; pass a seeded one to replay a schedule.
        read_from: Which server answers reads of keys: `"master"`, `"replica"` (one with at most
            `max_lag`, else the master), `"nearest"` (master or replica, by latency) or `"any"`
            (the less busy one). See `with_read_from`.
        max_lag: How many seconds of writes a replica may lack, at most; None for no limit.
        durability: How many replicas must have a write before its call returns: a number, or a
            `Durability`. Otherwise the call raises `RedisNotReplicated`. See `with_durability`.
        reopen: Whether a call after `aclose()` opens the client again, as in redis-py. Otherwise it
            raises `RedisClosed`.
        connection_pool: A pool of redis-py. Clients on the same pool with the same options share
            their connections, which stay open for 10 s after the last of these clients was closed
            or collected, and end with the pool (`pool.aclose()`).
        single_connection_client: Use one connection of its own, which permits WATCH, MULTI, SELECT
            and the like.
        **options: All other options of `redis.asyncio.Redis`.

    Raises:
        ConfigurationError: An option is unknown, contradicts another, or cannot be supported.
        TypeError: `policy`, `health` or `connections` has the wrong type.
    """

    health: Dependency
    _instrumented: bool = False
    """Whether tracers may want to see its calls, which therefore skip the hot path."""
    _tracing: Tracing | None = None
    _uninstrumented: ResilientRedis | None = None
    """A copy of this client whose calls no tracer sees."""
    _traceable: bool = True  # false for that copy
    _origin: ResilientRedis | None = None
    """The client of which this is a view. A view keeps it from being collected."""
    _counted: bool = False  # whether it counts as a user of its runtime
    _closed: bool = False  # whether `aclose` was the last that was called

    def __init__(
        self,
        *,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        connections: ConnectionSettings | None = None,
        name: str | None = None,
        rng: random.Random | None = None,
        read_from: ReadFromName = "master",
        max_lag: float | None = DEFAULT_MAX_LAG,
        durability: Durability | int | None = None,
        reopen: bool = True,
        connection_pool: ConnectionPool | None = None,
        single_connection_client: bool = False,
        **options: Unpack[RedisOptions],
    ) -> None:
        check_types(policy, health, connections)
        self._durability = Durability.of(durability)
        self._read_from = ReadFrom.of(read_from, max_lag)
        if self._read_from.mode != "master" and single_connection_client:
            raise ConfigurationError(
                f'read_from="{read_from}" and single_connection_client=True contradict each other: '
                f"omit one of them"
            )
        if self._durability is not None and single_connection_client:
            raise ConfigurationError(
                "durability= and single_connection_client=True contradict each other: call WAIT "
                "yourself, which refers to the writes of this connection"
            )
        given: dict[str, Any] = {**options}
        check_conflicts(given, policy)
        interval = given.pop("health_check_interval", 0)
        retries = {key: given.pop(key) for key in _RETRY_OPTIONS if key in given}
        if connection_pool is None and not any(option in given for option in _DRIVER_OPTIONS):
            given["driver_info"] = driver_info()
        if connection_pool is not None and given.get("event_dispatcher") is None:
            # redis-py 8.1 would create another one, with nine objects.
            given["event_dispatcher"] = getattr(connection_pool, "_event_dispatcher", None)
        given["single_connection_client"] = single_connection_client
        with explain_options(tuple(secrets_in(given))):
            if connection_pool is None:
                super().__init__(**given)
            else:
                self.init_with_pool(super().__init__, connection_pool, **given)
        del given["single_connection_client"]
        interval = interval or pool_settings(self.connection_pool).get("health_check_interval", 0)
        self._reopen = reopen
        self._seeded = rng
        self._deliberate = False  # whether the policy was chosen for the call, as in a view
        own = _OwnOptions(policy, health, connections, name, rng, probe_interval(interval))
        shared = None if single_connection_client else PoolRuntimes.of(self.connection_pool)
        runtime = shared.find(own) if shared is not None else None
        if runtime is None:
            settings = given | retries if connection_pool is None else None
            runtime = self._make_runtime(own, settings)
            if shared is not None:
                shared.add(own, runtime)
        self._runtime = runtime
        self._count()
        self._policy = runtime.policy
        self._packer = runtime.packer
        # Client names and lock tokens must not be guessable, unless a schedule is replayed.
        self._rng = runtime.rng
        self.share_callbacks(self.connection_pool.connection_kwargs, _CALLBACKS)
        self._hot = self._may_be_hot  # whether commands may take the hot path at all
        self.health = runtime.health
        self.name = runtime.health.name if name is None else redact_credentials(name)
        if is_patched():
            self._instrument()

    def _make_runtime(self, own: _OwnOptions, settings: Mapping[str, Any] | None) -> Runtime:
        """Return a new runtime. `settings` are those from which its policy is made."""
        policy, health, connections, name, rng, interval = own
        pool = self.connection_pool
        check_address(pool_settings(pool))
        target = RedisTarget(pool)
        if policy is None:
            policy = policy_from_options(pool_settings(pool) if settings is None else settings)
        check_target(target)
        rng = rng if rng is not None else SYSTEM_RANDOM
        if name is not None:
            check_name("name", name)
        if health is None:
            health = ClientDependency(
                name if name is not None else f"redis {target.name}",
                settings=HealthSettings(interval=interval) if interval else None,
                rng=rng,
            )
        return Runtime(
            target=target,
            policy=policy,
            health=health,
            settings=connections if connections is not None else ConnectionSettings(),
            template=pool,
            rng=rng,
            bound=self.single_connection_client,
        )

    @classmethod
    def from_url(  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **options: Unpack[UrlOptions],
    ) -> Self:
        """Return a client for a URL (`redis://`, `rediss://`, `unix://`), as redis-py does.

        Also for Sentinels: `redis+sentinel://user:password@s1:26379,s2:26379/mymaster/0`, with TLS
        `rediss+sentinel://…`. User and password are those of the servers. Options with the prefix
        `sentinel_` are for the Sentinels: `?sentinel_password=…`, `sentinel_ssl=no`.

        Args:
            url: The server's URL. A password in it is never shown.
            single_connection_client: As in the constructor.
            auto_close_connection_pool: Deprecated by redis-py, and passed on to it.
            **options: Those of the constructor and of `redis.asyncio.Redis`.

        Raises:
            ConfigurationError: The URL or an option is invalid.
        """
        given: dict[str, Any] = {**options}
        ours = {key: given.pop(key) for key in _OPTIONS_OF_FROM_URL if key in given}
        check_conflicts(given, ours.get("policy"))
        pool = pool_from_url(url, given)
        client = cls(
            connection_pool=pool, single_connection_client=single_connection_client, **ours
        )
        client.auto_close_connection_pool = auto_close_connection_pool is not False
        return client

    @classmethod
    def from_sentinel(
        cls,
        sentinels: Iterable[Address],
        service_name: str,
        *,
        sentinel_kwargs: Mapping[str, Any] | None = None,
        min_other_sentinels: int = 0,
        force_master_ip: str | None = None,
        address_map: AddressMap | None = None,
        **options: Unpack[SentinelOptions],
    ) -> Self:
        """Return a client for the master that Sentinels monitor. It follows failovers.

        Args:
            sentinels: Host and port of each Sentinel: `[("sentinel-1", 26379), …]`.
            service_name: The name of the master in the configuration of the Sentinels.
            sentinel_kwargs: Options of the connections to the Sentinels, which may have another
                user, password and TLS than the servers: `{"password": …, "ssl": True}`. By
                default, the `socket_…` options of the servers.
            min_other_sentinels: How many other Sentinels one must know so that its answer counts.
            force_master_ip: The host of the master, whatever the Sentinels say.
            address_map: Where servers are reached that the Sentinels announce at addresses which
                do not lead anywhere from here (NAT, containers): a mapping of `(host, port)` to
                `(host, port)`, or a function of `(host, port)` that returns such a tuple.
            **options: Those of the constructor, which apply to the servers.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        given: dict[str, Any] = {**options}
        ours = {key: given.pop(key) for key in _OPTIONS_OF_FROM_SENTINEL if key in given}
        check_conflicts(given, ours.get("policy"))
        pool = pool_from_sentinels(
            sentinels,
            service_name,
            given,
            sentinel_kwargs=sentinel_kwargs,
            min_other_sentinels=min_other_sentinels,
            force_master_ip=force_master_ip,
            address_map=address_map,
        )
        return cls.from_pool(pool, **ours)

    @classmethod
    def from_pool(cls, connection_pool: ConnectionPool, **options: Unpack[PoolOptions]) -> Self:
        """Return a client that owns a pool, and closes it.

        Args:
            connection_pool: A pool of redis-py, or a Sentinel pool.
            **options: `policy`, `health`, `connections`, `name`, `rng` and `reopen`, as in the
                constructor.
        """
        client = cls(connection_pool=connection_pool, **options)
        client.auto_close_connection_pool = True
        return client

    # -- commands --------------------------------------------------------------------------

    async def execute_command(  # noqa: C901, PLR0911 (the hot path)
        self, *args: Any, **options: Any
    ) -> Any:
        """Send one command and return its reply, as redis-py does.

        Raises:
            ResilientIOError: One of the errors in `resilient_io.redis.errors`.
            redis.exceptions.RedisError: The server refused the command.
        """
        # The hot path: one shared connection, one row of the command table, one flag.
        multiplexer = self._runtime.multiplexer
        connection = multiplexer.fast
        operation = args[0]
        spec = _spec_of(operation)
        if (
            connection is None
            or spec is None
            or not spec.simple
            or not self._hot
            or (get_ident() != connection.continuing and not multiplexer.runs_here())
        ):
            if connection is None and spec is not None and spec.simple and self._hot:
                self._refuse(operation)
            return await self._execute(args, options)
        limit = current_deadline()
        if limit is not None and limit < multiplexer.time() + 1.5 * self._policy.response_timeout:
            return await self._execute(args, options)
        data: bytes | None
        if (
            len(args) == KEY_ONLY
            and type(key := args[1]) is str
            and key.isascii()
            and len(key) < LONG_KEY
        ):
            # hiredis formats numbers with `sprintf`, which takes longer than joining strings.
            data = f"{spec.head}{BULK_HEADERS[len(key)]}{key}\r\n".encode()
        else:
            data = self._packer.pack_small(spec, args)
            if data is None:
                return await self._execute(args, options)
        if options:
            if NEVER_DECODE in options:
                return await self._execute(args, options)
            options.pop("keys", None)
        else:
            # Ten thousand dictionaries would keep the garbage collector busy.
            options = _NO_OPTIONS
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
            call = self._multiplexed_call(Command(spec, args, options), data, reply)
            return await self._runtime.executor.run(call, self._policy, started=started)
        # redis-py 8.1 `CaseInsensitiveDict` keeps upper-case keys, as the table's names are.
        callbacks = self.callback_table if options else self.plain_callbacks
        callback = _get_callback(callbacks, operation)
        if callback is None:
            return reply
        reply = callback(reply, **options) if options else callback(reply)
        return await reply if hasattr(reply, "__await__") else reply

    def _refuse(self, operation: str) -> None:
        """Raise if an earlier call has found that calls do not wait for the server any more."""
        runtime = self._runtime
        if runtime.multiplexer.runs_here():
            refusal = runtime.executor.refusal(operation, self._policy)
            if refusal is not None:
                raise refusal

    async def _execute(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Send a command that cannot take the hot path."""
        if self._traceable and (self._tracing is not None or is_patched()):
            self._instrument()
            send = self._execute_uninstrumented
            return await trace_command(
                "execute_command", self, self._tracing, send, args=args, options=options
            )
        reopened = await self._ensure_open(args[0])
        runtime = self._runtime
        executor = runtime.executor
        spec = SPECS.get(args[0]) or lookup(args)
        runtime.scripts.note(spec.name, args)
        replica = self._choose_replica(spec, args)
        if replica is not None:
            return await self._read_from_replica(replica, Command(spec, args, options))
        executor.check_available(spec.name, self._policy)
        started = reopened if reopened is not None else runtime.multiplexer.time()
        if runtime.bound:
            await confirm_idle(runtime.multiplexer)
            executor.check_state(spec.name)
        if spec.name in SETTINGS and not runtime.multiplexer.bound_state.in_transaction:
            return await self._apply_setting(spec, args, options)
        self._check_route(spec, args)
        command = Command(spec, args, options)
        if self._durability is not None and is_replicated(spec, args):
            return await self._execute_durably(self._durability, command, started)
        call: ExclusiveCall | MultiplexedCall
        if spec.route is Route.EXCLUSIVE and not runtime.bound:
            call = self._exclusive_call(command)
        else:
            call = self._multiplexed_call(command, self._packer.pack(spec.words, args))
        undo = runtime.multiplexer.bound_state.note(spec) if runtime.bound else None
        try:
            return await executor.run(
                call, self._policy, started=started, deliberate=self._deliberate
            )
        except ResilientIOError as error:
            if undo is not None and error.progress is Progress.NOT_SENT:
                undo()
            raise

    def _check_route(self, spec: CommandSpec, args: tuple[Any, ...]) -> None:
        """Raise if a command cannot work on the connections of this client."""
        bound = self._runtime.bound
        if spec.route is Route.REFUSED or (spec.route is Route.BOUND and not bound):
            raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        if spec.route is Route.BOUND:
            protocol = pool_settings(self.connection_pool).get("protocol")
            check_pushes(spec.name, needed=needs_pushes(args), protocol=protocol)

    async def _apply_setting(
        self, spec: CommandSpec, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Send a command that changes its connection on every connection."""
        runtime = self._runtime
        words = (*spec.words, *args[1:])
        operands = words[2:]
        shared = replace(spec, route=Route.MULTIPLEXED, effect=Effect.IDEMPOTENT)
        if spec.name == "CLIENT SETNAME":
            check_client_name(operands)
            # A connection keeps a name that is unique, so it is asked whether it has one.
            shared, args = SPECS["CLIENT GETNAME"], ("CLIENT GETNAME",)
        call = self._multiplexed_call(
            Command(shared, args, options), self._packer.pack(shared.words, args)
        )
        started = runtime.multiplexer.time()
        reply = await runtime.executor.run(call, self._policy, started=started)
        if spec.name == "CLIENT SETNAME":
            reply = True
        command = runtime.session.take(spec.name, operands)
        runtime.pool.renew()
        await runtime.multiplexer.apply(command)
        return reply

    async def _execute_uninstrumented(self, *args: Any, **options: Any) -> Any:
        """Send a command that no tracer sees, on the hot path if possible."""
        twin = self._uninstrumented
        if twin is None:
            self.own_callbacks()
            self._uninstrumented = twin = copy.copy(self)
            twin._traceable, twin._origin = False, None  # not a reference to itself
            twin._closed = False  # only this client knows; it is asked below
            twin._hot = self._may_be_hot
        if self._is_closed:
            began, limit = await self._ensure_open(args[0]), self._policy.deadline
            if began is not None and limit is not None:
                left = began + limit - self._runtime.multiplexer.time()
                with deadline(max(left, _NO_TIME)):
                    return await _execute_command(twin, *args, **options)
        return await _execute_command(twin, *args, **options)

    async def _ensure_open(self, operation: object) -> float | None:
        """Open the client before a call, also after `aclose()`, unless that is not permitted.

        Return when that began, if it took time: it counts against the deadline of the call.

        Raises:
            RedisClosed: The client is closed and has `reopen=False`, or is closed meanwhile.
            RedisDeadlineExceeded: The closing that is under way outlasts the deadline.
        """
        runtime = self._runtime
        if self._closed_for_good:
            raise runtime.executor.closed_error(operation)
        began = None
        if runtime.executor.closed:
            began = asyncio.get_running_loop().time()
            limit = self._policy.deadline
            until = earlier(current_deadline(), None if limit is None else began + limit)
            try:
                async with asyncio.timeout_at(until):
                    await runtime.reopen()
            except TimeoutError:
                raise runtime.executor.not_open_in_time(operation, began) from None
        origin = self._origin or self
        if origin._closed:
            origin._mark_open()
        runtime.start()
        return began

    @property
    def _is_closed(self) -> bool:
        return (self._origin or self)._closed or self._runtime.executor.closed

    @property
    def _closed_for_good(self) -> bool:
        origin = self._origin or self
        return origin._closed and not origin._reopen

    def _check_open(self, operation: str) -> None:
        if self._closed_for_good:
            raise self._runtime.executor.closed_error(operation)

    def _multiplexed_call(
        self,
        command: Command,
        data: Packed,
        first: Exception | None = None,
        *,
        kind: Callable[..., MultiplexedCall] = MultiplexedCall,
        runtime: Runtime | None = None,
    ) -> MultiplexedCall:
        runtime = runtime if runtime is not None else self._runtime
        return kind(
            runtime.multiplexer,
            self.callback_table,
            self._policy,
            command,
            data,
            exchange=runtime.pool.exchange,
            scripts=runtime.scripts,
            fallback=functools.partial(self._exclusive_call, command),
            first=first,
        )

    def _exclusive_call(self, command: Command) -> ExclusiveCall:
        runtime = self._runtime
        return ExclusiveCall(
            runtime.multiplexer,
            runtime.pool,
            self._policy,
            command,
            self,
            scripts=runtime.scripts,
        )

    # -- what redis-py builds on commands --------------------------------------------------

    def pipeline(
        self, transaction: bool = True, shard_hint: str | None = None
    ) -> ResilientPipeline:
        """Return a pipeline whose commands are sent in one uninterrupted write.

        Args:
            transaction: Wrap the commands in MULTI and EXEC.
            shard_hint: Unused by redis-py.
        """
        return ResilientPipeline(
            self,
            self._runtime,
            transaction,
            shard_hint,
            packer=self._packer,
            policy=self._policy,
            deliberate=self._deliberate,
            tracing=self._tracing,
            instrumented=self._instrumented,
            durability=self._durability,
            choose_replica=None if self._read_from.mode == "master" else self._choose_replica_for,
        )

    def pubsub(
        self,
        *,
        on_gap: Callable[[dict[str, Any]], object] | None = None,
        max_messages: int = MOST_MESSAGES,
        max_message_bytes: int = MOST_BYTES,
        **options: Any,
    ) -> ResilientPubSub:
        """Return a subscriber on a connection of its own, which is replaced when it is lost.

        Args:
            on_gap: Called with each message of type "gap", which is then not returned.
            max_messages: Messages that wait to be read. Further ones are dropped and reported.
            max_message_bytes: The same in bytes of channels and data.
            **options: Those of redis-py's `PubSub`.

        Raises:
            ConfigurationError: A limit is not a positive integer.
        """
        self._check_open("pubsub")
        handler = options.get("push_handler_func") is not None
        protocol = pool_settings(self.connection_pool).get("protocol")
        check_pushes("pubsub(push_handler_func=…)", needed=handler, protocol=protocol)
        options.setdefault("event_dispatcher", self._event_dispatcher)
        return ResilientPubSub(
            self,
            self._runtime,
            on_gap=on_gap,
            max_messages=max_messages,
            max_message_bytes=max_message_bytes,
            **options,
        )

    if not TYPE_CHECKING:  # type checkers see redis-py's own signatures

        def monitor(self) -> Monitor:
            """Return redis-py's monitor, on a connection of redis-py's own pool."""
            self._check_open("monitor")
            return _Monitor(self, self.connection_pool)

        def eval(self, script: Any, *args: Any) -> Any:
            """Run a script, and remember it for EVALSHA."""
            self._runtime.scripts.remember(script)
            return super().eval(script, *args)

        def eval_ro(self, script: Any, *args: Any) -> Any:
            """Run a script that only reads, and remember it for EVALSHA_RO."""
            self._runtime.scripts.remember(script)
            return super().eval_ro(script, *args)

        def register_script(self, script: Any) -> Any:
            """Return redis-py's script object, and remember the script for EVALSHA."""
            self._runtime.scripts.remember(script)
            return super().register_script(script)

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
        *,
        renew: bool = False,
        fencing: bool = False,
        cancel_on_loss: bool = True,
    ) -> ResilientLock:
        """Return a lock, with redis-py's options and those of `ResilientLock`.

        Args:
            name: The name of the key.
            timeout: Seconds after which the server releases the lock; None for never.
            sleep: Seconds between attempts where the server does not report changes of the key.
            blocking: Whether `acquire` waits for the lock.
            blocking_timeout: Maximum wait in seconds; None for no limit.
            lock_class: Another class of locks. The three last options are for `ResilientLock`.
            thread_local: Whether the token belongs to the thread that acquired the lock.
            raise_on_release_error: Whether `async with` raises if the lock was not held any more.
            renew: Renew the lock after each third of its timeout, until it is released.
            fencing: Count the holders, for `lock.fencing_token`.
            cancel_on_loss: Whether losing the lock cancels the body of `async with`.

        Raises:
            ConfigurationError: `renew=True` without a timeout.
        """
        options: dict[str, Any] = {}
        if lock_class is None or issubclass(lock_class, ResilientLock):
            options = {"renew": renew, "fencing": fencing, "cancel_on_loss": cancel_on_loss}
        elif renew or fencing or not cancel_on_loss:
            raise ConfigurationError(
                f"{lock_class.__name__} has no option renew, fencing or cancel_on_loss: derive it "
                f"from resilient_io.redis.ResilientLock"
            )
        kind: type[Any] = lock_class if lock_class is not None else ResilientLock
        lock: ResilientLock = kind(
            self._plain_view(),
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

    def client(self) -> Self:
        """Return a client with one connection of its own, which permits WATCH, MULTI and SELECT."""
        client = self.__class__(
            connection_pool=self.connection_pool,
            single_connection_client=True,
            policy=self._policy,
            health=self.health,
            name=self.name,
            rng=self._seeded,
            reopen=self._reopen,
        )
        if self._tracing is not None:
            client.trace_with(self._tracing)
        return client

    def set_retry(self, retry: Any) -> NoReturn:  # noqa: ARG002 (redis-py's signature)
        """Refuse: redis-py would change a pool that other clients use.

        Raises:
            ConfigurationError: Always; it names `with_policy`.
        """
        raise ConfigurationError(
            "set_retry() is not supported: use redis.with_policy(attempts=3) instead"
        )

    def __copy__(self) -> Self:
        """Return a view of this client: a copy that shares its connections."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._origin = self._origin or self
        return view

    def stats(self) -> RedisStats:
        """Return the counters: calls, outcomes, retries, traffic and latency quantiles."""
        return read_stats(self._runtime)

    def liveness_failure(self) -> str | None:
        """Return why only a restart helps (a task of the client crashed), or None.

        None before the first use and after closing. A server that is down never counts: this is for
        liveness (`HealthMonitor(liveness=[redis])`), not for readiness.
        """
        return self._runtime.liveness_failure()

    def trace_with(self, tracing: Tracing) -> None:
        """Create spans of all calls from now on, and of those of views that are created later."""
        self._tracing = tracing
        self._instrument()

    def _instrument(self) -> None:
        self._hot, self._instrumented = False, True

    # -- lifecycle -------------------------------------------------------------------------

    async def initialize(self) -> Self:
        """Open the connections and start the probe, without waiting for the server.

        Raises:
            RuntimeError: The client is in use in another event loop, or the process was forked.
        """
        await self._runtime.reopen()
        (self._origin or self)._mark_open()
        self._runtime.start()
        if is_patched():
            self._instrument()
        return self

    def __enter__(self) -> NoReturn:
        """Reject `with` instead of `async with`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("ResilientRedis is asynchronous: use `async with ResilientRedis(...)`")

    def __exit__(self, *_: object) -> None:
        """Exist, so that `with` reaches `__enter__` and its message."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close: every waiting call raises `Closed`, and every connection and task ends.

        The connections of a pool that was passed as `connection_pool=` stay open for its other
        clients, as in redis-py, unless `close_connection_pool` is true.

        Takes at most the connect timeout. Idempotent. Cancelling returns immediately; the closing
        continues in the background. A later call opens the client again, unless it has
        `reopen=False`.

        Args:
            close_connection_pool: Whether to close redis-py's pool, too; by default if the client
                created it.
        """
        if self._is_view:
            return
        self._closed, self._hot = True, False
        close_all = close_connection_pool
        if close_all is None:
            close_all = self.auto_close_connection_pool
        close_all = close_all or self.single_connection_client
        self._leave(kept=not close_all)
        if not close_all:
            return
        pool = functools.partial(super().aclose, close_connection_pool)
        await self._runtime.aclose(also=pool)

    def _mark_open(self) -> None:
        self._closed = False
        self._hot = self._may_be_hot and not self._instrumented
        self._count()

    def _count(self) -> None:
        if not self._counted:
            self._counted = True
            self._runtime.users += 1

    def _leave(self, *, kept: bool) -> None:
        if self._counted:
            self._counted = False
            self._runtime.leave(kept=kept)

    def __del__(self, _warnings: Any = warnings, *_: Any) -> None:
        """Close in the background if the last client of its connections is collected unclosed."""
        # Without the attribute, the constructor has failed; a view has its own reference to it.
        if not self.__dict__.get("_counted") or self._origin is not None or not self._traceable:
            return
        runtime, owned = self._runtime, self.auto_close_connection_pool
        kept = not (owned or runtime.bound)
        self._leave(kept=kept)
        if kept or runtime.users or not runtime.running:
            return
        _warnings.warn(
            f"unclosed client {self!r}: use `async with`, or await aclose()",
            ResourceWarning,
            stacklevel=1,
            source=self,
        )
        runtime.close_later(self.connection_pool.aclose if owned else _nothing)

    async def __aexit__(self, *_: object) -> None:
        """Close when the last `async with` block is left."""
        # redis-py 8.1 awaits a lock to count down: cancelled there, it would never close.
        self._usage_counter -= 1
        if self._usage_counter == 0:
            await self.aclose()

    def __repr__(self) -> str:
        """Return the address and the state, without secrets."""
        return f"<{type(self).__name__} {self._runtime.target.name} {self.health.state.value}>"


_execute_command = ResilientRedis.execute_command
"""The method without the wrappers of tracers, which patch this class if it replaces redis-py's."""

_OPTIONS_OF_FROM_URL = (
    "policy", "health", "connections", "name", "rng", "reopen",
    "read_from", "max_lag", "durability",
)  # fmt: skip
_OPTIONS_OF_FROM_SENTINEL = (*_OPTIONS_OF_FROM_URL, "single_connection_client")
_DRIVER_OPTIONS = ("driver_info", "lib_name", "lib_version")
_NO_TIME = 1e-6  # seconds that are left of a deadline that has passed
_RETRY_OPTIONS = ("retry", "retry_on_error", "retry_on_timeout")


async def _nothing() -> None:
    """Close no pool."""


class _Monitor(driver_client.Monitor):
    """redis-py's monitor, whose errors contain no secrets."""

    def __init__(self, client: ResilientRedis, pool: ConnectionPool) -> None:
        super().__init__(pool)
        self._client = client  # kept from being collected: that would close the pool
        self._target = client._runtime.target

    async def connect(self) -> None:
        with self._target.without_secrets():
            await super().connect()  # type: ignore[no-untyped-call]
