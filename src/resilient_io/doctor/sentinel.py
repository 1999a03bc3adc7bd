"""Check a Redis that Sentinels monitor: the Sentinels, their agreement, master and replicas."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.health import Cause
from resilient_io.redis.connect import RedisTarget
from resilient_io.redis.topology import read_info, replica_lags
from resilient_io.text import describe_error

from .login import (
    LATE,
    LATE_ADVICE,
    ask_server,
    number,
    pairs_of,
    refused,
    target_at,
    text_of,
)
from .network import Endpoint, check_path
from .redis import check_server_tls, silent_handshake
from .steps import CheckResult, Checks, Status, merged, milder, note, ok, problem, together

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from redis.asyncio.connection import ConnectionPool
    from redis.asyncio.sentinel import SentinelConnectionPool

    from .steps import Step

_MAJORITY: Final = 3  # Sentinels: the least number of which one may fail
_FAILOVER: Final = ("failover_in_progress", "force_failover")

_SENTINEL_LOGIN: Final = (
    "Set the password of the Sentinels: ?sentinel_password=… (and sentinel_username=…) in the URL, "
    "sentinel_kwargs= in code. It may differ from that of the master."
)
_ANNOUNCE: Final = (
    "Clients connect where the Sentinels say. Set replica-announce-ip and replica-announce-port of "
    "this server to an address that can be reached from here (for names, resolve-hostnames and "
    "announce-hostnames of the Sentinels, too), or map the address in the client (address_map=)."
)
_FEW: Final = (
    "A failover needs a majority of all known Sentinels: start the missing ones. If they no longer "
    "exist, send SENTINEL RESET to the others, one after the other."
)
_STALE: Final = (
    "A client that asks only this Sentinel writes to the old master. Check whether it reaches the "
    "other Sentinels and the master: it learns of a new master from them."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelView:
    """What one Sentinel says about the master, its replicas and the other Sentinels."""

    endpoint: Endpoint
    id: str  # of the Sentinel; empty if it does not say
    facts: Mapping[str, str]  # SENTINEL MASTER
    others: Sequence[Mapping[str, str]] = ()
    replicas: Sequence[Mapping[str, str]] = ()
    no_quorum: str = ""  # why a failover is impossible, if it is

    @property
    def master(self) -> tuple[str, int]:
        """Where this Sentinel says that the master is."""
        return self.facts.get("ip", ""), number(self.facts.get("port"))

    @property
    def flags(self) -> Sequence[str]:
        """The flags of the master."""
        return self.facts.get("flags", "").split(",")

    @property
    def epoch(self) -> int:
        """The number of the configuration: a higher one is newer."""
        return number(self.facts.get("config-epoch"))


def examine_sentinels(
    pool: SentinelConnectionPool, *, timeout: float
) -> AsyncGenerator[Step, None]:
    """Check Sentinels and the servers that they monitor; see `resilient_io.doctor.examine`."""
    return _examine(Checks(timeout, RedisTarget(pool).secrets), pool)


async def _examine(checks: Checks, pool: SentinelConnectionPool) -> AsyncGenerator[Step, None]:
    """Yield the steps, until one finds that the next ones make no sense."""
    sentinels = [
        (_endpoint_of(sentinel.connection_pool), sentinel.connection_pool)
        for sentinel in pool.sentinel_manager.sentinels
    ]
    endpoints = [endpoint for endpoint, _ in sentinels]
    async with contextlib.aclosing(check_path(checks, endpoints)) as path:
        async for step in path:
            yield step
    reached = [(endpoint, each) for endpoint, each in sentinels if endpoint.reached]
    if not reached:
        return
    if RedisTarget(reached[0][1]).uses_tls:
        limit = checks.half
        step = await checks.run("TLS", lambda: _check_tls(reached, limit))
        yield step
        if step.status is Status.PROBLEM:
            return
    views: list[SentinelView] = []
    limit = checks.half
    name = pool.service_name
    yield await checks.run(
        "Sentinels", lambda: _check_sentinels(reached, name, len(endpoints), limit, views)
    )
    if not views:
        return
    yield await checks.run("quorum", lambda: _result(judge_quorum(views, endpoints)))
    yield await checks.run("agreement", lambda: _result(judge_agreement(views)))
    master = Endpoint(*leading(views).master)
    asked: list[MasterReplies] = []
    limit = checks.half
    yield await checks.run("master", lambda: _check_master(master, pool, views, limit, asked))
    replicas = [*replicas_of(views, master).values()]
    limit = checks.half
    known = asked[0] if asked else None
    yield await checks.run(
        "replicas", lambda: _check_replicas(replicas, master, pool, known, limit)
    )


async def _result(result: CheckResult) -> CheckResult:
    return result


def _endpoint_of(pool: ConnectionPool) -> Endpoint:
    settings: dict[str, Any] = pool.connection_kwargs
    return Endpoint(str(settings["host"]), int(settings["port"]))


async def _check_tls(
    sentinels: Sequence[tuple[Endpoint, ConnectionPool]], timeout: float
) -> CheckResult:
    async def check(endpoint: Endpoint, pool: ConnectionPool) -> CheckResult:
        try:
            return await check_server_tls(RedisTarget(pool, sentinel=True), endpoint, timeout)
        except TimeoutError:
            return silent_handshake(endpoint)

    results = await together("TLS", (check(*each) for each in sentinels))
    others_work = any(each.status is not Status.PROBLEM for each in results)
    distinct = {each.found: each for each in results}
    return merged([milder(each, others_work=others_work) for each in distinct.values()])


# -- the Sentinels ------------------------------------------------------------------------------


async def _check_sentinels(
    sentinels: Sequence[tuple[Endpoint, ConnectionPool]],
    name: str,
    listed: int,
    timeout: float,
    views: list[SentinelView],
) -> CheckResult:
    """Ask every Sentinel for everything that it knows about the name."""
    answers = await together(
        "Sentinel", (_ask_sentinel(endpoint, pool, name, timeout) for endpoint, pool in sentinels)
    )
    views += [answer for answer in answers if isinstance(answer, SentinelView)]
    failures = {
        endpoint.text: answer
        for (endpoint, _), answer in zip(sentinels, answers, strict=True)
        if isinstance(answer, CheckResult)
    }
    results = [milder(each, others_work=bool(views)) for each in _grouped(failures)]
    if views:
        found = f"{len(views)} of {listed} Sentinels in the URL answer and monitor {name}"
        results.append(ok(found, answered=len(views), listed=listed))
    return merged(results)


def _grouped(failures: Mapping[str, CheckResult]) -> list[CheckResult]:
    """Join the failures of several servers that differ only in the address."""
    places: dict[tuple[str, str], list[str]] = {}
    for place, each in failures.items():
        places.setdefault((each.found.removeprefix(place), each.advice), []).append(place)
    found = []
    for (rest, _), alike in places.items():
        first = failures[alike[0]]
        text = f"{', '.join(alike)}{rest}" if rest != first.found else rest
        found.append(replace(first, found=text))
    return found


async def _ask_sentinel(
    endpoint: Endpoint, pool: ConnectionPool, name: str, timeout: float
) -> SentinelView | CheckResult:
    commands = [
        ("SENTINEL", "MASTER", name),
        ("SENTINEL", "SENTINELS", name),
        ("SENTINEL", "REPLICAS", name),
        ("SENTINEL", "CKQUORUM", name),
        ("SENTINEL", "MYID"),
        ("SENTINEL", "MASTERS"),
    ]
    gave_password = bool(pool.connection_kwargs.get("password"))
    target = RedisTarget(pool, sentinel=True)
    answer = await ask_server(endpoint, target, timeout, *commands, gave_password=gave_password)
    if isinstance(answer, CheckResult):
        if answer.data.get("cause") == Cause.AUTH.value:
            return replace(answer, advice=_SENTINEL_LOGIN)
        return _for_sentinels(answer)
    return read_view(endpoint, name, answer)


def _for_sentinels(result: CheckResult) -> CheckResult:
    """Return a result whose advice names the scheme for Sentinels."""
    return replace(result, advice=result.advice.replace("rediss://", "rediss+sentinel://"))


def read_view(endpoint: Endpoint, name: str, replies: Sequence[Any]) -> SentinelView | CheckResult:
    """Return what the replies of a Sentinel say, or why they say nothing about the name."""
    facts, others, replicas, quorum, own_id, masters = replies
    if isinstance(facts, driver.NoPermissionError):
        return refused(endpoint, facts)
    if isinstance(facts, driver.ResponseError):
        return _judge_refusal(endpoint, name, facts, masters)
    return SentinelView(
        endpoint=endpoint,
        id="" if isinstance(own_id, Exception) else text_of(own_id),
        facts=pairs_of(facts),
        others=_maps(others),
        replicas=_maps(replicas),
        no_quorum=describe_error(quorum) if _is_no_quorum(quorum) else "",
    )


def _is_no_quorum(reply: object) -> bool:
    return isinstance(reply, driver.ResponseError) and "NOQUORUM" in str(reply)


def _maps(reply: Any) -> list[Mapping[str, str]]:
    return [] if isinstance(reply, Exception) else [pairs_of(each) for each in reply]


def _judge_refusal(
    endpoint: Endpoint, name: str, error: driver.ResponseError, masters: Any
) -> CheckResult:
    if isinstance(masters, driver.ResponseError):  # it does not know the command at all
        return problem(
            f"{endpoint.text}: not a Sentinel, but a server with data",
            f"List the Sentinels here (port 26379, usually); for this server alone use "
            f"redis://{endpoint.text}.",
        )
    if "No such master" not in str(error):
        return refused(endpoint, error)
    names = sorted(each.get("name", "") for each in _maps(masters))
    if not names:
        found = f"{endpoint.text}: no master is monitored"
        return problem(found, "Check the `sentinel monitor` line of its configuration.")
    close = difflib.get_close_matches(name, names, n=1) or names[:1]
    return problem(
        f"{endpoint.text}: {name} is not monitored, but {', '.join(names)}",
        f"Use the name of the master in its configuration: did you mean {close[0]}?",
    )


def judge_quorum(views: Sequence[SentinelView], listed: Sequence[Endpoint]) -> CheckResult:
    """Return whether the Sentinels can agree on a failover, and whether the URL lists them."""
    best = max(views, key=lambda view: number(view.facts.get("num-other-sentinels")))
    total = number(best.facts.get("num-other-sentinels")) + 1
    quorum = number(best.facts.get("quorum"))
    down_after = number(best.facts.get("down-after-milliseconds")) / 1000
    data = {"sentinels": total, "quorum": quorum, "down_after": down_after}
    results = [
        problem(f"{view.endpoint.text} says: {view.no_quorum}", _FEW)
        for view in views
        if view.no_quorum
    ]
    if not results:
        results.append(
            ok(
                f"a failover is possible: {quorum} of {total} Sentinels must agree that the "
                f"master is down, after {down_after:g} s without an answer"
            )
        )
    if total < _MAJORITY:
        results.append(
            note(
                f"there {'is' if total == 1 else 'are'} only {total} Sentinel{'s' * (total > 1)}",
                "If one fails, the rest is not a majority, and no failover happens: run three, on "
                "different hosts.",
            )
        )
    for view in views:
        knows = number(view.facts.get("num-other-sentinels")) + 1
        if knows < total:
            results.append(
                note(
                    f"{view.endpoint.text} knows {knows} of {total} Sentinels",
                    "Check whether it reaches the master, where Sentinels find each other, and "
                    "whether two of them have the same `sentinel myid`.",
                )
            )
    if len({view.facts.get("quorum") for view in views}) > 1:
        each = ", ".join(f"{view.endpoint.text}: {view.facts.get('quorum')}" for view in views)
        results.append(
            note(
                f"the Sentinels have different quorums ({each})",
                "Send SENTINEL SET name quorum … to each.",
            )
        )
    results += _judge_listed(views, listed)
    return merged(results, **data)


def _judge_listed(views: Sequence[SentinelView], listed: Sequence[Endpoint]) -> list[CheckResult]:
    """Compare the Sentinels of the URL with those that the Sentinels know."""
    results = []
    at: dict[str, list[str]] = {}
    for view in views:
        if view.id:
            at.setdefault(view.id, []).append(view.endpoint.text)
    results += [
        note(
            f"{' and '.join(places)} are the same Sentinel",
            "List each Sentinel once, by its own address.",
        )
        for places in at.values()
        if len(places) > 1
    ]
    # By their addresses, too: a listed Sentinel that does not answer has no known id.
    ours = {each.text for each in listed}
    ours.update(f"{address}:{each.port}" for each in listed for address in each.addresses)
    missing = {
        place: other
        for view in views
        for other in view.others
        if other.get("runid") not in at
        and (place := f"{other.get('ip')}:{other.get('port')}") not in ours
    }
    if missing:
        results.append(
            note(
                f"not in the URL: the Sentinel{'s' * (len(missing) > 1)} at "
                f"{', '.join(sorted(missing))}",
                "List every Sentinel: a client that starts while the listed ones are down finds no "
                "master.",
            )
        )
    return results


def leading(views: Sequence[SentinelView]) -> SentinelView:
    """Return a Sentinel with the newest configuration; among those, one that most agree with."""
    newest = max(view.epoch for view in views)
    votes = Counter(view.master for view in views if view.epoch == newest)
    address, _ = votes.most_common(1)[0]
    return next(view for view in views if view.epoch == newest and view.master == address)


def judge_agreement(views: Sequence[SentinelView]) -> CheckResult:
    """Return whether the Sentinels name the same master."""
    leader = leading(views)
    master = Endpoint(*leader.master).text
    epochs = {view.endpoint.text: view.epoch for view in views}
    data = {"master": master, "epoch": leader.epoch, "epochs": epochs}
    agreeing = [view for view in views if view.master == leader.master]
    found = f"{len(agreeing)} of {len(views)} Sentinels say that the master is {master}"
    results = [ok(f"{found} (epoch {leader.epoch})")]
    for view in views:
        other = Endpoint(*view.master).text
        if view.master != leader.master and view.epoch < leader.epoch:
            text = (
                f"{view.endpoint.text} is stale: it says {other} (epoch {view.epoch}, not "
                f"{leader.epoch})"
            )
            # Most are wrong: a client that counts answers is misled.
            stale = problem if len(agreeing) * 2 <= len(views) else note
            results.append(stale(text, _STALE))
        elif view.master != leader.master:
            text = f"{view.endpoint.text} says {other}, with the same epoch {view.epoch}"
            advice = "Check whether all `sentinel monitor` lines name the same server."
            results.append(problem(text, advice))
        elif view.epoch < leader.epoch:
            text = f"{view.endpoint.text} has the older epoch {view.epoch}"
            results.append(note(text, _STALE))
    return merged(results, **data)


# -- the master ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MasterReplies:
    """What the master says about its replicas."""

    role: Sequence[Any]  # ROLE
    replication: Mapping[str, str]  # INFO replication; empty without the permission

    def lags(self) -> dict[tuple[str, int], int]:
        """Return the seconds since each replica confirmed data, by the replica's address."""
        return replica_lags(self.replication)

    def followers(self) -> set[tuple[str, int]]:
        """Return the addresses of the connected replicas."""
        listed = self.role[2] if len(self.role) > 2 and isinstance(self.role[2], list) else []  # noqa: PLR2004 - "master", offset, replicas
        return {(text_of(each[0]), number(text_of(each[1]))) for each in listed} | {*self.lags()}


