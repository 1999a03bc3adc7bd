"""Serving how the service is: probes, metrics and the status page over HTTP; a heartbeat file.

```
async with serve(monitor, clients=[redis, consumer], port=8080):
    await work()
```

| path | answers |
|---|---|
| `/livez` | 200 while no restart is needed, else 503; it never follows a dependency |
| `/readyz` | 200 while the service should be given work, else 503 |
| `/startupz` | 200 once it was ready for the first time, else 503 |
| `/metrics` | metrics for Prometheus, if the extra `prometheus` is installed |
| `/status` | the status page, or what it shows as JSON |
| `/events` | the same as server-sent events: at every change, otherwise every second |

The probes answer in plain words, and with `?verbose` or `Accept: application/health+json` in
detail. All of it is what is known already: no probe asks a dependency. There is no password in
it, and no authentication before it: it is for inside of the cluster.

`serve` and `health_app` need the extra `serve`; `aiohttp_app` needs aiohttp; `Heartbeat` nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from resilient_io.serve._aiohttp import aiohttp_app
    from resilient_io.serve._asgi import health_app
    from resilient_io.serve._heartbeat import Heartbeat
    from resilient_io.serve._server import HealthServer, serve

__all__ = ["HealthServer", "Heartbeat", "aiohttp_app", "health_app", "serve"]

_HOMES = {
    "HealthServer": "resilient_io.serve._server",
    "Heartbeat": "resilient_io.serve._heartbeat",
    "aiohttp_app": "resilient_io.serve._aiohttp",
    "health_app": "resilient_io.serve._asgi",
    "serve": "resilient_io.serve._server",
}

_INSTALL = {
    "starlette": "pip install 'resilient-io[serve]'",
    "uvicorn": "pip install 'resilient-io[serve]'",
    "aiohttp": "pip install aiohttp",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562): none needs what another needs."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(home)
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
