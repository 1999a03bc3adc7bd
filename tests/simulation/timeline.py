"""Prints a run for a person: the broken rule, the plan, and what each participant did when.

Lines of the operations that the violation names are marked with ">", the record that shows it
with "!". Handshakes, PINGs and repeated lines are folded, except with `full`.
"""

from __future__ import annotations

import re
import textwrap
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from .history import ErrorReply, Outcome
from .minimize import START
from .plan import NetworkSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from .history import (
        Event,
        Execution,
        HealthChange,
        History,
        Operation,
        Violation,
        Written,
    )
    from .plan import Call, Plan
    from .run import Result

WIDTH = 110  # of a line, without the columns before the text
LONGEST_ERROR = 200
LONG_RUN = 120  # lines; above it, the traffic of operations that are not concerned is folded
_ROUTINE = "AUTH CLIENT COMMAND CONFIG ECHO HELLO INFO MODULE PING READONLY ROLE SELECT"
ROUTINE = frozenset(_ROUTINE.split())
NOT_ROUTINE = {("CLIENT", "KILL"), ("CLIENT", "UNBLOCK"), ("CLIENT", "PAUSE")}
SENTENCES = {
    ("network", "connected"): "connection {connection} to {address} is open",
    ("network", "lost"): "connection {connection} is lost: {why}",
    ("network", "reset"): "connection {connection} is reset",
    ("network", "reset at the client"): "connection {connection} is reset at the client only",
    ("network", "closed by the server's side"): "connection {connection} is closed by the server",
    ("network", "forgotten"): "connection {connection} is forgotten: its packets vanish",
    ("network", "garbage"): "garbage is sent to the client on connection {connection}",
    ("network", "all reset"): "all connections to {address} are reset",
    ("network", "connect failed"): "a connect to {address} fails: {error}",
    ("network", "lookup failed"): "a lookup of {name} fails: error {error}",
    ("loop", "stall"): "our event loop stands still for {seconds}",
}
SHORT_STALL = 0.02  # seconds; shorter ones are folded
LONGEST_PATTERN = 6  # lines that repeat together
_TOKEN = re.compile(r"\bt(\d+)\.\d+")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the timeline.

    Attributes:
        at: The number of its record.
        time: Virtual seconds since the start of the run.
        who: A caller, client or server, "network" or "health".
        text: What happened.
        mark: ">" for an operation that is concerned, "!" for the record that shows the violation.
        routine: Short names of what may be folded: handshakes and PINGs.
        operations: Numbers of the operations that it belongs to.
        traffic: Whether it belongs to calls, and not to faults, health or lifecycle.
    """

    at: int
    time: float
    who: str
    text: str
    mark: str = " "
    routine: tuple[str, ...] = ()
    operations: frozenset[int] = frozenset()
    traffic: bool = False


def render(
    result: Result,
    violation: Violation | None = None,
    *,
    rule: str = "",
    replay: str = "",
    note: str = "",
    full: bool = False,
    color: bool = False,
) -> str:
    """Return the picture of a run.

    Args:
        result: The run.
        violation: The rule that it breaks, or None.
        rule: The rule in words.
        replay: The command that replays the run.
        note: A line about how the plan was found.
        full: Whether nothing is folded or shortened.
        color: Whether to use the colors of a terminal.
    """
    style = Style(color)
    plan = result.plan
    lines = []
    if violation is not None:
        lines.append(style.bad(f"Broken rule: {violation.rule.replace('_', ' ')}"))
        lines += _wrapped(rule)
        lines += [style.bold(line) for line in _wrapped(violation.detail)]
        lines.append("")
    lines.append(f"Seed {plan.seed}, theme {plan.theme}. {note}".rstrip())
    if replay:
        lines.append(f"Replay: {replay}")
    lines += ["", style.bold("Plan"), *(f"  {line}" for line in plan_lines(plan))]
    lines += [
        "",
        style.bold("Timeline in virtual seconds"),
        *_timeline(result.history, plan, violation, full=full, style=style),
    ]
    ending = list(_ending(result.history))
    if ending:
        lines += ["", style.bold("At the end"), *(f"  {line}" for line in ending)]
    return "\n".join(lines) + "\n"


class Style:
    """Adds the escape sequences of a terminal, or nothing."""

    def __init__(self, color: bool) -> None:
        self._color = color

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text

    def bold(self, text: str) -> str:
        """Return bold text."""
        return self._in("1", text)

    def bad(self, text: str) -> str:
        """Return text in red."""
        return self._in("1;31", text)

    def fault(self, text: str) -> str:
        """Return text in yellow."""
        return self._in("33", text)

    def dim(self, text: str) -> str:
        """Return faint text."""
        return self._in("2", text)


def plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the plan in a few lines."""
    for client in plan.clients:
        options = [f"RESP{client.protocol}"]
        if client.single:
            options.append("one connection")
        if client.shares_health_of is not None:
            options.append(f"uses the health of {client.shares_health_of}")
        options += [
            f"{name}({_arguments(getattr(client, name))})"
            for name in ("policy", "connections", "health", "options")
            if getattr(client, name)
        ]
        yield f"{'client ' + client.label:10} {', '.join(options)}"
    for caller in plan.callers:
        who = f"caller {caller.number}"
        for call in caller.calls:
            yield f"{who:10} {_planned(call)}" + (
                f", with client {caller.client}" if len(plan.clients) > 1 else ""
            )
            who = ""
    for fault in plan.faults:
        seconds = f" for {_seconds(fault.seconds)}" if fault.seconds else ""
        arguments = f" ({_arguments(fault.arguments)})" if fault.arguments else ""
        yield f"{f'fault {fault.number}':10} at {_seconds(fault.at)}{seconds}: {fault.kind}" + (
            arguments
        )
    if plan.server:
        yield f"{'server':10} {_arguments(plan.server)}"
    yield f"{'network':10} {_network(plan.network)}"