async def _check_master(
    master: Endpoint,
    pool: SentinelConnectionPool,
    views: Sequence[SentinelView],
    timeout: float,
    asked: list[MasterReplies],
) -> CheckResult:
    """Connect to the master where the Sentinels say that it is, and ask for its role."""
    results = judge_flags(views)
    answer = await _ask_node(master, pool, timeout)
    if isinstance(answer, CheckResult):
        local = master.is_loopback and not any(view.endpoint.is_loopback for view in views)
        if master.reached or results:
            pass
        elif local:
            text = f"the Sentinels say that the master is {master.text}, which is this host itself"
            answer = problem(text, _ANNOUNCE)
        else:
            answer = replace(answer, advice=f"{answer.advice} {_ANNOUNCE}")
        return merged([answer, *results])
    role = answer.role[0]
    if text_of(role) != "master":
        host, port = text_of(answer.role[1]), number(text_of(answer.role[2]))
        results.append(
            problem(
                f"the Sentinels say that {master.text} is the master, but it is a replica of "
                f"{Endpoint(host, port).text}",
                "While a failover is in progress, try again in a few seconds. Otherwise the "
                "Sentinels are stale, or REPLICAOF was sent by hand: use SENTINEL FAILOVER.",
            )
        )
    else:
        asked.append(answer)
        results.append(ok(f"{master.text} answers here, and is a master"))
    return merged(results)


