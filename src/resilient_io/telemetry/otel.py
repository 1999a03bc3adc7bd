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

from .catalog import BOUNDARIES, CATALOG, TO_MIDDLE
from .readings import Distribution, Readings

try:
    from opentelemetry.metrics import Observation, get_meter_provider
except ModuleNotFoundError:
    raise ConfigurationError(
        "opentelemetry-api is not installed: pip install 'resilient-io[otel]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider

    from resilient_io.health import HealthMonitor

    from .catalog import Metric
    from .clients import Clients
    from .readings import Reading

_MAX_RECORDED = 500  # latencies recorded per collection: each takes the SDK about 10 µs


class OpenTelemetryMetrics:
    """Observable instruments of a meter that read all metrics when the SDK collects them.

    A collection may come from any thread, as with the SDK's periodic reader. It reads in the event
    loop in which this object was created, or in which it was first collected. If that event loop
    is blocked for more than a second, the collection gets the result of the previous one.

    OpenTelemetry has no observable histogram. Therefore `db.client.operation.duration` and
    `messaging.client.operation.duration` record, at each collection, up to 500 of the latencies
    since the previous one, drawn evenly from their distribution: their quantiles are right, their
    counts are not. Use `resilient_io.redis.calls` and `resilient_io.producer.batches` for counts.

    Args:
        monitor: The health of the service.
        clients: Clients whose counters are exported: a sequence, or a mapping of names to clients.
            In a sequence, a client without a name is called by its kind ("redis", "producer",
            "consumer", then "redis 2").
        meter_provider: The provider of the meter; None for the global one.

    Raises:
        ConfigurationError: An argument has a wrong value.
        TypeError: An argument has the wrong type.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        clients: Clients = (),
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._readings: Readings | None = Readings(monitor, clients)
        self._batch: dict[str, list[Reading]] = {}
        self._recorded: dict[tuple[str, tuple[str, ...]], dict[float, int]] = {}
        provider = meter_provider if meter_provider is not None else get_meter_provider()
        meter = provider.get_meter("resilient_io", version("resilient-io"))
        self._histograms: dict[str, Histogram] = {}
        for name, metric in CATALOG.items():
            if metric.kind == "histogram":
                self._histograms[name] = meter.create_histogram(
                    name, metric.unit, metric.help, explicit_bucket_boundaries_advisory=BOUNDARIES
                )
            else:
                _create_observable(meter, metric, self._callback(metric))

    def close(self) -> None:
        """Report nothing more. OpenTelemetry's instruments cannot be removed."""
        self._readings = None  # and the clients with it: a meter keeps its callbacks forever

    def _callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(reading.value, _attributes(reading))
                for reading in self._take(metric)
                if not isinstance(reading.value, Distribution)
            ]

        return observe

    def _take(self, metric: Metric) -> list[Reading]:
        """Return the readings for one instrument.

        A collection calls every instrument in turn. The first call reads all metrics; each
        instrument then gets its readings once.
        """
        readings = self._readings
        if readings is None:
            return []
        if metric.name not in self._batch:
            found = readings.collect()
            self._batch = {name: [] for name in CATALOG}
            for reading in found:
                self._batch[reading.metric.name].append(reading)
            for name, histogram in self._histograms.items():
                for reading in self._batch.pop(name):
                    self._record(histogram, reading)
        return self._batch.pop(metric.name, [])

    def _record(self, histogram: Histogram, reading: Reading) -> None:
        """Record an even sample of the latencies since the previous collection."""
        if not isinstance(reading.value, Distribution):
            return
        key = (reading.metric.name, reading.labels)
        before = self._recorded.get(key, {})
        counts = dict(reading.value.counts)
        self._recorded[key] = counts
        if sum(counts.values()) < sum(before.values()):
            before = {}  # the client was opened again
        recent = {top: count - before.get(top, 0) for top, count in counts.items()}
        share = min(1.0, _MAX_RECORDED / max(1, sum(recent.values())))
        attributes = _attributes(reading)
        due = 0.5
        for top, count in recent.items():
            due += max(0, count) * share
            for _ in range(math.floor(due)):
                histogram.record(top * TO_MIDDLE, attributes)
            due -= math.floor(due)


def _create_observable(
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
