"""Read the URLs that name servers, and tell those of Redis from those of Kafka."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from resilient_io.errors import ConfigurationError
from resilient_io.text import quote_url
from resilient_io.urls import (
    ENCODE,
    KAFKA_SCHEMES,
    check_options,
    quoting_url,
    read_kafka_url,
    split_url,
)

if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool

_SENTINEL_SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix", *_SENTINEL_SCHEMES)
_ANY: Final = (
    "use redis://host:6379/0, rediss://… (TLS), unix:///path, kafka://host:9092,host:9092, "
    "kafkas://… (TLS) or redis+sentinel://host:26379,host:26379/mymaster"
)
_HOST_AND_PORT: Final = re.compile(r"[A-Za-z0-9.-]{1,80}:(\d{1,5})\Z")
_KAFKA_PORTS: Final = (9092, 9093, 9094, 19092, 29092)

_REDIS: Final = (
    "use redis://[user[:password]@]host[:port][/db], rediss://…, unix:///path or "
    "redis+sentinel://host:26379,host:26379/mymaster"
)
WRONG_PASSWORD: Final = f"Check user and password, and whether the secret was rotated. {ENCODE}."


def kind_of(url: str) -> Literal["redis", "kafka"]:
    """Return which kind of server a URL names."""
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if separator and scheme in _REDIS_SCHEMES:
        return "redis"
    if separator and scheme in KAFKA_SCHEMES:
        return "kafka"
    if separator:
        raise ConfigurationError(f"unsupported scheme of the URL {quote_url(url)}: {_ANY}")
    match = _HOST_AND_PORT.match(url)
    if match is None:  # not quoted: it may be a password
        raise ConfigurationError(f"invalid URL: no scheme; {_ANY}")
    meant = "kafka" if int(match[1]) in _KAFKA_PORTS else "redis"
    raise ConfigurationError(f"invalid URL {url!r}: no scheme. Did you mean {meant}://{url}?")


def name_of(url: str) -> str:
    """Return the name of the server of a URL, without credentials: "redis cache:6379/0"."""
    if kind_of(url) == "redis":
        from resilient_io.redis.connect import RedisTarget  # noqa: PLC0415 - only the driver needed

        return f"redis {RedisTarget(read_redis_url(url)).name}"
    from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415 - as above

    return KafkaTarget(read_kafka_url(url)["bootstrap_servers"]).name


def read_redis_url(url: str) -> ConnectionPool:
    """Return redis-py's pool for the URL of a Redis server; nothing is connected."""
    from redis.asyncio.connection import ConnectionPool  # noqa: PLC0415 - only the driver needed

    from resilient_io.redis.options import pool_from_url  # noqa: PLC0415 - as above

    if url.partition("://")[0].lower() in _SENTINEL_SCHEMES:
        return pool_from_url(url, {})
    if split_url(url) is None:
        raise ConfigurationError(f"invalid Redis URL {quote_url(url)}: {_REDIS}; {ENCODE}")
    pool: ConnectionPool = pool_from_url(url, {})
    accepted: set[str] = set()
    for kind in (ConnectionPool, *pool.connection_class.__mro__):
        accepted.update(inspect.signature(kind).parameters)
    with quoting_url(url, of="Redis"):
        check_options(urlsplit(url).query, accepted, of="Redis")
    return pool
