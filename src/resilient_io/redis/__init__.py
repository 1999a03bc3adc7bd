"""Redis: the client, its errors and its options."""

from __future__ import annotations

from .client import ResilientRedis
from .cluster import ResilientRedisCluster
from .errors import (
    LockLost,
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisNotReplicated,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
    RouteRefused,
)
from .lock import ResilientLock
from .options import ConnectionSettings, Durability
from .pipeline import ResilientPipeline
from .stats import RedisStats

__all__ = [
    "ConnectionSettings",
    "Durability",
    "LockLost",
    "RedisAuthenticationFailed",
    "RedisClosed",
    "RedisDeadlineExceeded",
    "RedisNotReplicated",
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
