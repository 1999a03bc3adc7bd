"""What is wrong with the probes of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.probing.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilient_io.probing.schedule import Probe, Schedule
    from resilient_io.probing.times import ServiceTimes

__all__ = ["probe_findings"]

_LATE: Final = 10.0
"""Seconds for which callers may be sent to a service that knows that it cannot serve them."""

_LATE_DEPENDENCY: Final = 120.0
"""Seconds that a dependency may come after the service without anybody having failed."""

_EXEC_CPU: Final = 0.1
"""Seconds of CPU that starting a process for an exec probe takes; ours takes half of it."""

_EXEC_TIMEOUT: Final = 2.0


def probe_findings(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    """Find what is wrong with the probes.

    Args:
        schedule: What Kubernetes is told.
        times: What the service is like.
    """
    yield from _of_liveness(schedule, times)
    yield from _of_startup(schedule, times)
    yield from _of_readiness(schedule, times)
    for name, probe in schedule.probes.items():
        yield from _of_each(name, probe, schedule)


def _of_liveness(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.liveness
    if probe is None:
        yield Finding(
            code="liveness-missing",
            severity=Severity.WARNING,
            where="livenessProbe",
            found="Nobody restarts a process whose event loop is blocked, or that is stuck.",
            advice="Write a livenessProbe that asks /livez.",
        )
        return
    where = _where("livenessProbe", probe)
    if probe.question in ("ready", "dependency", "started"):
        yield Finding(
            code="liveness-depends",
            severity=Severity.ERROR,
            where=where,
            found="Liveness depends on a dependency: its outage restarts every replica, again and "
            "again, and heals nothing.",
            advice=_ask(probe, "/livez", "--live"),
        )
    elif probe.question == "unknown":
        yield Finding(
            code="liveness-unclear",
            severity=Severity.NOTE,
            where=where,
            found="It cannot be told from here whether liveness depends on a dependency.",
            advice=f"Make sure that it does not: {_ask(probe, '/livez', '--live')}",
        )
    if probe.tolerance < times.stall:
        yield Finding(
            code="liveness-hasty",
            severity=Severity.WARNING,
            where="livenessProbe.failureThreshold",
            found=f"A stall of {probe.tolerance:g} s restarts the process, which calls itself "
            f"stuck only after {times.stall:g} s.",
            advice=_failures(probe, times.stall - probe.tolerance),
        )
    if schedule.startup is None and times.start is not None and probe.patience < times.start:
        yield Finding(
            code="start-cut-off",
            severity=Severity.ERROR,
            where="livenessProbe",
            found=f"The container is restarted {probe.patience:g} s after its start, and may need "
            f"{times.start:g} s to start: it never gets there.",
            advice="Write a startupProbe that asks /livez, with failureThreshold * periodSeconds "
            f"above {times.start:g}.",
        )


def _of_startup(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.startup
    if probe is None:
        return
    where = _where("startupProbe", probe)
    if times.start is not None and probe.patience < times.start:
        yield Finding(
            code="start-cut-off",
            severity=Severity.ERROR,
            where="startupProbe.failureThreshold",
            found=f"The container is restarted {probe.patience:g} s after its start, and may need "
            f"{times.start:g} s to start: it never gets there.",
            advice=_failures(probe, times.start - probe.patience),
        )
    if probe.question in ("ready", "dependency"):
        yield Finding(
            code="startup-depends",
            severity=Severity.ERROR,
            where=where,
            found=f"A dependency that is away for {probe.patience:g} s at the start restarts every "
            "replica, again and again.",
            advice=_ask(probe, "/livez", "--live"),
        )
    elif probe.question == "started" and probe.patience < _LATE_DEPENDENCY:
        yield Finding(
            code="startup-waits",
            severity=Severity.WARNING,
            where="startupProbe.failureThreshold",
            found="It succeeds once every dependency was heard from: one that comes later than "
            f"{probe.patience:g} s after the service has the service restarted.",
            advice=f"{_failures(probe, _LATE_DEPENDENCY - probe.patience)} Or ask /livez.",
        )


def _of_readiness(schedule: Schedule, times: ServiceTimes) -> Iterator[Finding]:
    probe = schedule.readiness
    if not schedule.serves:
        return
    if probe is None:
        yield Finding(
            code="readiness-missing",
            severity=Severity.ERROR,
            where="readinessProbe",
            found="The container gets traffic before it has started, and while it cannot serve.",
            advice="Write a readinessProbe that asks /readyz.",
        )
        return
    if probe.question in ("live", "started"):
        yield Finding(
            code="readiness-blind",
            severity=Severity.ERROR,
            where=_where("readinessProbe", probe),
            found="Readiness asks something that no outage changes: traffic goes on to a service "
            "that knows that it cannot serve it.",
            advice=_ask(probe, "/readyz", "--ready"),
        )
    if probe.reaction > _LATE:
        yield Finding(
            code="readiness-late",
            severity=Severity.WARNING,
            where="readinessProbe",
            found=f"Traffic goes on for up to {probe.reaction:g} s after the service has said that "
            "it cannot serve it.",
            advice="Write periodSeconds: 2 and failureThreshold: 2.",
        )
    if times.detection > probe.period * probe.failures:
        yield Finding(
            code="detection-slow",
            severity=Severity.WARNING,
            where="readinessProbe",
            found=f"The kubelet would act within {probe.period * probe.failures:g} s, but health "
            f"needs up to {times.detection:g} s to notice that a dependency is silent: it is "
            "asked for news that it does not have.",
            advice="Write a shorter HealthSettings(interval=..., timeout=...), or a longer "
            "periodSeconds.",
        )


def _of_each(name: str, probe: Probe, schedule: Schedule) -> Iterator[Finding]:
    if probe.successes != 1 and name != "readinessProbe":
        yield Finding(
            code="success-threshold",
            severity=Severity.ERROR,
            where=f"{name}.successThreshold",
            found=f"Kubernetes refuses successThreshold: {probe.successes} here.",
            advice="Leave it out: only a readinessProbe may have another than 1.",
        )
    if probe.timeout > probe.period:
        yield Finding(
            code="probe-overlap",
            severity=Severity.NOTE,
            where=f"{name}.timeoutSeconds",
            found=f"A probe may take {probe.timeout:g} s, and is due every {probe.period:g} s.",
            advice=f"Write timeoutSeconds: {probe.period:g} or less.",
        )
    if probe.command:
        needed = max(_EXEC_TIMEOUT, _EXEC_CPU / (schedule.cpu_limit or 1.0))
        if probe.timeout < needed:
            yield Finding(
                code="probe-timeout",
                severity=Severity.WARNING,
                where=f"{name}.timeoutSeconds",
                found=f"A process has {probe.timeout:g} s to start and to answer, on the CPU that "
                "the container leaves it: on a busy one it fails for nothing.",
                advice=f"Write timeoutSeconds: {max(5.0, -(-needed // 1)):g}.",
            )


def _where(name: str, probe: Probe) -> str:
    if probe.path is not None:
        return f"{name}.httpGet.path"
    return f"{name}.exec.command" if probe.command else name


def _ask(probe: Probe, path: str, option: str) -> str:
    if probe.command:
        return f"Ask `resilient-io probe --file FILE {option}`."
    return f"Ask {path}."


def _failures(probe: Probe, lacking: float) -> str:
    least = probe.failures + -(-lacking // probe.period)
    return f"Write failureThreshold: {least:g} or more."
