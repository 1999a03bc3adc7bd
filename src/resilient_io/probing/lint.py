"""`lint_probes`: a schedule of Kubernetes against our own times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.probing.end_rules import end_findings
from resilient_io.probing.findings import Severity
from resilient_io.probing.probe_rules import probe_findings
from resilient_io.probing.times import ServiceTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.probing.findings import Finding
    from resilient_io.probing.schedule import Schedule

__all__ = ["lint_probes", "sorted_by_severity"]


def lint_probes(schedule: Schedule, times: ServiceTimes | None = None) -> tuple[Finding, ...]:
    """Hold what Kubernetes is told about a container against the times of the service.

    ```
    findings = lint_probes(
        Schedule(
            liveness=Probe(path="/livez"),
            readiness=Probe(path="/readyz", period=2, failures=2),
        ),
        ServiceTimes(grace=25, policy=RetryPolicy(deadline=5)),
    )
    assert not findings
    ```

    For manifests there is `resilient-io lint FILE`, which knows more of what is around a container.

    Args:
        schedule: What Kubernetes is told.
        times: What the service is like; None for the library's defaults.

    Returns:
        The findings, errors first.
    """
    times = times if times is not None else ServiceTimes()
    found = [*probe_findings(schedule, times), *end_findings(schedule, times)]
    return tuple(sorted_by_severity(found))


def sorted_by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Sort them, errors first; those that matter alike keep their order."""
    severities = list(Severity)
    return sorted(findings, key=lambda finding: severities.index(finding.severity))
