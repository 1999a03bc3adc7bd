"""Tools to test services that use Redis and Kafka, with the failures of real servers.

- `RedisServer`, `RedisSentinel`, `RedisServerCluster`, `KafkaServer` and `KafkaCluster` are servers
  to kill and freeze.
- `SentinelSetup` is a master with replicas and Sentinels, which fail over.
- `FaultProxy` drops replies, holds requests and slows down connections.
- `cancel_everywhere` cancels a coroutine at every point where it can be cancelled.
- `VirtualTimeLoop` is an event loop whose time jumps to the next timer.
- `resilient_io.testing.pytest_plugin` has fixtures for all of these.

Install them with `pip install "resilient-io[testing]"`. Apache Kafka also needs Java 17.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cancellation import CancelReport, Finding, Moment, Problem, cancel_everywhere
    from .clusters import ClusterShard, RedisClusterNode, RedisServerCluster, SlotMigration
    from .faults import Fault
    from .kafka.distribution import (
        ApacheKafka,
        Tansu,
        find_apache_kafka,
        find_embedded_kafka,
        find_kafka,
    )
    from .kafka.frames import KafkaRequest
    from .kafka.servers import (
        KafkaBroker,
        KafkaCluster,
        KafkaServer,
        TansuServer,
        embedded_kafka,
        local_kafka,
    )
    from .kafka.wire import produce_error
    from .process import NoServerError, ServerDidNotStartError, free_port
    from .proxy import FaultProxy, ProxiedConnection
    from .resp import Reply, Request, ServerError
    from .sentinels import SentinelSetup
    from .servers import (
        Binary,
        Certificates,
        RedisSentinel,
        RedisServer,
        embedded_redis,
        find_embedded_redis,
        find_redis,
        make_certificates,
    )
    from .virtual_time import NothingWillHappenError, VirtualTimeLoop, new_virtual_loop

__all__ = [
    "ApacheKafka",
    "Binary",
    "CancelReport",
    "Certificates",
    "ClusterShard",
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
    "RedisClusterNode",
    "RedisSentinel",
    "RedisServer",
    "RedisServerCluster",
    "Reply",
    "Request",
    "SentinelSetup",
    "ServerDidNotStartError",
    "ServerError",
    "SlotMigration",
    "Tansu",
    "TansuServer",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "embedded_kafka",
    "embedded_redis",
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

# The names are imported when they are first used: pytest imports this package for its plugin in
# every session, also in projects that do not use the servers.
_MODULES = {
    "cancellation": "CancelReport Finding Moment Problem cancel_everywhere",
    "clusters": "ClusterShard RedisClusterNode RedisServerCluster SlotMigration",
    "faults": "Fault",
    "kafka.distribution": "ApacheKafka Tansu find_apache_kafka find_embedded_kafka find_kafka",
    "kafka.frames": "KafkaRequest",
    "kafka.servers": "KafkaBroker KafkaCluster KafkaServer TansuServer embedded_kafka local_kafka",
    "kafka.wire": "produce_error",
    "process": "NoServerError ServerDidNotStartError free_port",
    "proxy": "FaultProxy ProxiedConnection",
    "resp": "Reply Request ServerError",
    "sentinels": "SentinelSetup",
    "servers": "Binary Certificates RedisSentinel RedisServer embedded_redis find_embedded_redis "
    "find_redis make_certificates",
    "virtual_time": "NothingWillHappenError VirtualTimeLoop new_virtual_loop",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
