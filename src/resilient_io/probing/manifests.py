"""Linting manifests: every container in them, with what they say of its times."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, TypeVar

from resilient_io.errors import ConfigurationError
from resilient_io.probing.cursor import Cursor, NotAManifestError, documents
from resilient_io.probing.disruption_rules import disruption_findings, port_findings, selects
from resilient_io.probing.findings import Finding, Severity
from resilient_io.probing.lint import lint_probes, sorted_by_severity
from resilient_io.probing.times import SETTINGS, times_from
from resilient_io.probing.workloads import (
    PREFIX,
    Workload,
    containers_of,
    everything,
    schedule_of,
    workloads,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["lint_manifests"]

IGNORE: Final = f"{PREFIX}lint-ignore"
_ENVIRONMENT: Final = "RESILIENT_IO_"
_OTHERS: Final = ("container", "lint-ignore")


_Thing = TypeVar("_Thing")


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """The documents of one file."""

    file: str
    documents: list[Cursor]


def lint_manifests(
    files: Mapping[str, str], told: Mapping[str, float] | None = None
) -> tuple[list[str], list[Finding]]:
    """Lint manifests of Kubernetes, all of them together.

    Args:
        files: The texts, by the names of their files.
        told: Times of the service, which count more than those in the manifests.

    Returns:
        What was looked at ("Deployment/orders"), and the findings, errors first.

    Raises:
        NotAManifestError: A file is no manifest, or holds nothing that makes pods.
    """
    sources = [_read(file, text) for file, text in files.items()]
    objects = [
        (source.file, each)
        for source in sources
        for each in _located(source.file, everything(source.documents))
    ]
    names: list[str] = []
    found: list[Finding] = []
    for source in sources:
        for workload in _located(source.file, workloads(source.documents)):
            names.append(workload.name)
            try:
                found += _lint(workload, objects, dict(told or {}), source.file)
            except NotAManifestError as error:
                raise _in_file(source.file, error) from None
    if not names:
        raise NotAManifestError(
            f"nothing in {', '.join(files)} makes pods: there is no Deployment, StatefulSet, "
            "DaemonSet, Job, CronJob or Pod"
        )
    return names, sorted_by_severity(found)


def _read(file: str, text: str) -> _Source:
    return _Source(file, [*_located(file, documents(text))])


def _located(file: str, things: Iterator[_Thing]) -> Iterator[_Thing]:
    try:
        yield from things
    except NotAManifestError as error:
        raise _in_file(file, error) from None


def _in_file(file: str, error: NotAManifestError) -> NotAManifestError:
    place = f"{file}:{error.line}" if error.line else file
    return NotAManifestError(f"{place}: {error}", error.line)


def _lint(
    workload: Workload, objects: Sequence[tuple[str, Cursor]], told: dict[str, float], file: str
) -> Iterator[Finding]:
    ignored = {code.strip() for code in workload.annotation(IGNORE).split(",")}
    served = any(
        each.at("kind").text() == "Service" and selects(each.at("spec", "selector"), workload)
        for _, each in objects
    )
    budgets = [
        (place, each)
        for place, each in objects
        if each.at("kind").text() == "PodDisruptionBudget"
        and selects(each.at("spec", "selector", "matchLabels"), workload)
    ]
    scaler = next((found for found in objects if _scales(found[1], workload)), None)
    serves = False
    found: list[tuple[Cursor, Finding]] = []
    for container in containers_of(workload):
        schedule = schedule_of(workload, container, served=served)
        serves = serves or schedule.serves
        times, wrong = _times(workload, container, told)
        found += [(container, finding) for finding in wrong]
        try:
            findings = lint_probes(schedule, times_from(times))
        except ConfigurationError as error:
            message = f"the times of {workload.name} cannot be: {error}"
            raise NotAManifestError(message, workload.root.line) from None
        found += [(container, finding) for finding in findings]
        found += [(container, finding) for finding in port_findings(container)]
    for finding in disruption_findings(workload, budgets, scaler, serves=serves):
        found.append((workload.root, finding))
    for place, finding in found:
        if finding.code in ignored or (finding.code == "liveness-missing" and not workload.lasting):
            continue
        yield dataclasses.replace(
            finding,
            of=workload.name,
            file=finding.file or file,
            line=finding.line or _line_of(finding.where, workload, place),
        )


def _scales(each: Cursor, workload: Workload) -> bool:
    if each.at("kind").text() != "HorizontalPodAutoscaler":
        return False
    target = each.at("spec", "scaleTargetRef")
    return f"{target.at('kind').text()}/{target.at('name').text()}" == workload.name


def _line_of(where: str, workload: Workload, container: Cursor) -> int:
    """Find the line of a field, or of what should have it."""
    if where == "terminationGracePeriodSeconds":
        return workload.pod.at("spec", where).line
    keys = where.split(".")
    if not all(key.isalpha() for key in keys):  # a setting of ours, which has no line
        return container.line
    return container.at(*keys).line


def _times(
    workload: Workload, container: Cursor, told: Mapping[str, float]
) -> tuple[dict[str, float], list[Finding]]:
    """Collect what is known of its times; the last word counts: annotations, environment, told."""
    times: dict[str, float] = {}
    wrong: list[Finding] = []
    for place in workload.annotations:
        for key, value in place.fields().items():
            name = key.removeprefix(PREFIX)
            if name != key and name not in _OTHERS:
                _take(name, value, place.at(key), times, wrong)
    for variable in container.at("env").items():
        name = variable.at("name").text()
        value = variable.at("value").value
        setting = name.removeprefix(_ENVIRONMENT).lower().replace("_", "-")
        # Others may begin alike and be none of the times; some come from elsewhere (`valueFrom`).
        if name.startswith(_ENVIRONMENT) and setting in SETTINGS and value is not None:
            _take(setting, value, variable.at("value"), times, wrong)
    return {**times, **told}, wrong


def _take(
    name: str, value: object, place: Cursor, times: dict[str, float], wrong: list[Finding]
) -> None:
    try:
        seconds = float(str(value))
        times_from({name: seconds})
    except ConfigurationError as error:
        found, _, advice = str(error).partition(": ")
    except ValueError:
        found, advice = f"{value!r} is no number of seconds.", f'Write {name}: "5".'
    else:
        times[name] = seconds
        return
    wrong.append(
        Finding(
            code="setting-wrong",
            severity=Severity.ERROR,
            where=place.path,
            found=found,
            advice=advice,
            line=place.line,
        )
    )