def judge_flags(views: Sequence[SentinelView]) -> list[CheckResult]:
    """Return what the Sentinels say about the state of the master."""
    down = [view for view in views if {"s_down", "o_down"} & {*view.flags}]
    results = []
    if down:
        results.append(
            problem(
                f"{len(down)} of {len(views)} Sentinels take the master for down",
                "If a failover does not follow, see the steps quorum and replicas: it needs a "
                "majority of the Sentinels, and a replica that was connected.",
            )
        )
    if any({*_FAILOVER} & {*view.flags} for view in views):
        results.append(note("a failover is in progress", "Try again in a few seconds."))
    return results


async def _ask_node(
    endpoint: Endpoint, pool: ConnectionPool, timeout: float
) -> MasterReplies | CheckResult:
    answer = await ask_server(
        endpoint,
        target_at(pool, endpoint),
        timeout,
        ("ROLE",),
        ("INFO", "replication"),
        gave_password=bool(pool.connection_kwargs.get("password")),
    )
    if isinstance(answer, CheckResult):
        return _for_sentinels(answer)
    role, replication = answer
    if isinstance(role, driver.ResponseError):
        return refused(endpoint, role)
    return MasterReplies(role, {} if isinstance(replication, Exception) else read_info(replication))


# -- the replicas -------------------------------------------------------------------------------


