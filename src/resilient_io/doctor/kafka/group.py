"""A consumer group: its coordinator, its state, and how far it is behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)

from resilient_io.doctor.looking import Finding, blind, merged, note, ok, problem
from resilient_io.doctor.network import Place
from resilient_io.kafka.driver import abort_connection
from resilient_io.kafka.errors import connection_failure
from resilient_io.kafka.probe import GROUP, find_coordinator

from .lag import Offsets
from .questions import ask_group

if TYPE_CHECKING:
    from aiokafka.structs import TopicPartition

    from resilient_io.kafka.connect import KafkaTarget
    from resilient_io.kafka.protocols import Connection

    from .lag import Seen
    from .questions import Cluster, Group

__all__ = ["look_at_group"]

_NAMED: Final = 3
_WATCHED: Final = 1.0
"""Seconds between two looks at the offsets, to see whether anything moves."""

_PATIENCE: Final = 1.0
_PAUSE: Final = 0.1

_TIME_TO_WATCH: Final = 2.5
"""Seconds that must be left for a second look."""

_NOT_NOW: Final = (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
_REBALANCING: Final = ("PreparingRebalance", "CompletingRebalance", "Assigning", "Reconciling")


async def look_at_group(
    connection: Connection, cluster: Cluster, target: KafkaTarget, group: str, timeout: float
) -> Finding:
    """Look at a group's state and lag.

    Args:
        connection: To any broker.
        cluster: What it said of all topics.
        target: How to reach the others.
        group: The group's id.
        timeout: Seconds for one connection or answer.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + min(_PATIENCE, timeout / 2)
    while True:
        try:
            return await _look_at_group(connection, cluster, target, group, timeout)
        except _NOT_NOW as error:
            # It may just be moving: a group without a coordinator for long is another matter.
            if loop.time() >= until:
                return _judge_refused(group, error)
        except KafkaError as error:
            return _judge_refused(group, error)
        await asyncio.sleep(_PAUSE)


async def _look_at_group(
    connection: Connection, cluster: Cluster, target: KafkaTarget, group: str, timeout: float
) -> Finding:
    host, port = await find_coordinator(connection, GROUP, group, timeout)
    where = Place(host, port).written
    try:
        coordinator = await target.connect(host, port, timeout)
    except (KafkaError, OSError) as error:
        failure = connection_failure(error, tls=target.uses_tls, secrets=target.secrets())
        return problem(
            f"the group's coordinator at {where} cannot be reached: {failure.detail}",
            "No consumer of this group can join from here: see the listeners step.",
            coordinator=where,
        )
    try:
        state = await ask_group(coordinator, group, timeout)
        look = Offsets(coordinator, cluster, target, group, timeout)
        first = await look.take(state.assigned)
        second = None
        if timeout >= _TIME_TO_WATCH and first.lag and state.members:
            await asyncio.sleep(_WATCHED)
            second = await look.take(state.assigned)
    finally:
        abort_connection(coordinator)
    return _judge(group, where, state, first, second)


def _judge(group: str, where: str, state: Group, first: Seen, second: Seen | None) -> Finding:
    seen = second or first
    moved = None
    if second is not None:
        moved = sum(
            max(offset - first.committed.get(at, 0), 0)
            for at, offset in second.committed.items()
            if at in first.committed
        )
    data: dict[str, Any] = {
        "coordinator": where,
        "state": state.state,
        "members": state.members,
        "lag": seen.lag,
        "lag_by_partition": {_name(at): lag for at, lag in seen.by_partition.items()},
        "lost": [_name(at) for at in seen.lost],
        "moved": moved,
    }
    findings = [_judge_state(group, state, seen), *_judge_offsets(state, seen, moved)]
    return merged(findings, **data)


