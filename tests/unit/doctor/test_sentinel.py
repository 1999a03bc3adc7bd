"""What the replies of Sentinels, and of the servers that they monitor, mean."""

import pytest
from redis import exceptions as driver

from resilient_io.doctor import Status
from resilient_io.doctor.network import Endpoint
from resilient_io.doctor.sentinel import (
    MasterReplies,
    SentinelView,
    judge_agreement,
    judge_flags,
    judge_quorum,
    judge_replica,
    leading,
    read_view,
    replicas_of,
)
from resilient_io.doctor.steps import CheckResult, problem

FACTS = {
    "ip": "10.0.0.1",
    "port": "6379",
    "flags": "master",
    "config-epoch": "7",
    "num-other-sentinels": "2",
    "quorum": "2",
    "down-after-milliseconds": "1000",
}
MASTER = Endpoint("10.0.0.1", 6379)
REPLICA = Endpoint("10.0.0.2", 6379)
KNOWN = MasterReplies(
    [b"master", 100, [[b"10.0.0.2", b"6379", b"100"]]],
    {"slave0": "ip=10.0.0.2,port=6379,state=online,offset=100,lag=1"},
)


def view(number, *, sentinel_id=None, others=(), replicas=(), no_quorum="", **facts):
    """Return the view of a Sentinel; `facts` replace those of a healthy one."""
    return SentinelView(
        endpoint=Endpoint(f"s{number}", 26379),
        id=f"id{number}" if sentinel_id is None else sentinel_id,
        facts=FACTS | {name.replace("_", "-"): value for name, value in facts.items()},
        others=others,
        replicas=replicas,
        no_quorum=no_quorum,
    )


ALL = [view(number) for number in (1, 2, 3)]
LISTED = [each.endpoint for each in ALL]


def test_healthy_sentinels_have_a_quorum_and_agree():
    found = judge_quorum(ALL, LISTED)
    assert (found.status, found.data["quorum"]) == (Status.OK, 2)
    assert found.found.endswith("2 of 3 Sentinels must agree that the master is down, after 1 s "
                                "without an answer")  # fmt: skip
    found = judge_agreement(ALL)
    assert found.found == "3 of 3 Sentinels say that the master is 10.0.0.1:6379 (epoch 7)"
    assert found.status is Status.OK


@pytest.mark.parametrize(
    ("views", "status", "found", "advice"),
    [
        (
            [view(1, no_quorum="NOQUORUM 1 usable Sentinels"), *ALL[1:]],
            Status.PROBLEM,
            "s1:26379 says: NOQUORUM",
            "majority",
        ),
        ([view(1, num_other_sentinels="1")], Status.NOTE, "there are only 2 Sentinels", "three"),
        ([view(1, num_other_sentinels="0")], Status.NOTE, "there is only 1 Sentinel", "three"),
        (
            [view(1, num_other_sentinels="1"), *ALL[1:]],
            Status.NOTE,
            "s1:26379 knows 2 of 3 Sentinels",
            "myid",
        ),
        ([view(1, quorum="3"), *ALL[1:]], Status.NOTE, "different quorums (s1:26379: 3", "SET"),
        (
            [view(1), view(2, sentinel_id="id1"), view(3)],
            Status.NOTE,
            "s1:26379 and s2:26379 are the same Sentinel",
            "once",
        ),
        (
            [view(1, others=[{"ip": "10.0.0.9", "port": "26379", "runid": "id9"}]), *ALL[1:]],
            Status.NOTE,
            "not in the URL: the Sentinel at 10.0.0.9:26379",
            "List every",
        ),
    ],
)
def test_sentinels_that_could_not_fail_over_or_are_not_listed(views, status, found, advice):
    judged = judge_quorum(views, LISTED)
    assert (judged.status, found in judged.found, advice in judged.advice) == (status, True, True)


def test_a_listed_sentinel_that_is_down_is_not_reported_as_missing():
    down = Endpoint("s3", 26379, addresses=["10.0.0.9"])
    others = [{"ip": "10.0.0.9", "port": "26379", "runid": "id3"}]
    found = judge_quorum([view(1, others=others), view(2)], [*LISTED[:2], down])
    assert found.status is Status.OK


@pytest.mark.parametrize(
    ("views", "status", "found"),
    [
        (
            [view(1, ip="10.0.0.9", config_epoch="6"), *ALL[1:]],
            Status.NOTE,
            "s1:26379 is stale: it says 10.0.0.9:6379 (epoch 6, not 7)",
        ),
        (
            [view(n, ip="10.0.0.9", config_epoch="6") for n in (1, 2)] + [view(3)],
            Status.PROBLEM,
            "s2:26379 is stale: it says 10.0.0.9:6379 (epoch 6, not 7)",
        ),
        (
            [view(1, ip="10.0.0.9"), *ALL[1:]],
            Status.PROBLEM,
            "s1:26379 says 10.0.0.9:6379, with the same epoch 7",
        ),
        ([view(1, config_epoch="5"), *ALL[1:]], Status.NOTE, "s1:26379 has the older epoch 5"),
    ],
)
def test_the_newest_configuration_counts_not_the_most_frequent(views, status, found):
    judged = judge_agreement(views)
    assert judged.status is status
    assert found in judged.found
    assert judged.advice
    assert judged.data["master"] == "10.0.0.1:6379"
    assert leading(views).master == ("10.0.0.1", 6379)


