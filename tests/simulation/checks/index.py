"""Lookups over a history that several checks need, prepared once for each run."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tests.simulation.history import ErrorReply, Outcome
from tests.simulation.network import RESOLVER_TIMEOUT

from .effects import PERMITTED, POPS, PUSHES, READ, UNDO, effect_of, effect_of_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.simulation.history import Event, Execution, History, Operation
    from tests.simulation.plan import Plan

T = TypeVar("T")

_TOKEN = re.compile(rb"t(\d+\.\d+)")
_DIGITS = re.compile(rb"\d+\.\d+")
_TOKEN_TEXT = re.compile(r"t\d+\.\d+")
_POPS = tuple(name.encode() for name in sorted(POPS))
_LONG = 400  # bytes of a command, beyond which only the head of each word is searched

BATCHES = frozenset({"pipeline", "transaction", "manual"})
"""Kinds whose commands are sent, and answered, as a batch."""

TRANSACTIONS = frozenset({"transaction", "manual", "watch"})
"""Kinds whose commands are queued by MULTI; those of "watch" after the first two."""

_WATCH_STEPS = 2  # WATCH and GET precede MULTI

PERMANENT = frozenset({"forget", "fail over"})
"""Faults that do not end: what they broke stays so until the client notices."""

HARMLESS = frozenset({"forget scripts"})
"""Faults of which a caller notices nothing."""

STALLS = frozenset({"stall"})
"""Faults of our own process. They are never a reason to call a server down."""

LOSSES = frozenset({"flushed", "data lost", "writes lost", "not replicated", "promoted"})
"""Kinds of events of a server after which a read may miss an acknowledged write."""


class Broken(NamedTuple):
    """How a history breaks a rule."""

    detail: str
    operations: tuple[int, ...] = ()
    at: int | None = None


@dataclass(slots=True)
class Command:
    """One command of an operation, with its executions.

    Attributes:
        operation: Its operation.
        index: Its position in the operation.
        words: The command and its arguments.
        name: The name of the command.
        token: The digits of its token ("17.0"), or None if it carries none.
        effect: What a second execution would do.
        writes: Whether it carries a token and changes data.
        executions: Executions of its token, in order, without put-backs.
        applied: Those that were applied.
        put_back: Executions with which the library put its element back into a list.
    """

    operation: Operation
    index: int
    words: tuple[str, ...]
    name: str
    token: bytes | None
    effect: int
    writes: bool
    executions: list[Execution]
    applied: list[Execution]
    put_back: list[Execution]

    @property
    def queued(self) -> bool:
        """Whether it is queued by MULTI."""
        kind = self.operation.kind
        return kind in TRANSACTIONS and (kind != "watch" or self.index >= _WATCH_STEPS)

    def __str__(self) -> str:
        """Return the command as it is shown in a report."""
        return " ".join(word if len(word) <= 40 else f"{word[:37]}..." for word in self.words)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault, from its beginning to its end."""

    begin: float
    end: float
    kind: str
    arguments: dict[str, Any]


class Sent(NamedTuple):
    """When, and on which connection of the network, a token was written."""

    at: int
    time: float
    connection: int