def _planned(call: Call) -> str:
    """Return a call of the plan in words."""
    text = f"#{call.number} {call.kind}"
    if call.arguments:
        text += f"({_arguments(call.arguments)})"
    if call.pause:
        text += f" after {_seconds(call.pause)}"
    if call.view is not None:
        text += f", policy {_arguments(call.view)}"
    if call.deadline is not None:
        text += f", deadline {_seconds(call.deadline)}"
    if call.cancel_after is not None:
        text += f", cancelled after {_seconds(call.cancel_after)}"
    return text


def _network(settings: NetworkSettings) -> str:
    """Return the settings of the network in words."""
    parts = [f"latency {settings.latency * 1000:g} ms"]
    if settings.jitter:
        parts[0] += f" + {settings.jitter * 1000:g} ms"
    if settings.split:
        parts.append(f"{settings.split:.0%} of packets are split")
    if settings.stall:
        longest = f"{settings.stall_longest * 1000:g} ms"
        parts.append(f"{settings.stall:.0%} of loop iterations take up to {longest}")
    if settings == replace(NetworkSettings(), jitter=0.0, split=0.0, stall=0.0):
        return "regular"
    return ", ".join(parts)


def _timeline(
    history: History, plan: Plan, violation: Violation | None, *, full: bool, style: Style
) -> Iterator[str]:
    """Yield the printed lines."""
    lines = [_marked(line, violation) for line in all_lines(history, plan)]
    lines.sort(key=lambda line: line.at)
    width = max((len(line.who) for line in lines), default=0)
    margin = 15 + width - 1

    if full:
        for line in lines:
            yield _printed(line, width, style)
        return
    lines, rest = _until_violation(lines)
    shown = [line for line in lines if not line.routine]
    long = len(shown) > LONG_RUN

    def group(line: Line) -> str:
        if line.mark != " ":
            return "shown"
        if line.routine:
            return "folded"
        return "folded" if long and line.traffic else "shown"

    pending: list[Line] = []
    for kind, members in groupby(lines, key=group):
        if kind == "shown":
            pending += members
            continue
        folded = list(members)
        if len(folded) == 1 and not folded[0].routine:
            pending += folded
        else:
            pending.append(_folded(folded))
    for line in _without_repetitions(pending):
        if isinstance(line, str):
            yield style.dim(" " * margin + line)
        elif line.who == "":
            yield style.dim(_printed(line, width, Style(False)))
        else:
            yield _printed(line, width, style)
    if rest:
        yield style.dim(
            " " * margin
            + f"... the rest ({len(rest)} lines, until {rest[-1].time:.4f}) is left out"
        )


