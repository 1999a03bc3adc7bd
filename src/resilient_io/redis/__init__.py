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
from .lanes import LaneSettings
from .lock import ResilientLock
from .pipeline import ResilientPipeline
from .report import RedisStats

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
