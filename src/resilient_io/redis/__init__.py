"""Redis: the client, its lanes, its gate and its command table."""

from __future__ import annotations

from .client import ResilientRedis
from .errors import (
    RedisClosed,
    RedisDeadlineExceeded,
    RedisLoginRefused,
    RedisOutcomeUnknown,
    RedisOverloaded,
    RedisUnavailable,
    RouteRefused,
)
from .lock import ResilientLock
from .pipeline import ResilientPipeline
from .report import RedisStats
from .settings import LaneSettings

__all__ = [
    "LaneSettings",
    "RedisClosed",
    "RedisDeadlineExceeded",
    "RedisLoginRefused",
    "RedisOutcomeUnknown",
    "RedisOverloaded",
    "RedisStats",
    "RedisUnavailable",
    "ResilientLock",
    "ResilientPipeline",
    "ResilientRedis",
    "RouteRefused",
]
