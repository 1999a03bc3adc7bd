"""Runs a plan: the callers and the faults, then everything settles, then the clients are closed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import redis

from . import faults
from .budgets import recorded
from .checks import check
from .clients import PASSWORD, patched
from .environment import simulated
from .history import ClientEnd, Ending
from .network import Network
from .redis_server.server import RedisServer
from .workload import KINDS, Use
from .world import ADDRESSES, HOST, PORT, World

if TYPE_CHECKING:
    from .history import History, Violation
    from .loop import SimulatedLoop
    from .plan import Caller, Plan
    from .world import Client

_LONGEST_CALL = 40.0
"""Seconds after the last fault within which every call must have ended."""

_SETTLE = 25.0
"""Seconds after the last call within which every client must be well again."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came out of a run."""

    plan: Plan
    history: History
    violations: list[Violation]
    virtual_seconds: float

    @property
    def digest(self) -> str:
        """A hash of the whole history."""
        return self.history.digest()


def run(plan: Plan) -> Result:
    """Run a plan and check its history. The same plan always has the same result."""
    with simulated(plan.seed, plan.network) as simulation:
        loop, history = simulation.loop, simulation.history
        network = Network(loop, Random(f"network/{plan.seed}"), history, plan.network)
        world = World(plan, loop, network, history, _servers(plan, loop, network, history))
        began = loop.time()
        with recorded(history), patched(plan, history):
            loop.run_until_complete(_main(world))
        seconds = loop.time() - began
        history.ending.loop_errors = list(loop.errors)
        history.ending.log_errors = list(simulation.log_errors)
    return Result(plan, history, check(history, plan), seconds)


def _servers(
    plan: Plan, loop: SimulatedLoop, network: Network, history: History
) -> list[RedisServer]:
    settings = dict(plan.server)
    lag = settings.pop("replica_lag", 0.01)
    password = PASSWORD if settings.pop("password", False) else None
    servers = []
    for index, address in enumerate(ADDRESSES):
        server = RedisServer(
            f"server{index + 1}",
            loop,
            history,
            Random(f"server/{plan.seed}/{index}"),
            requirepass=password,
            address=f"{address}:{PORT}",
            lag=lag,
            **settings,
        )
        network.listen(address, PORT, server)
        servers.append(server)
    if any(fault.kind == "fail over" for fault in plan.faults):
        servers[1].replicate(servers[0])  # otherwise, no one would notice the replica
    network.names[HOST] = [ADDRESSES[0]]
    return servers


async def _main(world: World) -> None:
    loop, plan = world.loop, world.plan
    start = loop.time()
    world.start_clients()
    for fault in plan.faults:
        loop.at(start + fault.at, faults.begin, world, fault)
    callers = [
        loop.create_task(_make_calls(world, caller), name=f"caller {caller.number}")
        for caller in plan.callers
    ]
    over = max((fault.at + fault.seconds for fault in plan.faults), default=0.0)
    planned = max(
        (
            sum(call.pause + call.arguments.get("rest", 0.0) for call in caller.calls)
            for caller in plan.callers
        ),
        default=0.0,
    )
    ending = world.history.ending
    if callers:
        _, hanging = await asyncio.wait(callers, timeout=over + planned + _LONGEST_CALL)
        ending.hanging = [each.number for each in world.history.operations if each.ended is None]
        for task in hanging:
            task.cancel()
        if hanging:
            await asyncio.wait(hanging, timeout=5.0)
    await asyncio.sleep(max(0.0, start + over - loop.time()))
    world.network.heal()
    world.history.event("workload", "settling")
    await _settle(world)
    await _end(world, ending)


async def _make_calls(world: World, caller: Caller) -> None:
    for call in caller.calls:
        if call.pause:
            await asyncio.sleep(call.pause)
        await KINDS[call.kind](Use(world, caller, call))


async def _settle(world: World) -> None:
    """Wait until every open client is up and has nothing in flight, at most `_SETTLE` seconds."""
    deadline = world.loop.time() + _SETTLE
    await asyncio.sleep(1.0)
    while world.loop.time() < deadline:
        clients = [client for client in world.clients.values() if client.open]
        if all(
            client.redis.health.state.value in ("up", "unknown")
            and not any(_counters(client).values())
            for client in clients
        ):
            break
        await asyncio.sleep(0.5)


def _counters(client: Client) -> dict[str, float]:
    """Return the counters that are zero when the client does nothing."""
    runtime = client.redis._runtime
    multiplexer, pool = runtime.multiplexer, runtime.pool
    return {
        "calls in flight": sum(each.in_flight for each in multiplexer.connections),
        "bytes in flight": sum(each.load for each in multiplexer.connections),
        "waiting calls": multiplexer.waiting,
        "acquired exclusive connections": len(pool._acquired),
        "exclusive connects": len(pool._connecting),
        "recoveries": len(pool._recoveries),
        "open spans": 0 if client.spans is None else client.spans.open,
        "permits of exclusive connections": _permits_in_use(client),
    }


def _permits_in_use(client: Client) -> int:
    """Return how many exclusive connections fewer than permitted could be acquired."""
    if not client.open:
        return 0
    most = client.redis.connection_pool.max_connections
    return int(most - client.redis._runtime.pool._room._value)


async def _end(world: World, ending: Ending) -> None:
    """Record how every client is, close all of them, and record what is left."""
    loop = world.loop
    for label, client in world.clients.items():
        answers = None
        if client.open:
            answers = await _answers(client)
        if client.open or client.pooled:
            await _quiet(client)
        budget = client.redis._runtime.executor.budget
        ending.clients.append(
            ClientEnd(
                label=label,
                dependency=client.redis.health.name,
                open=client.open,
                counters=_counters(client),
                state=client.redis.health.state.value,
                answers=answers,
                budget=budget.tokens,
                budget_size=client.policy.retry_budget,
            )
        )
    current = asyncio.current_task()
    # A moment later, what is under way by chance has ended, such as a connect attempt.
    names = _other_tasks(loop, current)
    await asyncio.sleep(1.0)
    ending.idle_tasks = [name for name in _other_tasks(loop, current) if name in names]
    world.history.event("workload", "ending")
    for client in world.clients.values():
        closing = loop.create_task(client.redis.aclose(True if client.pooled else None))
        await asyncio.wait([closing], timeout=5.0)
        if not closing.done():
            ending.tasks.append("aclose() of a client did not end within 5 s")
            closing.cancel()
    await asyncio.sleep(1.5)
    ending.tasks += _other_tasks(loop, current)
    ending.timers = world.loop.pending_timers
    ending.connections = [connection.number for connection in world.network.connections]
    ending.data = {server.name: server.data() for server in world.servers}


def _other_tasks(loop: SimulatedLoop, current: asyncio.Task[None] | None) -> list[str]:
    """Return the names of all other tasks."""
    return sorted(task.get_name() for task in loop.unfinished_tasks() if task is not current)


async def _quiet(client: Client) -> None:
    """Wait for a moment at which the client is up and no probe is in flight."""
    for _ in range(20):
        state = client.redis.health.state.value
        if state == "up" and not any(_counters(client).values()):
            return
        await asyncio.sleep(0.1)


async def _answers(client: Client) -> bool:
    """Return whether a PING succeeds soon. The first may find that its connection is dead."""
    for _ in range(12):  # a lookup that hangs ends only 5 s after the fault
        try:
            async with asyncio.timeout(5.0):
                await client.redis.ping()
        except (redis.RedisError, OSError, TimeoutError):
            await asyncio.sleep(1.0)
        else:
            return True
    return False
