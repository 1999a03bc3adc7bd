"""What a metric is: its name, kind, unit and labels, for OpenTelemetry and for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BOUNDARIES", "TO_MIDDLE", "Metric"]

Kind = Literal["counter", "gauge", "updown", "histogram"]

BOUNDARIES = (0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Of the latency histogram, in seconds: those of the semantic conventions, and three below them."""

TO_MIDDLE = 2.0 ** (-1 / 16)
"""From the top of a bucket of the clients' own, eight to an octave, to its middle."""

_UNITS = {"s": "seconds", "By": "bytes"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: OpenTelemetry's name.
        kind: A counter only grows; an updown can be added up over clients, a gauge cannot.
        unit: By UCUM; `{call}` and the like for what is counted.
        help: What it tells.
        labels: Names of its labels, as OpenTelemetry writes them.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The family's name in Prometheus, without the `_total` of a counter's samples."""
        unit = _UNITS.get(self.unit)
        name = self.name.replace(".", "_")
        return name if unit is None or name.endswith(unit) else f"{name}_{unit}"

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The labels in Prometheus."""
        return tuple(label.replace(".", "_") for label in self.labels)

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of the samples in Prometheus."""
        name = self.prometheus_name
        if self.kind == "counter":
            return (f"{name}_total",)
        if self.kind == "histogram":
            return (f"{name}_bucket", f"{name}_count", f"{name}_sum")
        return (name,)