class Index:
    """A history with lookups. The plan may be missing in tests of single rules."""

    def __init__(self, history: History, plan: Plan | None = None) -> None:
        self.history = history
        self.plan = plan
        self.operations = {operation.number: operation for operation in history.operations}
        self.by_token: dict[bytes, list[Execution]] = {}
        self.by_words: dict[tuple[bytes, ...], list[Execution]] = {}
        self.transactions: dict[int, list[Execution]] = {}
        self.owners: list[bytes | None] = []
        """For each execution, the first token that it carries."""
        self.shared: dict[str, Any] = {}
        """What functions with `once` have returned."""
        self._deadlines: dict[int, float | None] | None = None
        self._read_executions()
        self.commands: dict[int, list[Command]] = {
            operation.number: self._commands_of(operation) for operation in history.operations
        }
        self.by_command_token: dict[bytes, Command] = {
            command.token: command
            for commands in self.commands.values()
            for command in commands
            if command.token is not None
        }
        self._separate_put_backs()

    def _read_executions(self) -> None:
        by_token, by_words, owners = self.by_token, self.by_words, self.owners
        find = _TOKEN.findall
        for execution in self.history.executions:
            words = execution.words
            tokens = ()
            if len(words) > 1:
                joined = b" ".join(words)
                if len(joined) > _LONG:
                    joined = b" ".join([word[:40] for word in words])
                tokens = find(joined)
            if tokens:
                for token in dict.fromkeys(tokens) if len(tokens) > 1 else tokens:
                    by_token.setdefault(token, []).append(execution)
                owners.append(tokens[0])
            else:
                by_words.setdefault(words, []).append(execution)
                owners.append(None)
            if execution.transaction is not None:
                self.transactions.setdefault(execution.transaction, []).append(execution)

    def _commands_of(self, operation: Operation) -> list[Command]:
        commands = []
        for index, words in enumerate(operation.commands):
            if not words:
                continue  # a call without commands of its own, such as a lock
            text = f"{operation.number}.{index}"
            carried = f"t{text}"
            token = None
            executions: list[Execution] = []
            for word in words:
                if carried in word:
                    token = text.encode()
                    executions = self.by_token.get(token, [])
                    break
            applied = [each for each in executions if each.applied] if executions else []
            effect = effect_of(words)
            writes = token is not None and effect != READ
            commands.append(
                Command(
                    operation,
                    index,
                    words,
                    words[0],
                    token,
                    effect,
                    writes,
                    executions,
                    applied,
                    [],
                )
            )
        return commands

    @staticmethod
    def token_in(word: bytes) -> bytes | None:
        """Return the digits of the token in a word, or None."""
        found = _TOKEN.search(word)
        return found[1] if found is not None else None

    @cached_property
    def by_outcome(self) -> dict[Outcome | None, list[Operation]]:
        """The operations that ended in the same way; None for those that have not ended."""
        found: dict[Outcome | None, list[Operation]] = {}
        for operation in self.history.operations:
            found.setdefault(operation.outcome, []).append(operation)
        return found

    def ended(self, outcome: Outcome) -> Iterator[tuple[Operation, list[Command]]]:
        """Yield the operations that ended in a way, and their commands."""
        for operation in self.by_outcome.get(outcome, ()):
            yield operation, self.commands[operation.number]

    @cached_property
    def by_name(self) -> dict[bytes, list[Execution]]:
        """The executions of each command, by its name."""
        found: dict[bytes, list[Execution]] = {}
        for execution in self.history.executions:
            found.setdefault(execution.words[0], []).append(execution)
        return found

    def named(self, *names: bytes) -> list[Execution]:
        """Return the executions of commands with these names, in their order."""
        found = [each for name in names for each in self.by_name.get(name, ())]
        return sorted(found, key=lambda each: each.at) if len(names) > 1 else found

    # -- elements of lists -----------------------------------------------------------------

    @cached_property
    def pops(self) -> dict[str, list[Execution]]:
        """The executions that took an element, by element."""
        found: dict[str, list[Execution]] = {}
        for execution in self.named(*_POPS):
            if execution.applied and execution.reply is not None:
                for element in _elements(execution.reply):
                    found.setdefault(element, []).append(execution)
        return found

    @cached_property
    def delivered(self) -> dict[str, list[Operation]]:
        """The operations that returned an element to their caller, by element."""
        found: dict[str, list[Operation]] = {}
        for commands in self.commands.values():
            for command in commands:
                if command.words[0] in POPS and command.operation.outcome is Outcome.OK:
                    known, reply = reply_of(command)
                    if known and reply is not None:
                        for element in _elements(reply):
                            found.setdefault(element, []).append(command.operation)
        return found

    def _separate_put_backs(self) -> None:
        """Separate executions that put an element back after its pop was abandoned."""
        for command in self.by_command_token.values():
            if len(command.applied) < 2 or not any(
                each.words[0].decode() in PUSHES for each in command.applied
            ):
                continue
            element = f"t{(command.token or b'').decode()}"
            pops = self.pops.get(element, [])
            spare = len(pops) - len(self.delivered.get(element, ()))
            for execution in command.applied[1:]:
                name = execution.words[0].decode()
                undone = [pop for pop in pops if UNDO.get(pop.words[0].decode()) == name]
                before = sum(pop.at < execution.at for pop in undone)
                alike = sum(each.words[0].decode() == name for each in command.put_back)
                if alike < before and len(command.put_back) < spare:
                    command.put_back.append(execution)
            if command.put_back:
                put_back = {each.at for each in command.put_back}
                command.executions = [
                    each for each in command.executions if each.at not in put_back
                ]
                command.applied = [each for each in command.applied if each.at not in put_back]

    @cached_property
    def errors(self) -> list[Execution]:
        """The commands that a server answered with an error."""
        return [each for each in self.history.executions if type(each.reply) is ErrorReply]

    @cached_property
    def _numbers(self) -> list[int]:
        return [execution.at for execution in self.history.executions]

    def executions_between(self, first: int, last: int) -> list[Execution]:
        """Return the executions after one number and before another."""
        numbers = self._numbers
        begin = bisect_right(numbers, first)
        return self.history.executions[begin : bisect_left(numbers, last, begin)]

    # -- executions of a command -----------------------------------------------------------

    def executions_of(self, command: Command) -> list[Execution]:
        """Return the executions of a command: of its token, or else of the same words."""
        if command.token is not None:
            return command.executions
        return self.by_words.get(tuple(word.encode() for word in command.words), [])

    def during_call(self, command: Command) -> Iterator[Execution]:
        """Yield the executions of a command between the start and the end of its call."""
        operation = command.operation
        for execution in self.executions_of(command):
            if execution.at > operation.started_at and (
                operation.ended_at is None or execution.at < operation.ended_at
            ):
                yield execution

    def repeatable(self, command: Command) -> bool:
        """Return whether the policy of its call permits to apply a command twice."""
        operation = command.operation
        if operation.kind == "watch":
            return False
        if operation.kind == "pipeline":
            effect = effect_of_batch(operation.commands[command.index :])
        elif operation.kind in TRANSACTIONS:
            effect = effect_of_batch(operation.commands)
        else:
            effect = command.effect
        return effect <= PERMITTED[operation.repeat]

    @cached_property
    def sent(self) -> dict[bytes, list[Sent]]:
        """When each token was written to a transport."""
        found: dict[bytes, list[Sent]] = {}
        for written in self.history.written:
            tokens = _tokens_in(written.data)
            if tokens:
                sent = Sent(written.at, written.time, written.connection)
                for token in dict.fromkeys(tokens) if len(tokens) > 1 else tokens:
                    found.setdefault(token, []).append(sent)
        return found

    # -- events ----------------------------------------------------------------------------

    @cached_property
    def events(self) -> dict[str, list[Event]]:
        """The events by their kind."""
        found: dict[str, list[Event]] = {}
        for event in self.history.events:
            found.setdefault(event.kind, []).append(event)
        return found

    @cached_property
    def disturbances(self) -> list[Disturbance]:
        """The faults in the order of their beginning, without those of our own process.

        A lookup that hangs is repeated by the resolver only after a while.
        """
        ends = {event.facts["number"]: event.time for event in self.events.get("fault ended", ())}
        planned = {} if self.plan is None else {fault.number: fault for fault in self.plan.faults}
        found = []
        for event in self.events.get("fault", ()):
            kind, number = event.facts["fault"], event.facts["number"]
            if kind in STALLS or kind in HARMLESS:
                continue
            fault = planned.get(number)
            arguments = {} if fault is None else dict(fault.arguments)
            end = ends.get(number, float("inf")) + float(arguments.get("loading", 0.0))
            end += RESOLVER_TIMEOUT if kind == "lookup hangs" else 0.0
            found.append(Disturbance(event.time, end, kind, arguments))
        return found

    def disturbed(self, since: float, until: float, *, after: float = 3.0) -> bool:
        """Return whether a fault was active in a period, or had ended at most `after` before it."""
        for fault in self.disturbances:
            lasting = max(after, 8.0) if fault.kind in PERMANENT else after
            if fault.begin <= until and fault.end + lasting >= since:
                return True
        return False

    def disturbances_between(self, since: float, until: float) -> list[Disturbance]:
        """Return the faults that were active in a period."""
        return [fault for fault in self.disturbances if fault.begin <= until and fault.end >= since]

    @cached_property
    def _stalls(self) -> list[tuple[float, float]]:
        stalls = [
            (event.time, float(event.facts.get("seconds", 0.0)))
            for event in self.events.get("stall", ())
        ]
        stalls += [
            (event.time, float(event.facts.get("lasts", 0.0)))
            for event in self.events.get("fault", ())
            if event.facts["fault"] in STALLS
        ]
        return sorted(stalls)

    def stalled(self, since: float, until: float) -> float:
        """Return the seconds for which our own loop was blocked around a period."""
        stalls = self._stalls
        total = 0.0
        for time, seconds in stalls[bisect_left(stalls, (since - _LONGEST_STALL, 0.0)) :]:
            if time > until + _LONGEST_STALL:
                break
            if time + seconds >= since and time - seconds <= until:
                total += seconds
        return total

    def unmeasured(self, since: float, until: float) -> float:
        """Return for how long the loop was blocked by stalls that its clients could not measure.

        Their timer runs every 0.1 s, so they do not see up to 0.1 s of each stall.
        """
        return sum(
            min(seconds, 0.1)
            for time, seconds in self._stalls[bisect_left(self._stalls, (since, 0.0)) :]
            if time <= until
        )

    @cached_property
    def data_lost(self) -> bool:
        """Whether a server lost data, or another server took over without some of it."""
        return any(
            event.kind in LOSSES
            or event.facts.get("keep_data") is False
            or (event.kind == "fault" and event.facts["fault"] == "fail over")
            for event in self.history.events
        )

    def forbidden(self, *prefixes: str) -> int | None:
        """Return the number of the first event after which a server forbids such commands."""
        for event in self.history.events:
            if event.kind == "denies":
                commands = event.facts.get("commands", ())
            elif event.kind == "fault" and event.facts["fault"] == "deny":
                number = event.facts["number"]
                faults = () if self.plan is None else self.plan.faults
                commands = next(
                    (
                        fault.arguments.get("commands", ("CLIENT",))
                        for fault in faults
                        if fault.number == number
                    ),
                    ("CLIENT",),
                )
            else:
                continue
            if any(
                each.startswith(prefix) or each == "CLIENT"
                for each in commands
                for prefix in prefixes
            ):
                return event.at
        return None

    @cached_property
    def unfenced(self) -> float:
        """The number of the event after which a server forbids fencing, or infinity."""
        at = self.forbidden("CLIENT|KILL", "CLIENT|LIST", "CLIENT|ID", "CLIENT|SETNAME")
        return float("inf") if at is None else at

    def bare(self, label: str) -> bool:
        """Return whether the connections of a client have no transport.

        Then each call uses a connection of its own, so that calls have no order.
        """
        setups = () if self.plan is None else self.plan.clients
        return any(setup.label == label and setup.form.get("bare") for setup in setups)

    # -- clients ---------------------------------------------------------------------------

    @cached_property
    def by_client(self) -> dict[str, list[Operation]]:
        """The operations of each client, in the order of their start."""
        found: dict[str, list[Operation]] = {}
        for operation in sorted(self.history.operations, key=lambda each: each.started_at):
            found.setdefault(operation.client, []).append(operation)
        return found

    @cached_property
    def dependencies(self) -> dict[str, str]:
        """The name of the health of each client."""
        if self.history.ending.clients:
            return {client.label: client.dependency for client in self.history.ending.clients}
        if self.plan is None:
            return {label: f"redis-{label}" for label in self.by_client}
        return {
            setup.label: f"redis-{setup.shares_health_of or setup.label}"
            for setup in self.plan.clients
        }

    @cached_property
    def lifecycle(self) -> dict[str, list[tuple[int, float, str]]]:
        """When each client was closing, closed, opening and opened: number, time and kind."""
        found: dict[str, list[tuple[int, float, str]]] = {label: [] for label in self.dependencies}
        for kind in ("closing", "closed", "opening", "opened"):
            for event in self.events.get(kind, ()):
                found.setdefault(event.facts["client"], []).append((event.at, event.time, kind))
        for operation in self.history.operations:
            if operation.kind == "reopen":
                found.setdefault(operation.client, []).append(
                    (operation.started_at, operation.started, "opening")
                )
        for event in self.events.get("ending", ()):
            for changes in found.values():
                changes.append((event.at, event.time, "closing"))
        for changes in found.values():
            changes.sort()
        return found

    def state_of_client(self, label: str, at: int) -> str:
        """Return the last change of a client before a number; "opened" if there was none."""
        state = "opened"
        for number, _, kind in self.lifecycle.get(label, ()):
            if number > at:
                break
            state = kind
        return state

    @cached_property
    def settled_at(self) -> float:
        """The time at which the clients were closed at the end, or of the last record."""
        ending = self.events.get("ending")
        if ending:
            return ending[0].time
        times = [event.time for event in self.history.events[-1:]]
        times += [change.time for change in self.history.health[-1:]]
        times += [each.ended for each in self.history.operations if each.ended is not None]
        return max(times, default=0.0)

    def deadline_of(self, number: int) -> float | None:
        """Return the seconds of the `deadline()` around a call of the plan, or None."""
        if self._deadlines is None:
            self._deadlines = {
                call.number: call.deadline
                for caller in (() if self.plan is None else self.plan.callers)
                for call in caller.calls
            }
        return self._deadlines.get(number)

    def argument(self, number: int, name: str) -> Any:
        """Return an argument of the call of the plan to which an operation belongs."""
        if self.plan is not None:
            for caller in self.plan.callers:
                for call in caller.calls:
                    if call.number == number:
                        return call.arguments.get(name)
        return None


