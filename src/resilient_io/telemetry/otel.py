"""Metrics for OpenTelemetry, through its API: observable instruments, read when collected.

```
OpenTelemetryMetrics(monitor, clients=[redis, consumer])
```
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

from ._catalogue import CATALOGUE
from ._metric import BOUNDARIES, TO_MIDDLE
from ._readings import Readings
from ._totals import Distribution

try:
    from opentelemetry.metrics import Observation, get_meter_provider
except ModuleNotFoundError:
    raise ConfigurationError(
        "opentelemetry-api is not installed: pip install 'resilient-io[otel]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider

    from resilient_io.health import HealthMonitor

    from ._metric import Metric
    from ._readings import Reading

__all__ = ["OpenTelemetryMetrics"]

_MOST_RECORDED = 500
"""Latencies that one collection records: the SDK takes about 10 µs for each."""


class OpenTelemetryMetrics:
    """Observable instruments of a meter: everything is read when the SDK collects, and only then.

    A collection may come in any thread, as with the SDK's periodic reader. It reads in the event
    loop in which this was made, or in which it was first collected; if that is blocked for over a
    second, the collection gets what the one before it got.

    OpenTelemetry has no observable histogram. So `db.client.operation.duration` and
    `messaging.client.operation.duration` record, at each collection, up to 500 of the latencies
    since the one before, evenly drawn from their distribution: their quantiles hold, their counts
    do not. How many there were is what `resilient_io.redis.calls` and
    `resilient_io.producer.batches` say.

    Args:
        monitor: The service's health: its dependencies have metrics each.
        clients: Clients whose counters are exported: a sequence, which names them by their kind
            ("redis", "producer", "consumer", then "redis 2"), or a mapping of names to clients.
        meter_provider: Whose meter; None for the global one.

    Raises:
        ConfigurationError: A client is none of ours.
        TypeError: `monitor` is no `HealthMonitor`.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        clients: Sequence[object] | Mapping[str, object] = (),
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._readings: Readings | None = Readings(monitor, clients)
        self._batch: dict[str, list[Reading]] = {}
        self._recorded: dict[tuple[str, tuple[str, ...]], dict[float, int]] = {}
        provider = meter_provider if meter_provider is not None else get_meter_provider()
        meter = provider.get_meter("resilient_io", version("resilient-io"))
        self._histograms = {
            metric.name: _histogram(meter, metric)
            for metric in CATALOGUE.values()
            if metric.kind == "histogram"
        }
        for metric in CATALOGUE.values():
            if metric.kind != "histogram":
                _observe(meter, metric, self._callback(metric))

    def close(self) -> None:
        """Report nothing any more: OpenTelemetry's instruments cannot be taken back."""
        self._readings = None  # with the clients: a meter keeps its callbacks for ever

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(reading.value, _attributes(reading))
                for reading in self._take(metric)
                if not isinstance(reading.value, Distribution)
            ]

        return observe

    def _take(self, metric: Metric) -> list[Reading]:
        """Give what was read for one instrument; each reading serves each instrument once.

        So one collection, which asks instrument by instrument, reads once.
        """
        readings = self._readings
        if readings is None:
            return []
        if metric.name not in self._batch:
            found = readings.collect()
            self._batch = {name: [] for name in CATALOGUE}
            for reading in found:
                self._batch[reading.metric.name].append(reading)
            for name, histogram in self._histograms.items():
                for reading in self._batch.pop(name):
                    self._record(histogram, reading)
        return self._batch.pop(metric.name, [])

    def _record(self, histogram: Histogram, reading: Reading) -> None:
        """Record a fair sample of what came since the last time."""
        if not isinstance(reading.value, Distribution):
            return
        key = (reading.metric.name, reading.labels)
        before = self._recorded.get(key, {})
        counts = dict(reading.value.counts)
        self._recorded[key] = counts
        if sum(counts.values()) < sum(before.values()):
            before = {}  # the client began anew
        fresh = {top: count - before.get(top, 0) for top, count in counts.items()}
        share = min(1.0, _MOST_RECORDED / max(1, sum(fresh.values())))
        attributes = _attributes(reading)
        owed = 0.5
        for top, count in fresh.items():
            owed += max(0, count) * share
            for _ in range(math.floor(owed)):
                histogram.record(top * TO_MIDDLE, attributes)
            owed -= math.floor(owed)


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        metric.unit,
        metric.help,
        explicit_bucket_boundaries_advisory=BOUNDARIES,
    )


def _observe(
    meter: Meter, metric: Metric, callback: Callable[[CallbackOptions], Iterable[Observation]]
) -> None:
    if metric.kind == "counter":
        meter.create_observable_counter(metric.name, [callback], metric.unit, metric.help)
    elif metric.kind == "updown":
        meter.create_observable_up_down_counter(metric.name, [callback], metric.unit, metric.help)
    else:
        meter.create_observable_gauge(metric.name, [callback], metric.unit, metric.help)


def _attributes(reading: Reading) -> dict[str, str]:
    """Return the labels that apply."""
    pairs = zip(reading.metric.labels, reading.labels, strict=True)
    return {name: value for name, value in pairs if value}
