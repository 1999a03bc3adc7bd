"""Redis: the client, its lanes, its gate and its command table."""

from __future__ import annotations

from .client import ResilientRedis
from .errors import (
    RedisAuthenticationFailed,
    RedisClosed,
    RedisDeadlineExceeded,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
    RouteRefused,
)
from .lock import ResilientLock
from .pipeline import ResilientPipeline
from .report import RedisStats
from .settings import ConnectionSettings

__all__ = [
    "ConnectionSettings",
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
    "RouteRefused",
]
