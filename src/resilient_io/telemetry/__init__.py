"""Metrics for Prometheus and OpenTelemetry, and OpenTelemetry spans.

```
PrometheusMetrics(monitor, clients=[redis, consumer]).register()
```

| name | extra |
|---|---|
| `PrometheusMetrics` | `prometheus` |
| `OpenTelemetryMetrics`, `trace` | `otel` |

Metrics are read when they are collected, and cost nothing per call. A module is imported when one
of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .otel import OpenTelemetryMetrics
    from .prometheus import PrometheusMetrics
    from .tracing import trace

__all__ = ["OpenTelemetryMetrics", "PrometheusMetrics", "trace"]

_MODULES = {"OpenTelemetryMetrics": "otel", "PrometheusMetrics": "prometheus", "trace": "tracing"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562), because each needs another extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
