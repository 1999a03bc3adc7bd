"""What happened in one run. The workload, the network and the server write it; the checks read it.

Every record has a number, `at`, from one counter, so that all records are in one order, also those
with the same virtual time.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Outcome(enum.Enum):
    """How a caller's operation ended."""

    OK = "ok"
    """It returned a value."""

    CANCELLED = "cancelled"
    """It raised CancelledError, after the workload had cancelled it."""

    NOT_APPLIED = "not applied"
    """It raised an error that promises that nothing was applied."""

    REFUSED = "refused"
    """It raised the server's own error reply (OOM, READONLY, WRONGTYPE ...)."""

    UNKNOWN = "unknown"
    """It raised OutcomeUnknown: it may have been applied."""

    WATCH_FAILED = "watch failed"
    """A transaction raised WatchError: a watched key changed, or the connection was lost."""

    OTHER = "other"
    """It raised anything else. No public error of the client leads here."""


@dataclass(slots=True)
class Operation:
    """One use of the public API by one caller, from its start to its end.

    Attributes:
        number: The number of the call in the plan. Tokens are `tNUMBER.INDEX`, INDEX counts the
            commands of the operation.
        kind: The name of the kind of call in `workload`, for example "set" or "transaction".
        client: The label of the client, for example "a". Views have the label of their client.
        caller: The number of the caller, whose operations do not overlap, except in bursts.
        commands: The commands in their order, as words. Those of scripts are EVAL or EVALSHA.
        repeat: The `repeat` of the policy in force.
        burst: The number of the burst; operations of a burst are started in the same tick, in
            the order of their numbers. None outside bursts.
        deadline: The time by which it must end, or None.
        started_at, started: Number and time of its start.
        cancelled_at, cancelled: Number and time at which the workload cancelled it, or None.
        ended_at, ended: Number and time of its end, or None while it runs.
        outcome: How it ended.
        reply: What it returned. Bytes in replies are decoded as UTF-8.
        error: The type name of the error, followed by its text.
        error_bases: The names of the classes of the error, in the order of resolution.
        answered: For a batch that failed: the replies that the error carries.
        steps: For operations of several commands: (command index, number at start, number at end,
            reply) of each step that ended, for example WATCH, GET, MULTI/EXEC.
        facts: What else the checks of this kind need, for example the token of a lock.
    """

    number: int
    kind: str
    client: str
    caller: int
    commands: tuple[tuple[str, ...], ...]
    repeat: str = "idempotent"
    burst: int | None = None
    deadline: float | None = None
    started_at: int = 0
    started: float = 0.0
    cancelled_at: int | None = None
    cancelled: float | None = None
    ended_at: int | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    reply: Any = None
    error: str = ""
    error_bases: tuple[str, ...] = ()
    answered: tuple[Any, ...] = ()
    steps: list[tuple[int, int, int, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


class Execution(NamedTuple):
    """One command that a server executed, or refused with an error reply.

    Attributes:
        at, time: Number and time of the execution.
        server: The name of the server.
        connection: The CLIENT ID of its connection.
        client_name: The name that CLIENT SETNAME gave it, or "".
        words: The command and its arguments; the name is in capitals.
        applied: False for a command that the server refused: it had no effect.
        reply: The reply, as a Python value (bytes, int, list, None, or an error's text in
            `ErrorReply`).
        transaction: The number of the EXEC that executed it, or None. Numbers are not reused.
    """

    at: int
    time: float
    server: str
    connection: int
    client_name: str
    words: tuple[bytes, ...]
    applied: bool
    reply: Any
    transaction: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error reply: its text with the prefix, for example "OOM command not allowed"."""

    text: str


class Written(NamedTuple):
    """Bytes that the client passed to a transport. `connection` is the network's own number."""

    at: int
    time: float
    connection: int
    data: bytes


class HealthChange(NamedTuple):
    """A state that a dependency of a client published."""

    at: int
    time: float
    dependency: str
    state: str
    cause: str
    detail: str


class Event(NamedTuple):
    """A line of the timeline: what the workload, the network or the server did.

    Attributes:
        source: "workload", "client", "network" or the name of a server.
        kind: A short fixed name, such as "killed", for checks and digests.
        facts: Values that belong to it.
    """

    at: int
    time: float
    source: str
    kind: str
    facts: Mapping[str, Any]


@dataclass(slots=True)
class ClientEnd:
    """The counters of a client after everything has settled, before or after it was closed.

    Attributes:
        label: The label of the client.
        dependency: The name of its health.
        open: Whether the workload had left it open until the end.
        counters: Counters that must be zero, by name (calls in flight, waiting calls, exclusive
            connections, bytes in flight ...).
        state: The state of its health after everything has settled.
        answers: Whether a last PING succeeded; None for a closed client.
        budget, budget_size: Tokens of the retry budget, and its size.
    """

    label: str
    dependency: str
    open: bool
    counters: dict[str, float]
    state: str
    answers: bool | None
    budget: float
    budget_size: float


@dataclass(slots=True)
class Ending:
    """The state of everything after the faults have stopped, and after the clients were closed.

    Attributes:
        clients: Each client, after everything has settled.
        hanging: The operations that had not ended a long time after the last fault.
        idle_tasks: Names of tasks that ran before the clients were closed, when all was settled.
        tasks: Names of tasks that were left after all clients were closed.
        timers: Number of timers that were left then.
        connections: Numbers of client connections that were still open then.
        loop_errors: What reached the loop's exception handler.
        log_errors: Log records of level ERROR, and tracebacks.
        spans: How many calls a patch of redis-py saw begin and end, if there was one.
        data: The data of each server at the end: key to value (str, list, dict, set).
    """

    clients: list[ClientEnd] = field(default_factory=list)
    hanging: list[int] = field(default_factory=list)
    idle_tasks: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    timers: int = 0
    connections: list[int] = field(default_factory=list)
    loop_errors: list[str] = field(default_factory=list)
    log_errors: list[str] = field(default_factory=list)
    spans: dict[str, int] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule.

    Attributes:
        rule: The name of the check.
        detail: What broke it, in one sentence.
        operations: The numbers of the operations that are concerned.
        at: The number of the record that shows it, or None.
    """

    rule: str
    detail: str
    operations: tuple[int, ...] = ()
    at: int | None = None


_new = tuple.__new__  # the constructor of a NamedTuple is a function of Python


class History:
    """All records of one run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self.operations: list[Operation] = []
        self.executions: list[Execution] = []
        self.written: list[Written] = []
        self.health: list[HealthChange] = []
        self.events: list[Event] = []
        self.ending = Ending()

    def next(self) -> int:
        """Return the next number."""
        self._count = number = self._count + 1
        return number

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock()

    def stop_clock(self) -> None:
        """Keep the present time from now on, and no reference to the loop."""
        now = self._clock()
        self._clock = lambda: now

    def event(self, source: str, kind: str, **facts: Any) -> None:
        """Add a line to the timeline."""
        self._count = number = self._count + 1
        self.events.append(_new(Event, (number, self._clock(), source, kind, facts)))

    def executed(
        self,
        server: str,
        connection: int,
        client_name: str,
        words: tuple[bytes, ...],
        *,
        applied: bool,
        reply: Any,
        transaction: int | None = None,
    ) -> None:
        """Add a command that a server executed or refused."""
        self._count = number = self._count + 1
        time = self._clock()
        self.executions.append(
            _new(
                Execution,
                (number, time, server, connection, client_name, words, applied, reply, transaction),
            )
        )

    def wrote(self, connection: int, data: bytes | bytearray | memoryview) -> None:
        """Add bytes that a client passed to a transport."""
        self._count = number = self._count + 1
        self.written.append(_new(Written, (number, self._clock(), connection, bytes(data))))

    def health_changed(self, dependency: str, state: str, cause: str, detail: str) -> None:
        """Add a change of health."""
        self.health.append(
            HealthChange(self.next(), self._clock(), dependency, state, cause, detail)
        )

    def clear(self) -> None:
        """Forget all records. Clients refer to them in cycles, which the collector has to find."""
        for records in (self.operations, self.executions, self.written, self.health, self.events):
            records.clear()

    def digest(self) -> str:
        """Return a hash of all records: two runs with the same digest did the same."""
        total = hashlib.sha256()
        for records in (self.operations, self.executions, self.written, self.health, self.events):
            for record in records:
                total.update(repr(record).encode())
        total.update(repr(self.ending).encode())
        return total.hexdigest()[:16]