def test_flags_of_the_master_tell_whether_it_is_down_or_a_failover_is_in_progress():
    assert judge_flags(ALL) == []
    (down,) = judge_flags([view(1, flags="master,s_down,o_down"), *ALL[1:]])
    assert down.status is Status.PROBLEM
    assert down.found == "1 of 3 Sentinels take the master for down"
    (busy,) = judge_flags([view(1, flags="master,failover_in_progress,force_failover")])
    assert busy.status is Status.NOTE


@pytest.mark.parametrize(
    ("facts", "masters", "found", "advice"),
    [
        (
            driver.ResponseError("No such master with that name"),
            [[b"name", b"mymaster"]],
            "s1:26379: mymastr is not monitored, but mymaster",
            "did you mean mymaster?",
        ),
        (driver.ResponseError("No such master with that name"), [], "no master is monitored", ""),
        (
            driver.ResponseError("unknown command 'SENTINEL'"),
            driver.ResponseError("unknown command 'SENTINEL'"),
            "s1:26379: not a Sentinel, but a server with data",
            "redis://s1:26379",
        ),
    ],
)
def test_sentinel_that_does_not_monitor_the_name(facts, masters, found, advice):
    error = driver.ResponseError("x")
    judged = read_view(
        Endpoint("s1", 26379), "mymastr", [facts, error, error, error, b"1", masters]
    )
    assert isinstance(judged, CheckResult)
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


def test_sentinel_without_permission_is_not_a_problem():
    error = driver.NoPermissionError("NOPERM")
    judged = read_view(Endpoint("s1", 26379), "mymaster", [error] * 6)
    assert judged.status is Status.UNKNOWN


@pytest.mark.parametrize("flat", [True, False])
def test_replies_are_read_with_both_protocols(flat):
    pairs = {name.encode(): value.encode() for name, value in FACTS.items()}
    facts = [word for pair in pairs.items() for word in pair] if flat else pairs
    quorum = driver.ResponseError("NOQUORUM 1 usable")
    found = read_view(MASTER, "mymaster", [facts, [], [facts], quorum, b"id1", []])
    assert (found.master, found.epoch, found.id) == (("10.0.0.1", 6379), 7, "id1")
    assert found.no_quorum.startswith("NOQUORUM")


def test_replica_that_was_just_promoted_is_not_a_replica():
    both = [{"ip": "10.0.0.1", "port": "6379"}, {"ip": "10.0.0.2", "port": "6379"}]
    assert [*replicas_of([view(1, replicas=both)], MASTER)] == [("10.0.0.2", 6379)]


def following(host=b"10.0.0.1", state=b"connected"):
    return MasterReplies([b"slave", host, 6379, state, 100], {})


@pytest.mark.parametrize(
    ("answer", "known", "status", "found"),
    [
        (following(), KNOWN, Status.OK, "replica 10.0.0.2:6379 follows, 1 s behind"),
        (following(), None, Status.OK, "replica 10.0.0.2:6379 follows"),
        # The replica reaches its master at another address, which is only inside.
        (following(b"172.16.0.1"), KNOWN, Status.OK, "follows"),
        (
            following(b"10.0.0.9"),
            MasterReplies([b"master", 100, []], {}),
            Status.PROBLEM,
            "follows 10.0.0.9:6379, not the master",
        ),
        (
            following(state=b"connect"),
            KNOWN,
            Status.PROBLEM,
            "has not reached its master 10.0.0.1:6379 for 8 s",
        ),
        (following(state=b"sync"), KNOWN, Status.NOTE, "is copying the data"),
        (MasterReplies([b"master", 1, []], {}), KNOWN, Status.PROBLEM, "is a master itself"),
        (
            following(),
            MasterReplies(KNOWN.role, {"slave0": "ip=10.0.0.2,port=6379,offset=1,lag=9"}),
            Status.NOTE,
            "has confirmed nothing for 9 s",
        ),
    ],
)
def test_replica_follows_its_master_or_not(answer, known, status, found):
    facts = {"flags": "slave", "master-link-down-time": "8000"}
    judged = judge_replica(REPLICA, facts, answer, MASTER, known)
    assert judged.status is status
    assert found in judged.found
    assert bool(judged.advice) is (status is not Status.OK)


def test_replica_that_the_sentinels_reach_and_this_host_does_not():
    unreached = problem("the name redis-1 does not exist", "Check its spelling.")
    endpoint = Endpoint("redis-1", 6379)
    judged = judge_replica(endpoint, {"flags": "slave"}, unreached, MASTER, KNOWN)
    assert judged.found == (
        "replica redis-1:6379 cannot be reached from here: the name redis-1 does not exist"
    )
    assert "replica-announce-ip" in judged.advice
    judged = judge_replica(endpoint, {"flags": "slave,s_down"}, unreached, MASTER, KNOWN)
    assert judged.found == "replica redis-1:6379 is down: the Sentinels do not reach it, either"
    assert "Start it again" in judged.advice