def _until_violation(lines: list[Line]) -> tuple[list[Line], list[Line]]:
    """Return the lines up to the last marked one, and the rest. What follows explains nothing."""
    last = max((at for at, line in enumerate(lines) if line.mark != " "), default=len(lines) - 1)
    return lines[: last + 1], lines[last + 1 :]


def _printed(line: Line, width: int, style: Style) -> str:
    """Return a line with its columns."""
    text = f"{line.mark} {line.time:9.4f}  {line.who:{width}}  {line.text}"
    if line.mark == "!":
        return style.bad(text)
    if line.mark == ">":
        return style.bold(text)
    return style.fault(text) if not line.traffic and line.who != "" else text


def _marked(line: Line, violation: Violation | None) -> Line:
    """Return the line with its mark."""
    if violation is None:
        return line
    if line.at == violation.at:
        return replace(line, mark="!", routine=())
    if line.operations & set(violation.operations):
        return replace(line, mark=">", routine=())
    return line


def _folded(lines: Sequence[Line]) -> Line:
    """Return one line for several."""
    counts: dict[str, dict[str, int]] = {}  # by name, and by who wrote or executed it
    others = 0
    for line in lines:
        for name in line.routine:
            by = counts.setdefault(name, {})
            by[line.who] = by.get(line.who, 0) + 1
        others += not line.routine
    most = {name: max(by.values()) for name, by in counts.items()}
    names = [name if count == 1 else f"{name} x{count}" for name, count in most.items()]
    parts = []
    if names:
        parts.append("routine: " + ", ".join(names))
    if others:
        parts.append(f"{others} {'line' if others == 1 else 'lines'} of other operations")
    first = lines[0]
    return Line(first.at, first.time, "", _short(f"... {'; '.join(parts)}", WIDTH))


def _without_repetitions(lines: Sequence[Line]) -> Iterator[Line | str]:
    """Yield the lines; a group of lines that repeats more than twice only once, with a note."""
    keys = [(line.who, re.sub(r"\d+", "#", line.text), line.mark) for line in lines]
    position = 0
    while position < len(lines):
        for size in range(1, LONGEST_PATTERN + 1):
            pattern = keys[position : position + size]
            if any(mark != " " for _, _, mark in pattern):
                continue
            end = position + size
            while keys[end : end + size] == pattern:
                end += size
            times = (end - position) // size
            if times > 2:
                yield from lines[position : position + size]
                which = "this line repeats" if size == 1 else f"these {size} lines repeat"
                until = lines[end - 1].time
                yield f"... {which} {times - 1} more times, until {until:.4f}"
                position = end
                break
        else:
            yield lines[position]
            position += 1


def all_lines(history: History, plan: Plan) -> Iterator[Line]:
    """Yield a line for each record, without marks, in no particular order."""
    commands = {
        tuple(command): operation.number
        for operation in history.operations
        for command in operation.commands
    }
    time_at = _time_at(history)
    for operation in history.operations:
        yield from _operation_lines(operation, time_at)
    labels = {each.label for each in plan.clients} | {each.client for each in history.operations}
    client = f"client {plan.clients[0].label}" if len(labels) == 1 else "client"
    parsed: dict[int, bytearray] = {}
    for written in history.written:
        parsed.setdefault(written.connection, bytearray()).extend(written.data)
    requests = {number: parse_requests(bytes(data))[0] for number, data in parsed.items()}
    clients = clients_of_connections(requests, history, commands)
    for written in history.written:
        yield _written_line(written, client, clients, commands)
    connections = connections_of_sessions(requests, history)
    for execution in history.executions:
        yield _execution_line(execution, connections, commands)
    for change in history.health:
        yield _health_line(change)
    for event in history.events:
        yield _event_line(event)


