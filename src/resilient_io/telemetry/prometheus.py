"""Metrics for Prometheus, through `prometheus_client`.

```
PrometheusMetrics(monitor, clients=[redis, consumer]).register()
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

from ._catalogue import CATALOGUE
from ._metric import BOUNDARIES
from ._readings import Readings, fold
from ._totals import Distribution

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
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self, TypeAlias

    from resilient_io.health import HealthMonitor

    from ._metric import Metric

    Family: TypeAlias = "CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily"

__all__ = ["PrometheusMetrics"]


class PrometheusMetrics:
    """A collector of `prometheus_client`: it reads everything when it is scraped, and only then.

    A scrape may come in any thread. It reads in the event loop in which this was made, or in which
    it was first scraped; if that is blocked for over a second, the scrape gets what the one before
    it got.

    Args:
        monitor: The service's health: its dependencies have metrics each.
        clients: Clients whose counters are exported: a sequence, which names them by their kind
            ("redis", "producer", "consumer", then "redis 2"), or a mapping of names to clients.

    Raises:
        ConfigurationError: A client is none of ours.
        TypeError: `monitor` is no `HealthMonitor`.
    """

    def __init__(
        self, monitor: HealthMonitor, clients: Sequence[object] | Mapping[str, object] = ()
    ) -> None:
        self._readings = Readings(monitor, clients)
        self._registries: list[CollectorRegistry] = []

    def register(self, registry: CollectorRegistry | None = None) -> Self:
        """Let a registry collect from here on.

        Args:
            registry: Which; None for prometheus_client's default one.

        Raises:
            ConfigurationError: That registry has metrics of ours already.
        """
        chosen = registry if registry is not None else REGISTRY
        try:
            chosen.register(self)
        except ValueError as error:
            raise ConfigurationError(
                "this registry has the metrics of resilient_io already: give all clients to one "
                "PrometheusMetrics, or unregister() the other one first"
            ) from error
        self._registries.append(chosen)
        return self

    def unregister(self) -> None:
        """Let no registry collect any more; doing it twice does no harm."""
        registries, self._registries = self._registries, []
        for registry in registries:
            registry.unregister(self)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return what a scrape is answered with: all of the registry, or ours if there is none.

        Of several registries it is the latest.

        Args:
            accept: The scraper's `Accept` header; it may ask for OpenMetrics.

        Returns:
            The body, and its content type.
        """
        encode, content_type = choose_encoder(accept)
        if self._registries:
            registry = self._registries[-1]
        else:
            registry = CollectorRegistry()
            registry.register(self)
        return encode(registry), content_type

    def describe(self) -> Iterable[Family]:
        """Name the metrics, for the registry's check that nobody else has them."""
        return [_family(metric) for metric in CATALOGUE.values()]

    def collect(self) -> Iterable[Family]:
        """Read everything now; called by the registry."""
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
    edges = [*(repr(boundary) for boundary in BOUNDARIES), "+Inf"]
    return [(edge, float(count)) for edge, count in zip(edges, fold(value.counts), strict=True)]
