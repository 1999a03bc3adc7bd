"""`/metrics`: what prometheus-client knows, in the form that the scraper asks for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from resilient_io.health import HealthMonitor
    from resilient_io.serve._status import Clients

__all__ = ["Metrics"]


class Metrics:
    """The metrics of one service.

    Args:
        monitor: The service's dependencies.
        clients: Those whose counters are exported.
        source: None for ours; a registry of prometheus-client for what is in it; False for none.

    Raises:
        ConfigurationError: `source` is none of these.
    """

    def __init__(
        self,
        monitor: HealthMonitor,
        clients: Clients,
        source: CollectorRegistry | Literal[False] | None,
    ) -> None:
        if source is not None and source is not False and not hasattr(source, "collect"):
            raise ConfigurationError(
                f"metrics={source!r} is no registry: write metrics=prometheus_client.REGISTRY to "
                f"serve what is registered there, None for the library's own, False for none"
            )
        self._monitor = monitor
        self._clients = clients
        self._off = source is False
        self._given = source or None

    @property
    def missing(self) -> str | None:
        """Why there are none; None when there are."""
        if self._off:
            return "metrics are switched off"
        if self._given is None and find_spec("prometheus_client") is None:
            return "metrics need prometheus-client: pip install 'resilient-io[prometheus]'"
        return None

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, and the type of the text.

        Args:
            accept: The value of the request's header.
        """
        from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 (an extra)

        encode, content_type = choose_encoder(accept)
        return encode(self._registry()), content_type

    def _registry(self) -> CollectorRegistry:
        if self._given is None:
            from prometheus_client import CollectorRegistry  # noqa: PLC0415 (an extra)

            from resilient_io.telemetry.prometheus import (  # noqa: PLC0415 (an extra)
                PrometheusMetrics,
            )

            # A registry of our own: the process's may hold ours already.
            self._given = CollectorRegistry()
            PrometheusMetrics(self._monitor, clients=self._clients).register(self._given)
        return self._given
