"""`resilient-io lint`: check Kubernetes manifests against the timeouts of the service."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml
from rich.text import Text

from resilient_io.errors import ConfigurationError
from resilient_io.probing import Finding, Probe, Schedule, ServiceTimes, Severity, lint_probes

from . import GOOD, PROBLEMS
from .terminal import clean_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .terminal import Report

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}

_PREFIX: Final = "resilient-io/"
_CONTAINER: Final = f"{_PREFIX}container"
_IGNORE: Final = f"{_PREFIX}lint-ignore"
_ENVIRONMENT: Final = "RESILIENT_IO_"
_TEMPLATES: Final = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"), ("template",)),
    "Job": ("template",),
    "CronJob": ("jobTemplate", "spec", "template"),
    "Pod": (),
}
_PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_SLEEP: Final = re.compile(r"\bsleep\s+(\d+(?:\.\d+)?)(m?)")


SETTINGS: Final = tuple(each.name.replace("_", "-") for each in dataclasses.fields(ServiceTimes))
"""Names of the timeouts in manifests and on the command line."""


@dataclass(frozen=True, slots=True)
class _Workload:
    """An object that creates pods."""

    file: str
    name: str  # kind and name
    annotations: Mapping[str, Any]  # those of its pods take precedence
    spec: Mapping[str, Any]  # of its pods

    @property
    def place(self) -> str:
        return f"{self.file}: {self.name}"


def lint(files: Mapping[str, str], settings: Mapping[str, float], report: Report) -> int:
    """Check manifests, show the findings and return the exit code."""
    times_from(settings)
    workloads = [each for file, text in files.items() for each in _workloads(file, text)]
    if not workloads:
        kinds = ", ".join(_TEMPLATES)
        raise ConfigurationError(f"no workloads found in {', '.join(files)} (expected {kinds})")
    found = [(each, finding) for each in workloads for finding in _lint(each, settings)]
    found.sort(key=lambda pair: list(Severity).index(pair[1].severity))
    for workload, finding in found:
        head = Text.assemble(
            f"{clean_line(workload.file)}: ",
            (str(finding.severity), _STYLES[finding.severity]),
            f" [{finding.code}] {clean_line(workload.name)} {finding.where}: ",
        )
        place = {"file": workload.file, "of": workload.name}
        facts = {"event": "finding", **place, **dataclasses.asdict(finding)}
        report.finding(facts, head, finding.found, finding.advice, indent=2)
    counts = {
        severity: sum(finding.severity is severity for _, finding in found) for severity in Severity
    }
    names = [workload.name for workload in workloads]
    counted = [f"{count} {each}{'s' * (count != 1)}" for each, count in counts.items() if count]
    report.summary(
        f"{', '.join(names)}: {', '.join(counted) or 'no findings'}",
        {"workloads": names, "findings": counts},
    )
    return PROBLEMS if found else GOOD


def read_settings(given: Sequence[str]) -> dict[str, float]:
    """Return the timeouts given as NAME=SECONDS."""
    settings = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            settings[name.strip()] = float(value)
        except ValueError:
            raise ConfigurationError(
                f"--set {each!r} must be NAME=SECONDS: use --set grace-period=25, for example"
            ) from None
    return settings


def times_from(settings: Mapping[str, float]) -> ServiceTimes:
    """Return the timeouts of a service from some of `SETTINGS`."""
    for name in settings:
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(SETTINGS)}"
            raise ConfigurationError(f"unknown setting {name!r}: {hint}")
    return ServiceTimes(**{name.replace("-", "_"): value for name, value in settings.items()})


def _workloads(file: str, text: str) -> Iterator[_Workload]:
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark is not None else file
        hint = "; render templates first" if "{{" in text else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigurationError(f"{place}: not valid YAML: {problem}{hint}") from None
    for document in documents:
        objects = [document]
        if isinstance(document, dict) and str(document.get("kind")).endswith("List"):
            objects = _list(document, "items", file)
        for each in objects:
            if each is None:
                continue
            if not isinstance(each, dict):
                raise ConfigurationError(f"{file}: not a Kubernetes object")
            kind = each.get("kind")
            if isinstance(kind, str) and kind in _TEMPLATES:
                yield _workload(file, kind, each)


def _workload(file: str, kind: str, root: Mapping[str, Any]) -> _Workload:
    metadata = _object(root, "metadata", file)
    name = f"{kind}/{metadata.get('name', '?')}"
    place = f"{file}: {name}"
    pod: Mapping[str, Any] = root
    if _TEMPLATES[kind]:
        pod = _object(root, "spec", place)
        for key in _TEMPLATES[kind]:
            pod = _object(pod, key, place)
    annotations = {
        **_object(metadata, "annotations", place),
        **_object(_object(pod, "metadata", place), "annotations", place),
    }
    return _Workload(file, name, annotations, _object(pod, "spec", place))


def _lint(workload: _Workload, settings: Mapping[str, float]) -> Iterator[Finding]:
    ignored = {code.strip() for code in str(workload.annotations.get(_IGNORE, "")).split(",")}
    for container in _containers(workload):
        times = {**_settings_of(workload, container), **settings}
        schedule = _schedule(workload, container)
        try:
            found = lint_probes(schedule, times_from(times))
        except ConfigurationError as error:
            raise ConfigurationError(f"{workload.place}: {error}") from None
        yield from (finding for finding in found if finding.code not in ignored)


def _containers(workload: _Workload) -> list[dict[str, Any]]:
    """Return the containers of the service: the one that an annotation names, or those with probes.

    Sidecars that other tools inject have probes of their own.
    """
    place = workload.place
    containers = [
        each for each in _list(workload.spec, "containers", place) if isinstance(each, dict)
    ]
    if not containers:
        raise ConfigurationError(f"{place} has no containers")
    wanted = workload.annotations.get(_CONTAINER)
    if wanted is None:
        return [each for each in containers if any(each.get(name) for name in _PROBES)] or (
            containers[:1]
        )
    named = [each for each in containers if each.get("name") == wanted]
    if not named:
        raise ConfigurationError(f"{place} has no container {wanted!r}, which {_CONTAINER} names")
    return named


def _settings_of(workload: _Workload, container: Mapping[str, Any]) -> dict[str, float]:
    """Return the timeouts of annotations and of the environment, which takes precedence."""
    place = workload.place
    texts = {
        key.removeprefix(_PREFIX): value
        for key, value in workload.annotations.items()
        if key.startswith(_PREFIX) and key not in (_CONTAINER, _IGNORE)
    }
    for variable in _list(container, "env", place):
        name = str(variable.get("name")) if isinstance(variable, dict) else ""
        setting = name.removeprefix(_ENVIRONMENT).lower().replace("_", "-")
        # Other variables may begin like this; some have their value elsewhere (`valueFrom`).
        if name.startswith(_ENVIRONMENT) and setting in SETTINGS and "value" in variable:
            texts[setting] = variable["value"]
    settings = {}
    for name, text in texts.items():
        try:
            settings[name] = float(str(text))
        except ValueError:
            raise ConfigurationError(
                f'{place}: {_PREFIX}{name} must be a number of seconds, such as "5", not {text!r}'
            ) from None
    return settings


def _schedule(workload: _Workload, container: Mapping[str, Any]) -> Schedule:
    place = workload.place
    startup, liveness, readiness = (_probe(container, name, place) for name in _PROBES)
    hook = _object(_object(container, "lifecycle", place), "preStop", place)
    return Schedule(
        startup=startup,
        liveness=liveness,
        readiness=readiness,
        grace_period=_seconds(workload.spec, "terminationGracePeriodSeconds", 30, place),
        pre_stop=_pre_stop(hook, place),
    )


def _probe(container: Mapping[str, Any], name: str, place: str) -> Probe | None:
    probe = _object(container, name, place)
    if not probe:
        return None
    place = f"{place} {name}"
    path = str(_object(probe, "httpGet", place).get("path", "/")) if "httpGet" in probe else None
    # Kubernetes takes 0 for a missing value.
    return Probe(
        path=path,
        command=tuple(map(str, _list(_object(probe, "exec", place), "command", place))),
        initial_delay=_seconds(probe, "initialDelaySeconds", 0, place),
        period=_seconds(probe, "periodSeconds", 0, place) or 10,
        timeout=_seconds(probe, "timeoutSeconds", 0, place) or 1,
        failures=int(_seconds(probe, "failureThreshold", 0, place)) or 3,
    )


def _pre_stop(hook: Mapping[str, Any], place: str) -> float:
    """Return how long a preStop hook sleeps; 0 for any other hook."""
    if "sleep" in hook:
        return _seconds(_object(hook, "sleep", place), "seconds", 0, place)
    command = _list(_object(hook, "exec", place), "command", place)
    found = _SLEEP.search(" ".join(map(str, command)))
    return float(found[1]) * (60 if found[2] else 1) if found else 0.0


def _object(parent: Mapping[str, Any], key: str, place: str) -> dict[str, Any]:
    if (value := parent.get(key)) is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigurationError(f"{place}: {key} must be an object")
    return value


def _list(parent: Mapping[str, Any], key: str, place: str) -> list[Any]:
    if (value := parent.get(key)) is None:
        return []
    if not isinstance(value, list):
        raise ConfigurationError(f"{place}: {key} must be a list")
    return value


def _seconds(parent: Mapping[str, Any], key: str, default: float, place: str) -> float:
    if (value := parent.get(key)) is None:
        return default
    if type(value) is not int or value < 0:
        raise ConfigurationError(f"{place}: {key} must be a whole number of at least 0")
    return float(value)
