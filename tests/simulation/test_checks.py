"""Small histories that keep and break each rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.simulation.checks import ALL, check
from tests.simulation.history import ClientEnd, ErrorReply, History, Operation, Outcome
from tests.simulation.plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan

PROMISE = {"progress": "not sent"}


class Story:
    """Builds a history, record by record. Each record comes a millisecond after the one before."""

    def __init__(self, **facts: Any) -> None:
        self.time = 1000.0
        self.history = History(lambda: self.time)
        self.plan = Plan(
            seed=1,
            theme="mixed",
            clients=facts.pop("clients", (ClientSetup("a"), ClientSetup("b"))),
            callers=facts.pop("callers", ()),
            faults=facts.pop("faults", ()),
            network=NetworkSettings(stall=0.0),
        )
        for number, fault in enumerate(self.plan.faults):
            assert fault.number == number

    def wait(self, seconds: float) -> None:
        self.time += seconds

    def start(self, number: int, *commands: str, kind: str = "set", **values: Any) -> Operation:
        self.wait(0.001)
        operation = Operation(
            number=number,
            kind=kind,
            client=values.pop("client", "a"),
            caller=0,
            commands=tuple(tuple(command.split()) for command in commands),
            **values,
        )
        operation.started_at, operation.started = self.history.next(), self.time
        self.history.operations.append(operation)
        return operation

    def run(
        self,
        command: str,
        reply: Any = b"OK",
        *,
        applied: bool = True,
        connection: int = 1,
        transaction: int | None = None,
        server: str = "server1",
    ) -> None:
        self.wait(0.001)
        words = tuple(word.encode() for word in command.split())
        self.history.executed(
            server, connection, "", words, applied=applied, reply=reply, transaction=transaction
        )

    def refuse(self, command: str, text: str = "OOM no memory", **values: Any) -> None:
        self.run(command, ErrorReply(text), applied=False, **values)

    def wrote(self, *commands: str, connection: int = 1) -> None:
        self.wait(0.001)
        self.history.wrote(connection, "\r\n".join(commands).encode())

    def cancel(self, operation: Operation) -> None:
        operation.cancelled_at, operation.cancelled = self.history.next(), self.time
        operation.facts["cancel_delivered"] = True

    def end(
        self, operation: Operation, outcome: Outcome = Outcome.OK, reply: Any = None, **facts: Any
    ) -> Operation:
        self.wait(0.001)
        operation.outcome, operation.reply = outcome, reply
        for name in ("error", "error_bases", "answered"):
            if name in facts:
                setattr(operation, name, facts.pop(name))
        operation.facts.update(facts)
        operation.ended_at, operation.ended = self.history.next(), self.time
        return operation

    def call(
        self,
        number: int,
        command: str,
        reply: Any = True,
        logged: Any = b"OK",
        *,
        written: bool = True,
        connection: int = 1,
        **values: Any,
    ) -> Operation:
        """Add a call that succeeds."""
        operation = self.start(number, command, **values)
        if written:
            self.wrote(command, connection=connection)
        self.run(command, logged, connection=connection)
        return self.end(operation, reply=reply)

    def event(self, kind: str, **facts: Any) -> None:
        self.history.event("workload", kind, **facts)

    def fault(self, number: int = 0, seconds: float = 0.0) -> None:
        fault = self.plan.faults[number]
        self.event("fault", number=number, fault=fault.kind, lasts=seconds)
        self.wait(seconds)
        self.event("fault ended", number=number, fault=fault.kind)

    def state(self, state: str, cause: str = "", dependency: str = "redis-a") -> None:
        self.wait(0.001)
        self.history.health_changed(dependency, state, cause, "")

    def client(self, label: str = "a", **values: Any) -> None:
        facts = {
            "dependency": f"redis-{label}",
            "open": True,
            "counters": {"calls in flight": 0},
            "state": "up",
            "answers": True,
            "budget": 10.0,
            "budget_size": 10.0,
        }
        self.history.ending.clients.append(ClientEnd(label=label, **facts | values))

    @property
    def broken(self) -> list[str]:
        """The rules that the history breaks, each once."""
        return list(dict.fromkeys(each.rule for each in check(self.history, self.plan)))


def test_each_rule_has_a_name_and_a_docstring_and_is_tested():
    names = [rule.__name__ for rule in ALL]
    assert len(set(names)) == len(names)
    assert all(rule.__doc__ for rule in ALL)
    files = sorted(Path(__file__).parent.glob("test_check*.py"))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    assert [name for name in names if f'"{name}"' not in text] == []


def test_an_empty_history_keeps_every_rule():
    assert Story().broken == []


def test_plain_calls_keep_every_rule():
    story = Story()
    story.call(20, "SET r0 t20.0")
    story.call(40, "GET r0", "t20.0", b"t20.0", kind="get")
    story.call(60, "INCR n:t60.0", 1, 1, kind="increment")
    story.call(80, "HGETALL h", {"x": "1", "y": "2"}, [b"y", b"2", b"x", b"1"], kind="get hash")
    story.call(100, "ECHO t100.0", "t100.0", b"t100.0", kind="echo")
    assert story.broken == []


# -- how often ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "repeat", "broken"),
    [
        ("SET r0 t20.0", "idempotent", False),
        ("SET r0 t20.0", "read", True),
        ("SET r0 t20.0 NX", "idempotent", True),
        ("SET r0 t20.0 NX", "conditional", False),
        ("SADD s t20.0", "conditional", False),
        ("SADD s t20.0", "idempotent", True),
        ("INCR n:t20.0", "conditional", True),
        ("INCR n:t20.0", "any", False),
        ("ECHO t20.0", "read", False),
    ],
)
def test_repeat_limits_what_is_applied_twice(command, repeat, broken):
    story = Story()
    operation = story.start(20, command, kind="one", repeat=repeat)
    story.wrote(command)
    story.run(command, 1)
    story.run(command, 1)
    story.end(operation, reply="t20.0" if command.startswith("ECHO") else 1)
    if command.startswith("ECHO"):
        story.history.executions[:] = []
        story.run(command, b"t20.0")
        operation.ended_at = story.history.next()
    expected = ["no_command_is_applied_more_often_than_its_policy_permits"] if broken else []
    assert story.broken == expected


@pytest.mark.parametrize(
    ("commands", "twice", "broken"),
    [
        (("INCR n:t20.0", "SET r0 t20.1"), "SET r0 t20.1", False),
        (("SET r0 t20.0", "SET r1 t20.1"), "SET r0 t20.0", False),
        (("SET r0 t20.0", "INCR n:t20.1"), "SET r0 t20.0", True),
        (("SET r0 t20.0", "GET r0"), "SET r0 t20.0", True),
    ],
)
def test_only_a_tail_of_overwrites_of_a_pipeline_is_applied_twice(commands, twice, broken):
    story = Story()
    operation = story.start(20, *commands, kind="pipeline")
    story.wrote(*commands)
    for command in commands:
        story.run(command, 1)
    story.run(twice, 1)
    story.end(operation, reply=[1, 1])
    expected = ["no_command_is_applied_more_often_than_its_policy_permits"] if broken else []
    assert story.broken == expected


def test_a_refused_command_may_be_sent_again():
    story = Story()
    operation = story.start(20, "INCR n:t20.0", kind="increment")
    story.wrote("INCR n:t20.0")
    story.refuse("INCR n:t20.0")
    story.wrote("INCR n:t20.0")
    story.run("INCR n:t20.0", 1)
    story.end(operation, reply=1)
    assert story.broken == []


@pytest.mark.parametrize(
    ("copies", "attempts", "broken"), [(3, 3, False), (4, 3, True), (4, 4, False)]
)
def test_attempts_limits_how_often_a_command_is_executed(copies, attempts, broken):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    operation.facts["attempts"] = attempts
    for _ in range(copies):
        story.wrote("SET r0 t20.0")
        story.refuse("SET r0 t20.0")
    story.end(operation, Outcome.REFUSED, error="OOM", error_bases=("RedisError",))
    name = "a_command_is_attempted_no_more_often_than_its_policy_permits"
    assert story.broken == ([name] if broken else [])


# -- what was reported ----------------------------------------------------------------------


def test_an_acknowledged_write_was_executed_during_its_call():
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.end(operation, reply=True)
    assert "an_acknowledged_command_was_applied_during_its_call" in story.broken


def test_an_acknowledged_write_is_not_applied_again_later():
    story = Story()
    story.call(20, "SET r0 t20.0")
    story.run("SET r0 t20.0")
    assert story.broken == ["an_acknowledged_command_is_not_applied_after_its_call"]
    story.history.operations[0].repeat = "any"
    assert story.broken == []


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("outcome", [Outcome.NOT_APPLIED, Outcome.WATCH_FAILED, Outcome.REFUSED])
def test_a_promise_that_nothing_was_applied_holds(outcome, late):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    if not late:
        story.run("SET r0 t20.0")
    facts = {"notes": ("2 attempts; nothing was applied",)} if outcome is Outcome.REFUSED else {}
    story.end(operation, outcome, error="RedisError: no", error_bases=("RedisError",), **facts)
    if late:
        story.run("SET r0 t20.0")
    assert "a_call_that_reports_nothing_applied_was_never_applied" in story.broken


def test_a_call_that_was_not_applied_keeps_every_rule():
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.end(operation, Outcome.NOT_APPLIED, error_bases=("RedisError",), **PROMISE)
    assert story.broken == []


@pytest.mark.parametrize(
    ("answered", "progress", "broken"),
    [((True,), "sent", False), ((True,), "not sent", True), ((), "sent", True)],
)
def test_a_pipeline_whose_head_was_applied_reports_its_replies(answered, progress, broken):
    story = Story()
    operation = story.start(20, "SET r0 t20.0", "GET r1", kind="pipeline")
    story.wrote("SET r0 t20.0", "GET r1")
    story.run("SET r0 t20.0")
    story.end(
        operation,
        Outcome.NOT_APPLIED,
        answered=answered,
        error="RedisUnavailable: lost",
        error_bases=("RedisUnavailable", "RedisError"),
        progress=progress,
    )
    name = "a_call_that_reports_nothing_applied_was_never_applied"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize(
    ("command", "broken"), [("SET r0 t20.0", True), ("EVAL body 1 k t20.0", False)]
)
def test_a_refusal_means_that_no_attempt_was_applied(command, broken):
    story = Story()
    operation = story.start(20, command, kind="one", repeat="any")
    story.wrote(command)
    story.run(command)
    story.wrote(command)
    story.refuse(command)
    story.end(operation, Outcome.REFUSED, error="OOM", error_bases=("ResponseError", "RedisError"))
    assert story.broken == (["a_refused_command_was_never_applied"] if broken else [])


def test_an_applied_command_of_a_batch_does_not_get_the_refusal_of_its_copy():
    story = Story()
    operation = story.start(20, "SET r0 t20.0", kind="pipeline", facts={"raise_on_error": False})
    story.wrote("SET r0 t20.0")
    story.run("SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.refuse("SET r0 t20.0")
    story.end(operation, reply=[ErrorReply("OutOfMemoryError: OOM")])
    assert story.broken == ["a_refused_command_was_never_applied"]


def test_the_error_of_a_batch_concerns_the_command_that_it_quotes():
    story = Story()
    commands = ("SET r0 t20.0", "HSET r0 t20.1 1")
    operation = story.start(20, *commands, kind="pipeline", facts={"raise_on_error": True})
    story.wrote(*commands)
    story.run(commands[0])
    story.refuse(commands[1], "WRONGTYPE")
    error = "ResponseError: Command # 2 (HSET r0 t20.1 1) of pipeline caused error: WRONGTYPE"
    story.end(operation, Outcome.REFUSED, error=error, error_bases=("RedisError",))
    assert story.broken == []
    operation.error = error.replace("HSET r0 t20.1 1", "SET r0 t20.0")
    assert story.broken == ["a_refused_command_was_never_applied"]


def test_an_unknown_outcome_was_written():
    story = Story()
    operation = story.start(20, "INCR n:t20.0", kind="increment")
    story.end(operation, Outcome.UNKNOWN, error_bases=("RedisOutcomeUnknown", "RedisError"))
    assert story.broken == ["an_unknown_outcome_was_written"]
    operation.ended_at = None
    story.wrote("INCR n:t20.0")
    assert story.broken == []


def test_a_read_does_not_end_with_an_unknown_outcome():
    story = Story()
    operation = story.start(20, "GET r0", kind="get")
    story.end(operation, Outcome.UNKNOWN, error_bases=("RedisOutcomeUnknown", "RedisError"))
    assert story.broken == ["a_read_does_not_end_with_an_unknown_outcome"]
    operation.outcome = Outcome.NOT_APPLIED
    assert story.broken == []


# -- what was written -----------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True, "in between"])
def test_a_call_that_was_cancelled_before_it_was_written_is_never_sent(late):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    if not late:
        story.wrote("SET r0 t20.0")
    story.cancel(operation)
    if late == "in between":
        story.wrote("SET r0 t20.0")
    story.end(operation, Outcome.CANCELLED)
    story.wrote("SET r0 t20.0" if late is True else "PING")
    assert story.broken == (["nothing_is_written_after_its_call_ended"] if late else [])


@pytest.mark.parametrize(
    ("deadline", "facts", "broken"),
    [
        (1000.0, {}, True),
        (1005.0, {}, False),
        (1005.0, {"already_late": True}, True),
    ],
)
def test_an_expired_call_is_not_written(deadline, facts, broken):
    story = Story()
    operation = story.start(20, "SET r0 t20.0", deadline=deadline, facts=facts)
    story.wrote("SET r0 t20.0")
    story.run("SET r0 t20.0")
    story.end(operation, reply=True)
    assert story.broken == (["an_expired_call_is_not_written"] if broken else [])


def test_a_call_is_not_written_long_after_its_deadline():
    story = Story()
    operation = story.start(20, "SET r0 t20.0", deadline=1000.5)
    story.wait(1.0)
    story.wrote("SET r0 t20.0")
    story.end(operation, Outcome.UNKNOWN, error_bases=("RedisError",))
    assert "an_expired_call_is_not_written" in story.broken
    story.history.event("loop", "stall", seconds=0.9)
    assert story.broken == []


# -- replies --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "logged", "reply", "broken"),
    [
        ("GET r1", b"x", "x", False),
        ("GET r1", None, None, False),
        ("GET r1", b"x", "y", True),
        ("GET r1", b"x", None, True),
        ("MGET r1 r2", [b"x", None], ["x", None], False),
        ("MGET r1 r2", [b"x", None], [None, "x"], True),
        ("LRANGE l0 0 -1", [b"a", b"b"], ["a", "b"], False),
        ("LRANGE l0 0 -1", [b"a", b"b"], ["b", "a"], True),
        ("HGETALL h", {b"a": b"1"}, {"a": "1"}, False),
        ("EXISTS r1", 1, True, False),
        ("XREAD BLOCK 10 STREAMS x $", None, [], False),
        ("BLPOP l0 1", [b"l0", b"a"], ["l0", "a"], False),
    ],
)
def test_a_reply_is_one_of_the_server(command, logged, reply, broken):
    story = Story()
    operation = story.start(20, command, kind="read")
    story.run(command, logged)
    story.end(operation, reply=reply)
    name = "a_reply_is_one_that_the_server_gave_during_the_call"
    assert [each for each in story.broken if each == name] == ([name] if broken else [])


def test_a_read_returns_what_was_current_during_its_call():
    story = Story()
    story.call(20, "GET r1", None, None, kind="get")
    operation = story.start(40, "GET r1", kind="get")
    story.end(operation, reply=None)  # from the reply before its call
    assert story.broken == ["a_reply_is_one_that_the_server_gave_during_the_call"]


@pytest.mark.parametrize("command", ["ECHO t20.0", "EVAL_RO body 1 r0 t20.0"])
def test_a_read_of_a_token_returns_its_own(command):
    story = Story()
    story.call(20, command, "t40.0", b"t40.0", kind="echo")
    assert story.broken == ["a_reply_with_a_token_has_that_of_its_own_command"]


def test_a_batch_returns_a_reply_for_each_command():
    story = Story()
    operation = story.start(20, "SET r0 t20.0", "SET r1 t20.1", kind="transaction")
    story.wrote("SET r0 t20.0", "SET r1 t20.1")
    story.run("SET r0 t20.0", transaction=7)
    story.run("SET r1 t20.1", transaction=7)
    story.end(operation, reply=[True, True])
    assert story.broken == []
    operation.reply = [True, True, "PONG"]
    assert story.broken == ["a_batch_returns_one_reply_for_each_command"]


# -- order ----------------------------------------------------------------------------------


def _overtaken(story: Story, outcome: Outcome, kind: str = "set", newer: str = "set") -> Operation:
    """Add a call whose bytes arrive after a later write of the same client."""
    commands = {"set": ("SET r0 t20.0",), "watch": ("WATCH r0", "GET r0", "SET r0 t20.2")}[kind]
    operation = story.start(20, *commands, kind=kind)
    if kind == "watch":
        story.run("WATCH r0", connection=2)
    story.wrote(commands[-1])
    if outcome is Outcome.CANCELLED:
        story.cancel(operation)
    story.end(operation, outcome, error="lost", error_bases=("RedisOutcomeUnknown", "RedisError"))
    if newer == "watch":
        later = story.start(40, "WATCH r1", "GET r1", "SET r1 t40.2", kind="watch")
        story.run("WATCH r1", connection=3)
        story.run("SET r1 t40.2", connection=3, transaction=3)
        story.wrote("SET r1 t40.2")
        story.end(later, reply=[True])
    else:
        story.call(40, "SET r1 t40.0")
    if kind == "watch":
        story.run(commands[-1], connection=2, transaction=2)
    else:
        story.run(commands[-1])
    return operation


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.CANCELLED])
def test_a_finished_call_is_not_applied_after_a_later_write(outcome):
    story = Story()
    _overtaken(story, outcome)
    assert story.broken == ["no_finished_call_is_applied_after_a_later_write"]


def test_a_finished_call_may_be_applied_before_a_later_write_and_between_other_clients():
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.end(operation, Outcome.UNKNOWN, error="lost", error_bases=("RedisError",))
    story.call(40, "SET r1 t40.0", client="b")
    story.run("SET r0 t20.0")
    story.call(60, "SET r1 t60.0")
    assert story.broken == []


def test_fencing_is_not_expected_where_it_is_forbidden():
    story = Story()
    story.history.event("server1", "denies", commands=("CLIENT|KILL",))
    operation = _overtaken(story, Outcome.UNKNOWN)
    assert story.broken == []
    operation.outcome, operation.reply = Outcome.OK, True  # it was repeated, and had an answer
    assert "no_finished_call_is_applied_after_a_later_write" in story.broken


def test_a_large_value_may_delay_a_cancelled_call():
    story = Story()
    story.call(60, "GET big0", "x", b"x", kind="get large")
    _overtaken(story, Outcome.CANCELLED)
    assert story.broken == []


def test_an_abandoned_transaction_is_not_applied_after_a_later_write():
    story = Story()
    _overtaken(story, Outcome.UNKNOWN, kind="watch")
    assert story.broken == ["no_abandoned_transaction_is_applied_after_a_later_write"]


def test_a_transaction_does_not_overtake_a_finished_call():
    story = Story()
    operation = _overtaken(story, Outcome.UNKNOWN, newer="watch")
    assert story.broken == ["no_transaction_overtakes_a_finished_call"]
    operation.error = "no reply before the deadline"  # its connection is still in use
    assert story.broken == []


@pytest.mark.parametrize(
    ("keys", "written", "broken"),
    [
        (("l0", "l0"), 1, True),
        (("l0", "l1"), 1, False),  # different keys
        (("l0", "l0"), 2, False),  # the first was repeated
    ],
)
def test_a_burst_keeps_its_order(keys, written, broken):
    story = Story()
    commands = [f"RPUSH {key} t{20 + offset}.0" for offset, key in enumerate(keys)]
    first = story.start(20, commands[0], kind="push", burst=20)
    second = story.start(21, commands[1], kind="push", burst=20)
    for _ in range(written):
        story.wrote(commands[0])
    story.wrote(commands[1])
    story.run(commands[1], 1)
    story.run(commands[0], 2)
    story.end(first, reply=2)
    story.end(second, reply=1)
    assert story.broken == (["calls_of_one_tick_keep_their_order_for_each_key"] if broken else [])


@pytest.mark.parametrize(
    ("keys", "broken"),
    [(("r0", "r0"), ["calls_keep_their_order_for_each_key"]), (("r0", "r1"), [])],
)
def test_calls_keep_their_order_for_each_key(keys, broken):
    story = Story()
    commands = [f"SET {key} t{number}.0" for key, number in zip(keys, (20, 40), strict=True)]
    first, second = story.start(20, commands[0]), story.start(40, commands[1])
    story.wrote(commands[0])
    story.event("lost", connection=1, why="reset")
    story.wrote(commands[1], connection=2)
    story.run(commands[1], connection=2)
    story.run(commands[0])
    story.end(second, reply=True)
    story.end(first, reply=True)
    assert story.broken == broken


@pytest.mark.parametrize(
    ("order", "broken"),
    [((1, 0), ["calls_are_written_in_the_order_in_which_they_were_made"]), ((0, 1), [])],
)
def test_calls_are_written_in_their_order(order, broken):
    story = Story()
    commands = ["SET r0 t20.0", "SET r1 t40.0"]
    operations = [story.start(20, commands[0]), story.start(40, commands[1])]
    for index in order:
        story.wrote(commands[index])
    for index in order:
        story.run(commands[index])
        story.end(operations[index], reply=True)
    assert story.broken == broken


@pytest.mark.parametrize(
    ("connection", "lost", "refused", "broken"),
    [
        (1, False, False, False),
        (2, True, False, False),
        (2, False, True, False),
        (2, False, False, True),
    ],
)
def test_writes_use_one_connection(connection, lost, refused, broken):
    story = Story()
    if refused:
        story.refuse("SET r0 t60.0", "READONLY You can't write against a read only replica.")
    for number, number_of_connection in ((20, 1), (40, connection)):
        command = f"SET r0 t{number}.0"
        operation = story.start(number, command)
        story.wrote(command, connection=number_of_connection)
        story.run(command, connection=number_of_connection)
        story.end(operation, reply=True)
        if lost and number == 20:
            story.event("lost", connection=1, why="reset")
    assert story.broken == (["writes_use_one_connection_while_it_is_open"] if broken else [])


@pytest.mark.parametrize(
    ("seconds", "broken"),
    [(6.0, ["a_call_does_not_wait_long_after_its_connection_was_lost"]), (0.1, [])],
)
def test_a_call_that_lost_its_connection_is_soon_sent_again(seconds, broken):
    story = Story(clients=(ClientSetup("a"),))
    story.state("up")
    story.client()
    story.wait(10.0)
    command = "ECHO t20.0"
    operation = story.start(20, command, kind="echo")
    story.wrote(command)
    story.history.event("network", "lost", connection=1, why="ConnectionResetError")
    story.wait(seconds)
    story.wrote(command, connection=2)
    story.run(command, b"t20.0", connection=2)
    story.end(operation, reply="t20.0")
    assert "a_call_does_not_wait_long_after_its_connection_was_lost" not in story.broken
    other = story.start(40, "ECHO t40.0", kind="echo")
    story.wrote("ECHO t40.0", connection=2)
    story.history.event("network", "lost", connection=2, why="ConnectionResetError")
    story.wait(seconds)
    story.end(
        other, Outcome.NOT_APPLIED, error="RedisUnavailable: lost", error_bases=("RedisError",)
    )
    assert [rule for rule in story.broken if "wait_long" in rule] == broken


@pytest.mark.parametrize(
    ("order", "broken"), [((0, 1, 2), False), ((0, 2, 1), True), ((0, 1), False), ((0, 2), True)]
)
def test_a_pipeline_is_executed_in_its_order(order, broken):
    story = Story()
    commands = [f"RPUSH l0 t20.{index}" for index in range(3)]
    operation = story.start(20, *commands, kind="pipeline")
    story.wrote(*commands)
    for index in order:
        story.run(commands[index], 1)
    story.end(operation, Outcome.UNKNOWN, error_bases=("RedisError",))
    assert story.broken == (
        ["commands_of_a_pipeline_are_executed_in_their_order"] if broken else []
    )


# -- transactions ---------------------------------------------------------------------------


def _transaction(story: Story, executed: list[tuple[str, int | None]]) -> None:
    commands = ("SET r0 t20.0", "INCR n:t20.1")
    operation = story.start(20, *commands, kind="transaction")
    story.wrote(*commands)
    for command, transaction in executed:
        story.run(command, 1, transaction=transaction)
    story.end(operation, Outcome.UNKNOWN, error_bases=("RedisError",))


@pytest.mark.parametrize(
    ("executed", "rules"),
    [
        ([], []),
        ([("SET r0 t20.0", 5), ("INCR n:t20.1", 5)], []),
        ([("SET r0 t20.0", 5)], ["a_transaction_is_executed_whole_and_in_order"]),
        (
            [("INCR n:t20.1", 5), ("SET r0 t20.0", 5)],
            ["a_transaction_is_executed_whole_and_in_order"],
        ),
        (
            [("SET r0 t20.0", 5), ("PING", 5), ("INCR n:t20.1", 5)],
            ["a_transaction_is_executed_whole_and_in_order"],
        ),
        (
            [("SET r0 t20.0", 5), ("PING", None), ("INCR n:t20.1", 5)],
            ["a_transaction_is_executed_without_interruption"],
        ),
        ([("SET r0 t20.0", None)], ["no_command_of_a_transaction_is_applied_outside_it"]),
    ],
)
def test_a_transaction_is_executed_whole(executed, rules):
    story = Story()
    _transaction(story, executed)
    assert story.broken == rules


@pytest.mark.parametrize("case", ["good", "changed", "not watched", "own write before"])
def test_a_watched_transaction_is_applied_only_if_nothing_changed(case):
    story = Story()
    operation = story.start(20, "WATCH r0", "GET r0", "SET r0 t20.2", kind="watch")
    if case == "own write before":
        story.run("SET r0 x", connection=3)
    story.run("WATCH r0", connection=1 if case == "not watched" else 2)
    if case == "changed":
        story.run("SET r0 x", connection=3)
    story.wrote("SET r0 t20.2")
    story.run("SET r0 t20.2", connection=2, transaction=4)
    story.end(operation, reply=[True])
    name = "a_transaction_is_applied_only_if_its_watched_keys_did_not_change"
    assert story.broken == ([name] if case in ("changed", "not watched") else [])


# -- lists ----------------------------------------------------------------------------------


def _pop(story: Story, number: int, outcome: Outcome, element: str | None = "t20.0") -> Operation:
    operation = story.start(number, "BLPOP l0 1", kind="pop")
    if outcome is Outcome.CANCELLED:
        story.cancel(operation)
    reply = None if element is None else [b"l0", element.encode()]
    if element is not None:
        story.run("BLPOP l0 1", reply, connection=9)
    bases = () if outcome in (Outcome.OK, Outcome.CANCELLED) else ("RedisError",)
    given = ["l0", element] if outcome is Outcome.OK else None
    return story.end(operation, outcome, reply=given, error_bases=bases)


def _pushed(**values: Any) -> Story:
    story = Story(**values)
    story.wait(20)
    story.call(20, "RPUSH l0 t20.0", 1, 1, kind="push")
    return story


def test_an_element_is_delivered_once():
    story = _pushed()
    _pop(story, 40, Outcome.OK)
    assert story.broken == []
    _pop(story, 60, Outcome.OK)
    assert story.broken == ["no_element_is_delivered_twice"]


def test_a_cancelled_pop_loses_no_element():
    story = _pushed()
    _pop(story, 40, Outcome.CANCELLED)
    assert story.broken == ["no_element_is_lost"]
    story.run("LPUSH l0 t20.0", 1)
    assert story.broken == []
    _pop(story, 60, Outcome.OK)
    assert story.broken == []


def test_an_element_may_be_put_back_several_times():
    story = _pushed()
    for number, command, undo in ((40, "BRPOP l0 1", "RPUSH"), (60, "BLPOP l0 1", "LPUSH")):
        operation = story.start(number, command, kind="pop")
        story.cancel(operation)
        story.run(command, [b"l0", b"t20.0"], connection=9)
        story.end(operation, Outcome.CANCELLED)
        story.run(f"{undo} l0 t20.0", 1)
    assert story.broken == []


@pytest.mark.parametrize("repeat", ["any", "idempotent"])
def test_a_pop_that_may_be_repeated_may_take_two_elements(repeat):
    story = _pushed()
    story.call(40, "RPUSH l0 t40.0", 1, 1, kind="push")
    operation = story.start(60, "BLPOP l0 1", kind="pop", repeat=repeat)
    story.run("BLPOP l0 1", [b"l0", b"t20.0"], connection=8)
    story.run("BLPOP l0 1", [b"l0", b"t40.0"], connection=9)
    story.end(operation, reply=["l0", "t40.0"])
    assert story.broken == ([] if repeat == "any" else ["no_element_is_lost"])


def test_an_unknown_pop_may_lose_an_element_but_not_one_that_was_not_applied():
    story = _pushed()
    operation = _pop(story, 40, Outcome.UNKNOWN)
    assert story.broken == []
    operation.outcome = Outcome.NOT_APPLIED
    assert story.broken == ["no_element_is_lost"]


def test_a_cancelled_pop_may_lose_an_element_when_something_fails():
    fault = Fault(0, "reset", 0.0)
    story = _pushed(faults=(fault,))
    story.fault()
    _pop(story, 40, Outcome.CANCELLED)
    assert story.broken == []


@pytest.mark.parametrize("case", ["forbidden", "closed", "bound"])
def test_a_cancelled_pop_may_lose_an_element_where_that_is_documented(case):
    setups = (ClientSetup("a", single=case == "bound"),)
    story = _pushed(clients=setups)
    if case == "forbidden":
        story.event("denies", commands=("CLIENT|UNBLOCK",))
    _pop(story, 40, Outcome.CANCELLED)
    if case == "closed":
        story.event("closing", client="a")
    assert story.broken == []


def test_a_second_push_after_a_delivery_is_not_a_recovery():
    story = _pushed()
    _pop(story, 40, Outcome.OK)
    story.run("LPUSH l0 t20.0", 1)
    assert "no_command_is_applied_more_often_than_its_policy_permits" in story.broken


def test_an_acknowledged_element_is_still_there():
    story = _pushed()
    story.history.ending.data = {"server1": {"l0": []}}
    assert story.broken == ["an_acknowledged_element_is_in_a_list_or_was_taken"]
    story.history.ending.data = {"server1": {"l0": [], "moved": ["t20.0"]}}
    assert story.broken == []


# -- locks ----------------------------------------------------------------------------------


def _acquire(story: Story, number: int, token: str, timeout: float = 10.0) -> Operation:
    operation = story.start(number, kind="acquire", facts={"lock": "lock0", "timeout": timeout})
    story.run(f"SET lock0 {token} NX PX 10000")
    return story.end(operation, reply=True, token=token)


def _release(story: Story, number: int, token: str, error: str = "") -> Operation:
    operation = story.start(number, kind="release", facts={"lock": "lock0", "token": token})
    outcome = Outcome.REFUSED if error else Outcome.OK
    bases = ("LockNotOwnedError", "RedisError") if error else ()
    return story.end(operation, outcome, error=error, error_bases=bases)


@pytest.mark.parametrize("case", ["released", "held", "expired", "flushed"])
def test_a_lock_is_held_by_one_caller(case):
    story = Story()
    _acquire(story, 20, "aaaa")
    if case == "released":
        _release(story, 22, "aaaa")
        release = story.history.operations[-1]
        story.run("EVALSHA 1234 1 lock0 aaaa", 1)
        release.ended_at = story.history.next()
    if case == "expired":
        story.wait(11)
    if case == "flushed":
        story.history.event("server1", "flushed")
    _acquire(story, 40, "bbbb")
    assert story.broken == (["two_callers_never_hold_one_lock"] if case == "held" else [])


def test_an_acquired_lock_was_taken_on_the_server():
    story = Story()
    operation = _acquire(story, 20, "aaaa")
    operation.facts["token"] = "cccc"
    assert story.broken == ["an_acquired_lock_was_taken_on_the_server"]


@pytest.mark.parametrize("seconds", [1.0, 11.0])
def test_a_held_lock_can_be_released(seconds):
    story = Story()
    _acquire(story, 20, "aaaa")
    story.wait(seconds)
    _release(story, 22, "aaaa", "LockNotOwnedError: Cannot release a lock that's no longer owned")
    name = "a_lock_that_is_still_held_can_be_released"
    assert story.broken == ([name] if seconds < 10 else [])


# -- linearizability ------------------------------------------------------------------------


def _register_history(*calls: tuple[Any, ...]) -> list[str]:
    """Return the violations of calls (operation, value, start, end); no end means unknown."""
    story = Story()
    moments = []
    for number, (name, value, start, end) in enumerate(calls, start=1):
        words = ("SET", "r0", value) if name == "set" else ("GET", "r0")
        operation = Operation(number * 20, name, "a", number, (words,))
        moments.append((start, "started_at", operation))
        outcome = Outcome.OK if end is not None else Outcome.UNKNOWN
        operation.outcome, operation.reply = outcome, value if name == "get" else True
        moments.append((end if end is not None else start + 0.5, "ended_at", operation))
        story.history.operations.append(operation)
    for moment, name, operation in sorted(moments, key=lambda each: each[0]):
        story.time = 1000.0 + moment / 1000
        setattr(operation, name, story.history.next())
        setattr(operation, name.removesuffix("_at"), story.time)
    return [
        each.detail
        for each in check(story.history, story.plan)
        if each.rule == "registers_are_linearizable"
    ]


@pytest.mark.parametrize(
    "calls",
    [
        [("set", "x", 1, 2), ("get", "x", 3, 4)],
        [("get", None, 1, 2), ("set", "x", 3, 4), ("get", "x", 5, 6)],
        [("set", "x", 1, 5), ("get", None, 2, 3), ("get", "x", 6, 7)],
        [("set", "x", 1, 10), ("set", "y", 2, 9), ("get", "y", 3, 4), ("get", "x", 11, 12)],
        [("set", "x", 1, None), ("get", None, 3, 4), ("get", "x", 5, 6)],
        [("set", "x", 1, None), ("set", "y", 3, 4), ("get", "y", 5, 6)],
        [("set", "x", 1, None), ("set", "y", 3, 4), ("get", "x", 5, 6)],
    ],
)
def test_a_linearizable_register(calls):
    assert _register_history(*calls) == []


@pytest.mark.parametrize(
    "calls",
    [
        [("set", "x", 1, 2), ("set", "y", 3, 4), ("get", "x", 5, 6)],  # stale
        [("set", "x", 1, 2), ("get", None, 3, 4)],  # lost
        [("get", "x", 1, 2), ("set", "x", 3, 4)],  # before its write
        [("get", "z", 1, 2)],  # never written
        [  # back to an older value
            ("set", "x", 1, 10),
            ("set", "y", 1, 10),
            ("get", "x", 11, 12),
            ("get", "y", 13, 14),
            ("get", "x", 15, 16),
        ],
        [  # an unknown write that overwrites later, and is followed by the older value
            ("set", "x", 1, None),
            ("set", "y", 3, 4),
            ("get", "x", 5, 6),
            ("get", "y", 7, 8),
        ],
    ],
)
def test_a_register_that_is_not_linearizable(calls):
    assert len(_register_history(*calls)) == 1


def test_registers_whose_data_was_lost_or_repeated_are_not_checked():
    story = Story()
    story.call(20, "SET r0 t20.0")
    story.call(40, "GET r0", None, None, kind="get")
    assert story.broken == ["registers_are_linearizable"]
    story.history.event("server1", "started", keep_data=False)
    assert story.broken == []


# -- times ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "stall", "late"), [(1.2, 0, False), (2, 0, True), (2, 1, False)]
)
def test_a_call_ends_by_its_deadline(seconds, stall, late):
    story = Story()
    operation = story.start(20, "SET r0 t20.0", deadline=story.time + 1.0)
    story.wait(seconds)
    if stall:
        story.history.event("loop", "stall", seconds=stall)
    story.end(operation, Outcome.NOT_APPLIED, error_bases=("RedisError",))
    assert story.broken == (["a_call_ends_by_its_deadline"] if late else [])


def test_a_call_that_sleeps_by_itself_may_end_later():
    call = Call(20, "manual", arguments={"think": 1.2})
    story = Story(callers=(Caller(0, "a", (call,)),))
    operation = story.start(20, "SET r0 t20.0", kind="manual", deadline=story.time + 1.0)
    story.wait(2.3)
    story.end(operation, Outcome.NOT_APPLIED, error_bases=("RedisError",))
    assert story.broken == []


@pytest.mark.parametrize(("seconds", "late"), [(5.1, False), (7.1, True)])
def test_a_blocking_call_reaches_the_server_within_the_deadline_in_all_attempts(seconds, late):
    story = Story()
    operation = story.start(20, "BLPOP l0 1", kind="pop", facts={"reach_deadline": 5.0, "block": 1})
    story.wait(seconds)
    story.end(operation, Outcome.NOT_APPLIED, error_bases=("RedisError",), **PROMISE)
    name = "a_blocking_call_reaches_the_server_by_its_deadline"
    assert story.broken == ([name] if late else [])


@pytest.mark.parametrize(("seconds", "late"), [(0.0, False), (0.2, True)])
def test_a_cancellation_is_immediate(seconds, late):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.cancel(operation)
    story.wait(seconds)
    story.end(operation, Outcome.CANCELLED)
    assert story.broken == (["a_cancellation_ends_its_call_at_once"] if late else [])


def test_a_cancellation_is_not_swallowed():
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.run("SET r0 t20.0")
    story.cancel(operation)
    story.end(operation, reply=True)
    assert story.broken == ["a_cancellation_is_not_swallowed"]
    operation.facts["cancel_delivered"] = False  # it had ended
    assert story.broken == []


def test_a_call_is_not_cancelled_by_itself():
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.end(operation, Outcome.CANCELLED)
    assert story.broken == ["only_a_cancelled_call_ends_as_cancelled"]
    story.cancel(operation)
    assert story.broken == []


def test_every_call_ends():
    story = Story()
    story.start(20, "BLPOP l0 0", kind="pop")
    story.history.ending.hanging = [20]
    assert story.broken == ["every_call_ends"]


@pytest.mark.parametrize("case", ["at once", "late", "never", "began later", "opened again"])
def test_calls_end_when_their_client_has_closed(case):
    story = Story()
    operation = story.start(20, "BLPOP l0 9", kind="pop")
    story.event("closing", client="a")
    if case == "began later":
        operation.started_at = story.history.next()
    story.wait(0.1)
    story.event("closed", client="a")
    if case == "opened again":
        story.start(60, kind="reopen")
    if case != "never":
        story.wait(0.01 if case == "at once" else 1.0)
        story.end(operation, Outcome.NOT_APPLIED, error_bases=("RedisClosed", "RedisError"))
    broken = case in ("late", "never", "began later")
    expected = ["calls_end_when_their_client_has_closed"] if broken else []
    assert story.broken == expected


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "bases", "broken"),
    [
        (Outcome.NOT_APPLIED, ("RedisUnavailable", "ConnectionError", "RedisError"), False),
        (Outcome.NOT_APPLIED, ("RedisClosed", "Closed", "RedisError"), False),
        (Outcome.NOT_APPLIED, ("Closed", "ResilientIOError", "Exception"), True),
        (Outcome.UNKNOWN, ("InvalidResponse", "RedisError"), True),
        (Outcome.REFUSED, ("KeyError", "Exception"), True),
        (Outcome.OTHER, ("ConnectionError", "RedisError"), True),
    ],
)
def test_errors_are_documented(outcome, bases, broken):
    story = Story()
    operation = story.start(20, "SET r0 t20.0")
    story.wrote("SET r0 t20.0")
    story.event("closing", client="a")
    story.end(operation, outcome, error=bases[0], error_bases=bases)
    assert story.broken == (["every_error_is_a_documented_one"] if broken else [])


# -- health ---------------------------------------------------------------------------------

RESET = Fault(0, "reset", 0.0)
STALL = Fault(0, "stall", 0.0, 1.5)


@pytest.mark.parametrize(
    ("faults", "later", "broken"),
    [((RESET,), 1.0, False), ((RESET,), 9.0, True), ((STALL,), 0.1, True), ((), 0.0, True)],
)
def test_down_has_a_reason(faults, later, broken):
    story = Story(faults=faults)
    story.wait(30)
    if faults:
        story.fault(seconds=faults[0].seconds)
    story.wait(later)
    story.state("down", "timed out")
    assert story.broken == (["down_has_a_reason"] if broken else [])


@pytest.mark.parametrize(("seconds", "broken"), [(2.0, False), (20.0, True)])
def test_down_ends_after_the_fault(seconds, broken):
    story = Story(faults=(RESET,))
    story.wait(10)
    story.fault()
    story.state("down", "reset")
    story.wait(seconds)
    story.state("up")
    name = "a_dependency_is_up_again_soon_after_the_last_fault"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize(("seconds", "broken"), [(1.0, False), (30.0, True)])
def test_a_call_is_refused_as_down_only_for_a_reason(seconds, broken):
    story = Story(faults=(RESET,))
    story.fault()
    story.wait(seconds)
    operation = story.start(20, "SET r0 t20.0")
    error = "RedisUnavailable: redis-a: SET: down (reset: lost) (not sent, 0 attempts, 0.000 s)"
    bases = ("RedisUnavailable", "RedisError")
    story.end(operation, Outcome.NOT_APPLIED, error=error, error_bases=bases)
    name = "a_call_is_not_refused_as_down_without_a_reason"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize(
    ("stalls", "before", "lasts", "broken"),
    [
        (0, 0.0, 0.5, True),
        (1, 0.0, 0.5, True),
        (3, 0.0, 0.5, False),
        (3, 1.0, 0.5, False),
        (3, 5.0, 0.5, True),
        (3, 0.0, 4.0, True),
    ],
)
def test_stalls_before_and_during_a_call_may_make_a_server_look_down(stalls, before, lasts, broken):
    story = Story()
    story.wait(10)
    if before:
        for _ in range(stalls):
            story.history.event("loop", "stall", seconds=0.2)
        story.wait(before)
    operation = story.start(20, "SET r0 t20.0")
    if not before:
        for _ in range(stalls):
            story.history.event("loop", "stall", seconds=0.2)
    story.wait(lasts)
    error = "RedisUnavailable: redis-a: SET: down (timed out: timed out) (not sent, 1 attempt)"
    bases = ("RedisUnavailable", "RedisError")
    story.end(operation, Outcome.NOT_APPLIED, error=error, error_bases=bases)
    name = "a_call_is_not_refused_as_down_without_a_reason"
    assert story.broken == ([name] if broken else [])


@pytest.mark.parametrize("case", ["noticed", "up", "served", "closed", "one call"])
def test_a_server_that_serves_nothing_is_noticed(case):
    story = Story(faults=(Fault(0, "loading", 0.0, 8.0),))
    story.state("up")
    story.event("fault", number=0, fault="loading", lasts=8.0)
    for number in range(20, 200, 20):
        if number > 20 and case == "one call":
            story.wait(1.0)
            continue
        operation = story.start(number, f"SET r0 t{number}.0")
        story.wrote(f"SET r0 t{number}.0")
        story.refuse(f"SET r0 t{number}.0", "LOADING Redis is loading")
        story.end(operation, Outcome.REFUSED, error_bases=("RedisError",))
        story.wait(1.0)
        if number == 60 and case == "noticed":
            story.state("down", "loading")
        if number == 60 and case == "closed":
            story.event("closed", client="a")
        if number in (60, 120) and case == "served":
            story.run("PING", b"PONG")
    story.event("fault ended", number=0, fault="loading")
    story.run("PING", b"PONG")
    name = "a_server_that_serves_nothing_is_not_up"
    assert story.broken == ([name] if case == "up" else [])


@pytest.mark.parametrize("case", ["short", "long", "refusals", "fault"])
def test_degraded_ends_when_refusals_stop(case):
    story = Story(faults=(Fault(0, "refuse writes", 0.0, 18.0),))
    story.state("degraded", "out of memory")
    if case == "fault":
        story.fault(seconds=18.0)
    for number in range(20, 120, 20):
        story.wait(0.1 if case == "short" else 4.0)
        if case == "refusals":
            operation = story.start(number, f"SET r0 t{number}.0")
            story.wrote(f"SET r0 t{number}.0")
            story.refuse(f"SET r0 t{number}.0")
            story.end(operation, Outcome.REFUSED, error_bases=("RedisError",))
    if case == "fault":
        story.time -= 10.0
    story.state("up")
    assert story.broken == (["degraded_ends_when_refusals_stop"] if case == "long" else [])


@pytest.mark.parametrize(
    "case",
    [
        *("soon", "late", "in turn"),
        *("wrong password", "wrong earlier", "hung lookup", "hung long ago"),
    ],
)
def test_an_accepted_write_ends_the_report_of_refused_writes(case):
    story = Story()
    if case == "wrong earlier":
        story.refuse("HELLO 3 AUTH default secret", "WRONGPASS invalid password")
        story.wait(2.0)
    story.state("degraded", "out of memory")
    if case.startswith("hung"):
        story.event("fault", number=0, fault="lookup hangs", lasts=0.1)
        story.wait(0.1)
        story.event("fault ended", number=0, fault="lookup hangs")
        story.wait(6.0 if case == "hung long ago" else 0.0)
    if case == "wrong password":
        story.refuse("HELLO 3 AUTH default secret", "WRONGPASS invalid password")
    story.wait(0.5 if case == "in turn" else 1.5)
    story.call(20, "SET r0 t20.0")
    story.call(40, "SET r0 t40.0")
    story.wait(0.5 if case == "soon" else 6.0)
    story.state("up")
    name = "an_accepted_write_ends_the_report_of_refused_writes"
    assert story.broken == ([name] if case in ("late", "wrong earlier", "hung long ago") else [])


@pytest.mark.parametrize("case", ["shared", "not shared", "also closed", "not yet used"])
def test_closing_a_client_does_not_end_the_health_of_another(case):
    shared = None if case == "not shared" else "a"
    story = Story(clients=(ClientSetup("a"), ClientSetup("b", shares_health_of=shared)))
    story.state("up")
    if case != "not yet used":
        story.call(20, "SET r0 t20.0", client="b")
    for label in "ab" if case == "also closed" else "a":
        story.event("closing", client=label)
    story.state("unknown", "closed")
    story.event("closed", client="a")
    name = "closing_a_client_does_not_end_a_health_that_another_uses"
    assert story.broken == ([name] if case == "shared" else [])


@pytest.mark.parametrize("case", ["closed", "closing", "opened"])
def test_closing_is_not_reported_as_a_failure(case):
    story = Story(clients=(ClientSetup("a"),), faults=(RESET,))
    story.state("up")
    story.event("closing", client="a")
    story.fault()
    if case != "closing":
        story.event("closed", client="a")
    if case == "opened":
        story.start(40, kind="reopen")
    story.state("down", "closed")
    name = "nothing_is_published_after_the_last_client_closed"
    assert story.broken == ([name] if case == "closed" else [])


# -- the end --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({}, None),
        ({"open": False, "state": "unknown", "answers": None}, None),
        ({"state": "down"}, "every_open_client_is_up_and_answers_at_the_end"),
        ({"answers": False}, "every_open_client_is_up_and_answers_at_the_end"),
        ({"counters": {"waiting calls": 2}}, "every_counter_returns_to_zero"),
        ({"budget": 10.5}, "the_retry_budget_stays_within_its_size"),
        ({"budget": -5.0}, "the_retry_budget_stays_within_its_size"),
    ],
)
def test_a_client_is_well_at_the_end(values, rule):
    story = Story()
    story.client(**values)
    assert story.broken == ([] if rule is None else [rule])


@pytest.mark.parametrize(
    ("task", "state", "broken"),
    [
        ("resilient-io probe redis-a", "up", False),
        ("resilient-io redis connection 1", "up", False),
        ("resilient-io redis fence", "up", True),
        ("resilient-io redis exclusive connect", "down", False),
    ],
)
def test_an_idle_client_runs_only_its_probe_and_its_connections(task, state, broken):
    story = Story()
    story.client(state=state)
    story.history.ending.idle_tasks = [task]
    name = "an_idle_client_runs_only_its_probe_and_its_connections"
    assert (name in story.broken) is broken


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("tasks", ["resilient-io redis connection 0"], "closed_clients_leave_nothing_behind"),
        ("connections", [4], "closed_clients_leave_nothing_behind"),
        ("timers", 1, "closed_clients_leave_nothing_behind"),
        ("loop_errors", ["Task exception was never retrieved"], "no_unexpected_error_is_logged"),
        ("log_errors", ["Traceback"], "no_unexpected_error_is_logged"),
    ],
)
def test_nothing_is_left_at_the_end(name, value, rule):
    story = Story()
    setattr(story.history.ending, name, value)
    assert story.broken == [rule]
