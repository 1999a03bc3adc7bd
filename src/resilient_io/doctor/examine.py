"""Examine the server that a URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_name, check_seconds

from .urls import kind_of, read_redis_url

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .steps import Step


def examine(
    url: str, *, timeout: float = 5.0, group: str | None = None
) -> AsyncGenerator[Step, None]:
    """Check the connection to a Redis server or a Kafka cluster; yield one step after the other.

    It only reads: no key, record, offset or setting is changed. A step that could not be checked
    has the status `unknown` and says why. Only wrong arguments raise an error. Cancelling ends the
    examination immediately and leaves nothing open; so does `aclose()`, which
    `contextlib.aclosing` calls if you stop early.

    Args:
        url: `redis://`, `rediss://` or `unix://`, as redis-py reads them; `redis+sentinel://` or
            `rediss+sentinel://`, as `ResilientRedis.from_url` does; or `kafka://` or `kafkas://`,
            as `read_kafka_url` does. A password in it is never shown. If a node of a Redis Cluster
            answers, all of its nodes are checked.
        timeout: Seconds for all steps; the time that the caller spends between them does not
            count.
        group: Kafka consumer group to check.

    Raises:
        ConfigurationError: An argument is wrong. The message does not quote a password.
    """
    check_name("url", url)
    check_seconds("timeout", timeout)
    if group is not None:
        check_name("group", group)
    if kind_of(url) == "redis":
        if group is not None:
            raise ConfigurationError("group= needs a Kafka URL; leave it out for Redis")
        # Only the driver that is needed is imported.
        from redis.asyncio.sentinel import SentinelConnectionPool  # noqa: PLC0415

        from .redis import examine_redis  # noqa: PLC0415
        from .sentinel import examine_sentinels  # noqa: PLC0415

        pool = read_redis_url(url)
        if isinstance(pool, SentinelConnectionPool):
            return examine_sentinels(pool, timeout=timeout)
        return examine_redis(pool, timeout=timeout)
    from .kafka import examine_kafka  # noqa: PLC0415 - as above

    return examine_kafka(url, timeout=timeout, group=group)
