"""Redis: the client, its errors and its options."""

from __future__ import annotations

from .client import RedisStats, ResilientRedis
from .cluster import ResilientRedisCluster
from .errors import (
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
    "LockLost",
    "RedisAuthenticationFailed",
    "RedisClosed",
    "RedisDeadlineExceeded",
    "RedisOutcomeUnknown",
    "RedisOverloaded",
    "RedisStats",
    "RedisUnavailable",
    "ResilientLock",
    "ResilientPipeline",
    "ResilientRedis",
    "ResilientRedisCluster",
    "RouteRefused",
]
