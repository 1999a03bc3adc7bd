"""Small histories that keep and break the rules about budgets, outages and what is left behind."""

from __future__ import annotations

import pytest

from tests.simulation.history import Outcome
from tests.simulation.plan import Call, Caller, ClientSetup, Fault
from tests.simulation.test_checks import Story

LOST = "RedisOutcomeUnknown: redis-a: INCR: the connection was lost"
QUICK = ClientSetup("a", policy={"response_timeout": 1.0, "connect_timeout": 0.5})


def budget(story, kind, before, after, *, call=20, cost=5.0, size=20.0):
    story.wait(0.001)
    story.history.event(
        "client", kind, budget=1, size=size, call=call, cost=cost, before=before, after=after
    )


# -- the retry budget -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "after", "broken"),
    [
        ("paid", 20.0, 15.0, False),
        ("paid", 20.0, 20.0, True),
        ("paid", 3.0, -2.0, True),
        ("not paid", 3.0, 3.0, False),
        ("not paid", 8.0, 8.0, True),
    ],
)
def test_a_repetition_costs_its_price(kind, before, after, broken):
    story = Story()
    budget(story, kind, before, after)
    assert story.broken == (["a_payment_is_taken_from_the_budget"] if broken else [])


@pytest.mark.parametrize(
    ("paid", "cost", "before", "after", "broken"),
    [
        (True, 5.0, 15.0, 20.0, False),
        (True, 5.0, 18.0, 20.0, False),
        (True, 5.0, 18.0, 23.0, True),
        (True, 10.0, 10.0, 20.0, True),
        (False, 5.0, 10.0, 15.0, True),
        (False, 0.0, 10.0, 10.0, False),
    ],
)
def test_a_refund_is_what_was_paid(paid, cost, before, after, broken):
    story = Story()
    for _ in range(10):
        story.run("PING", b"PONG")
    if paid:
        budget(story, "paid", 20.0, 15.0)
    budget(story, "refunded", before, after, cost=cost)
    assert story.broken == (["a_refund_returns_what_the_call_had_paid"] if broken else [])


@pytest.mark.parametrize(("replies", "broken"), [(4, False), (2, True)])
def test_a_budget_earns_what_was_answered(replies, broken):
    story = Story()
    budget(story, "paid", 20.0, 15.0)
    for _ in range(replies):
        story.run("PING", b"PONG")
    budget(story, "paid", 18.0, 13.0, call=40)
    assert story.broken == (["the_budget_earns_one_token_for_each_reply"] if broken else [])


@pytest.mark.parametrize("case", ["refunded", "kept", "sent again", "lost", "ended", "held up"])
def test_a_cancelled_backoff_is_refunded(case):
    faults = (Fault(0, "refuse writes", 0.1, 1.0), Fault(1, "reset", 0.1))
    story = Story(faults=faults)
    story.event("fault", number=0, fault="refuse writes", lasts=1.0)
    if case == "lost":
        story.fault(1)
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.refuse("SET r0 t20.0")
    budget(story, "paid", 20.0, 15.0)
    if case == "held up":
        story.start(40, "BLPOP l0 3", kind="pop")  # it opens a connection
    if case == "sent again":
        story.wrote("SET r0 t20.0")
        story.refuse("SET r0 t20.0")
    if case == "refunded":
        budget(story, "refunded", 15.0, 20.0)
    if case == "ended":
        story.end(operation, Outcome.REFUSED, error="OutOfMemoryError: x", error_bases=("X",))
        operation.error_bases = ("OutOfMemoryError", "RedisError")
    else:
        story.cancel(operation)
        story.end(operation, Outcome.CANCELLED)
    name = "a_call_that_is_cancelled_in_its_backoff_is_refunded"
    assert story.broken == ([name] if case == "kept" else [])


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "broken"),
    [("OutcomeUnknown", False), ("Closed", False), ("DeadlineExceeded", True)],
)
def test_an_error_fits_its_progress(name, broken):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.event("closing", client="a")
    bases = (f"Redis{name}", name, "ResilientIOError", "RedisError")
    story.end(operation, Outcome.UNKNOWN, error_bases=bases, progress="maybe applied")
    rule = "an_error_that_promises_nothing_was_applied_fits_its_progress"
    assert story.broken == ([rule] if broken else [])