def clients_of_connections(
    requests: Mapping[int, Sequence[tuple[str, ...]]],
    history: History,
    commands: Mapping[tuple[str, ...], int],
) -> dict[int, str]:
    """Return the client of each connection of the network that wrote a command of a caller."""
    labels = {operation.number: operation.client for operation in history.operations}
    return {
        connection: f"client {labels[number]}"
        for connection, written in requests.items()
        for number in sorted(_operations(written, commands))
        if number in labels
    }


def connections_of_sessions(
    requests: Mapping[int, Sequence[tuple[str, ...]]], history: History
) -> dict[tuple[str, int], int]:
    """Return the connection of the network of each CLIENT ID: the only one that wrote the same."""
    candidates: dict[tuple[str, int], set[int]] = {}
    writers: dict[tuple[str, ...], set[int]] = {}
    for connection, written in requests.items():
        for words in written:
            writers.setdefault(_normal(words), set()).add(connection)
    for execution in history.executions:
        words = _normal(tuple(_text(word) for word in execution.words))
        if words in writers:
            session = (execution.server, execution.connection)
            known = candidates.setdefault(session, writers[words])
            candidates[session] = known & writers[words] or known
    return {session: min(found) for session, found in candidates.items() if len(found) == 1}


def _normal(words: tuple[str, ...]) -> tuple[str, ...]:
    return (words[0].upper(), *words[1:])


def _time_at(history: History) -> Callable[[int], float]:
    """Return a function that returns the time of a number, or of the last record before it."""
    known = [(record.at, record.time) for record in history.written]
    known += [(record.at, record.time) for record in history.executions]
    known += [(record.at, record.time) for record in history.events]
    known += [(operation.started_at, operation.started) for operation in history.operations]
    known.sort()
    numbers = [number for number, _ in known]
    return lambda number: known[max(bisect_right(numbers, number) - 1, 0)][1]


def _operation_lines(operation: Operation, time_at: Callable[[int], float]) -> Iterator[Line]:
    """Yield the start, the steps, the cancellation and the end of an operation."""
    who = f"caller {operation.caller}"
    name = f"#{operation.number} {operation.kind}"
    mine = frozenset((operation.number,))

    def line(at: int, seconds: float, text: str) -> Line:
        return Line(at, seconds - START, who, text, operations=mine, traffic=True)

    commands = "; ".join(_command(command) for command in operation.commands)
    text = f"starts {name}" + (f": {_short(commands)}" if commands else "")
    notes = []
    if operation.deadline is not None:
        notes.append(f"deadline {_seconds(operation.deadline - operation.started)}")
    if operation.burst is not None:
        notes.append(f"burst {operation.burst}")
    if notes:
        text += f" ({', '.join(notes)})"
    yield line(operation.started_at, operation.started, text)
    for index, _, ended, reply in operation.steps:
        # Equal to the end: the end of the operation shows it.
        if ended != operation.ended_at and index < len(operation.commands):
            command = _command(operation.commands[index])
            yield line(ended, time_at(ended), f"gets {_reply(reply)} for {command} ({name})")
    if operation.cancelled_at is not None and operation.cancelled is not None:
        yield line(operation.cancelled_at, operation.cancelled, f"is cancelled during {name}")
    if operation.ended_at is not None and operation.ended is not None:
        took = f" after {_seconds(operation.ended - operation.started)}"
        yield line(operation.ended_at, operation.ended, f"{_end(operation)}{took} ({name})")


def _end(operation: Operation) -> str:
    """Return how an operation ended, in words."""
    match operation.outcome:
        case Outcome.OK:
            return f"gets {_reply(operation.reply)}"
        case Outcome.CANCELLED:
            return "gets CancelledError"
        case None:
            return "ends"
        case outcome:
            return f"gets {_short(operation.error, LONGEST_ERROR)} [{outcome.value}]"


