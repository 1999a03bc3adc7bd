"""Check the Sentinels of a URL: which answer, whether they agree, and where servers are reached."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.redis.addresses import map_address
from resilient_io.redis.errors import connection_failure
from resilient_io.text import clean_text, describe_error, format_address

from .network import Endpoint, check_path
from .steps import CheckResult, merged, note, ok, problem, together

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from redis.asyncio.sentinel import SentinelConnectionPool

    from resilient_io.redis.connect import RedisTarget, SentinelNode

    from .steps import Checks, Step

_UNREACHABLE: Final = (
    "Let the servers announce an address that this host reaches (replica-announce-ip, sentinel "
    "announce-ip or announce-hostnames), or pass address_map= to from_sentinel()."
)
_CHECK_NAME: Final = (
    "The name of the master is the first part of the path: redis+sentinel://host:26379/mymaster."
)
_FEW: Final = "Use at least three Sentinels on different machines, or a failover may never happen."
_ENOUGH: Final = 3
_DEAD: Final = ("s_down", "o_down", "disconnected")


async def examine_sentinels(
    checks: Checks, pool: SentinelConnectionPool, target: RedisTarget, master: list[Endpoint]
) -> AsyncGenerator[Step, None]:
    """Yield the steps for the Sentinels. The master is added to `master` if they know it."""
    settings = [
        known.connection_pool.connection_kwargs for known in pool.sentinel_manager.sentinels
    ]
    endpoints = [Endpoint(str(each["host"]), int(each["port"])) for each in settings]
    async with contextlib.aclosing(check_path(checks, endpoints)) as path:
        async for step in path:
            yield step
    if not any(each.reached for each in endpoints):
        return
    limit = checks.half
    yield await checks.run("master", lambda: _find_master(target, master), limit=limit)
    if not master:
        return
    name = str(pool.service_name)
    yield await checks.run("Sentinels", lambda: _check_quorum(target.sentinels, name))
    yield await checks.run("replicas", lambda: _check_replicas(target, name, limit / 2))


async def _find_master(target: RedisTarget, master: list[Endpoint]) -> CheckResult:
    try:
        places = await target.places()
    except (driver.RedisError, OSError) as error:
        failure = connection_failure(error)
        if isinstance(error, OSError):
            return problem(f"the announced name of the master: {failure.detail}", _UNREACHABLE)
        return problem(failure.detail, _CHECK_NAME, cause=failure.cause.value)
    assert places, "the target is one of Sentinels"  # noqa: S101
    endpoint = Endpoint(places[0].host, places[0].port)
    master.append(endpoint)
    return ok(f"the Sentinels say that the master is {endpoint.text}", master=endpoint.text)


async def _check_quorum(sentinels: Sequence[SentinelNode], name: str) -> CheckResult:
    """Ask every Sentinel for the master, and whether enough Sentinels are there for a failover."""

    async def ask(sentinel: SentinelNode) -> list[Any] | str:
        commands = (
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name),
            ("SENTINEL", "CKQUORUM", name),
        )
        try:
            return await sentinel.ask(*commands)
        except (driver.RedisError, OSError) as error:
            return describe_error(error)

    answers = await together("Sentinel", (ask(each) for each in sentinels))
    results: list[CheckResult] = []
    said: dict[str, list[str]] = {}
    for sentinel, answer in zip(sentinels, answers, strict=True):
        if isinstance(answer, str):
            results.append(note(answer, "Check this Sentinel: the others still answer."))
            continue
        address, quorum = answer
        text = ":".join(map(_text, address)) if isinstance(address, list) else "no master"
        said.setdefault(text, []).append(sentinel.name)
        if isinstance(quorum, Exception):
            found = f"{sentinel.name}: {clean_text(str(quorum))}"
            results.append(problem(found, "No failover is possible: bring Sentinels back."))
    if len(said) > 1:
        found = "; ".join(f"{', '.join(names)} say {text}" for text, names in said.items())
        results.append(note(f"the Sentinels disagree: {found}", "Wait until a failover is over."))
    if len(sentinels) < _ENOUGH:
        results.append(note(f"the URL names {len(sentinels)} of the Sentinels", _FEW))
    answering = sum(not isinstance(answer, str) for answer in answers)
    return merged([*results, ok(f"{answering} of {len(sentinels)} Sentinels answer", said=said)])


async def _check_replicas(target: RedisTarget, name: str, timeout: float) -> CheckResult:
    """Connect to the replicas at the addresses that clients use for them."""
    listed: list[dict[str, str]] = []
    for sentinel in target.sentinels:
        with contextlib.suppress(driver.RedisError, OSError):
            (reply,) = await sentinel.ask(("SENTINEL", "REPLICAS", name))
            listed = [_as_dict(each) for each in reply]
            break
    dead = [each for each in listed if set(_DEAD) & set(each["flags"].split(","))]
    alive = [each for each in listed if each not in dead]
    endpoints = []
    for each in alive:
        announced = (each["ip"], int(each["port"]))
        endpoints.append(Endpoint(*map_address(target.address_map, announced)))
    await together("replica", (_try(each, timeout) for each in endpoints))
    results = [
        note(f"the replica {format_address(each['ip'], int(each['port']))} is down", "Restart it.")
        for each in dead
    ]
    lost = [each.text for each in endpoints if not each.reached]
    if lost:
        results.append(note(f"not reachable from this host: {', '.join(lost)}", _UNREACHABLE))
    if not alive:
        results.append(problem("there is no replica that could take over", "Add a replica."))
    return merged([*results, ok(f"{len(alive)} replicas", replicas=[e.text for e in endpoints])])


async def _try(endpoint: Endpoint, timeout: float) -> None:
    if await endpoint.look_up() is None:
        await endpoint.connect(timeout)


def _as_dict(reply: Any) -> dict[str, str]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {_text(key): _text(value) for key, value in pairs}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