def replicas_of(
    views: Sequence[SentinelView], master: Endpoint
) -> dict[tuple[str, int], Mapping[str, str]]:
    """Return the replicas that a Sentinel with the newest configuration knows, by address."""
    leader = leading(views)
    found = {(each.get("ip", ""), number(each.get("port"))): each for each in leader.replicas}
    found.pop((master.host, master.port), None)  # it was just promoted
    return found


async def _check_replicas(
    replicas: Sequence[Mapping[str, str]],
    master: Endpoint,
    pool: SentinelConnectionPool,
    known: MasterReplies | None,
    timeout: float,
) -> CheckResult:
    """Connect to each replica where the Sentinels say that it is: it may be the next master."""
    if not replicas:
        return note(
            "the master has no replica",
            "If it fails, nothing can take over, and its data is lost: start a replica "
            "(replicaof), and check masterauth if it does not appear here.",
        )

    async def check(facts: Mapping[str, str]) -> CheckResult:
        endpoint = Endpoint(facts.get("ip", ""), number(facts.get("port")))
        answer = await _ask_node(endpoint, pool, timeout)
        return judge_replica(endpoint, facts, answer, master, known)

    results = await together("replica", map(check, replicas))
    if all(facts.get("slave-priority") == "0" for facts in replicas):
        results.append(
            problem(
                "no replica may become the master: replica-priority is 0 for all",
                "Set another replica-priority (100 by default) for at least one.",
            )
        )
    return merged(results, replicas=len(replicas))


