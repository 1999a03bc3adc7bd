"""The kit that this library is tested with, for tests of what is built on it.

Servers to kill and freeze (`RedisServer`, `KafkaServer`, `KafkaCluster`), a proxy that loses
replies and holds requests (`FaultProxy`), a check of every point at which a coroutine can be
cancelled (`cancel_everywhere`), an event loop with virtual time (`VirtualTimeLoop`), and fixtures
over them (`resilient_io.testing.pytest_plugin`). What it needs is installed by
`resilient-io[testing]`; Apache Kafka also takes Java and `make servers`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilient_io.testing._configuration import free_port
    from resilient_io.testing._connection import ProxiedConnection
    from resilient_io.testing._process import ServerDidNotStartError
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
    from resilient_io.testing.kafka.answers import produce_error
    from resilient_io.testing.kafka.broker import KafkaBroker
    from resilient_io.testing.kafka.cluster import KafkaCluster
    from resilient_io.testing.kafka.distribution import (
        ApacheKafka,
        Tansu,
        find_apache_kafka,
        find_embedded_kafka,
        find_kafka,
    )
    from resilient_io.testing.kafka.embedded import TansuServer, embedded_kafka, local_kafka
    from resilient_io.testing.kafka.frames import KafkaRequest
    from resilient_io.testing.kafka.server import KafkaServer
    from resilient_io.testing.proxy import FaultProxy
    from resilient_io.testing.servers import RedisServer, embedded_redis
    from resilient_io.testing.virtual_time import (
        NothingWillHappenError,
        VirtualTimeLoop,
        new_virtual_loop,
    )

__all__ = [
    "ApacheKafka",
    "Binary",
    "CancelReport",
    "Certificates",
    "Fault",
    "FaultProxy",
    "Finding",
    "KafkaBroker",
    "KafkaCluster",
    "KafkaRequest",
    "KafkaServer",
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
    "Tansu",
    "TansuServer",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "embedded_kafka",
    "embedded_redis",
    "encode",
    "find_apache_kafka",
    "find_embedded_kafka",
    "find_embedded_redis",
    "find_kafka",
    "find_redis",
    "free_port",
    "local_kafka",
    "make_certificates",
    "new_virtual_loop",
    "produce_error",
]

_MODULES = {
    "_configuration": ("free_port",),
    "_connection": ("ProxiedConnection",),
    "_process": ("ServerDidNotStartError",),
    "_resp": ("Reply", "Request", "ServerError", "encode"),
    "binaries": ("Binary", "NoServerError", "find_embedded_redis", "find_redis"),
    "cancellation": ("CancelReport", "Finding", "Moment", "Problem", "cancel_everywhere"),
    "certificates": ("Certificates", "make_certificates"),
    "faults": ("Fault",),
    "kafka.answers": ("produce_error",),
    "kafka.broker": ("KafkaBroker",),
    "kafka.cluster": ("KafkaCluster",),
    "kafka.distribution": (
        "ApacheKafka",
        "Tansu",
        "find_apache_kafka",
        "find_embedded_kafka",
        "find_kafka",
    ),
    "kafka.embedded": ("TansuServer", "embedded_kafka", "local_kafka"),
    "kafka.frames": ("KafkaRequest",),
    "kafka.server": ("KafkaServer",),
    "proxy": ("FaultProxy",),
    "servers": ("RedisServer", "embedded_redis"),
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
