"""Metrics for Prometheus, through `prometheus_client`.

```
PrometheusMetrics(monitor, clients=[redis, consumer]).register()
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

from .catalog import BOUNDARIES, CATALOG
from .readings import Distribution, Readings

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
except ModuleNotFoundError:
    raise ConfigurationError(
        "prometheus-client is not installed: pip install 'resilient-io[prometheus]'"
    ) from None

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self, TypeAlias

    from resilient_io.health import HealthMonitor

    from .catalog import Metric
    from .clients import Clients

    Family: TypeAlias = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class PrometheusMetrics:
    """A collector of `prometheus_client` that reads all metrics when it is scraped.

    A scrape may come from any thread. It reads in the event loop in which this object was created,
    or in which it was first scraped. If that event loop is blocked for more than a second, the
    scrape gets the result of the previous one.

    Args:
        monitor: The health of the service.
        clients: Clients whose counters are exported: a sequence, or a mapping of names to clients.
            In a sequence, a client without a name is called by its kind ("redis", "producer",
            "consumer", then "redis 2").

    Raises:
        ConfigurationError: An argument has a wrong value.
        TypeError: An argument has the wrong type.
    """

    def __init__(self, monitor: HealthMonitor, clients: Clients = ()) -> None:
        self._readings = Readings(monitor, clients)
        self._registries: list[CollectorRegistry] = []

    def register(self, registry: CollectorRegistry | None = None) -> Self:
        """Add the metrics to a registry, and return this object.

        Args:
            registry: The registry; None for prometheus_client's default one.

        Raises:
            ConfigurationError: The registry has the metrics of this library already.
        """
        chosen = registry if registry is not None else REGISTRY
        try:
            chosen.register(self)
        except ValueError as error:
            raise ConfigurationError(
                "the registry has the metrics of resilient-io already: pass all clients to one "
                "PrometheusMetrics, or unregister() the other one first"
            ) from error
        self._registries.append(chosen)
        return self

    def unregister(self) -> None:
        """Remove the metrics from every registry. Idempotent."""
        registries, self._registries = self._registries, []
        for registry in registries:
            registry.unregister(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the response to a scrape: the body and its content type.

        It contains everything in the registry (the latest one, if there are several), or the
        metrics of this object if it is not registered. `accept` is the `Accept` header of the
        request, which may prefer OpenMetrics.
        """
        encode, content_type = choose_encoder(accept)
        if self._registries:
            return encode(self._registries[-1]), content_type
        registry = CollectorRegistry()
        registry.register(self)
        return encode(registry), content_type

    def describe(self) -> Iterable[Family]:
        """Return the empty metrics, from which a registry learns their names."""
        return [_family(metric) for metric in CATALOG.values()]

    def collect(self) -> Iterable[Family]:
        """Return the current metrics; the registry calls this."""
        families: dict[str, Family] = {}
        for reading in self._readings.collect():
            metric = reading.metric
            family = families.get(metric.name)
            if family is None:
                family = families[metric.name] = _family(metric)
            value = reading.value
            if isinstance(value, Distribution):
                if isinstance(family, HistogramMetricFamily):
                    family.add_metric(reading.labels, _buckets(value), value.total)
            elif not isinstance(family, HistogramMetricFamily):
                family.add_metric(reading.labels, value)
        return families.values()


def _family(metric: Metric) -> Family:
    labels = metric.prometheus_labels
    if metric.kind == "counter":
        return CounterMetricFamily(metric.prometheus_name, metric.help, labels=labels)
    if metric.kind == "histogram":
        return HistogramMetricFamily(metric.prometheus_name, metric.help, labels=labels)
    return GaugeMetricFamily(metric.prometheus_name, metric.help, labels=labels)


def _buckets(value: Distribution) -> list[tuple[str, float]]:
    bounds = [*(repr(boundary) for boundary in BOUNDARIES), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, value.cumulative(), strict=True)]
