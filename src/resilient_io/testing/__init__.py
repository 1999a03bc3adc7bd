"""The kit that this library is tested with, for tests of what is built on it.

Servers to kill and freeze (`RedisServer`), a proxy that loses replies and holds requests
(`FaultProxy`), a check of every point at which a coroutine can be cancelled (`cancel_everywhere`),
an event loop with virtual time (`VirtualTimeLoop`), and fixtures over them
(`resilient_io.testing.pytest_plugin`). What it needs is installed by `resilient-io[testing]`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.testing._configuration import free_port
    from resilient_io.testing._connection import ProxiedConnection
    from resilient_io.testing._resp import Reply, Request, ServerError, encode
    from resilient_io.testing.binaries import (
        Binary,
        NoServerError,
        find_embedded_redis,
        find_redis,
    )
    from resilient_io.testing.cancellation import (
        CancelReport,
        Finding,
        Moment,
        Problem,
        cancel_everywhere,
    )
    from resilient_io.testing.certificates import Certificates, make_certificates
    from resilient_io.testing.faults import Fault
    from resilient_io.testing.proxy import FaultProxy
    from resilient_io.testing.servers import (
        RedisServer,
        ServerDidNotStartError,
        embedded_redis,
    )
    from resilient_io.testing.virtual_time import (
        NothingWillHappenError,
        VirtualTimeLoop,
        new_virtual_loop,
    )

__all__ = [
    "Binary",
    "CancelReport",
    "Certificates",
    "Fault",
    "FaultProxy",
    "Finding",
    "Moment",
    "NoServerError",
    "NothingWillHappenError",
    "Problem",
    "ProxiedConnection",
    "RedisServer",
    "Reply",
    "Request",
    "ServerDidNotStartError",
    "ServerError",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "embedded_redis",
    "encode",
    "find_embedded_redis",
    "find_redis",
    "free_port",
    "make_certificates",
    "new_virtual_loop",
]

_MODULES = {
    "_configuration": ("free_port",),
    "_connection": ("ProxiedConnection",),
    "_resp": ("Reply", "Request", "ServerError", "encode"),
    "binaries": ("Binary", "NoServerError", "find_embedded_redis", "find_redis"),
    "cancellation": ("CancelReport", "Finding", "Moment", "Problem", "cancel_everywhere"),
    "certificates": ("Certificates", "make_certificates"),
    "faults": ("Fault",),
    "proxy": ("FaultProxy",),
    "servers": ("RedisServer", "ServerDidNotStartError", "embedded_redis"),
    "virtual_time": ("NothingWillHappenError", "VirtualTimeLoop", "new_virtual_loop"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
