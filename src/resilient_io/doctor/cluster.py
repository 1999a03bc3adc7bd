"""Check a Redis Cluster: every node where it is announced, the slots, and the replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as driver

from resilient_io.redis.driver_connection import exchange, peer_of
from resilient_io.redis.topology import read_info, replica_lags

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
from .network import Endpoint
from .steps import CheckResult, Status, merged, note, ok, problem, together, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from .steps import Checks, Step

SLOTS: Final = 16384
_MAJORITY: Final = 3  # masters: the least number of which one may fail
_SHOWN: Final = 6  # ranges of slots
_NODE_TIMEOUT: Final = "cluster-node-timeout"

_COMMANDS: Final = (
    ("CLUSTER", "MYID"),
    ("CLUSTER", "NODES"),
    ("CLUSTER", "INFO"),
    ("ROLE",),
    ("INFO", "replication"),
    ("CONFIG", "GET", _NODE_TIMEOUT),
)
_ANNOUNCE: Final = (
    "Clients connect where the nodes say (CLUSTER SLOTS), whatever the address in the URL is: set "
    "cluster-announce-ip and cluster-announce-port of the node to an address that can be reached "
    "from here, or a name with cluster-announce-hostname and cluster-preferred-endpoint-type "
    "hostname, or map the address in the client (address_map=)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNode:
    """A node, as a line of CLUSTER NODES describes it."""

    id: str
    place: tuple[str, int]
    flags: frozenset[str]
    master: str  # the id of its master; "-" for a master
    epoch: int
    ranges: tuple[tuple[int, int], ...] = ()
    moving: tuple[str, ...] = ()  # slots on their way: "[5->-id]" or "[5-<-id]"

    @property
    def is_master(self) -> bool:
        """Whether it is a master, with slots or without."""
        return "master" in self.flags

    @property
    def is_gone(self) -> bool:
        """Whether the node that described it takes it for failed, or has never met it."""
        return bool(self.flags & {"fail", "noaddr", "handshake"})


@dataclass(slots=True, kw_only=True)
class NodeView:
    """What one node says about itself and the others."""

    id: str
    endpoint: Endpoint
    nodes: Mapping[str, KnownNode]
    state: str = ""  # cluster_state
    role: Sequence[str] = ()  # the beginning of ROLE
    lags: Mapping[tuple[str, int], int] = field(default_factory=dict)  # of its replicas
    node_timeout: int | None = None  # milliseconds; None without the permission

    def owners(self) -> dict[int, str]:
        """Return the id of the owner of each slot that has one."""
        return {
            slot: node.id
            for node in self.nodes.values()
            for first, last in node.ranges
            for slot in range(first, last + 1)
        }


async def examine_cluster(
    checks: Checks, pool: ConnectionPool, connection: AbstractConnection
) -> AsyncGenerator[Step, None]:
    """Yield the steps for the cluster of a node, to which `connection` leads."""
    seeds: list[NodeView] = []
    views: list[NodeView] = []
    limit = checks.half
    yield await checks.run("nodes", lambda: _check_nodes(pool, connection, limit, seeds, views))
    if not seeds:
        return
    yield await checks.run("slots", lambda: _result(judge_slots(views or seeds)))
    yield await checks.run("agreement", lambda: _result(judge_agreement(views or seeds)))
    yield await checks.run("replicas", lambda: _result(judge_replicas(views or seeds)))


async def _result(result: CheckResult) -> CheckResult:
    return result


# -- the nodes ----------------------------------------------------------------------------------


async def _check_nodes(
    pool: ConnectionPool,
    connection: AbstractConnection,
    timeout: float,
    seeds: list[NodeView],
    views: list[NodeView],
) -> CheckResult:
    """Connect to every node where the cluster announces it, and ask what it knows."""
    async with asyncio.timeout(timeout):
        replies = await exchange(connection, *_COMMANDS, ("CLUSTER", "SLOTS"))
    peer = peer_of(connection)
    here = Endpoint(str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else Endpoint("", 0)
    host = pool.connection_kwargs.get("host") or here.host
    seed = read_view(here, replies[:-1])
    if isinstance(seed, CheckResult):
        return seed
    seeds.append(seed)
    announced = announced_places(seed, replies[-1], default_host=str(host))
    endpoints = {each: Endpoint(*place) for each, place in announced.items()}
    password = bool(pool.connection_kwargs.get("password"))

    async def ask(node_id: str, endpoint: Endpoint) -> NodeView | CheckResult:
        target = target_at(pool, endpoint)
        answer = await ask_server(endpoint, target, timeout, *_COMMANDS, gave_password=password)
        if isinstance(answer, CheckResult):
            return _judge_unreached(seed.nodes[node_id], endpoint, answer)
        view = read_view(endpoint, answer)
        if isinstance(view, NodeView) and view.id != node_id:
            return problem(
                f"at {endpoint.text} another node answers than the announced one",
                f"Two nodes announce this address, or it leads elsewhere from here. {_ANNOUNCE}",
            )
        return view

    answers = await together("node", (ask(*each) for each in endpoints.items()))
    views += [each for each in answers if isinstance(each, NodeView)]
    results = [each for each in answers if isinstance(each, CheckResult)]
    lost = [each for each in seed.nodes.values() if "noaddr" in each.flags]
    if lost:
        results.append(
            note(
                f"{_count(len(lost), 'node')} without an address",
                "If they no longer exist, send CLUSTER FORGET with their id to every node.",
            )
        )
    masters = sum(each.is_master for each in seed.nodes.values() if not each.is_gone)
    where = ", ".join(each.endpoint.text for each in views)
    found = f"{len(views)} of {_count(len(endpoints), 'node')} answer where announced"
    results.append(ok(f"{found} ({where or 'none'})", nodes=len(endpoints), answered=len(views)))
    if 0 < masters < _MAJORITY:
        results.append(
            note(
                f"the cluster has only {_count(masters, 'master')}",
                "If one fails, the rest is not a majority, and no replica takes over: use three "
                "or more.",
            )
        )
    return merged(results, masters=masters)


def read_view(endpoint: Endpoint, replies: Sequence[Any]) -> NodeView | CheckResult:
    """Return the view of a node, from its replies to the requests of the doctor."""
    own_id, nodes, info, role, replication, timeout = replies
    for needed in (own_id, nodes):
        if isinstance(needed, driver.ResponseError):
            return refused(endpoint, needed)
    lags: dict[tuple[str, int], int] = {}
    if not isinstance(replication, Exception):
        lags = replica_lags(read_info(replication))
    view = NodeView(
        id=text_of(own_id), endpoint=endpoint, nodes=read_nodes(text_of(nodes)), lags=lags
    )
    if not isinstance(info, Exception):
        view.state = read_info(info).get("cluster_state", "")
    if not isinstance(role, Exception):
        view.role = [*map(text_of, role[:4])]
    if not isinstance(timeout, Exception):
        view.node_timeout = number(pairs_of(timeout).get(_NODE_TIMEOUT)) or None
    return view


def read_nodes(text: str) -> dict[str, KnownNode]:
    """Return the nodes that a reply to CLUSTER NODES describes, by their ids."""
    found = {}
    for line in text.splitlines():
        node_id, address, flags, master, _, _, epoch, _, *slots = line.split()
        place, _, _ = address.partition("@")
        host, _, port = place.rpartition(":")
        ranges = [each.partition("-") for each in slots if not each.startswith("[")]
        found[node_id] = KnownNode(
            id=node_id,
            place=(host, number(port)),
            flags=frozenset(flags.split(",")),
            master=master,
            epoch=number(epoch),
            ranges=tuple((int(first), int(last or first)) for first, _, last in ranges),
            moving=tuple(each for each in slots if each.startswith("[")),
        )
    return found


def announced_places(
    seed: NodeView, slots: Any, *, default_host: str
) -> dict[str, tuple[str, int]]:
    """Return where clients look for each node, by its id.

    CLUSTER SLOTS gives the preferred endpoint, an address or a name, of the nodes with slots. For
    the others, their address counts. An endpoint may be empty: then it is the host of the URL.
    """
    places = {
        each.id: (each.place[0] or default_host, each.place[1])
        for each in seed.nodes.values()
        if not each.flags & {"noaddr", "handshake"}
    }
    if isinstance(slots, Exception):
        return places
    for _, _, *nodes in slots:
        for host, port, node_id, *_ in nodes:
            name = "" if host is None else text_of(host)
            if text_of(node_id) in places:
                places[text_of(node_id)] = (name or default_host, int(port))
    return places


def _judge_unreached(node: KnownNode, endpoint: Endpoint, why: CheckResult) -> CheckResult:
    role = "master" if node.is_master else "replica"
    if "fail" in node.flags:
        found = f"{role} {endpoint.text} has failed: the other nodes do not reach it, either"
        if node.ranges:
            return problem(found, "Start it again: see the step slots.")
        return note(found, "Start it again, or send CLUSTER FORGET with its id to every node.")
    reason = why.found.removeprefix(f"{endpoint.text}: ")
    if endpoint.reached:
        return replace(why, found=f"{role} {endpoint.text}: {reason}")
    return problem(
        f"{role} {endpoint.text} cannot be reached from here: {reason}",
        f"{why.advice} {_ANNOUNCE}",
    )


# -- the slots ----------------------------------------------------------------------------------


def judge_slots(views: Sequence[NodeView]) -> CheckResult:
    """Return whether every slot has an owner that works, and whether slots are on their way."""
    view = majority(views)
    owners = view.owners()
    missing = [slot for slot in range(SLOTS) if slot not in owners]
    failed = [each for each in view.nodes.values() if each.ranges and "fail" in each.flags]
    results = []
    if missing:
        results.append(
            problem(
                f"{len(missing):,} of {SLOTS:,} slots have no owner: {ranges_text(missing)}",
                "Their keys cannot be used, and with cluster-require-full-coverage no key at all: "
                "run `redis-cli --cluster fix`, or CLUSTER ADDSLOTSRANGE on a master.",
                missing=len(missing),
            )
        )
    for node in failed:
        count = sum(last - first + 1 for first, last in node.ranges)
        results.append(
            problem(
                f"the owner of {count:,} slots has failed: {_place_of(node, views)}",
                "If no replica takes over within twice cluster-node-timeout: start it again, or "
                "send CLUSTER FAILOVER TAKEOVER to a replica of it.",
                lost=count,
            )
        )
    unwell = [each.endpoint.text for each in views if each.state == "fail"]
    if unwell:
        results.append(
            problem(
                f"the cluster is down for {', '.join(unwell)} (cluster_state:fail)",
                "The node refuses keys (CLUSTERDOWN): slots have no owner, or it does not reach "
                "most masters. Check the port of the cluster bus (port + 10000) between the nodes.",
            )
        )
    moving = moving_slots(views)
    if moving:
        results.append(
            note(
                f"{_count(len(moving), 'slot')} on the way to another node: {ranges_text(moving)}",
                "If no resharding is running, it was interrupted: run `redis-cli --cluster fix`. "
                "Calls with keys of such a slot take a second round trip.",
            )
        )
    if not results:
        masters = sum(bool(each.ranges) for each in view.nodes.values())
        return ok(f"all {SLOTS:,} slots are served, by {_count(masters, 'master')}")
    return merged(results)


def moving_slots(views: Iterable[NodeView]) -> list[int]:
    """Return the slots that a node is giving or getting; each describes only its own."""
    found = set()
    for view in views:
        own = view.nodes.get(view.id)
        for text in own.moving if own is not None else ():
            found.add(number(text.lstrip("[").partition("-")[0]))
    return sorted(found)


def majority(views: Sequence[NodeView]) -> NodeView:
    """Return a view that most nodes have of the slots."""
    signs = [_sign(view) for view in views]
    most, _ = Counter(signs).most_common(1)[0]
    return views[signs.index(most)]


def _place_of(node: KnownNode, views: Sequence[NodeView]) -> str:
    """Return where a node was reached; where the others see it, if it was not."""
    for view in views:
        if view.id == node.id:
            return view.endpoint.text
    return Endpoint(*node.place).text


def _sign(view: NodeView) -> tuple[object, ...]:
    return tuple(sorted((each.id, each.ranges) for each in view.nodes.values() if each.ranges))


def judge_agreement(views: Sequence[NodeView]) -> CheckResult:
    """Return whether the nodes know the same nodes and the same owners of the slots."""
    view = majority(views)
    owners = view.owners()
    results = []
    for each in views:
        differ: list[int] = []
        if _sign(each) != _sign(view):
            theirs = each.owners()
            differ = [slot for slot in range(SLOTS) if owners.get(slot) != theirs.get(slot)]
        if differ:
            results.append(
                problem(
                    f"{each.endpoint.text} knows other owners of {_count(len(differ), 'slot')}: "
                    f"{ranges_text(differ)}",
                    "After a failover or a resharding this lasts some seconds. Otherwise the node "
                    "does not reach the others: check the port of the cluster bus (port + 10000).",
                )
            )
        unknown_to = [other for other in views if other.id not in each.nodes]
        if unknown_to:
            names = ", ".join(other.endpoint.text for other in unknown_to)
            advice = "Send it CLUSTER MEET with the address of that node."
            results.append(problem(f"{each.endpoint.text} does not know {names}", advice))
    timeouts = {each.node_timeout for each in views if each.node_timeout is not None}
    if len(timeouts) > 1:
        shown = ", ".join(
            f"{each.endpoint.text}: {each.node_timeout} ms" for each in views if each.node_timeout
        )
        results.append(
            note(f"the nodes have different values of {_NODE_TIMEOUT} ({shown})", "Use one value.")
        )
    seconds = max(timeouts, default=0) / 1000
    noticed = f"; a failed node is noticed after {seconds:g} s" if timeouts else ""
    known = _count(len(view.nodes), "node")
    found = ok(f"{_count(len(views), 'node')} asked: they know {known} and the same slots{noticed}")
    data = {"node_timeout": seconds} if timeouts else {}
    return merged(results or [found], **data)


# -- the replicas -------------------------------------------------------------------------------


def judge_replicas(views: Sequence[NodeView]) -> CheckResult:
    """Return whether each master has a replica that could take over."""
    view = majority(views)
    by_id = {each.id: each for each in views}
    replicas = [each for each in view.nodes.values() if not each.is_master and not each.is_gone]
    followed = {each.master for each in replicas}
    alone = [
        _place_of(each, views)
        for each in view.nodes.values()
        if each.is_master and each.ranges and "fail" not in each.flags and each.id not in followed
    ]
    results = []
    if alone:
        results.append(
            note(
                f"no replica: {', '.join(alone)}",
                "If such a master fails, its slots and their data are lost: add a replica "
                "(CLUSTER REPLICATE).",
                without_replica=alone,
            )
        )
    lags = {}
    for node in replicas:
        owner = by_id.get(node.master)
        lag = owner.lags.get(node.place) if owner is not None else None
        if lag is not None:
            lags[_place_of(node, views)] = lag
        result = _judge_replica(node, view.nodes.get(node.master), by_id.get(node.id), lag)
        if result is not None:
            results.append(result)
    if replicas and not any(each.status is Status.PROBLEM for each in results):
        behind = f", at most {max(lags.values())} s behind" if lags else ""
        plural = "follow their masters" if len(replicas) > 1 else "follows its master"
        results.append(ok(f"{_count(len(replicas), 'replica')} {plural}{behind}"))
    return merged(results or [unknown("no node says that it is a master or a replica")], lags=lags)


def _judge_replica(
    node: KnownNode, master: KnownNode | None, view: NodeView | None, lag: int | None
) -> CheckResult | None:
    """Return what is wrong with a replica, or None."""
    name = f"replica {Endpoint(*node.place).text}"
    if master is None:
        found = f"{name} has a master that the other nodes do not know"
        return problem(found, "Send it CLUSTER REPLICATE with the id of a master.")
    if view is not None and _is_detached(view.role):
        return problem(
            f"{name} has not reached its master {Endpoint(*master.place).text}",
            "It cannot take over, and its data is old: check its masterauth (and masteruser), and "
            "whether it reaches that address.",
        )
    if lag is not None and lag >= LATE:
        return note(f"{name} has confirmed nothing for {lag} s", LATE_ADVICE)
    return None


def _is_detached(role: Sequence[str]) -> bool:
    return role[:1] == ["slave"] and role[3:4] not in (["connected"], ["sync"])


def ranges_text(slots: Sequence[int]) -> str:
    """Return sorted slots as ranges: "0-5460, 9000"; the first ones, if there are many."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and slot == ranges[-1][1] + 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    shown = [f"{first}-{last}" if first < last else f"{first}" for first, last in ranges[:_SHOWN]]
    return ", ".join([*shown, *(["…"] if len(ranges) > _SHOWN else [])])


def _count(number_of: int, noun: str) -> str:
    return f"{number_of:,} {noun}{'s' * (number_of != 1)}"
