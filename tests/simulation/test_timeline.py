"""Timelines of hand-made runs: a person must be able to read them."""

from dataclasses import dataclass, field

from tests.simulation.history import ErrorReply, History, Operation, Outcome, Violation
from tests.simulation.minimize import START
from tests.simulation.plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan
from tests.simulation.timeline import parse_requests, render


@dataclass
class FakeResult:
    plan: Plan
    history: History
    violations: list[Violation] = field(default_factory=list)


def encode(*words):
    parts = [word if isinstance(word, bytes) else word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Recorder:
    """Writes a history by hand."""

    def __init__(self):
        self.time = START
        self.history = History(lambda: self.time)
        self.operations = {}

    def after(self, seconds):
        self.time = round(self.time + seconds, 6)
        return self

    def start(self, number, kind, *command, caller=1, **facts):
        operation = Operation(number, kind, "a", caller, (command,), **facts)
        operation.started_at, operation.started = self.history.next(), self.time
        self.operations[number] = operation
        self.history.operations.append(operation)

    def end(self, number, outcome, reply=None, error=""):
        operation = self.operations[number]
        operation.ended_at, operation.ended = self.history.next(), self.time
        operation.outcome, operation.reply, operation.error = outcome, reply, error

    def write(self, connection, *requests):
        self.history.wrote(connection, b"".join(encode(*words) for words in requests))

    def execute(self, client_id, *words, reply=b"OK", applied=True):
        words = tuple(word.encode() for word in words)
        self.history.executed("redis", client_id, "", words, applied=applied, reply=reply)


def lost_write():
    """Return a run in which a SET is reported as not applied, although it was applied."""
    run = Recorder()
    history = run.history
    history.event("network", "connected", connection=1, address="10.0.0.1")
    run.after(0.0004).write(1, ("HELLO", "3"), ("CLIENT", "SETNAME", "x"), ("CLIENT", "ID"))
    for words in (("HELLO", "3"), ("CLIENT", "SETNAME", "x"), ("CLIENT", "ID")):
        run.after(0.0001).execute(5, *words)
    history.health_changed("redis", "up", "", "")
    run.after(0.0113).start(4, "get", "GET", "r1", caller=2)
    run.write(1, ("GET", "r1"))
    run.after(0.0004).execute(5, "GET", "r1", reply=None)
    run.after(0.0004).end(4, Outcome.OK)
    run.after(0.4).start(7, "set", "SET", "r3", "t7.0", caller=1, deadline=START + 2.4128)
    history.event("network", "replies_are_dropped", address="10.0.0.1", seconds=1.0)
    run.after(0.0001).write(1, ("SET", "r3", "t7.0"))
    run.after(0.0004).execute(5, "SET", "r3", "t7.0")
    for _ in range(5):
        run.after(0.2).write(1, ("PING",))
        run.after(0.0002).execute(5, "PING", reply=b"PONG")
    history.event("redis", "refuses_writes", error="OOM", seconds=3.0)
    history.event("network", "reset", connection=1)
    history.health_changed("redis", "down", "timeout", "no reply for 1.0 s")
    history.event("loop", "stall", seconds=0.003)
    history.event("loop", "stall", seconds=0.15)
    for number in range(2, 9):
        history.event("network", "connected", connection=number, address="10.0.0.1")
        run.after(0.05)
        history.event("network", "reset", connection=number)
    run.write(9, ("CLIENT", "SETNAME", "y"))
    run.execute(6, "CLIENT", "SETNAME", "y")
    run.write(9, ("SET", "r3", "t7.0"))
    error = ErrorReply("OOM command not allowed when used memory > 'maxmemory'.")
    run.after(0.0004).execute(6, "SET", "r3", "t7.0", reply=error, applied=False)
    run.after(0.0004).end(
        7, Outcome.NOT_APPLIED, error="DeadlineExceeded: SET r3: nothing was applied"
    )
    history.health_changed("redis", "up", "", "")
    history.ending.data = {"redis": {"r3": "t7.0"}}
    plan = Plan(
        seed=17,
        theme="mixed",
        clients=(ClientSetup("a", policy={"deadline": 2.0}),),
        callers=(
            Caller(1, "a", (Call(7, "set", pause=0.4, deadline=2.0, arguments={"key": "r3"}),)),
            Caller(2, "a", (Call(4, "get", arguments={"key": "r1"}),)),
        ),
        faults=(
            Fault(1, "drop_replies", 0.41, 1.0),
            Fault(3, "refuse_writes", 1.4, 3.0, {"error": "OOM"}),
        ),
        network=NetworkSettings(jitter=0, split=0, stall=0),
    )
    violation = Violation(
        "not_applied_was_never_executed",
        "#7 SET r3 t7.0 was reported as not applied, but redis executed it for client ID 5.",
        operations=(7,),
        at=run.operations[7].ended_at,
    )
    return FakeResult(plan, history, [violation])


def picture(**options):
    result = lost_write()
    return render(
        result,
        result.violations[0],
        rule="A call that reports that nothing was applied was never executed.",
        replay='make simulate ARGS="--replay 17 --faults 1,3 --calls 4,7"',
        note="Minimized from 57 calls and 7 faults in 143 runs.",
        **options,
    )


def lines_with(text, **options):
    return [line for line in picture(**options).splitlines() if text in line]


def test_header_has_rule_violation_seed_and_command():
    text = picture()
    assert text.startswith("Broken rule: not applied was never executed\n")
    assert "  A call that reports that nothing was applied was never executed.\n" in text
    assert "#7 SET r3 t7.0 was reported as not applied, but redis executed it" in text
    assert "Seed 17, theme mixed. Minimized from 57 calls" in text
    assert 'Replay: make simulate ARGS="--replay 17 --faults 1,3 --calls 4,7"' in text


def test_plan_is_in_words():
    text = picture()
    assert "  client a   RESP3, policy(deadline=2)\n" in text
    assert "  caller 1   #7 set(key=r3) after 0.4 s, deadline 2 s\n" in text
    assert "  fault 3    at 1.4 s for 3 s: refuse_writes (error=OOM)\n" in text
    assert "  network    regular\n" in text


def test_lines_of_the_concerned_operation_are_marked():
    marked = [line for line in picture().splitlines() if line.startswith((">", "!"))]
    assert [line[0] for line in marked] == [">", ">", ">", ">", ">", "!"]
    assert marked[0] == ">    0.4128  caller 1  starts #7 set: SET r3 t7.0 (deadline 2 s)"
    assert "client a  writes 31 bytes on connection 1: SET r3 t7.0" in marked[1]
    assert "redis     executes SET r3 t7.0 on connection 1 -> OK" in marked[2]
    assert "refuses SET r3 t7.0 on connection 9 -> OOM command not allowed" in marked[4]
    assert "caller 1  gets DeadlineExceeded: SET r3: nothing was applied [not applied]" in marked[5]


def test_handshakes_and_pings_are_folded():
    folded = lines_with("routine")
    assert len(folded) == 4
    assert folded[0].endswith("HELLO, CLIENT SETNAME, CLIENT ID")
    assert folded[1].endswith("PING x5")


def test_only_long_stalls_are_shown():
    assert lines_with("loop      our event loop stands still for 0.15 s")
    assert not lines_with("stands still for 0.003 s")
    assert lines_with("stands still for 0.003 s", full=True)


def test_repeated_lines_are_shown_once_with_a_count():
    assert lines_with("these 2 lines repeat 6 more times, until 1.7643")
    assert len(lines_with(" to 10.0.0.1 is open")) == 2


def test_full_timeline_folds_nothing():
    assert not lines_with("more times", full=True)
    assert len(lines_with("PING", full=True)) == 10
    assert len(lines_with(" to 10.0.0.1 is open", full=True)) == 8


def test_lines_after_the_violation_are_left_out():
    assert lines_with("... the rest (1 lines, until 1.7651) is left out")
    assert not lines_with("1.7651  health    redis is UP")
    assert lines_with("1.7651  health    redis is UP", full=True)


def test_health_and_data_are_shown():
    assert lines_with("health    redis is DOWN: timeout: no reply for 1.0 s")
    assert picture().endswith("data of redis: r3=t7.0\n")


def test_colors_only_on_request():
    assert "\x1b" not in picture()
    assert "\x1b[1;31m!" in picture(color=True)


def test_requests_are_parsed_from_bytes():
    data = encode("SET", "k", "v") + encode("PING")
    assert parse_requests(data) == ([("SET", "k", "v"), ("PING",)], 0)
    assert parse_requests(data[:-3]) == ([("SET", "k", "v")], 11)
    assert parse_requests(b"garbage") == ([], 7)


def test_cancelled_operation_and_long_values_are_readable():
    run = Recorder()
    run.start(1, "set", "SET", "k", "v" * 500, burst=2)
    operation = run.operations[1]
    operation.cancelled_at, operation.cancelled = run.history.next(), run.time
    run.after(0.1).end(1, Outcome.CANCELLED)
    plan = Plan(1, "mixed", (ClientSetup("a"),), (), ())
    text = render(FakeResult(plan, run.history), Violation("r", "d"))
    assert "SET k vvvvvvvvvvvvvvvvvvvv...vvvvvvvvvvvv (500 characters) (burst 2)" in text
    assert "caller 1  is cancelled during #1 set" in text
    assert "caller 1  gets CancelledError after 0.1 s (#1 set)" in text


def test_traffic_of_other_operations_is_folded_in_a_long_run():
    run = Recorder()
    for number in range(100):
        run.after(0.001).start(number, "set", "SET", "k", f"t{number}.0")
        run.write(1, ("SET", "k", f"t{number}.0"))
        run.execute(1, "SET", "k", f"t{number}.0")
        run.end(number, Outcome.OK, reply=True)
    plan = Plan(1, "mixed", (ClientSetup("a"),), (), ())
    violation = Violation("r", "d", operations=(50,))
    lines = render(FakeResult(plan, run.history), violation).splitlines()
    assert sum(line.startswith(">") for line in lines) == 4
    assert any("200 lines of other operations" in line for line in lines)
    assert len(lines) < 25