# -- outages --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["down", "up", "later", "other fault", "stalled", "silent"])
def test_an_outage_is_published_before_the_error(case):
    kill = Fault(0, "kill", 1.0, 5.0, {"silently": case == "silent"})
    story = Story(clients=(QUICK,), faults=(kill, Fault(1, "hang connects", 1.0, 5.0)))
    story.state("up")
    operation = story.start(20, "INCR n:t20.0", kind="increment")
    story.wrote("INCR n:t20.0")
    story.event("fault", number=0, fault="kill", lasts=5.0)
    if case == "other fault":
        story.event("fault", number=1, fault="hang connects", lasts=5.0)
    if case == "stalled":
        story.event("stall", seconds=0.1)
    story.wait(0.01)
    if case == "down":
        story.state("down", "refused")
    if case == "later":
        story.wait(6.0)
        story.event("fault ended", number=0, fault="kill")
    story.end(operation, Outcome.UNKNOWN, error=LOST, progress="maybe applied")
    name = "an_outage_is_published_before_callers_see_an_error"
    assert [each for each in story.broken if each == name] == ([name] if case == "up" else [])


@pytest.mark.parametrize(
    ("kind", "call", "seconds", "broken"),
    [
        ("freeze", True, 1.1, False),
        ("freeze", True, 1.4, True),
        ("freeze", False, 1.9, False),
        ("cut", False, 2.3, True),
        ("slow", False, 9.0, False),
    ],
)
def test_a_silent_server_is_soon_down(kind, call, seconds, broken):
    story = Story(clients=(QUICK,), faults=(Fault(0, kind, 1.0, 10.0),))
    story.state("up")
    story.event("fault", number=0, fault=kind, lasts=10.0)
    if call:
        operation = story.start(20, "SET r0 t20.0")
        story.wrote("SET r0 t20.0")
    story.wait(seconds)
    story.state("down", "timed out")
    if call:
        story.end(operation, Outcome.UNKNOWN, error_bases=("OutcomeUnknown", "RedisError"))
    story.wait(5.0)
    story.event("ending")
    assert story.broken == (["a_silent_server_is_soon_down"] if broken else [])


@pytest.mark.parametrize(
    ("kinds", "broken"),
    [(["forget"], True), (["reset one"], True), (["reset", "reset"], False), (["kill"], False)],
)
def test_lost_connections_are_not_an_outage(kinds, broken):
    faults = tuple(Fault(number, kind, 1.0) for number, kind in enumerate(kinds))
    story = Story(clients=(QUICK,), faults=faults)
    story.state("up")
    story.wait(1.0)
    for number in range(len(kinds)):
        story.fault(number)
    story.state("down", "timed out")
    name = "lost_connections_alone_are_not_an_outage"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize(
    ("seconds", "lost", "broken"), [(0.6, False, True), (1.1, False, False), (0.6, True, False)]
)
def test_one_timeout_is_not_an_outage(seconds, lost, broken):
    story = Story(clients=(QUICK,), faults=(Fault(0, "hang connects", 1.0, 5.0),))
    story.state("up")
    story.call(20, "SET r0 t20.0", connection=7)
    story.wait(20.0)
    story.event("fault", number=0, fault="hang connects", lasts=5.0)
    if lost:
        story.event("lost", connection=7, why="reset")
    story.wait(seconds)
    story.state("down", "timed out")
    assert story.broken == (["one_timeout_is_not_an_outage"] if broken else [])


