"""Probes, metrics and the status page over HTTP; a heartbeat file for services without HTTP.

```
async with serve(monitor, clients=[redis, consumer], port=8080):
    await work()
```

| path | answers |
|---|---|
| `/livez` | 200 while no restart is needed, else 503; independent of every dependency |
| `/readyz` | 200 while the service should receive work, else 503 |
| `/startupz` | 200 once the service has been ready, else 503 |
| `/metrics` | metrics for Prometheus, if the extra `prometheus` is installed |
| `/status` | the status page, or its data as JSON |
| `/events` | the same data as server-sent events: on every change, and once per second |

The probes answer in plain text, and in JSON for `?verbose` or `Accept: application/health+json`.
All answers come from what is known already: no probe contacts a dependency. There is no
authentication, and no password in any answer: keep the port inside the cluster.

`serve` and `health_app` need the extra `serve`; `aiohttp_app` needs aiohttp; `Heartbeat` needs
nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from .aiohttp import aiohttp_app
    from .asgi import health_app
    from .heartbeat import Heartbeat
    from .server import HealthServer, serve

__all__ = ["HealthServer", "Heartbeat", "aiohttp_app", "health_app", "serve"]

_MODULES = {
    "HealthServer": "server",
    "Heartbeat": "heartbeat",
    "aiohttp_app": "aiohttp",
    "health_app": "asgi",
    "serve": "server",
}

_INSTALL = {
    "starlette": "pip install 'resilient-io[serve]'",
    "uvicorn": "pip install 'resilient-io[serve]'",
    "aiohttp": "pip install aiohttp",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562), because each needs another extra."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _INSTALL:
            raise
        raise ConfigurationError(f"{name} needs {missing}: {_INSTALL[missing]}") from None
    value: object = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
