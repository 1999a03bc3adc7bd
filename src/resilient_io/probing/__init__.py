"""Does what Kubernetes is told about a service fit what the service is like?

A probe that asks too much restarts every replica because of one outage; a grace period that is too
short loses what is under way. Both look fine until the first bad day. `lint_probes` holds a
schedule against the library's times; `resilient-io lint` does so for manifests.
"""

from resilient_io.probing.findings import Finding, Severity
from resilient_io.probing.lint import lint_probes
from resilient_io.probing.schedule import Probe, Schedule
from resilient_io.probing.times import ServiceTimes

__all__ = [
    "Finding",
    "Probe",
    "Schedule",
    "ServiceTimes",
    "Severity",
    "lint_probes",
]
