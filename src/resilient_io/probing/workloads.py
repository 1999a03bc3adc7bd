"""From manifests to schedules: which containers there are, and what Kubernetes is told of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from resilient_io.errors import ConfigurationError
from resilient_io.probing.cursor import Cursor, NotAManifestError
from resilient_io.probing.schedule import Probe, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CONTAINER", "PREFIX", "Workload", "containers_of", "schedule_of", "workloads"]

PREFIX: Final = "resilient-io/"
"""Before the names of annotations that are for us."""

CONTAINER: Final = f"{PREFIX}container"

_TEMPLATES: Final = {
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
    "Pod": (),
}
_DEEPEST: Final = 10
_ASIDE: Final = frozenset(("metrics", "prometheus", "health", "probe", "probes", "status", "admin"))
"""Words in the names of ports that no Service leads callers to."""

_ONCE: Final = ("Job", "CronJob")
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_SLEEP: Final = re.compile(r"\bsleep\s+(\d+(?:\.\d+)?)(m?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Something that makes pods.

    Attributes:
        kind: "Deployment", say.
        root: The whole of it.
        pod: What its pods are like: `metadata` and `spec`.
    """

    kind: str
    root: Cursor
    pod: Cursor

    @property
    def name(self) -> str:
        """Kind and name."""
        return f"{self.kind}/{self.root.at('metadata', 'name').text('?')}"

    @property
    def lasting(self) -> bool:
        """Whether its pods are meant to run for ever."""
        return self.kind not in _ONCE

    @property
    def labels(self) -> dict[str, str]:
        """The labels of its pods."""
        return self.pod.at("metadata", "labels").fields()

    @property
    def annotations(self) -> list[Cursor]:
        """Where it is told of: on itself, then on its pods, which count more."""
        found = [self.root.at("metadata", "annotations")]
        if self.pod is not self.root:
            found.append(self.pod.at("metadata", "annotations"))
        return found

    def annotation(self, name: str) -> str:
        """Give the value of an annotation; "" if there is none."""
        return next(
            (text for place in reversed(self.annotations) if (text := place.at(name).text())), ""
        )


def workloads(documents: Sequence[Cursor]) -> Iterator[Workload]:
    """Find what makes pods, in lists of things too.

    Raises:
        NotAManifestError: Something has another shape than Kubernetes expects.
    """
    for each in everything(documents):
        kind = each.at("kind").text()
        if kind in _TEMPLATES:
            yield Workload(kind=kind, root=each, pod=each.at(*_TEMPLATES[kind]))


def everything(documents: Sequence[Cursor], depth: int = 0) -> Iterator[Cursor]:
    """Find all objects, in lists of things too.

    Raises:
        NotAManifestError: Something is no object.
    """
    if depth > _DEEPEST:
        raise documents[0].wrong("outside of itself")
    for document in documents:
        if isinstance(document.value, dict) and document.at("kind").text().endswith("List"):
            yield from everything([*document.at("items").items()], depth + 1)
        elif isinstance(document.value, dict):
            yield document
        else:
            raise document.wrong("an object of Kubernetes")


def containers_of(workload: Workload) -> list[Cursor]:
    """Say which containers are the service's.

    The one that is named by an annotation; else those that have probes; else the only one.
    A sidecar that somebody else puts into the pod has its own ideas of probes.
    """
    found = [*workload.pod.at("spec", "containers").items()]
    if not found:
        raise NotAManifestError(f"{workload.name} has no containers", workload.pod.at("spec").line)
    wanted = workload.annotation(CONTAINER)
    if wanted:
        named = [each for each in found if each.at("name").text() == wanted]
        if not named:
            raise NotAManifestError(
                f"{workload.name} has no container {wanted!r}, which {CONTAINER} names",
                workload.root.line,
            )
        return named
    probed = [each for each in found if any(each.at(name).value for name in _PROBES)]
    return probed or found[:1]


def schedule_of(workload: Workload, container: Cursor, *, served: bool) -> Schedule:
    """Read what Kubernetes is told of a container.

    Args:
        workload: What it is in.
        container: Its place.
        served: Whether a Service leads to its pods.

    Raises:
        NotAManifestError: A field has another shape than Kubernetes expects.
    """
    startup, liveness, readiness = (_probe(container.at(name)) for name in _PROBES)
    spec = workload.pod.at("spec")
    traffic = any(
        _ASIDE.isdisjoint(port.at("name").text().split("-"))
        for port in container.at("ports").items()
    )
    return Schedule(
        startup=startup,
        liveness=liveness,
        readiness=readiness,
        grace=float(spec.at("terminationGracePeriodSeconds").count(30)),
        pre_stop=_pre_stop(container.at("lifecycle", "preStop")),
        serves=workload.lasting and (served or traffic or readiness is not None),
        cpu_limit=container.at("resources", "limits", "cpu").quantity() or None,
        command=(*container.at("command").words(), *container.at("args").words()),
    )


def _probe(place: Cursor) -> Probe | None:
    if not place.fields():
        return None
    path = place.at("httpGet", "path").text("/") if place.at("httpGet").value else None
    try:
        return Probe(
            path=path,
            command=place.at("exec", "command").words(),
            initial_delay=float(place.at("initialDelaySeconds").count(0)),
            # Kubernetes takes 0 for "not told".
            period=float(place.at("periodSeconds").count(0) or 10),
            timeout=float(place.at("timeoutSeconds").count(0) or 1),
            failures=place.at("failureThreshold").count(0) or 3,
            successes=place.at("successThreshold").count(0) or 1,
        )
    except NotAManifestError:
        raise
    except ConfigurationError as error:
        raise NotAManifestError(f"{place.path}: {error}", place.line) from None


def _pre_stop(hook: Cursor) -> float:
    """Say how long a preStop hook sleeps; 0 if it does something else."""
    asleep = hook.at("sleep", "seconds")
    if asleep.value is not None:
        return float(asleep.count(0))
    found = _SLEEP.search(" ".join(hook.at("exec", "command").words()))
    seconds = float(found[1]) * (60 if found[2] else 1) if found else 0.0
    return seconds if math.isfinite(seconds) else 0.0
