"""Rules about outages: when DOWN is published, what proves it, and what callers see meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.history import Outcome

from .index import BATCHES, Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Operation
    from tests.simulation.plan import ClientSetup

    from .index import Disturbance, Index

_MARGIN = 0.15  # seconds by which DOWN may be published later than the timeouts add up to
_REPEATED = 0.7  # seconds, and a backoff, in which a call that lost its connection is repeated
_LOOKUP = 10.0  # seconds that a lookup takes whose name server does not answer
_SLOW = 0.02  # seconds of latency, from which a probe may take longer than callers wait for it
_AFTERMATH = 4.0  # seconds after a fault in which its consequences may still appear
_LOST = ("connection was lost", "closed the connection", "onnection reset", "onnection closed")
_UNANSWERED = ("no byte arrived", "no reply within")
_OF_CONNECTIONS = frozenset({"forget", "reset one", "close one", "kill client", "unblock"})
"""Faults of single connections: a new one works at once, so the server is not down."""

_SILENT = frozenset({"freeze", "cut", "drop replies"})
"""Faults after which no byte arrives from the server."""

_BLOCKING = frozenset({"pop", "move", "stream read"})

_BEFORE_THE_REPLY = frozenset({"slow", "busy", "pause", "refuse writes", "freeze", "loading"})
"""Faults that delay a call before it is executed, or its packets by a known time."""

_REFUSALS = frozenset({"refuse writes", "refuse then reset"})

_HEALTH = {"interval": 1.0, "timeout": 1.0}  # the client's own values


class _Watched(NamedTuple):
    """A dependency with a single client, and the settings that decide when it is DOWN."""

    name: str
    client: str
    latency: float
    response_timeout: float
    timeout: float
    probe: float  # the longest time that a probe takes
    connect: float  # the shortest after which one fails
    interval: float
    pings: bool  # whether its probe pings an open connection, or opens one that is not the caller's


def an_outage_is_published_before_callers_see_an_error(index: Index) -> Iterator[Broken]:
    """A call that lost its connection to a dead server fails when DOWN was published.

    The probe has 50 ms, so slow networks, other faults and stalls are exempt.
    """
    kills = [fault for fault in index.disturbances if fault.kind == "kill"]
    if not kills:
        return
    for watched in _watched(index):
        if watched.latency >= _SLOW:
            continue
        for operation in index.by_client.get(watched.client, ()):
            ended = operation.ended
            if (
                ended is None
                or operation.outcome not in (Outcome.NOT_APPLIED, Outcome.UNKNOWN)
                or operation.kind in ("watch", "manual")
                or not any(text in operation.error for text in _LOST)
            ):
                continue
            kill = next((each for each in kills if each.begin <= ended <= each.end - 0.1), None)
            if (
                kill is None
                or kill.arguments.get("silently")
                or not operation.started < kill.begin < ended
                or _others(index, kill, ended)
                or index.stalled(kill.begin - 0.5, ended + 0.1) > 0.01
                or not _open(index, watched.client, kill.begin - 0.5, ended)
            ):
                continue
            states = _states(index, watched.name, operation.ended_at or 0)
            # A callback gets the change only in the next iteration of the loop: the state counts
            # that the caller of the failed call could read.
            state = operation.facts.get("health", states[-1] if states else "")
            if state in ("up", "degraded"):
                yield Broken(
                    f"call {operation.number} ({operation.kind}) failed while {watched.name} was "
                    f"{state.upper()}, {ended - kill.begin:.3f} s after the server was "
                    f"killed: {operation.error}",
                    (operation.number,),
                    operation.ended_at,
                )


def a_silent_server_is_soon_down(index: Index) -> Iterator[Broken]:
    """Silence is suspicious after half of the response timeout, and one more timeout proves it.

    Without calls, the ping of the probe is what remains unanswered.
    """
    for fault in index.disturbances:
        if fault.kind not in _SILENT:
            continue
        for watched in _watched(index):
            since = _first_unanswered(index, watched, fault)
            limit = since + watched.probe + _MARGIN + 4 * watched.latency
            limit += 2 * index.stalled(fault.begin - 0.5, limit)
            if (
                fault.end <= limit
                or index.settled_at <= limit
                or _others(index, fault, limit)
                or not _open(index, watched.client, fault.begin - 3.0, limit)
            ):
                continue
            changes = [
                change for change in index.history.health if change.dependency == watched.name
            ]
            before = [change.state for change in changes if change.time <= fault.begin]
            if not before or before[-1] != "up":
                continue
            if not any(
                change.state == "down" and fault.begin < change.time <= limit for change in changes
            ):
                yield Broken(
                    f"{watched.name} was not DOWN {limit - fault.begin:.2f} s after the server "
                    f"had become silent ({fault.kind})"
                )


def lost_connections_alone_are_not_an_outage(index: Index) -> Iterator[Broken]:
    """While the server accepts new connections, and answers on them, DOWN is not published."""
    longest = _longest_timeout(index)
    for change in index.history.health:
        if change.state != "down":
            continue
        faults = index.disturbances_between(change.time - _AFTERMATH - longest, change.time)
        if (
            faults
            and all(fault.kind in _OF_CONNECTIONS for fault in faults)
            # A second fault may reset the connection of the probe.
            and (len(faults) == 1 or all(fault.kind == "forget" for fault in faults))
            and index.stalled(change.time - 3.0, change.time) < 0.05
            and _answered_before(index, change.dependency, faults[0].begin - 0.5)
            and all(
                _open(index, label, faults[0].begin - 0.5, change.time)
                for label, dependency in index.dependencies.items()
                if dependency == change.dependency
            )
        ):
            kinds = ", ".join(dict.fromkeys(fault.kind for fault in faults))
            yield Broken(
                f"{change.dependency} became DOWN although only connections were lost ({kinds}): "
                f"{change.cause} ({change.detail})",
                (),
                change.at,
            )


def _answered_before(index: Index, dependency: str, time: float) -> bool:
    """Return whether a dependency answered at a time: no probe was on a connection of its own."""
    before = [
        change.state
        for change in index.history.health
        if change.dependency == dependency and change.time <= time
    ]
    return bool(before) and before[-1] in ("up", "degraded")


def one_timeout_is_not_an_outage(index: Index) -> Iterator[Broken]:
    """DOWN after timeouts takes two of them, of which one may be half of the response timeout.

    Only clients that keep a connection are examined: without one, each attempt to connect counts.
    A refused attempt to connect counts, too.
    """
    for watched in _watched(index):
        probe = min(watched.response_timeout, watched.connect)
        shortest = min(watched.response_timeout / 2, watched.connect) + probe
        for change in index.history.health:
            if (
                change.dependency != watched.name
                or change.state != "down"
                or change.cause != "timed out"
            ):
                continue
            answers = [
                execution.time
                for execution in index.history.executions
                if change.time - shortest < execution.time < change.time
            ]
            faults = index.disturbances_between(change.time - shortest, change.time)
            begun = min((fault.begin for fault in faults), default=change.time)
            if (
                len(faults) == 1  # several may cause several timeouts at the same time
                and not answers
                and change.time - begun < shortest - 2 * watched.latency - 0.01
                and not index.disturbed(begun - 10.0, begun - 0.001, after=_AFTERMATH)
                and index.stalled(change.time - 3.0, change.time) < 0.01
                and _kept_a_connection(index, watched.client, begun, change.time)
                and not any(
                    begun < event.time <= change.time
                    for event in index.events.get("connect failed", ())
                )
            ):
                yield Broken(
                    f"{watched.name} became DOWN {change.time - begun:.3f} s after the first "
                    f"fault, before two timeouts: {change.detail}",
                    (),
                    change.at,
                )


def a_call_does_not_lose_its_connection_without_a_reason(index: Index) -> Iterator[Broken]:
    """When nothing is wrong, no call fails because of its connection, and none is left unknown."""
    for operation in index.history.operations:
        ended = operation.ended
        if (
            ended is None
            or operation.outcome not in (Outcome.UNKNOWN, Outcome.NOT_APPLIED)
            or (operation.deadline is not None and ended >= operation.deadline - 0.01)
            or "Closed" in operation.error.partition(":")[0]
            or "Overloaded" in operation.error.partition(":")[0]
            or not any(text in operation.error for text in (*_LOST, *_UNANSWERED))
        ):
            continue
        if index.deadline_of(operation.number) is not None:
            continue  # an enclosing deadline also limits parts of the call
        if _behind_a_blocking_call(index, operation):
            continue
        if operation.kind in (*_BLOCKING, "watch") and any(
            event.time < ended for event in index.events.get("forgotten", ())
        ):
            continue  # an idle connection may have been forgotten long ago
        if _is_single(index, operation.client) and any(text in operation.error for text in _LOST):
            continue  # its connection may have died long ago: no probe uses it
        since = operation.started - 1.0
        if (
            index.disturbed(since, ended, after=_AFTERMATH + 2 * _longest_timeout(index))
            or index.stalled(since, ended) > 0.2
            or not _open(index, operation.client, since, ended)
        ):
            continue
        yield Broken(
            f"call {operation.number} ({operation.kind}) failed without a fault: {operation.error}",
            (operation.number,),
            operation.ended_at,
        )


def a_reply_that_arrived_is_returned(index: Index) -> Iterator[Broken]:
    """A call does not run out of time after its reply has arrived on a connection that is open."""
    if index.plan is None:
        return
    network = index.plan.network
    lost = {event.facts.get("connection"): event.time for event in index.events.get("lost", ())}
    for number, commands in index.commands.items():
        operation = index.operations[number]
        ended = operation.ended
        if (
            ended is None
            or operation.outcome not in (Outcome.UNKNOWN, Outcome.NOT_APPLIED)
            or not _shares_a_connection(operation)
            or not commands[0].executions
            or not commands[0].executions[0].applied  # a refusal, after which it is repeated
            or _behind_a_blocking_call(index, operation)
        ):
            continue
        execution = commands[0].executions[0]
        if not execution.applied:
            continue  # refused: it waits to be repeated
        sent = index.sent.get(commands[0].token or b"", ())
        if len(sent) != 1 or lost.get(sent[0].connection, ended + 1.0) <= ended:
            continue
        faults = index.disturbances_between(execution.time - 0.5, ended)
        if any(fault.kind not in _BEFORE_THE_REPLY for fault in faults):
            continue
        arrived = execution.time + network.latency + 3 * network.jitter + _MARGIN
        arrived += sum(fault.arguments.get("extra", 0.0) for fault in faults)
        if arrived + index.stalled(execution.time, ended) < ended:
            yield Broken(
                f"call {number} ({operation.kind}) had a reply at {arrived - _MARGIN:.3f}, but "
                f"ended at {ended:.3f} with: {operation.error}",
                (number,),
                operation.ended_at,
            )


def a_call_does_not_wait_long_after_its_connection_was_lost(index: Index) -> Iterator[Broken]:
    """When the server is up, a call that lost its connection is soon repeated, or fails."""
    lost = {
        event.facts.get("connection"): event.time
        for event in index.events.get("lost", ())
        if event.facts.get("why") != "closed"  # the client does that when it replaces one
    }
    clients = () if index.plan is None else index.plan.clients
    backoffs = {setup.label: setup.policy.get("backoff", 0.05) for setup in clients}
    for number, commands in index.commands.items():
        operation = index.operations[number]
        ended = operation.ended
        if (
            ended is None
            or ended - operation.started < _REPEATED
            or not commands
            or not _shares_a_connection(operation)
        ):
            continue
        sent = index.sent.get(commands[0].token or b"", ())
        since = lost.get(sent[-1].connection, ended) if sent else ended
        limit = _REPEATED + min(1.0, backoffs.get(operation.client, 0.05) * 2 ** (len(sent) - 1))
        if since < operation.started or ended - since < limit + index.stalled(since, ended):
            continue
        dependency = index.dependencies.get(operation.client, "")
        if (
            any(
                fault.kind not in _REFUSALS
                for fault in index.disturbances_between(since + 0.02, ended)
            )
            or index.unfenced < (operation.ended_at or 0)
            or not _open(index, operation.client, since - 1.0, ended)
            or not _answers_between(index, dependency, since + 0.1, ended)
            or _looks_up(index, since, ended)
            or _behind_a_blocking_call(index, operation)
        ):
            continue
        yield Broken(
            f"call {number} ({operation.kind}) lost its connection {ended - since:.1f} s before "
            f"it ended, and was not sent again: {operation.error or 'returned'}",
            (number,),
            operation.ended_at,
        )


def _looks_up(index: Index, since: float, until: float) -> bool:
    """Return whether a lookup that began while lookups hung may still run."""
    return any(
        since - _LOOKUP <= event.time <= until
        for kind in ("lookup: hang", "lookup: slow", "lookup: hang ended", "lookup: slow ended")
        for event in index.events.get(kind, ())
    )


def _answers_between(index: Index, dependency: str, since: float, until: float) -> bool:
    """Return whether a dependency was UP or DEGRADED all the time."""
    state = ""
    for change in index.history.health:
        if change.dependency != dependency or change.time > until:
            continue
        if change.time > since and change.state not in ("up", "degraded"):
            return False
        state = change.state if change.time <= since else state
    return state in ("up", "degraded")


def _behind_a_blocking_call(index: Index, operation: Operation) -> bool:
    """Return whether a call shares the only connection of a client with a blocking call."""
    if not _is_single(index, operation.client):
        return False
    return any(
        other is not operation
        and other.kind in _BLOCKING
        and other.started <= (operation.ended or operation.started)
        and (other.ended is None or other.ended >= operation.started - 5.0)
        for other in index.by_client.get(operation.client, ())
    )


def _is_single(index: Index, label: str) -> bool:
    """Return whether a client has a single connection of its own."""
    clients = () if index.plan is None else index.plan.clients
    return any(setup.single and setup.label == label for setup in clients)


def _kept_a_connection(index: Index, label: str, since: float, until: float) -> bool:
    """Return whether a connection that carried calls stayed open, and no other one died.

    While another one is replaced, a failed attempt to connect is a second sign of an outage.
    """
    if any(
        since - 1.0 <= event.time <= until and event.facts.get("why") != "closed"
        for event in index.events.get("lost", ())
    ):
        return False
    lost = {
        event.facts["connection"]
        for event in index.events.get("lost", ())
        if event.time <= until and "connection" in event.facts
    }
    return any(
        sent.time < since and sent.connection not in lost
        for operation in index.by_client.get(label, ())
        if _shares_a_connection(operation)
        for command in index.commands[operation.number]
        for sent in index.sent.get(command.token or b"", ())
    )


def _watched(index: Index) -> Iterator[_Watched]:
    """Yield the dependencies that a single client uses, from the plan."""
    plan = index.plan
    if plan is None:
        return
    network = plan.network.latency + plan.network.jitter
    shared = [setup.shares_health_of for setup in plan.clients]
    own = any(operation.kind == "manual" for operation in index.history.operations)
    for setup in plan.clients:
        if setup.shares_health_of is None and setup.label not in shared and not own:
            yield _settings(setup, network)


def _settings(setup: ClientSetup, latency: float) -> _Watched:
    health = _HEALTH | dict(setup.health)
    policy = setup.policy
    response_timeout = policy.get("response_timeout", 2.0)
    shortest = longest = policy.get("connect_timeout", 1.0)
    if setup.protocol == 2 and "driver_info" in setup.options:
        # Nothing is exchanged before the PING of the probe, which has the time of a response.
        longest = max(longest, response_timeout)
    return _Watched(
        name=f"redis-{setup.label}",
        client=setup.label,
        latency=latency,
        response_timeout=response_timeout,
        timeout=health["timeout"],
        probe=min(health["timeout"], longest),
        connect=min(health["timeout"], shortest),
        interval=health["interval"],
        pings=not setup.single and not setup.form.get("bare"),
    )


def _first_unanswered(index: Index, watched: _Watched, fault: Disturbance) -> float:
    """Return when the silence after a fault must be suspicious, because of a call or a ping."""
    pinged = fault.begin + 2 * watched.latency + watched.interval
    silent = min(watched.response_timeout / 2, watched.timeout) if watched.pings else watched.probe
    suspicious = pinged + silent
    operations = index.by_client.get(watched.client, ())
    if not watched.pings and any(
        each.kind in _WAITS_ALONE and each.started <= pinged for each in operations
    ):
        return suspicious  # it shares the connection, whose silence it makes legitimate
    for operation in operations:
        if operation.started < fault.begin or not _shares_a_connection(operation):
            continue
        if operation.started > pinged:
            break
        for command in index.commands[operation.number][:1]:
            sent = index.sent.get(command.token or b"", ())
            if sent and fault.begin <= sent[0].time:
                suspicious = min(suspicious, sent[0].time + watched.response_timeout / 2)
    return suspicious


_WAITS_ALONE = ("pop", "move", "stream read")
"""Blocking calls, for which a client has connections of their own unless it has only one."""


def _shares_a_connection(operation: Operation) -> bool:
    return (
        operation.kind not in BATCHES
        and operation.kind not in ("watch", "set large", *_WAITS_ALONE)
        and len(operation.commands) == 1
    )


def _others(index: Index, fault: Disturbance, until: float) -> bool:
    """Return whether another fault may have a part in what happened until then."""
    return any(
        other is not fault
        and other.begin <= until
        and (other.kind in _LASTING or other.end + _AFTERMATH >= fault.begin)
        for other in index.disturbances
    )


_LASTING = ("forget", "fail over", "deny", "deny then hold one")
"""Faults that last longer than they say."""


def _states(index: Index, dependency: str, at: int) -> list[str]:
    return [
        change.state
        for change in index.history.health
        if change.dependency == dependency and change.at < at
    ]


def _open(index: Index, label: str, since: float, until: float) -> bool:
    """Return whether a client was open all the time, and not closing."""
    state = "opened"
    for _, time, kind in index.lifecycle.get(label, ()):
        if time > until:
            break
        if time > since:
            return False
        state = kind
    return state == "opened"


def _longest_timeout(index: Index) -> float:
    clients = () if index.plan is None else index.plan.clients
    return max(
        (
            max(setup.policy.get("response_timeout", 2.0), setup.policy.get("connect_timeout", 1.0))
            for setup in clients
        ),
        default=2.0,
    )