def _written_line(
    written: Written,
    client: str,
    clients: Mapping[int, str],
    commands: Mapping[tuple[str, ...], int],
) -> Line:
    """Return the line of bytes that a client wrote."""
    who = clients.get(written.connection, client)
    requests, rest = parse_requests(written.data)
    text = f"writes {len(written.data)} bytes on connection {written.connection}"
    shown = [_command(words) for words in requests]
    if rest:
        shown.append(f"({rest} bytes of a request)")
    return Line(
        written.at,
        written.time - START,
        who,
        f"{text}: {_short('; '.join(shown))}",
        routine=_routine(requests) if not rest else (),
        operations=_operations(requests, commands),
        traffic=True,
    )


def _execution_line(
    execution: Execution,
    connections: Mapping[tuple[str, int], int],
    commands: Mapping[tuple[str, ...], int],
) -> Line:
    """Return the line of a command that a server executed or refused."""
    words = tuple(_text(word) for word in execution.words)
    verb = "executes" if execution.applied else "refuses"
    connection = connections.get((execution.server, execution.connection))
    where = f"on connection {connection}"
    if connection is None:
        where = f"of CLIENT ID {execution.connection}"
    if execution.transaction is not None:
        where += f" in EXEC {execution.transaction}"
    return Line(
        execution.at,
        execution.time - START,
        execution.server,
        f"{verb} {_command(words)} {where} -> {_reply(execution.reply)}",
        routine=_routine([words]) if execution.applied or "SETINFO" in words[1:2] else (),
        operations=_operations([words], commands),
        traffic=True,
    )


def _health_line(change: HealthChange) -> Line:
    """Return the line of a change of health."""
    reason = ": ".join(part for part in (change.cause, change.detail) if part)
    text = f"{change.dependency} is {change.state.upper()}" + (f": {reason}" if reason else "")
    return Line(change.at, change.time - START, "health", _short(text, WIDTH))


def _event_line(event: Event) -> Line:
    """Return the line of an event."""
    who, facts = event.source, dict(event.facts)
    text = event.kind.replace("_", " ")
    if who == "workload" and text.startswith("fault"):
        who = f"fault {facts.pop('number', '')}".rstrip()
        name = facts.pop("fault", "")
        lasts = facts.pop("lasts", 0.0)
        text = f"ends: {name}" if text.endswith("ended") else f"begins: {name}"
        if lasts:
            text += f", for {_seconds(lasts)}"
    elif who in ("workload", "client") and "client" in facts:
        who = f"client {facts.pop('client')}"
    sentence = SENTENCES.get((who, event.kind))
    routine: tuple[str, ...] = ()
    if sentence is not None:
        if "seconds" in facts:
            routine = ("stall",) if facts["seconds"] < SHORT_STALL else ()
            facts["seconds"] = _seconds(facts["seconds"])
        text = sentence.format_map(facts)
    elif facts:
        text += f" ({_arguments(facts)})"
    number = facts.get("operation")
    return Line(
        event.at,
        event.time - START,
        who,
        _short(text, WIDTH),
        routine=routine,
        operations=frozenset((number,)) if isinstance(number, int) else frozenset(),
    )


def _ending(history: History) -> Iterator[str]:
    """Yield what is notable about the end of the run."""
    ending = history.ending
    for client in ending.clients:
        left = {name: value for name, value in client.counters.items() if value}
        facts = [f"health {client.state.upper()}"] if client.open else ["closed"]
        if client.answers is not None:
            facts.append("PING succeeds" if client.answers else "PING fails")
        if left:
            facts.append(f"left over: {_arguments(left)}")
        yield f"client {client.label}: {', '.join(facts)}"
    if ending.hanging:
        yield "still waiting: " + ", ".join(f"#{number}" for number in ending.hanging)
    for name, values in (
        ("tasks left over", ending.tasks),
        ("connections left open", ending.connections),
        ("errors of the event loop", ending.loop_errors),
        ("logged errors", ending.log_errors),
    ):
        if values:
            yield f"{name}: {_short(', '.join(map(str, values)), 400)}"
    if ending.timers:
        yield f"timers left over: {ending.timers}"
    servers: dict[str, list[str]] = {}
    for server, data in ending.data.items():
        items = ", ".join(f"{key}={_reply(value)}" for key, value in sorted(data.items()))
        servers.setdefault(items, []).append(server)
    for items, names in servers.items():
        yield f"data of {' and '.join(names)}: {_short(items, 200) or 'none'}"


