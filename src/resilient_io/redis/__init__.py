"""Redis: the client, its errors and its options."""

from __future__ import annotations

from .client import ResilientRedis
from .cluster import ResilientClusterPipeline, ResilientClusterPubSub, ResilientRedisCluster
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
from .messages import Gap
from .options import ConnectionSettings, Durability
from .pipeline import ResilientPipeline
from .pubsub import ResilientPubSub
from .stats import RedisStats

__all__ = [
    "ConnectionSettings",
    "CrossSlotKeys",
    "Durability",
    "Gap",
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
    "ResilientClusterPubSub",
    "ResilientLock",
    "ResilientPipeline",
    "ResilientPubSub",
    "ResilientRedis",
    "ResilientRedisCluster",
    "RouteRefused",
]