def judge_replica(
    endpoint: Endpoint,
    facts: Mapping[str, str],
    answer: MasterReplies | CheckResult,
    master: Endpoint,
    known: MasterReplies | None,
) -> CheckResult:
    """Return whether a replica can be reached from here, and whether it follows the master.

    Args:
        endpoint: Where the Sentinels say that it is.
        facts: What a Sentinel says about it.
        answer: What it says itself, or why it says nothing.
        master: Where the Sentinels say that the master is.
        known: What the master says; None if it could not be asked.
    """
    name = f"replica {endpoint.text}"
    down = bool({"s_down", "o_down", "disconnected"} & {*facts.get("flags", "").split(",")})
    if isinstance(answer, CheckResult):
        return _judge_unreached(endpoint, answer, down=down)
    role = [*map(text_of, answer.role[:4])]
    if role[0] == "master":
        return problem(
            f"{name} is a master itself",
            "After a failover this lasts some seconds, and what is written to it is lost. "
            "Otherwise the Sentinels cannot demote it: check their login at this server.",
        )
    follows, state = Endpoint(role[1], number(role[2])), role[3]
    if state not in ("connected", "sync"):
        since = number(facts.get("master-link-down-time")) / 1000
        lasts = f" for {since:.0f} s" if since >= 1 else ""
        return problem(
            f"{name} has not reached its master {follows.text}{lasts}",
            "It cannot take over, and its data is old: check its masterauth (and masteruser), and "
            "whether it reaches that address.",
        )
    if known is not None and not _is_of_master(endpoint, follows, master, known):
        return problem(
            f"{name} follows {follows.text}, not the master",
            "While a failover is in progress, try again in a few seconds. Otherwise send it "
            "REPLICAOF with the address of the master.",
        )
    if down:
        text = f"{name} answers here, but the Sentinels take it for down"
        return problem(text, "Check whether the Sentinels reach it, and their auth-pass.")
    lag = known.lags().get((endpoint.host, endpoint.port)) if known is not None else None
    return _judge_lag(name, lag, copying=state == "sync")