def parse_requests(data: bytes) -> tuple[list[tuple[str, ...]], int]:
    """Return the requests in these bytes as words, and the number of bytes that are left."""
    requests: list[tuple[str, ...]] = []
    position = 0
    while True:
        try:
            words, end = _parse_request(data, position)
        except (ValueError, IndexError):
            return requests, len(data) - position
        requests.append(words)
        position = end


def _parse_request(data: bytes, position: int) -> tuple[tuple[str, ...], int]:
    """Return the words of the request at this position, and its end. ValueError: incomplete."""
    end = data.index(b"\r\n", position)
    if data[position : position + 1] != b"*":
        raise ValueError(data[position:end])
    words = []
    count = int(data[position + 1 : end])
    position = end + 2
    for _ in range(count):
        end = data.index(b"\r\n", position)
        length = int(data[position + 1 : end])
        position = end + 2
        if len(data) < position + length + 2:
            raise ValueError(length)
        words.append(_text(data[position : position + length]))
        position += length + 2
    return tuple(words), position


def _operations(
    requests: Iterable[tuple[str, ...]], commands: Mapping[tuple[str, ...], int]
) -> frozenset[int]:
    """Return the operations that requests belong to: by their tokens, else by equal words."""
    found = set()
    for words in requests:
        tokens = [int(number) for word in words for number in _TOKEN.findall(word)]
        if tokens:
            found.update(tokens)
        elif words in commands:
            found.add(commands[words])
    return frozenset(found)


def _routine(requests: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return short names of the requests if all belong to handshakes and probes, else nothing."""
    names = []
    for words in requests:
        head = tuple(word.upper() for word in words[:2])
        if not head or head[0] not in ROUTINE or head in NOT_ROUTINE:
            return ()
        names.append(" ".join(head) if head[0] == "CLIENT" else head[0])
    return tuple(names)


def _command(words: Sequence[str]) -> str:
    """Return a command, with long arguments shortened."""
    return " ".join(_short(word, 40) or "''" for word in words)


def _reply(reply: Any) -> str:
    """Return a reply in words."""
    if isinstance(reply, ErrorReply):
        return _short(reply.text)
    if isinstance(reply, bytes):
        return _short(_text(reply)) or "''"
    if isinstance(reply, list | tuple):
        return _short("[" + ", ".join(_reply(item) for item in reply) + "]")
    if isinstance(reply, dict):
        return _short("{" + ", ".join(f"{_reply(k)}: {_reply(v)}" for k, v in reply.items()) + "}")
    return "nil" if reply is None else _short(str(reply)) or "''"


def _arguments(arguments: Mapping[str, Any]) -> str:
    """Return arguments as name=value."""
    return ", ".join(f"{name}={_value(value)}" for name, value in arguments.items())


def _value(value: Any) -> str:
    """Return the value of an argument."""
    if isinstance(value, float):
        return f"{round(value, 4):g}"
    if isinstance(value, list | tuple):
        return _short("[" + ", ".join(_value(item) for item in value) + "]")
    return _short(_text(value) if isinstance(value, bytes) else str(value))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _seconds(seconds: float) -> str:
    """Return seconds with the digits that matter."""
    return f"{round(seconds, 4):g} s"


def _short(text: str, longest: int = 80) -> str:
    """Return the text in one line, with its middle left out if it is long."""
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    if len(text) <= longest:
        return text
    return f"{text[: longest - 20]}...{text[-12:]} ({len(text)} characters)"


def _wrapped(text: str) -> list[str]:
    """Return a paragraph, indented."""
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="  ")
