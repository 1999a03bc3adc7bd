"""Reads from replicas: which replicas there are, how far they lag, and which server a read uses.

The lag of a replica is measured from INFO replication, as an upper limit: the client asks the
master for its offset, then the replica for its own. A replica whose offset is that of the master,
or higher, has everything that was written before the master was asked. So its lag is the time since
the latest question to the master whose answer the replica has reached by now. It includes the
interval between two questions, a quarter of `max_lag` (at most 1 s), and grows while the master
cannot be asked.

A second runtime has the connections to one replica. A read that is tried there and fails continues
on the master, as another attempt of the same call in the same executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import RedisError

from resilient_io.errors import ConfigurationError
from resilient_io.health import ClientDependency
from resilient_io.tasks import log_task_death
from resilient_io.text import describe_error
from resilient_io.validation import check_choice, check_number

from .addresses import ConfiguredAddress, map_address
from .attempt import AttemptFailed, Call
from .commands import Effect, Route, effect_of
from .connect import connect
from .driver_connection import StallTolerantTimeout, abort, query_over
from .errors import REPLICA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .addresses import Address
    from .attempt import Limits
    from .commands import CommandSpec
    from .connection import MultiplexedConnection
    from .runtime import Runtime

READ_FROM: Final = ("master", "replica", "nearest", "any")

DEFAULT_MAX_LAG: Final = 10.0
"""Seconds. Redis itself takes a replica for gone after 60 s, and pings it every 10 s."""

LEAST_MAX_LAG: Final = 0.1

_LONGEST_INTERVAL = 1.0
_SHORTEST_INTERVAL = 0.025
_BEGINNING = 1.0  # seconds in which the first replica is looked for more often
_FIRST_PAUSE = 0.05
_IDLE = 10.0  # seconds without a read after which replicas are not watched any more
_SURVEY_INTERVAL = 30.0  # seconds between two comparisons of the latencies of all replicas
_SWITCH_INTERVAL = 1.0  # seconds between two changes of the replica
_ANSWER_TIMEOUT = 0.5
_PINGS = 3  # to measure a latency
_MUCH_NEARER = 0.8  # ratio of two latencies from which on another replica is nearer
_SAME_PLACE = 0.0002  # seconds: a smaller difference of latencies means nothing
_SAMPLES = 512

_ONLY_ON_THE_MASTER = (
    "ACL", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "DEBUG", "ECHO", "FUNCTION", "HELLO", "INFO",
    "LASTSAVE", "LATENCY", "LOLWUT", "MODULE", "PING", "PUBSUB", "ROLE", "SCRIPT", "SENTINEL",
    "SLOWLOG", "TIME", "WAIT", "WAITAOF",
    # Their cursor means something only to the server that returned it.
    "SCAN", "HSCAN", "SSCAN", "ZSCAN",
)  # fmt: skip
"""First words of reads that are about the server, or continue on it."""


def is_replica_read(spec: CommandSpec, args: Sequence[object]) -> bool:
    """Return whether a replica may answer a command: it reads keys, and only reads."""
    return (
        spec.route is Route.MULTIPLEXED
        and spec.known
        and spec.name.partition(" ")[0] not in _ONLY_ON_THE_MASTER
        and effect_of(spec, args) is Effect.READ
    )


class ReadFrom(NamedTuple):
    """Which server answers the reads of a client or a view."""

    mode: str = "master"
    max_lag: float | None = DEFAULT_MAX_LAG

    @classmethod
    def of(cls, mode: object, max_lag: float | None) -> ReadFrom:
        """Return what the options `read_from=` and `max_lag=` mean.

        Raises:
            ConfigurationError: They are invalid.
        """
        if not isinstance(mode, str):
            raise ConfigurationError(f'read_from={mode!r} is unknown: use read_from="replica"')
        check_choice("read_from", mode, READ_FROM)
        if max_lag is not None:
            max_lag = check_number("max_lag", max_lag, least=LEAST_MAX_LAG)
        return cls(mode, max_lag)


class ReplicaAddresses:
    """The replicas that the master listed last, the preferred one first."""

    def __init__(self) -> None:
        self.known: list[Address] = []

    async def find(self) -> Sequence[Address]:
        """Return their addresses. Raises a `ConnectionError` of redis-py if there are none."""
        if not self.known:
            raise ConnectionLostError("no replica is connected to the master")
        return tuple(self.known)

    async def aclose(self) -> None:
        """Do nothing: it has no connections."""


class _Sample(NamedTuple):
    """What the master answered to one question."""

    history: str  # `master_replid`: offsets of another history cannot be compared
    offset: int
    asked: float


class ReplicaSet:
    """The replicas of one master, and the connections to one of them.

    It watches the replicas while reads use it, and for 10 s afterwards.

    Args:
        master: The runtime with the connections to the master.
    """

    def __init__(self, master: Runtime) -> None:
        self._master = master
        self._addresses = ReplicaAddresses()
        self._runtime: Runtime | None = None
        self._task: asyncio.Task[None] | None = None
        self._forget()

    @classmethod
    def of(cls, master: Runtime) -> ReplicaSet:
        """Return the replicas of a master, which all its clients and views share."""
        return master.companion(cls, lambda: cls(master))

    def _forget(self) -> None:
        self._used = -math.inf
        self._strictest = math.inf  # the smallest `max_lag` in use
        self._compares = False  # whether latencies matter
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES)
        self._reached: dict[MultiplexedConnection, float] = {}
        self._latencies: dict[Address | None, float] = {}  # None: the master
        self._surveyed = self._switched = self._began = -math.inf
        self._alternate = False
        self._problem = ""

    # -- for reads -------------------------------------------------------------------------

    def choose(self, read_from: ReadFrom) -> Runtime | None:
        """Return the runtime with the replica for a read, or None for the master.

        Nothing is waited for. The first read starts to look for replicas.
        """
        self._watch(read_from)
        runtime = self._runtime
        connection = None if runtime is None else runtime.multiplexer.current
        if runtime is None or connection is None:
            return None
        lag = self.lag_of(connection)
        if lag is None or (read_from.max_lag is not None and lag > read_from.max_lag):
            return None
        if read_from.mode == "nearest":
            return runtime if self._is_nearer(connection) else None
        if read_from.mode == "any" and not self._is_less_busy(connection):
            return None
        return runtime

    def lag_of(self, connection: MultiplexedConnection) -> float | None:
        """Return for how many seconds a replica may lack writes, at most, or None if unknown."""
        reached = self._reached.get(connection)
        return None if reached is None else asyncio.get_running_loop().time() - reached

    @property
    def health(self) -> ClientDependency | None:
        """The health of the connections to the replica; None before they are opened."""
        return None if self._runtime is None else self._runtime.health  # type: ignore[return-value]

    def _is_nearer(self, connection: MultiplexedConnection) -> bool:
        master = self._latencies.get(None)
        replica = self._latencies.get(_peer_of(connection))
        if master is None or replica is None:
            return master is None
        return replica <= master + _SAME_PLACE

    def _is_less_busy(self, connection: MultiplexedConnection) -> bool:
        master = self._master.multiplexer.current
        if master is None or connection.in_flight != master.in_flight:
            return master is None or connection.in_flight < master.in_flight
        self._alternate = not self._alternate
        return self._alternate

    def _watch(self, read_from: ReadFrom) -> None:
        self._used = self._master.multiplexer.time()
        if read_from.max_lag is not None and read_from.max_lag < self._strictest:
            self._strictest = read_from.max_lag
        self._compares = self._compares or read_from.mode == "nearest"
        task = self._task
        if task is not None and task.done() and not task.cancelled() and task.exception():
            return  # a bug, which is logged; reads go to the master
        if task is None or task.done() or task.get_loop() is not self._master.multiplexer.loop:
            self._began = self._used
            # In an empty context: it outlives the call that starts it, and the call's deadline.
            self._task = asyncio.get_running_loop().create_task(
                self._follow(), name="resilient-io redis replicas", context=Context()
            )
            self._task.add_done_callback(log_task_death)

    async def aclose(self) -> None:
        """Close the connections to the replica, and end the task. Idempotent."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            await runtime.aclose(also=_nothing)
        self._forget()

    # -- watching --------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Ask the master and the replica for their offsets, again and again while reads come."""
        loop = asyncio.get_running_loop()
        while loop.time() - self._used < _IDLE:
            try:
                await self._ask_master()
            except (RedisError, OSError) as error:
                self._note_problem(describe_error(error))
            except (KeyError, ValueError):
                self._note_problem("INFO replication of the master cannot be read")
            else:
                self._problem = ""
            if self._addresses.known:
                runtime = self._open()
                await self._ask_replica(runtime)
                if self._compares and loop.time() - self._surveyed > _SURVEY_INTERVAL:
                    self._surveyed = loop.time()
                    await self._survey()
                self._leave_lagging(runtime)
            await asyncio.sleep(self._pause())
        self._reached.clear()

    def _note_problem(self, detail: str) -> None:
        if detail != self._problem:
            self._problem = detail
            self._master.health.note("replicas unknown", detail=detail)

    def _pause(self) -> float:
        pause = min(self._strictest / 4, _LONGEST_INTERVAL)
        if not self._reached and asyncio.get_running_loop().time() - self._began < _BEGINNING:
            pause = min(pause, _FIRST_PAUSE)
        return max(pause, _SHORTEST_INTERVAL)

    def _open(self) -> Runtime:
        """Return the runtime of the replica, which connects."""
        runtime = self._runtime
        if runtime is None:
            master = self._master
            health = ClientDependency(f"{master.health.name} replica", rng=master.rng)
            target = master.target.with_source(self._addresses)
            runtime = self._runtime = master.sibling(target, health)
        runtime.start()
        return runtime

    async def _ask_master(self) -> None:
        """Record the master's offset and its replicas."""
        connection = self._master.multiplexer.open_connection
        if connection is None:
            return
        asked = asyncio.get_running_loop().time()
        facts = await _replication_of(connection)
        if facts.get("role") != "master":
            if self._samples:  # it was the master: no write may be refused that would show it
                self._master.server.search.note_refusal(REPLICA)
            return
        self._samples.append(
            _Sample(facts["master_replid"], int(facts["master_repl_offset"]), asked)
        )
        listed = [
            map_address(self._master.target.address_map, address) for address in _replicas_in(facts)
        ]
        kept = [address for address in self._addresses.known if address in listed]
        added = [address for address in listed if address not in kept]
        self._master.rng.shuffle(added)  # the clients of a service spread over the replicas
        self._addresses.known = [*kept, *added]

    async def _ask_replica(self, runtime: Runtime) -> None:
        """Record the offset of the replica that each connection leads to: there may be several."""
        connections = runtime.multiplexer.connections
        self._reached = {each: when for each, when in self._reached.items() if each in connections}
        for connection in connections:
            try:
                facts = await _replication_of(connection)
                offset = int(facts.get("slave_repl_offset", "-1"))
            except (RedisError, OSError, ValueError):
                continue
            if facts.get("role") != "slave" or facts.get("master_sync_in_progress") == "1":
                self._reached.pop(connection, None)
                if facts.get("role") == "master":
                    self._leave(runtime, connection, "its server is the master now")
                continue
            history = facts.get("master_replid")
            for sample in reversed(self._samples):
                if sample.history == history and sample.offset <= offset:
                    self._reached[connection] = sample.asked
                    break

    def _leave_lagging(self, runtime: Runtime) -> None:
        """Use another replica if the current one lags too much, or another one is much nearer."""
        multiplexer = runtime.multiplexer
        connection, now = multiplexer.current, asyncio.get_running_loop().time()
        others = len(self._addresses.known) > 1
        if connection is None or not others or now - self._switched < _SWITCH_INTERVAL:
            return
        lag = self.lag_of(connection)
        lags = now - connection.opened > _SWITCH_INTERVAL and (lag is None or lag > self._strictest)
        if not lags and not self._other_is_nearer(connection):
            return
        for each in multiplexer.connections:
            self._leave(runtime, each, "its replica lags" if lags else "another is nearer")

    def _leave(self, runtime: Runtime, connection: MultiplexedConnection, why: str) -> None:
        """Connect to another replica instead, if there is one."""
        self._switched = asyncio.get_running_loop().time()
        runtime.target.avoid_peer(connection.peer)
        runtime.multiplexer.retire(connection, why=why)
        here, known = _peer_of(connection), self._addresses.known
        self._addresses.known = [address for address in known if address != here]
        self._addresses.known += [address for address in known if address == here]

    def _other_is_nearer(self, connection: MultiplexedConnection) -> bool:
        here = self._latencies.get(_peer_of(connection), math.inf)
        best = min(
            (self._latencies.get(address, math.inf) for address in self._addresses.known),
            default=math.inf,
        )
        return best < here * _MUCH_NEARER and here - best > _SAME_PLACE

    async def _survey(self) -> None:
        """Measure the latencies of the master and of each replica, over short connections."""
        policy = self._master.policy
        current = self._master.multiplexer.open_connection
        latencies: dict[Address | None, float] = {}
        if current is not None:
            with contextlib.suppress(RedisError, OSError):
                latencies[None] = await _latency(current.query)
        for address in list(self._addresses.known):
            target = self._master.target.with_source(ConfiguredAddress(*address))
            try:
                connection = await connect(
                    target, timeout=policy.connect_timeout, user_timeout=policy.response_timeout
                )
                try:
                    latencies[address] = await _latency(query_over(connection, _ANSWER_TIMEOUT))
                finally:
                    abort(connection)
            except (RedisError, OSError):
                continue
            finally:
                await target.aclose()
        self._latencies = latencies
        self._addresses.known.sort(key=lambda address: latencies.get(address, math.inf))