def once(look_up: Callable[[Index], T]) -> Callable[[Index], T]:
    """Return a function that looks something up only once in each index."""
    name = look_up.__qualname__

    @wraps(look_up)
    def looked_up(index: Index) -> T:
        shared = index.shared
        if name not in shared:
            shared[name] = look_up(index)
        found: T = shared[name]
        return found

    return looked_up


_LONGEST_STALL = 10.0  # seconds


def _tokens_in(data: bytes) -> list[bytes]:
    """Return the digits of all tokens in some bytes, which may be large values."""
    if len(data) <= _LONG:
        return _TOKEN.findall(data)
    # To split bytes is much faster than to search them with a regular expression.
    matches = map(_DIGITS.match, data.split(b"t")[1:])
    return [match[0] for match in matches if match is not None]


def _elements(reply: Any) -> list[str]:
    """Return the tokens in the reply to a pop."""
    if isinstance(reply, bytes):
        return _TOKEN_TEXT.findall(reply.decode("utf-8", "replace"))
    if isinstance(reply, str):
        return _TOKEN_TEXT.findall(reply)
    if isinstance(reply, (list, tuple)):
        return [element for each in reply for element in _elements(each)]
    return []


def _decoded(reply: Any) -> Any:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply


def reply_of(command: Command) -> tuple[bool, Any]:
    """Return whether a reply to the command reached the caller, and the reply."""
    operation, index = command.operation, command.index
    replies: Any = ()
    if operation.kind == "watch" and index < _WATCH_STEPS:
        steps = [_decoded(reply) for step, _, _, reply in operation.steps if step == index]
        return bool(steps), steps[0] if steps else None
    if operation.outcome is not Outcome.OK:
        if operation.kind == "pipeline":
            replies = operation.answered
    elif operation.kind == "watch":
        replies, index = operation.reply, index - _WATCH_STEPS
    elif operation.kind in BATCHES:
        replies = operation.reply
    elif len(operation.commands) == 1:
        return True, operation.reply
    if isinstance(replies, (list, tuple)) and index < len(replies):
        return True, replies[index]
    return False, None
