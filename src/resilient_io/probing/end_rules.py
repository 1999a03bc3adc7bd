"""What is wrong with how a container is ended, and with what may be under way then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.probing.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_io.probing.schedule import Schedule
    from resilient_io.probing.times import ServiceTimes

__all__ = ["end_findings"]

_NOTICE: Final = 3.0
"""Seconds that endpoints need at least to notice that a pod is ending."""

_TIGHT: Final = 1.0

_SHELLS: Final = ("sh", "bash", "ash", "dash")
_SEVERAL: Final = ("&&", ";", "|", "\n", "& ")
_GRACE: Final = "terminationGracePeriodSeconds"


def end_findings(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    """Find what is wrong with the end of a container, and with its handlers.

    Args:
        schedule: What Kubernetes is told.
        times: What the service is like.
    """
    yield from _of_grace(schedule, times)
    yield from _of_notice(schedule, times)
    yield from _of_signal(schedule)
    if times.consumes:
        yield from _of_handlers(times)


def _of_grace(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    needed = schedule.pre_stop + times.grace
    hook = f"the preStop hook takes {schedule.pre_stop:g} s and " if schedule.pre_stop else ""
    if schedule.grace < needed:
        yield Finding(
            code="grace-short",
            severity=Severity.ERROR,
            where=_GRACE,
            found=f"The pod is killed after {schedule.grace:g} s, but {hook}the service takes up "
            f"to {times.grace:g} s to end: what is under way then is lost or done twice.",
            advice=f"Write {_GRACE}: {needed + 5:g}, or a shorter Lifecycle(grace=...).",
        )
    elif schedule.grace < needed + _TIGHT:
        yield Finding(
            code="grace-tight",
            severity=Severity.WARNING,
            where=_GRACE,
            found=f"Of the {schedule.grace:g} s until the pod is killed, {hook}the service takes "
            f"up to {times.grace:g} s: nothing is left for the process itself.",
            advice=f"Write {_GRACE}: {needed + 5:g}.",
        )
    left = min(times.grace, schedule.grace - schedule.pre_stop) - times.notice
    deadline = times.policy.deadline
    if deadline is None or deadline > left:
        bound = "no bound" if deadline is None else f"up to {deadline:g} s"
        yield Finding(
            code="deadline-beyond-grace",
            severity=Severity.ERROR,
            where=_GRACE,
            found=f"A call has {bound}, but once it is told to end the service has only "
            f"{max(left, 0.0):g} s for what is under way: it is cut off in the middle.",
            advice="Write a RetryPolicy(deadline=...) below that, or a longer grace everywhere.",
        )
    drain = times.run.drain_timeout if times.run is not None else 0.0
    if drain > left:
        yield Finding(
            code="drain-beyond-grace",
            severity=Severity.ERROR,
            where=_GRACE,
            found=f"Handlers get {drain:g} s to end, but the service has only {max(left, 0.0):g} s "
            "for all that is under way.",
            advice="Write a shorter RunLimits(drain_timeout=...), or a longer grace everywhere.",
        )


def _of_notice(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    if not schedule.serves:
        return
    if schedule.pre_stop + times.notice < _NOTICE:
        yield Finding(
            code="notice-missing",
            severity=Severity.ERROR,
            where="lifecycle.preStop",
            found=f"The service stops serving {schedule.pre_stop + times.notice:g} s after it is "
            "told to end; the endpoints that still send it traffic need some seconds to notice.",
            advice="Write Lifecycle(notice=5), or a preStop hook with sleep: {seconds: 5}.",
        )
    elif schedule.pre_stop >= _NOTICE <= times.notice:
        yield Finding(
            code="notice-twice",
            severity=Severity.NOTE,
            where="lifecycle.preStop",
            found=f"The endpoints get {schedule.pre_stop:g} s by the preStop hook and again "
            f"{times.notice:g} s by the lifecycle.",
            advice="Leave the hook out, or write Lifecycle(notice=0).",
        )


def _of_signal(schedule: Schedule) -> Iterator[Finding]:
    command = schedule.command
    if not command or command[0].rpartition("/")[2] not in _SHELLS:
        return
    script = command[-1].strip()
    # A shell that has one thing to do becomes that; one that has several stays.
    if len(command) > 1 and any(sign in script for sign in _SEVERAL) and "exec " not in script:
        yield Finding(
            code="signal-lost",
            severity=Severity.WARNING,
            where="command",
            found="A shell is process 1 and does not pass SIGTERM on: the service is killed at the "
            "end of the grace period, without having been told.",
            advice="Write the program itself as command, or `exec` before it.",
        )


def _of_handlers(times: ServiceTimes) -> Iterator[Finding]:
    timeout = times.handler.timeout if times.handler is not None else None
    where = "HandlerPolicy(timeout=...)"
    if timeout is None:
        yield Finding(
            code="handler-unbounded",
            severity=Severity.WARNING,
            where=where,
            found="A handler that hangs is noticed only by liveness, after "
            f"{times.max_poll_interval:g} s, and ends all others with it.",
            advice=f"Write {where.replace('...', '30')}.",
        )
        return
    if timeout > times.max_poll_interval:
        yield Finding(
            code="handler-beyond-poll",
            severity=Severity.ERROR,
            where=where,
            found=f"A handler may take {timeout:g} s, but one that does not move for "
            f"{times.max_poll_interval:g} s (max_poll_interval_ms) counts as stuck: the process "
            "is restarted, and the record is handled again from the start, for ever.",
            advice="Write a shorter timeout, or max_poll_interval_ms above it.",
        )
    drain = times.run.drain_timeout if times.run is not None else None
    if drain is not None and timeout > drain:
        yield Finding(
            code="handler-beyond-drain",
            severity=Severity.NOTE,
            where=where,
            found=f"A handler may take {timeout:g} s, and gets {drain:g} s when the service ends "
            "or its partition goes elsewhere: then it is cancelled, and its record handled again.",
            advice="Make sure that handlers bear that, or write a longer "
            "RunLimits(drain_timeout=...).",
        )
