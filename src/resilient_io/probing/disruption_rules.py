"""What is wrong around the containers: replicas, updates, disruption budgets, ports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resilient_io.probing.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from resilient_io.probing.cursor import Cursor
    from resilient_io.probing.workloads import Workload

__all__ = ["disruption_findings", "port_findings", "selects"]

_BUDGETED = ("Deployment", "StatefulSet", "ReplicaSet")


def selects(selector: Cursor, workload: Workload) -> bool:
    """Say whether the labels that a selector wants are those of a workload's pods."""
    wanted = selector.fields()
    labels = workload.labels
    return bool(wanted) and all(labels.get(key) == value for key, value in wanted.items())


def disruption_findings(
    workload: Workload,
    budgets: Sequence[tuple[str, Cursor]],
    scaler: tuple[str, Cursor] | None,
    *,
    serves: bool,
) -> Iterator[Finding]:
    """Find what an update or the draining of a node does to it.

    Args:
        workload: What makes the pods.
        budgets: The PodDisruptionBudgets that select them, and their files.
        scaler: The HorizontalPodAutoscaler that says how many there are, and its file.
        serves: Whether they get traffic.
    """
    if workload.kind not in _BUDGETED:
        return
    replicas = workload.root.at("spec", "replicas")
    file = ""
    if scaler is not None:
        file, replicas = scaler[0], scaler[1].at("spec", "minReplicas")
    count = replicas.count(1)
    if count == 0:
        return
    if count == 1 and serves:
        yield Finding(
            code="replicas-one",
            severity=Severity.NOTE,
            where="spec.replicas" if scaler is None else "HorizontalPodAutoscaler spec.minReplicas",
            found="There is one replica: whoever drains its node takes the service away.",
            advice=f"Write {replicas.path.rpartition('.')[2]}: 2 or more, if that matters.",
            file=file,
            line=replicas.line,
        )
    if count > 1 and not budgets:
        yield Finding(
            code="budget-missing",
            severity=Severity.NOTE,
            where="PodDisruptionBudget",
            found="Nothing in these files keeps several replicas from being evicted together.",
            advice="Write a PodDisruptionBudget with maxUnavailable: 1.",
            line=workload.root.line,
        )
    for place, budget in budgets:
        yield from _of_budget(place, budget, count)
    yield from _of_update(workload, count, serves=serves)


def _of_budget(file: str, budget: Cursor, count: int) -> Iterator[Finding]:
    most, least = budget.at("spec", "maxUnavailable"), budget.at("spec", "minAvailable")
    may_go, must_stay = most.share(count), least.share(count)
    # Kubernetes rounds both up: 90% of 3 are 3.
    must_stay = math.ceil(must_stay) if must_stay is not None else None
    blocked = (may_go is not None and may_go <= 0) or (must_stay is not None and must_stay >= count)
    if blocked:
        place = most if may_go is not None else least
        yield Finding(
            code="budget-blocks",
            severity=Severity.ERROR,
            where=f"PodDisruptionBudget {place.path}",
            found=f"No pod of the {count} may ever be evicted: nodes cannot be drained.",
            advice="Write maxUnavailable: 1.",
            file=file,
            line=place.line,
        )


def _of_update(workload: Workload, count: int, *, serves: bool) -> Iterator[Finding]:
    strategy = workload.root.at("spec", "strategy")
    if workload.kind != "Deployment" or not serves:
        return
    if strategy.at("type").text() == "Recreate":
        yield Finding(
            code="update-stops",
            severity=Severity.WARNING,
            where="spec.strategy.type",
            found="Each update stops all replicas before it starts a new one.",
            advice="Leave it out, unless two versions must not run together.",
            line=strategy.line,
        )
    most = strategy.at("rollingUpdate", "maxUnavailable")
    may_go = most.share(count)
    if may_go is not None and may_go >= count:
        yield Finding(
            code="update-stops",
            severity=Severity.WARNING,
            where="spec.strategy.rollingUpdate.maxUnavailable",
            found=f"An update may stop all {count} replicas at once.",
            advice="Write maxUnavailable: 0 and maxSurge: 1.",
            line=most.line,
        )


def port_findings(container: Cursor) -> Iterator[Finding]:
    """Find probes that ask a named port that the container does not have."""
    names = [port.at("name").text() for port in container.at("ports").items()]
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        for how in ("httpGet", "tcpSocket"):
            port = container.at(name, how, "port")
            if isinstance(port.value, str) and port.value not in names:
                yield Finding(
                    code="port-unknown",
                    severity=Severity.ERROR,
                    where=f"{name}.{how}.port",
                    found=f"The container has no port {port.value!r}: the probe always fails.",
                    advice=f"Write one of {', '.join(names)}." if names else "Write a number.",
                    line=port.line,
                )