def _judge_state(group: str, state: Group, seen: Seen) -> Finding:
    count = "1 member" if state.members == 1 else f"{state.members} members"
    if state.state == "Dead" and not seen.committed:
        return problem(
            f"nobody has ever used the group {group}",
            "Look at its spelling (group_id=), and whether the consumer has ever started; a group "
            "that was away for offsets.retention.minutes is forgotten, too.",
        )
    if not state.members:
        if seen.lag:
            return problem(
                f"nobody reads in {group}, and {seen.lag} records wait",
                "Start its consumers; if they run, look at their log: they may have been put out "
                "of the group (max_poll_interval), or use another group_id.",
            )
        return note(f"nobody reads in {group}; nothing waits", "Is its consumer meant to be down?")
    if state.state in _REBALANCING:
        return note(
            f"{group} is in the middle of a rebalance, {count}",
            "Look again in some seconds. If it never ends, a member joins and leaves again and "
            "again: look for restarts and for handlers beyond max_poll_interval.",
        )
    return ok(f"{group} is {state.state.lower()}, {count}")


def _judge_offsets(state: Group, seen: Seen, moved: int | None) -> list[Finding]:
    findings = []
    if seen.lost:
        findings.append(
            problem(
                f"the committed offset of {_some(seen.lost)} is gone: its records were deleted "
                f"before they were read",
                "The consumer will go where auto_offset_reset says; keep records for longer "
                "(retention.ms), or read faster.",
            )
        )
    unheld = [
        at
        for at, lag in seen.by_partition.items()
        if lag and state.complete and state.members and at not in state.assigned
    ]
    if unheld and state.state == "Stable":
        findings.append(
            problem(
                f"no member has {_some(unheld)}, and records wait there",
                "Do all members subscribe to the same topics? A group has one subscription.",
            )
        )
    if seen.unknown:
        findings.append(
            blind(f"the end of {_some(seen.unknown)} could not be asked for, so its lag is unknown")
        )
    if not seen.committed and state.state == "Stable" and (waiting := _not_empty(state, seen)):
        findings.append(
            note(
                f"nothing was ever committed, though there are records in {_some(waiting)}",
                "So it is before the first new record with auto_offset_reset=latest. Otherwise its "
                "first handlers hang or fail, or nobody commits: look at the consumer's log.",
            )
        )
    if not state.members or not seen.committed:
        return findings
    if not seen.lag:
        findings.append(ok("no lag"))
        return findings
    worst = sorted(seen.by_partition.items(), key=lambda each: -each[1])[:_NAMED]
    named = ", ".join(f"{_name(at)} {lag}" for at, lag in worst if lag)
    found = f"lag {seen.lag} ({named})"
    if moved is None:
        findings.append(ok(found))
    elif moved:
        findings.append(ok(f"{found}, {moved} records committed in {_WATCHED:g} s"))
    else:
        findings.append(
            note(
                f"{found}, and nothing was committed in {_WATCHED:g} s",
                "Look again in a minute. If it is still so, a handler hangs or fails again and "
                "again: look at the consumer's log and at its other dependencies.",
            )
        )
    return findings


def _not_empty(state: Group, seen: Seen) -> list[TopicPartition]:
    """Give the partitions that members have, and in which there are records."""
    return sorted(at for at in state.assigned if seen.ends.get(at, 0) > seen.begins.get(at, 0))


def _judge_refused(group: str, error: KafkaError) -> Finding:
    if isinstance(error, GroupAuthorizationFailedError):
        return blind(
            f"no permission for the group {group}",
            "Let the user Describe it: kafka-acls.sh --add --operation Describe --group …",
        )
    if isinstance(error, _NOT_NOW):
        return problem(
            f"the group {group} has no coordinator now ({type(error).__name__})",
            "Look whether the partitions of __consumer_offsets have a leader, and whether enough "
            "brokers are up to make that topic (offsets.topic.replication.factor).",
        )
    return blind(f"the group could not be asked for: {error}")


def _name(at: TopicPartition) -> str:
    return f"{at.topic}[{at.partition}]"


def _some(partitions: list[TopicPartition]) -> str:
    more = f" and {len(partitions) - _NAMED} more" if len(partitions) > _NAMED else ""
    return ", ".join(map(_name, partitions[:_NAMED])) + more