@pytest.mark.parametrize(
    "case", ["lost", "fault", "late", "closed", "deadline", "behind", "blocking"]
)
def test_a_call_fails_only_for_a_reason(case):
    setup = ClientSetup("a", single=case in ("behind", "blocking"))
    caller = Caller(0, "a", (Call(20, "echo", deadline=0.02 if case == "deadline" else None),))
    story = Story(clients=(setup,), callers=(caller,), faults=(Fault(0, "reset", 1.0),))
    if case == "fault":
        story.fault()
    if case in ("behind", "blocking"):
        pop = story.start(40, "BLPOP l0 1", kind="pop")
    if case != "blocking":
        operation = story.start(20, "ECHO t20.0", kind="echo")
        if case == "late":
            operation.deadline = story.time + 1.0
        if case == "closed":
            story.event("closing", client="a")
        story.wait(1.0)
        error = "RedisUnavailable: redis-a: ECHO: the connection was lost"
        bases = ("DependencyUnavailable", "RedisError")
        story.end(operation, Outcome.NOT_APPLIED, error=error, error_bases=bases)
        operation.facts["progress"] = "sent"
    if case in ("behind", "blocking"):
        outcome = Outcome.OK if case == "behind" else Outcome.UNKNOWN
        story.end(pop, outcome, error_bases=("OutcomeUnknown", "RedisError"))
        pop.error = "RedisOutcomeUnknown: redis-a: BLPOP: no byte arrived within 1 s"
    name = "a_call_does_not_lose_its_connection_without_a_reason"
    assert story.broken == ([name] if case in ("lost", "blocking") else [])


@pytest.mark.parametrize("case", ["returned", "dropped", "lost", "reply dropped", "on time"])
def test_a_reply_that_arrived_is_returned(case):
    kind = "drop replies" if case == "reply dropped" else "slow"
    fault = Fault(0, kind, 1.0, 5.0, {"extra": 0.2})
    story = Story(clients=(QUICK,), faults=(fault,))
    story.event("fault", number=0, fault=kind, lasts=5.0)
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0", connection=7)
    story.run("SET r0 t20.0")
    story.wait(0.1 if case == "on time" else 0.6)
    if case == "lost":
        story.event("lost", connection=7, why="reset")
    if case == "returned":
        story.end(operation, reply=True)
    else:
        story.end(operation, Outcome.UNKNOWN, error_bases=("OutcomeUnknown", "RedisError"))
    name = "a_reply_that_arrived_is_returned"
    assert story.broken == ([name] if case == "dropped" else [])


@pytest.mark.parametrize(
    "case", ["waits", "repeated", "soon", "down", "fault", "replaced", "refusing"]
)
def test_a_call_that_lost_its_connection_does_not_wait(case):
    faults = (Fault(0, "reset", 1.0), Fault(1, "cut", 1.0, 9.0), Fault(2, "refuse writes", 1, 9.0))
    story = Story(clients=(QUICK,), faults=faults)
    story.state("up")
    story.wait(2.0)
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0", connection=7)
    story.fault(0)
    if case in ("fault", "refusing"):
        kind = "cut" if case == "fault" else "refuse writes"
        story.event("fault", number=1 if case == "fault" else 2, fault=kind, lasts=9.0)
    story.event("lost", connection=7, why="closed" if case == "replaced" else "reset")
    if case == "down":
        story.wait(0.2)
        story.state("down", "reset")
    if case == "repeated":
        story.wait(0.2)
        story.wrote("SET r0 t20.0", connection=8)
    story.wait(0.5 if case == "soon" else 3.0)
    story.end(operation, Outcome.UNKNOWN, error_bases=("OutcomeUnknown", "RedisError"))
    name = "a_call_does_not_wait_long_after_its_connection_was_lost"
    found = [each for each in story.broken if each == name]
    assert found == ([name] if case in ("waits", "refusing") else [])


# -- order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["reversed", "in order", "written twice", "large", "other client"])
def test_calls_are_written_and_executed_in_order(case):
    story = Story()
    first = story.start(20, "RPUSH l0 t20.0", kind="push")
    client = "b" if case == "other client" else "a"
    second = story.start(40, "RPUSH l0 t40.0", kind="push", client=client)
    words = ["RPUSH l0 t20.0", "RPUSH l0 t40.0"]
    if case != "in order":
        words.reverse()
    for word in words:
        story.wrote(word)
        story.run(word, 1)
    if case == "written twice":
        story.wrote("RPUSH l0 t20.0")
    story.end(first, reply=1)
    story.end(second, reply=1)
    if case == "large":
        story.start(60, "GET big0", kind="get large")
    names = [
        "calls_keep_their_order_for_each_key",
        "calls_are_written_in_the_order_in_which_they_were_made",
    ]
    assert story.broken == (names if case == "reversed" else [])


# -- connections, transactions and locks ----------------------------------------------------


