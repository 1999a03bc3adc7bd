"""Seeing from outside: metrics for Prometheus and OpenTelemetry, and spans.

```
PrometheusMetrics(monitor, clients=[redis, consumer]).register()
```

| name | what it needs |
|---|---|
| `PrometheusMetrics` | the extra `prometheus` |
| `OpenTelemetryMetrics`, `trace` | the extra `otel` |

Metrics are read when somebody collects them, and cost nothing per call. What is not used is not
imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.telemetry.otel import OpenTelemetryMetrics
    from resilient_io.telemetry.prometheus import PrometheusMetrics
    from resilient_io.telemetry.tracing import trace

__all__ = ["OpenTelemetryMetrics", "PrometheusMetrics", "trace"]

_HOMES = {
    "OpenTelemetryMetrics": "resilient_io.telemetry.otel",
    "PrometheusMetrics": "resilient_io.telemetry.prometheus",
    "trace": "resilient_io.telemetry.tracing",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): none needs what another needs.

    Raises:
        ConfigurationError: Its extra is not installed.
    """
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