def _judge_unreached(endpoint: Endpoint, why: CheckResult, *, down: bool) -> CheckResult:
    name = f"replica {endpoint.text}"
    if down:
        text = f"{name} is down: the Sentinels do not reach it, either"
        return problem(
            text,
            "Start it again, or correct what it announces (replica-announce-ip). If it no longer "
            "exists, send SENTINEL RESET.",
        )
    if endpoint.reached or why.status is not Status.PROBLEM:
        return replace(why, found=f"replica {why.found}")
    reason = why.found.removeprefix(f"{endpoint.text}: ")
    return problem(
        f"{name} cannot be reached from here: {reason}",
        f"After a failover, clients connect there. {why.advice} {_ANNOUNCE}",
    )


def _is_of_master(
    endpoint: Endpoint, follows: Endpoint, master: Endpoint, known: MasterReplies
) -> bool:
    """Return whether a replica follows the master, which may have another address inside."""
    if (endpoint.host, endpoint.port) in known.followers():
        return True
    return follows.port == master.port and follows.host in (master.host, *master.addresses)


def _judge_lag(name: str, lag: int | None, *, copying: bool) -> CheckResult:
    if copying:
        return note(f"{name} is copying the data of its master", "It cannot take over until then.")
    if lag is None:
        return ok(f"{name} follows")
    if lag >= LATE:
        return note(f"{name} has confirmed nothing for {lag} s", LATE_ADVICE, lag=lag)
    return ok(f"{name} follows, {lag} s behind", lag=lag)
