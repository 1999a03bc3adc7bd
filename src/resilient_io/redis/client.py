"""`ResilientRedis`: redis-py's asyncio client, its commands sent through the gate."""

from __future__ import annotations

import copy
import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self

from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency, HealthSettings

from .codec import Packer
from .command_path import CommandPath
from .connect import PoolTarget
from .engine import Engine
from .instrumentation import bind_anew, is_patched, observe
from .lock import ResilientLock
from .options import ConnectionSettings, check_given, check_types, policy_from, pool_from_url
from .pipeline import ObservedPipeline, ResilientPipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio.client import Monitor, PubSub
    from redis.asyncio.connection import ConnectionPool
    from redis.asyncio.lock import Lock

    from resilient_io.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class RedisStats:
    """Counters since the client was started; times in seconds, sizes in bytes.

    Attributes:
        replies: Replies that came over lanes, one for each command of a batch.
        ended: Calls that ended in one of our errors, by its name.
        refused: Replies that said "not applied, for now".
        retries: Attempts beyond the first.
        lanes: Shared connections that are open.
        dedicated: Connections lent to, or kept for, single calls.
        in_flight: Calls on the lanes without a reply yet.
        waiting: Calls that wait for a connection or for room.
        bytes_sent: Bytes written to lanes.
        bytes_received: Bytes read from lanes.
        budget: Tokens left for retries.
        latency: The time within which 50 %, 90 %, 99 % and 99.9 % of the replies came, counted from
            the write; None while there were none. They are as fine as the loop's clock, which
            on uvloop steps by 1 ms.
        latency_total: All those times together, in seconds.
        latency_counts: The same as a histogram: pairs of the most seconds that belong to a bucket
            (eight to an octave) and how many replies took so long, without the empty ones.
    """

    replies: int
    ended: Mapping[str, int]
    refused: int
    retries: int
    lanes: int
    dedicated: int
    in_flight: int
    waiting: int
    bytes_sent: int
    bytes_received: int
    budget: float
    latency: Mapping[str, float | None]
    latency_total: float
    latency_counts: tuple[tuple[float, int], ...]


def stats_of(engine: Engine) -> RedisStats:
    """Read an engine's counters."""
    lanes, gate = engine.lanes, engine.gate
    replies, sent, received = lanes.traffic
    return RedisStats(
        replies=replies,
        ended=dict(gate.verdicts.ended),
        refused=gate.verdicts.refused,
        retries=gate.verdicts.retries,
        lanes=len(lanes.open_lanes),
        dedicated=engine.dedicated.open,
        in_flight=sum(lane.in_flight for lane in lanes.open_lanes),
        waiting=lanes.waiting,
        bytes_sent=sent,
        bytes_received=received,
        budget=gate.budget.tokens,
        latency=lanes.latencies.quantiles,
        latency_total=lanes.latencies.total,
        latency_counts=lanes.latencies.counts,
    )


class ResilientRedis(CommandPath):
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
        lanes: ConnectionSettings | None = None,
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
        self._lane_settings = lanes if lanes is not None else ConnectionSettings()
        self._packer = Packer(pool.get_encoder())  # type: ignore[no-untyped-call]
        self._careful = False
        self._hot = self._packer.direct
        if is_patched():
            self._begin_to_be_seen()
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

    # -- what redis-py builds on it --------------------------------------------------------

    def pipeline(
        self, transaction: bool = True, shard_hint: str | None = None
    ) -> ResilientPipeline:
        """Return a pipeline whose batch travels a lane as one uninterrupted write.

        Args:
            transaction: Wrap it in MULTI and EXEC.
            shard_hint: Passed on, unused by redis-py.
        """
        kind = ObservedPipeline if self._seen else ResilientPipeline
        return kind(self, transaction, shard_hint)

    if not TYPE_CHECKING:  # their types are redis-py's

        def pubsub(self, **options: Any) -> PubSub:
            """Return redis-py's pub/sub object, on a connection of redis-py's own pool."""
            self._check_open("pubsub")
            return super().pubsub(**options)

        def monitor(self) -> Monitor:
            """Return redis-py's monitor, on a connection of redis-py's own pool."""
            self._check_open("monitor")
            return super().monitor()

        def lock(self, name: Any, *args: Any, **options: Any) -> Lock:
            """Return redis-py's lock, which asks for the truth when an answer was lost."""
            options.setdefault("lock_class", ResilientLock)
            return super().lock(name, *args, **options)

    def _check_open(self, operation: str) -> None:
        if self._engine.gate.closed:
            raise self._engine.gate.refusal_when_closed(operation)

    def client(self) -> Self:
        """Return a client with one connection of its own, for WATCH, MULTI, SELECT by hand."""
        client = self.__class__(
            connection_pool=self.connection_pool,
            single_connection_client=True,
            policy=self._policy,
            health=self.health,
            rng=self._rng,
        )
        if self._tracing is not None:
            observe(client, self._tracing)
        return client

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
        view._twin = None
        bind_anew(view)
        view._policy = (policy if policy is not None else self._policy).replace(**changes)
        view._careful, view._hot = True, False
        return view

    def stats(self) -> RedisStats:
        """Return what happened so far: calls, outcomes, retries, traffic, latency quantiles."""
        return stats_of(self._engine)

    def liveness_failure(self) -> str | None:
        """Say why only a new process helps: a task of its own is gone, by a bug of ours.

        None while all is well, before the first use and after closing. A server that is away never
        counts: this is for liveness (`HealthMonitor(liveness=[redis])`), not for readiness.
        """
        return self._engine.liveness_failure()

    # -- life ------------------------------------------------------------------------------

    async def initialize(self) -> Self:
        """Start the connections and the probe, without waiting for the server.

        Raises:
            RuntimeError: The client is in use in another living event loop, or was forked.
        """
        await self._engine.reopen()
        self._engine.start()
        if is_patched():
            self._begin_to_be_seen()
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
