"""What the replies of the nodes of a cluster mean."""

import pytest
from redis import exceptions as driver

from resilient_io.doctor import Status
from resilient_io.doctor.cluster import (
    NodeView,
    announced_places,
    judge_agreement,
    judge_replicas,
    judge_slots,
    moving_slots,
    ranges_text,
    read_nodes,
    read_view,
)
from resilient_io.doctor.network import Endpoint

SHARES = {"a": "0-5460", "b": "5461-10922", "c": "10923-16383"}


def line(name, *, flags="master", master="-", slots="", link="connected"):
    """Return a line of CLUSTER NODES."""
    return f"{name} {name}.local:6379@16379,{name}.name {flags} {master} 0 0 1 {link} {slots}"


MASTERS = [line(name, slots=slots) for name, slots in SHARES.items()]
REPLICAS = [line(f"{name}{name}", flags="slave", master=name) for name in SHARES]


def view(name, lines=(*MASTERS, *REPLICAS), *, role=(), lags=None, state="ok", timeout=2000):
    return NodeView(
        id=name,
        endpoint=Endpoint(f"{name}.local", 6379),
        nodes=read_nodes("\n".join(lines)),
        state=state,
        role=role,
        lags=lags or {},
        node_timeout=timeout,
    )


def without(*names):
    return [each for each in (*MASTERS, *REPLICAS) if each.split()[0] not in names]


NAMES = ["a", "b", "c", "aa", "bb", "cc"]
ALL = [view(name) for name in NAMES]


def test_healthy_cluster_has_no_problem():
    assert judge_slots(ALL).found == "all 16,384 slots are served, by 3 masters"
    agreement = judge_agreement(ALL)
    assert agreement.status is Status.OK
    assert "they know 6 nodes and the same slots" in agreement.found
    assert agreement.data["node_timeout"] == 2.0
    replicas = judge_replicas(
        [view("a", lags={("aa.local", 6379): 1}), *ALL[1:3], view("aa", role=["slave", "a", "6379",
        "connected"]), *ALL[4:]]
    )  # fmt: skip
    assert (replicas.status, replicas.data["lags"]) == (Status.OK, {"aa.local:6379": 1})
    assert replicas.found == "3 replicas follow their masters, at most 1 s behind"


@pytest.mark.parametrize(
    ("views", "status", "found", "advice"),
    [
        (
            [view(name, without("b")) for name in NAMES if name != "b"],
            Status.PROBLEM,
            "5,462 of 16,384 slots have no owner: 5461-10922",
            "--cluster fix",
        ),
        (
            [view("a", [*without("b"), line("b", flags="master,fail", slots=SHARES["b"])])],
            Status.PROBLEM,
            "the owner of 5,462 slots has failed: b.local:6379",
            "TAKEOVER",
        ),
        (
            [view("a", state="fail"), *ALL[1:]],
            Status.PROBLEM,
            "the cluster is down for a.local:6379",
            "bus",
        ),
        (
            [view("a", [*without("a"), line("a", slots="0-5460 [7->-b] [9-<-c]")]), *ALL[1:]],
            Status.NOTE,
            "2 slots on the way to another node: 7, 9",
            "resharding",
        ),
    ],
)
def test_slots_that_are_not_served_or_on_their_way(views, status, found, advice):
    judged = judge_slots(views)
    assert judged.status is status
    assert found in judged.found
    assert advice in judged.advice


def test_a_node_that_disagrees_with_the_others_is_named():
    taken = [line("a", slots="0-5460 5461"), line("b", slots="5462-10922"), *without("a", "b")]
    judged = judge_agreement([view("a", taken), *ALL[1:]])
    assert judged.status is Status.PROBLEM
    assert judged.found == "a.local:6379 knows other owners of 1 slot: 5461"
    judged = judge_agreement([view("a", without("cc")), *ALL[1:]])
    assert judged.found == "a.local:6379 does not know cc.local:6379"
    judged = judge_agreement([view("a", timeout=500), *ALL[1:]])
    assert judged.status is Status.NOTE
    assert "a.local:6379: 500 ms" in judged.found


@pytest.mark.parametrize(
    ("views", "status", "found"),
    [
        (
            [view(name, without("cc")) for name in NAMES[:5]],
            Status.NOTE,
            "no replica: c.local:6379",
        ),
        (
            [*ALL[:3], view("aa", role=["slave", "a", "6379", "connect"])],
            Status.PROBLEM,
            "replica aa.local:6379 has not reached its master a.local:6379",
        ),
        (
            [view("a", lags={("aa.local", 6379): 7}), *ALL[1:]],
            Status.NOTE,
            "replica aa.local:6379 has confirmed nothing for 7 s",
        ),
        (
            [view(n, [*without("aa"), line("aa", flags="slave", master="x")]) for n in NAMES],
            Status.PROBLEM,
            "replica aa.local:6379 has a master that the other nodes do not know",
        ),
    ],
)
def test_masters_without_a_replica_and_replicas_without_a_master(views, status, found):
    judged = judge_replicas(views)
    assert judged.status is status
    assert found in judged.found
    assert judged.advice


def test_clients_look_for_a_node_where_cluster_slots_says():
    seed = view("a", [*MASTERS, line("d"), line("e", flags="master,noaddr")])
    slots = [
        [0, 5460, [b"10.0.0.1", 7000, b"a", []]],
        [5461, 10922, [None, 7001, b"b"]],
        [10923, 16383, [b"", 7002, b"c"]],
    ]
    places = announced_places(seed, slots, default_host="host")
    assert places == {
        "a": ("10.0.0.1", 7000),
        "b": ("host", 7001),
        "c": ("host", 7002),
        "d": ("d.local", 6379),
    }
    refused = announced_places(seed, driver.NoPermissionError("NOPERM"), default_host="host")
    assert refused["a"] == ("a.local", 6379)


def test_replies_that_are_refused_leave_their_part_unknown():
    error = driver.NoPermissionError("NOPERM")
    endpoint = Endpoint("a.local", 6379)
    nodes = "\n".join(MASTERS).encode()
    found = read_view(endpoint, [b"a", nodes, error, error, error, error])
    assert (found.id, found.state, found.node_timeout) == ("a", "", None)
    found = read_view(endpoint, [b"a", error, error, error, error, error])
    assert found.status is Status.UNKNOWN
    full = [b"a", nodes, b"cluster_state:ok\r\n", [b"slave", b"x", 1, b"connect", 1],
            b"slave0:ip=1.2.3.4,port=5,state=online,offset=1,lag=3\r\n",
            [b"cluster-node-timeout", b"15000"]]  # fmt: skip
    found = read_view(endpoint, full)
    assert (found.state, found.node_timeout, found.lags) == ("ok", 15000, {("1.2.3.4", 5): 3})


def test_slots_are_shown_as_ranges():
    assert ranges_text([0, 1, 2, 9]) == "0-2, 9"
    assert ranges_text(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, …"


def test_only_the_node_itself_says_which_slots_are_on_their_way():
    moving = [line("a", slots="0-5460 [7->-b]"), *without("a")]
    assert moving_slots([view("a", moving)]) == [7]
    assert moving_slots([view("b", moving)]) == []
