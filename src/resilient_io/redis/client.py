"""`ResilientRedis`: redis-py's asyncio client, its commands sent through the gate."""

from __future__ import annotations

import copy
import functools
import random
from _thread import get_ident  # half the price of asyncio.get_running_loop on Python 3.11
from typing import TYPE_CHECKING, Any, NoReturn, Self

import redis.asyncio as driver
from hiredis import pack_command
from redis.client import NEVER_DECODE

from resilient_io._policy import RetryPolicy, current_deadline
from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency, HealthSettings

from .calls import Command, DedicatedCall, LaneCall, Packer
from .commands import SPECS, Effect, Route, lookup
from .engine import Engine
from .errors import RouteRefused
from .lock import ResilientLock
from .options import check_given, check_types, policy_from, pool_from_url
from .pipeline import ResilientPipeline
from .replies import LARGE
from .report import RedisStats, stats_of
from .settings import LaneSettings
from .target import PoolTarget

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import ConnectionPool
    from redis.asyncio.lock import Lock

    from .commands import CommandSpec

_NO_OPTIONS: dict[str, Any] = {}

_get_callback: Callable[[Any, str], Callable[..., Any] | None] = dict.get

_ENDS_TRANSACTION = ("EXEC", "DISCARD", "UNWATCH")


