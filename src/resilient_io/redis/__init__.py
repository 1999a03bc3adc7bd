"""Redis: the client, its errors and its options."""

from __future__ import annotations

from .client import RedisStats, ResilientRedis
from .cluster import ResilientClusterPipeline, ResilientRedisCluster
from .errors import (
    CrossSlotKeys,
    LockLost,
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
    RouteRefused,
)
from .lock import ResilientLock
from .options import ConnectionSettings
from .pipeline import ResilientPipeline

__all__ = [
    "ConnectionSettings",
    "CrossSlotKeys",
    "LockLost",
    "RedisAuthenticationFailed",
    "RedisClosed",
    "RedisDeadlineExceeded",
    "RedisOutcomeUnknown",
    "RedisOverloaded",
    "RedisStats",
    "RedisUnavailable",
    "ResilientClusterPipeline",
    "ResilientLock",
    "ResilientPipeline",
    "ResilientRedis",
    "ResilientRedisCluster",
    "RouteRefused",
]
