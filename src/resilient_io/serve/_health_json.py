"""`application/health+json`: the draft's document about how a service is.

The draft (inadarei-rfc-health-check) has expired, but it is what tools read. The `time` of an
observation is left out: a state is what holds now, and a latency has no wall clock's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.health import State
from resilient_io.health.states import describe_state
from resilient_io.text import redact_credentials

if TYPE_CHECKING:
    from resilient_io.health import Dependency, HealthMonitor

__all__ = ["MEDIA_TYPE", "liveness", "readiness", "startup"]

MEDIA_TYPE: Final = "application/health+json"


def readiness(monitor: HealthMonitor, name: str) -> dict[str, object]:
    """Say whether the service should be given work: "warn" when it is degraded, but ready."""
    status = "fail" if not monitor.ready else "pass" if monitor.state is State.UP else "warn"
    return _document(status, name, monitor.unready_reasons, _dependencies(monitor))


def startup(monitor: HealthMonitor, name: str) -> dict[str, object]:
    """Say whether the service has started."""
    if monitor.started:
        return _document("pass", name, (), _dependencies(monitor))
    return _document("fail", name, monitor.unready_reasons, _dependencies(monitor))


def liveness(monitor: HealthMonitor, name: str) -> dict[str, object]:
    """Say whether the process can go on without a restart; of dependencies it says nothing."""
    stuck = monitor.liveness_failures
    process: dict[str, object] = {
        "componentType": "component",
        "observedValue": "stuck" if stuck else "alive",
        "observedUnit": "state",
        "status": "fail" if stuck else "pass",
    }
    checks = {"process:liveness": [process]}
    for dependency in monitor.dependencies:
        if (lag := dependency.lag) is not None:  # all of them share the watch over our loop
            checks["event-loop:lag"] = [
                {
                    "componentType": "component",
                    "observedValue": round(lag.current, 6),
                    "observedUnit": "s",
                    "status": "pass",
                }
            ]
            break
    return _document("fail" if stuck else "pass", name, stuck, checks)


def _document(
    status: str, name: str, why: tuple[str, ...], checks: dict[str, list[dict[str, object]]]
) -> dict[str, object]:
    document: dict[str, object] = {"status": status, "serviceId": name}
    if why:
        document["output"] = "; ".join(why)
    return {**document, "checks": checks}


def _dependencies(monitor: HealthMonitor) -> dict[str, list[dict[str, object]]]:
    checks: dict[str, list[dict[str, object]]] = {}
    for dependency in monitor.dependencies:
        # A colon ends the component's name. What looks like an address is cleaned while it does.
        component = redact_credentials(dependency.name).replace(":", "-")
        about: dict[str, object] = {
            "componentId": dependency.name,
            "componentType": "system",
        }
        availability = {
            **about,
            "observedValue": dependency.state.value,
            "observedUnit": "state",
            "status": _judge(monitor, dependency),
            "role": monitor.role_of(dependency),
        }
        if dependency.state is not State.UP:
            availability["output"] = describe_state(
                dependency.state, dependency.cause, dependency.detail
            )
        checks.setdefault(f"{component}:availability", []).append(availability)
        if dependency.latency is not None:
            checks.setdefault(f"{component}:responseTime", []).append(
                {
                    **about,
                    "observedValue": round(dependency.latency, 6),
                    "observedUnit": "s",
                    "status": "pass",
                }
            )
    return checks


def _judge(monitor: HealthMonitor, dependency: Dependency) -> str:
    """A dependency fails what it holds up, and is worth a warning otherwise."""
    if dependency.state is State.UP:
        return "pass"
    role = monitor.role_of(dependency)
    holds_up = (role == "critical" and not dependency.state.answering) or (
        role == "shared" and dependency.state is State.UNKNOWN
    )
    return "fail" if holds_up else "warn"
