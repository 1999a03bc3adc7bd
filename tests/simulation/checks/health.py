"""Rules about health: DOWN has a reason, and trouble is published and ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from resilient_io import RetryPolicy
from tests.simulation.history import ErrorReply, Outcome

from .effects import READ
from .index import PERMANENT, Broken, once

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Execution, HealthChange, Operation

    from .index import Index

_AFTERMATH = 4.0  # seconds after a fault in which its consequences may still be published
_RECOVERY = 8.0  # seconds after the last fault by which a client must be UP again
_DEGRADED = 15.0  # seconds after the last refusal by which DEGRADED must end
_NOTICED = 4.5  # seconds within which a server that serves nothing must be noticed
_ACCEPTED = 1.0  # seconds after an accepted write by which the report of refused writes ends
_HOLD = 10.0  # seconds for which refusals count, as `refusal_hold`
_RECONNECTED = 2.5  # seconds after a fault by which connections and probes work again
_OUTAGE_WAIT = RetryPolicy().outage_wait

_HANDSHAKE = frozenset((
    b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"COMMAND", b"INFO", b"ROLE", b"ECHO",
))  # fmt: skip
"""Commands that a server answers although it serves nothing."""

_SERVES_NOTHING = ("LOADING", "MASTERDOWN", "ERR max number of clients")
_REFUSED_WRITES = frozenset({"out of memory", "disk error", "no replicas", "read-only"})


class _Period(NamedTuple):
    """A time in which a dependency had one state."""

    state: str
    cause: str
    since: float
    until: float
    at: int


_UNMEASURED = 0.15
"""Seconds of short stalls, which clients cannot tell from a slow server."""


def down_has_a_reason(index: Index) -> Iterator[Broken]:
    """DOWN is published only during or shortly after a fault; a stall of our own loop is none."""
    for change in index.history.health:
        # During a stall of our own loop, the client does not notice what a fault has done.
        after = _AFTERMATH + _waits(index) + index.stalled(change.time - 10.0, change.time)
        if (
            change.state == "down"
            and not index.disturbed(change.time, change.time, after=after)
            and index.unmeasured(change.time - 1.0 - _waits(index), change.time) <= _UNMEASURED
        ):
            yield Broken(
                f"{change.dependency} became DOWN without a fault: {change.cause} "
                f"({change.detail})",
                (),
                change.at,
            )


def a_dependency_is_up_again_soon_after_the_last_fault(index: Index) -> Iterator[Broken]:
    """DOWN ends when the server serves again."""
    for dependency, periods in _periods(index).items():
        for period in periods:
            if period.state != "down":
                continue
            end = period.until
            after = _RECOVERY + _waits(index)
            since = max(period.since, end - after)
            if (
                end - period.since > after
                and not index.disturbed(since, end, after=0.0)
                and index.stalled(since, end) < 1.0
                and _used(index, dependency, period)
            ):
                yield Broken(
                    f"{dependency} was DOWN for {after:g} s after the last fault: {period.cause}",
                    (),
                    period.at,
                )


def a_call_is_not_refused_as_down_without_a_reason(index: Index) -> Iterator[Broken]:
    """No call fails because the server is down when nothing was wrong for a while."""
    setups = () if index.plan is None else index.plan.clients
    waits = {setup.label: setup.policy.get("outage_wait", _OUTAGE_WAIT) for setup in setups}
    for operation in index.by_outcome.get(Outcome.NOT_APPLIED, ()):
        ended = operation.ended or operation.started
        # The outage began before the call, or at most `outage_wait` before the call failed.
        latest = max(operation.started, ended - waits.get(operation.client, _OUTAGE_WAIT))
        if (
            ": down (" in operation.error
            and not index.disturbed(operation.started, ended, after=_RECOVERY + 2.0)
            # A stall counts as time of the server as far as the loop's beat does not show it.
            and index.unmeasured(latest - 2.0, ended) <= _UNMEASURED
        ):
            yield Broken(
                f"call {operation.number} ({operation.kind}) failed without a fault: "
                f"{operation.error}",
                (operation.number,),
                operation.ended_at,
            )


def a_server_that_serves_nothing_is_not_up(index: Index) -> Iterator[Broken]:
    """When calls are made and nothing is served for seconds, the state is no longer UP."""
    gaps = _gaps(index)
    if not gaps:
        return
    wait = _NOTICED + _waits(index)
    periods = _periods(index)
    for label, operations in index.by_client.items():
        dependency = index.dependencies.get(label, "")
        for began, ended in gaps:
            calls = [
                each
                for each in operations
                if began < each.started < ended and index.commands[each.number]
            ]
            if len(calls) < 2:
                continue
            first = calls[0]
            until = first.started + wait + index.stalled(first.started, ended)
            if until > ended or not any(each.started > first.started for each in calls[1:]):
                continue
            if not index.disturbances_between(began, ended):
                continue  # a healthy server, of which only ECHO was asked
            if not _open_between(index, label, first.started, until):
                continue
            states = [
                period.state
                for period in periods.get(dependency, ())
                if period.since <= until and period.until >= first.started
            ]
            if states and all(state == "up" for state in states):
                yield Broken(
                    f"{dependency} stayed UP for {until - first.started:.1f} s while nothing was "
                    f"served and {len(calls)} calls were made",
                    tuple(each.number for each in calls[:5]),
                    first.started_at,
                )
                break


def degraded_ends_when_refusals_stop(index: Index) -> Iterator[Broken]:
    """DEGRADED ends some seconds after the last refusal or fault."""
    refused = _times_of_refusals(index)
    for dependency, periods in _periods(index).items():
        for period in periods:
            if period.state != "degraded":
                continue
            last = max(
                [period.since]
                + [time for time in refused if time <= period.until]
                + [
                    min(fault.end, period.until)
                    for fault in index.disturbances
                    if fault.begin <= period.until
                ]
            )
            quiet = period.until - last
            if quiet > _DEGRADED + index.stalled(last, period.until):
                yield Broken(
                    f"{dependency} was DEGRADED for {quiet:.1f} s after the last refusal: "
                    f"{period.cause}",
                    (),
                    period.at,
                )


def an_accepted_write_ends_the_report_of_refused_writes(index: Index) -> Iterator[Broken]:
    """DEGRADED with refused writes ends a while after them and the faults, with an accepted write.

    Not if logins were refused, too. That is reported until a new connection logs in, of which
    writes over the open ones say nothing, and a client tries again only after up to 10 s. Lost
    connections, too, are reported until they are open again.
    """
    refused = _times_of_refusals(index)
    for dependency, periods in _periods(index).items():
        for period in periods:
            if period.state != "degraded" or _logins_refused(index, period):
                continue
            within = [time for time in refused if period.since - 1.0 <= time <= period.until]
            if not within and period.cause not in _REFUSED_WRITES:
                continue
            last = max(
                [period.since, *within]
                + [
                    fault.end
                    for fault in index.disturbances
                    if fault.begin <= period.until and fault.kind not in PERMANENT
                ]
            )
            clients = [
                operations
                for label, operations in index.by_client.items()
                if index.dependencies.get(label) == dependency
            ]
            # Writes prove nothing if others were refused in turn.
            in_turn = any(
                _accepted_after(index, each, period.since - _HOLD) and each.started < last + 1.0
                for operations in clients
                for each in operations
            )
            pause = _HOLD if in_turn else 1.0
            for operations in clients:
                writes = [each for each in operations if _accepted_after(index, each, last + pause)]
                if len(writes) < 2:
                    continue
                second = writes[1].ended or last
                until = max(second + _ACCEPTED, last + _RECONNECTED)
                until += index.stalled(last, period.until) + _waits(index)
                if period.until > until:
                    yield Broken(
                        f"{dependency} was DEGRADED ({period.cause}) for "
                        f"{period.until - second:.1f} s after accepted writes",
                        (writes[0].number, writes[1].number),
                        period.at,
                    )
                    break


def closing_a_client_does_not_end_a_health_that_another_uses(index: Index) -> Iterator[Broken]:
    """A shared health is watched until its last client closes."""
    for change in index.history.health:
        if change.state != "unknown":
            continue
        for label, dependency in index.dependencies.items():
            if dependency == change.dependency and _uses(index, label, change.at):
                yield Broken(
                    f"{dependency} became UNKNOWN while client {label} used it: {change.cause}",
                    (),
                    change.at,
                )
                break


def nothing_is_published_after_the_last_client_closed(index: Index) -> Iterator[Broken]:
    """Closing a client is not reported as a failure of the server, and ends its health."""
    for change in index.history.health:
        if change.state == "unknown":
            continue
        labels = [
            label
            for label, dependency in index.dependencies.items()
            if dependency == change.dependency
        ]
        if (
            labels
            and all(index.state_of_client(label, change.at) == "closed" for label in labels)
            and not any(_has_own_client(index, label, change) for label in labels)
        ):
            yield Broken(
                f"{change.dependency} became {change.state.upper()} after its clients had closed: "
                f"{change.cause} ({change.detail})",
                (),
                change.at,
            )


def _waits(index: Index) -> float:
    """Return by how much the longest timeouts of the plan exceed those that the times assume."""
    if index.plan is None:
        return 0.0
    longest = max(
        (
            max(setup.policy.get("response_timeout", 2.0), setup.policy.get("connect_timeout", 1.0))
            for setup in index.plan.clients
        ),
        default=1.0,
    )
    return max(0.0, 2 * (longest - 1.0))


@once
def _periods(index: Index) -> dict[str, list[_Period]]:
    """Return the states of each dependency, until the clients are closed at the end."""
    found: dict[str, list[_Period]] = {}
    for change in index.history.health:
        periods = found.setdefault(change.dependency, [])
        if periods:
            periods[-1] = periods[-1]._replace(until=change.time)
        end = max(index.settled_at, change.time)
        periods.append(_Period(change.state, change.cause, change.time, end, change.at))
    return found


def _gaps(index: Index) -> list[tuple[float, float]]:
    """Return the times in which no server served anything, that are long enough to be noticed."""
    served = [
        execution.time
        for execution in index.history.executions
        if execution.words[0] not in _HANDSHAKE
        and (execution.applied or not _text(execution).startswith(_SERVES_NOTHING))
    ]
    served.append(index.settled_at)
    gaps = []
    previous = 0.0
    for time in served:
        if time - previous > _NOTICED:
            gaps.append((previous, time))
        if time > previous:  # noqa: PLR1730 (faster than `max`)
            previous = time
    return gaps


def _text(execution: Execution) -> str:
    return execution.reply.text if isinstance(execution.reply, ErrorReply) else ""


@once
def _times_of_refusals(index: Index) -> list[float]:
    return [
        execution.time
        for execution in index.errors
        if not (execution.applied or execution.reply.text.startswith(_NOT_OF_WRITES))
    ]


_NOT_OF_WRITES = ("ERR unknown command", "EXECABORT ", "NOSCRIPT ")
"""Errors that do not depend on whether the server accepts writes."""


def _logins_refused(index: Index, period: _Period) -> bool:
    return any(
        period.since - 1.0 <= execution.time <= period.until
        and execution.reply.text.startswith("WRONGPASS ")
        for execution in index.errors
    )


def _accepted_after(index: Index, operation: Operation, time: float) -> bool:
    if operation.outcome is not Outcome.OK or operation.started <= time:
        return False
    return any(
        command.effect != READ and command.token is not None
        for command in index.commands[operation.number]
    ) and operation.kind not in ("watch", "manual")


def _open_between(index: Index, label: str, since: float, until: float) -> bool:
    changes = index.lifecycle.get(label, ())
    state = "opened"
    for _, time, kind in changes:
        if time > since:
            break
        state = kind
    return state == "opened" and not any(since <= time <= until for _, time, _ in changes)


def _uses(index: Index, label: str, at: int) -> bool:
    """Return whether a client is open, and has reached the server since it was opened."""
    if index.state_of_client(label, at) != "opened":
        return False
    opened = max(
        (number for number, _, kind in index.lifecycle.get(label, ()) if number <= at), default=0
    )
    return any(
        operation.outcome is Outcome.OK
        and operation.kind != "manual"  # that uses a client of its own, with the same health
        and index.commands[operation.number]
        and operation.started_at > opened
        and (operation.ended_at or at) < at
        for operation in index.by_client.get(label, ())
    )


def _has_own_client(index: Index, label: str, change: HealthChange) -> bool:
    """Return whether a call at that time used a client made by `client()`, with that health."""
    return any(
        operation.kind == "manual"
        and operation.started_at < change.at
        and (operation.ended is None or operation.ended + 1.0 > change.time)
        for operation in index.by_client.get(label, ())
    )


def _used(index: Index, dependency: str, period: _Period) -> bool:
    """Return whether a client of the dependency was open during a whole period."""
    return any(
        _open_between(index, label, period.since, min(period.until, index.settled_at - 0.001))
        for label, each in index.dependencies.items()
        if each == dependency
    )