async def _replication_of(connection: MultiplexedConnection) -> Mapping[str, str]:
    async with StallTolerantTimeout(_ANSWER_TIMEOUT):
        reply: Any = await connection.query("INFO", "replication")
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value for name, separator, value in lines if separator}


def _replicas_in(facts: Mapping[str, str]) -> list[Address]:
    """Return the replicas that a master lists and that are in sync, at their announced address."""
    found = []
    for number in range(int(facts.get("connected_slaves", "0"))):
        parts = (part.partition("=") for part in facts.get(f"slave{number}", "").split(","))
        fields = {name: value for name, _, value in parts}
        if fields.get("state") == "online" and fields.get("ip"):
            found.append((fields["ip"], int(fields["port"])))
    return found


async def _latency(query: Callable[..., Any]) -> float:
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(_PINGS):
        began = loop.time()
        async with StallTolerantTimeout(_ANSWER_TIMEOUT):
            await query("PING")
        took.append(loop.time() - began)
    return min(took)


def _peer_of(connection: MultiplexedConnection) -> Address | None:
    peer = connection.peer
    return (peer[0], peer[1]) if isinstance(peer, tuple) else None


class ReplicaRead(Call):
    """A read, or a pipeline of reads, that a replica answers, or the master if that fails.

    Args:
        on_replica: The attempt on the replica.
        on_master: Makes the attempts on the master.
    """

    def __init__(self, on_replica: Call, on_master: Callable[[], Call]) -> None:
        self._on_replica: Call | None = on_replica
        self._make_on_master = on_master
        self._on_master: Call | None = None
        self.operation = on_replica.operation

    @property
    def effect(self) -> Effect:
        """It only reads."""
        return Effect.READ

    async def attempt(self, limits: Limits) -> object:
        """Ask the replica at the first attempt, and the master afterwards."""
        call, self._on_replica = self._on_replica, None
        if call is None:
            if self._on_master is None:
                self._on_master = self._make_on_master()
            return await self._on_master.attempt(limits)
        result = await call.attempt(limits)
        if isinstance(result, AttemptFailed) and not result.expired:
            # A refusal of the replica says nothing about the master, and is not reported to it.
            return replace(result, refusal=None, error=None, final=False)
        return result


async def _nothing() -> None:
    """Do nothing more at the close."""