class ResilientRedis(driver.Redis):
    """A `redis.asyncio.Redis` that knows what it may repeat and whether its server is there.

    Every command, type and constructor is redis-py's. `async with` opens the connections and
    starts the probe; without it the first command does. A server that is down at the start
    neither raises nor hangs: `redis.health` says so.

    A call fails with one of the errors in `resilient_io.redis.errors`, which are redis-py's too;
    what the server refuses for good (WRONGTYPE, NOPERM) is raised as redis-py raises it. Cancelling
    a call leaves at once: a command that was not written yet is never sent, one that was may be
    applied.

    Args:
        policy: How hard and how long to try; by default, `RetryPolicy()` with the times and retries
            that redis-py's own options (`socket_timeout`, `retry` …) ask for.
        health: The dependency to feed, if it is shared with another client of the same server.
        lanes: How many connections all callers share, and how much may be in flight.
        rng: Source of jitter and names; give a seeded one to replay a schedule.
        connection_pool: redis-py's pool; only its settings are used.
        single_connection_client: Use one connection of its own, on which WATCH, MULTI, SELECT and
            the like are allowed.
        **options: Every other option of `redis.asyncio.Redis`.

    Raises:
        ConfigurationError: An option is unknown, contradicts another, or cannot be honoured.
    """

    def __init__(
        self,
        *,
        policy: RetryPolicy | None = None,
        health: Dependency | None = None,
        lanes: LaneSettings | None = None,
        rng: random.Random | None = None,
        connection_pool: ConnectionPool | None = None,
        single_connection_client: bool = False,
        **options: Any,
    ) -> None:
        check_types(policy, health, lanes)
        check_given(options, policy)
        interval = options.pop("health_check_interval", 0)
        retry_settings = {
            key: options.pop(key)
            for key in ("retry", "retry_on_error", "retry_on_timeout")
            if key in options
        }
        try:
            super().__init__(
                connection_pool=connection_pool,
                single_connection_client=single_connection_client,
                **options,
            )
        except TypeError as error:
            raise ConfigurationError(f"{error}: see redis.asyncio.Redis for its options") from error
        pool = self.connection_pool
        said = options | retry_settings if connection_pool is None else pool.connection_kwargs
        self._policy = policy if policy is not None else policy_from(said)
        target = PoolTarget(pool)
        target.check()
        interval = interval or pool.connection_kwargs.get("health_check_interval", 0)
        health_is_ours = health is None
        self._rng = rng if rng is not None else random.Random()
        if health is None:
            settings = HealthSettings(interval=float(interval)) if interval else HealthSettings()
            health = Dependency(f"redis {target.name}", settings=settings, rng=self._rng)
        self.health = health
        self._lane_settings = lanes if lanes is not None else LaneSettings()
        self._packer = Packer(pool.get_encoder())  # type: ignore[no-untyped-call]
        self._careful = False
        self._hot = self._packer.direct
        self._engine = Engine(
            pool=pool,
            target=target,
            policy=self._policy,
            health=health,
            settings=self._lane_settings,
            dedicated_limit=pool.max_connections,
            rng=self._rng,
            callbacks=self.response_callbacks,
            bound=single_connection_client,
            owns_health=health_is_ours,
        )

    @classmethod
    def from_url(
        cls,
        url: str,
        single_connection_client: bool = False,
        auto_close_connection_pool: bool | None = None,
        **options: Any,
    ) -> Self:
        """Make a client from a URL (`redis://`, `rediss://`, `unix://`), as redis-py does.

        Args:
            url: The server's URL; a password in it is never shown.
            single_connection_client: As in the constructor.
            auto_close_connection_pool: Deprecated by redis-py, passed on to it.
            **options: Those of the constructor and of `redis.asyncio.Redis`.

        Raises:
            ConfigurationError: The URL or an option cannot be understood.
        """
        ours = {key: options.pop(key) for key in _OURS if key in options}
        check_given(options, ours.get("policy"))
        pool = pool_from_url(url, options)
        client = cls(
            connection_pool=pool, single_connection_client=single_connection_client, **ours
        )
        client.auto_close_connection_pool = auto_close_connection_pool is not False
        return client

    @classmethod
    def from_pool(cls, connection_pool: ConnectionPool, **options: Any) -> Self:
        """Make a client that owns, and closes, the given pool; only its settings are used.

        Args:
            connection_pool: redis-py's pool, that of Sentinel included.
            **options: `policy`, `health`, `lanes` and `rng`, as in the constructor.
        """
        client = cls(connection_pool=connection_pool, **options)
        client.auto_close_connection_pool = True
        return client

    # -- the hot path ----------------------------------------------------------------------

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply, as redis-py does.

        Raises:
            ResilientIOError: One of `resilient_io.redis.errors`, by what became of the call.
            redis.exceptions.RedisError: The server refused it.
        """
        lanes = self._engine.lanes
        lane = lanes.fast
        spec = SPECS.get(args[0])
        if (
            lane is None
            or spec is None
            or not spec.simple
            or not self._hot
            or get_ident() != lanes.thread
            or not lanes.is_running()
            or NEVER_DECODE in options
        ):
            return await self._execute(args, options)
        started = lanes.time()
        limit = current_deadline()
        if limit is not None and limit < started + self._policy.response_timeout:
            return await self._execute(args, options)
        try:
            data = pack_command(args)
        except TypeError:
            data = self._packer.pack(spec.words, args)
        if len(data) > LARGE:
            return await self._execute(args, options)
        options.pop("keys", None)
        if not options:
            # Ten thousand empty dictionaries would keep the garbage collector busy.
            options = _NO_OPTIONS
        future = lanes.create_future()
        lane.send(future, data)
        reply = await future
        if isinstance(reply, Exception):
            call = self._lane_call(Command(spec, args, options), data, reply)
            return await self._engine.gate.run(call, self._policy, started=started)
        # redis-py 8.1 `CaseInsensitiveDict` keeps upper-case keys, as the table's names are.
        callback = _get_callback(self.response_callbacks, args[0])
        if callback is None:
            return reply
        reply = callback(reply, **options)
        return await reply if hasattr(reply, "__await__") else reply

    if not TYPE_CHECKING:  # type checkers see redis-py's own signature

        def set(self, name: Any, value: Any, *more: Any, **options: Any) -> Any:
            """Set a key, as redis-py does; a plain one without redis-py's check of 14 options."""
            if more or options:
                return super().set(name, value, *more, **options)
            return self.execute_command("SET", name, value)

    async def _execute(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        engine = self._engine
        gate = engine.gate
        if gate.closed:
            raise gate.refusal_when_closed(str(args[0]))
        engine.start()
        spec = SPECS.get(args[0]) or lookup(args)
        if not self.health.available and self._policy.while_down == "fail":
            raise gate.refusal_while_down(spec.name)
        self._check_route(spec)
        started = engine.lanes.time()
        command = Command(spec, args, options)
        call: DedicatedCall | LaneCall
        if spec.route is Route.DEDICATED and not engine.bound:
            call = DedicatedCall(gate, self._policy, command, self)
        else:
            call = self._lane_call(command, self._packer.pack(spec.words, args))
        return await gate.run(call, self._policy, started=started, deliberate=self._careful)

    def _lane_call(self, command: Command, data: bytes, first: Exception | None = None) -> LaneCall:
        gate, policy = self._engine.gate, self._policy
        otherwise = DedicatedCall(gate, policy, command, self)
        return LaneCall(gate, policy, command, data, otherwise=otherwise, first=first)

    def _check_route(self, spec: CommandSpec) -> None:
        lanes = self._engine.lanes
        if spec.route is Route.REFUSED or (spec.route is Route.BOUND and not self._engine.bound):
            raise RouteRefused(f"{spec.name} cannot share a connection. {spec.advice}")
        if not self._engine.bound:
            return
        self._engine.gate.check_session(spec.name)
        if spec.name in _ENDS_TRANSACTION:
            lanes.session = [name for name in lanes.session if name not in ("WATCH", "MULTI")]
        elif (
            spec.route is Route.BOUND
            and spec.effect is not Effect.READ
            and spec.name not in lanes.session
        ):
            lanes.session.append(spec.name)

    # -- what redis-py builds on it --------------------------------------------------------

    def pipeline(
        self, transaction: bool = True, shard_hint: str | None = None
    ) -> ResilientPipeline:
        """Return a pipeline whose batch travels a lane as one uninterrupted write.

        Args:
            transaction: Wrap it in MULTI and EXEC.
            shard_hint: Passed on, unused by redis-py.
        """
        return ResilientPipeline(self, transaction, shard_hint)

    if not TYPE_CHECKING:  # its types are redis-py's

        def lock(self, name: Any, *args: Any, **options: Any) -> Lock:
            """Return redis-py's lock, which asks for the truth when an answer was lost."""
            options.setdefault("lock_class", ResilientLock)
            return super().lock(name, *args, **options)

    def client(self) -> Self:
        """Return a client with one connection of its own, for WATCH, MULTI, SELECT by hand."""
        return self.__class__(
            connection_pool=self.connection_pool,
            single_connection_client=True,
            policy=self._policy,
            health=self.health,
            rng=self._rng,
        )

    def set_retry(self, retry: Any) -> NoReturn:  # noqa: ARG002 (redis-py's signature)
        """Refuse: redis-py would change a pool that others use.

        Raises:
            ConfigurationError: Always; it names `with_policy`.
        """
        raise ConfigurationError(
            "set_retry() is replaced by policies: write redis.with_policy(attempts=3)"
        )

    def with_policy(self, policy: RetryPolicy | None = None, **changes: Any) -> Self:
        """Return a view of this client with another policy on the same connections.

        Choosing it is a word on the call itself: with `repeat="any"` it covers FLUSHALL and its
        like, too. Closing the view does nothing. Connections keep their connect timeout.

        Args:
            policy: The other policy; None for this client's own.
            **changes: Fields of it to change, for example `repeat="any"`.

        Raises:
            ConfigurationError: The policy contradicts itself.
        """
        check_types(policy, None, None)
        view = copy.copy(self)
        view._policy = (policy if policy is not None else self._policy).replace(**changes)
        view._careful, view._hot = True, False
        return view

    def stats(self) -> RedisStats:
        """Return what happened so far: calls, outcomes, retries, traffic, latency quantiles."""
        return stats_of(self._engine)

    # -- life ------------------------------------------------------------------------------

    async def initialize(self) -> Self:
        """Start the connections and the probe, without waiting for the server.

        Raises:
            RuntimeError: The client is in use in another living event loop, or was forked.
        """
        self._engine.reopen()
        self._engine.start()
        return self

    def __enter__(self) -> NoReturn:
        """Refuse a `with` that lacks its `async`.

        Raises:
            TypeError: Always.
        """
        raise TypeError("ResilientRedis is asynchronous: write `async with ResilientRedis(...)`")

    def __exit__(self, *_: object) -> None:
        """Exist, so that `with` gets as far as `__enter__` and its message."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close: every waiting call ends with `Closed`, every connection and task is gone.

        Bounded by the connect timeout. Closing twice is fine. Cancelling leaves at once; the
        closing goes on by itself.

        Args:
            close_connection_pool: Whether redis-py's pool is closed, too; by default if it is ours.
        """
        if self._careful:
            return
        pool = functools.partial(super().aclose, close_connection_pool)
        await self._engine.aclose(also=pool)

    async def __aexit__(self, *_: object) -> None:
        """Close when the last `async with` is left; cancelling leaves the closing to go on."""
        # redis-py 8.1 awaits a lock to count down: cancelled there, it would never close.
        self._usage_counter -= 1
        if self._usage_counter == 0:
            await self.aclose()

    def __repr__(self) -> str:
        """Show the address and the state, and no secret."""
        return f"<{type(self).__name__} {self._engine.target.name} {self.health.state.value}>"


_OURS = ("policy", "health", "lanes", "rng")