@pytest.mark.parametrize("case", ["own", "other", "itself", "restarted", "unnamed", "gone"])
def test_a_client_kills_only_its_own_connections(case):
    story = Story()
    history = story.history
    victim = {"other": "two-1", "restarted": "two-1", "unnamed": ""}.get(case, "one-1")
    number = 5 if case == "itself" else 4

    def run(connection, name, *words, reply=b"OK"):
        story.wait(0.001)
        history.executed("server1", connection, name, words, applied=True, reply=reply)

    if case != "gone":
        run(4, victim, b"PING")
    if case == "restarted":
        history.event("server1", "started", keep_data=True)
    kill = (b"CLIENT", b"KILL", b"ID", str(number).encode())
    run(5, "one-2", *kill, reply=0 if case == "gone" else 1)
    name = "a_client_kills_only_connections_of_its_own"
    assert story.broken == ([name] if case in ("other", "itself", "unnamed") else [])


@pytest.mark.parametrize("case", ["changed", "unchanged", "connection lost", "data lost"])
def test_a_transaction_fails_only_for_a_change(case):
    story = Story()
    operation = story.start(20, "WATCH r0", "GET r0", "SET r0 t20.2", kind="watch")
    story.wrote("WATCH r0")
    story.run("WATCH r0")
    if case == "changed":
        story.call(40, "SET r0 t40.0", connection=2, client="b")
    if case == "data lost":
        story.history.event("server1", "data lost", keys=1)
    error = "WatchError: Watched variable changed."
    if case == "connection lost":
        error = "WatchError: the connection was lost"
    story.end(
        operation, Outcome.WATCH_FAILED, error=error, error_bases=("WatchError", "RedisError")
    )
    name = "a_transaction_fails_only_if_a_watched_key_changed"
    assert story.broken == ([name] if case == "unchanged" else [])


@pytest.mark.parametrize("case", ["removed", "held", "expired", "failed"])
def test_a_released_lock_is_not_held(case):
    story = Story()
    acquire = story.start(20, kind="acquire", facts={"lock": "lock0", "timeout": 3.0})
    story.run("SET lock0 token NX PX 3000")
    acquire.facts["token"] = "token"
    story.end(acquire, reply=True)
    if case == "expired":
        story.wait(3.0)
    release = story.start(22, kind="release", facts={"lock": "lock0", "token": "token"})
    if case == "removed":
        story.run("EVALSHA abc 1 lock0 token", 1)
    if case == "failed":
        story.end(release, Outcome.UNKNOWN, error_bases=("OutcomeUnknown", "RedisError"))
        release.error = "RedisClosed: x"
    else:
        story.end(release)
    name = "a_released_lock_is_no_longer_held"
    assert story.broken == ([name] if case == "held" else [])


@pytest.mark.parametrize(
    "case", ["taken", "not taken", "released", "unknown", "another", "expired", "deleted"]
)
def test_a_failed_acquisition_has_taken_nothing(case):
    story = Story()
    acquire = story.start(20, kind="acquire", facts={"lock": "lock0", "timeout": 3.0})
    other = story.start(40, kind="acquire", facts={"lock": "lock0", "timeout": 3.0})
    story.run("SET lock0 token NX PX 3000", None if case == "not taken" else b"OK")
    if case == "released":
        story.run("EVALSHA abc 1 lock0 token", 1)
    if case == "expired":
        story.wait(3.5)
    if case == "deleted":
        story.run("DEL lock0", 1)
    if case == "unknown":
        story.end(acquire, Outcome.UNKNOWN, error_bases=("OutcomeUnknown", "RedisError"))
    else:
        story.end(acquire, reply=False)
    if case == "another":
        other.facts["token"] = "token"
    story.end(other, reply=case == "another")
    name = "an_acquisition_that_failed_has_not_taken_the_lock"
    assert story.broken == ([name] if case == "taken" else [])


# -- what is left ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "connections", "broken"),
    [([], [], False), (["resilient-io redis name lookup"], [], True), ([], [3], True)],
)
def test_nothing_is_left_after_all_clients_were_closed(tasks, connections, broken):
    story = Story()
    story.event("all closed", tasks=tasks, connections=connections)
    name = "nothing_is_left_when_the_last_client_has_closed"
    assert story.broken == ([name] if broken else [])
