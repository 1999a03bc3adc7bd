"""Redis: the client, its errors and its options."""

from __future__ import annotations

from .client import ResilientRedis
from .cluster import ResilientClusterPipeline, ResilientRedisCluster
from .errors import (
    CrossSlotKeys,
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
    "CrossSlotKeys",
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
    "ResilientClusterPipeline",
    "ResilientLock",
    "ResilientPipeline",
    "ResilientRedis",
    "ResilientRedisCluster",
    "RouteRefused",
]
