"""Following the way of a connection to a server, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.errors import ConfigurationError
from resilient_io.validation import check_name, check_seconds

from .urls import KAFKA_SCHEMES, REDIS_SCHEMES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from .step import Step

__all__ = ["examine"]

_KINDS: Final = (
    "write redis://host:6379/0, rediss://… (TLS), unix:///path, kafka://host:9092,host:9092 or "
    "kafkas://… (TLS)"
)


def examine(
    url: str, *, timeout: float = 5.0, group: str | None = None, topics: Sequence[str] = ()
) -> AsyncGenerator[Step, None]:
    """Look at a Redis server or a Kafka cluster; yields one step after the other.

    It only reads: no key, record, offset or setting is touched. A step that could not look is
    `blind`, says why, and the next one goes on where that makes sense. Nothing is raised but for
    arguments that make no sense. Cancelling leaves at once, with nothing left open; so does
    `aclose()`, which `contextlib.aclosing` calls for those who stop early.

    Args:
        url: `redis://`, `rediss://`, `unix://`, as redis-py reads them, or `kafka://`, `kafkas://`,
            as `read_kafka_url` does. A password in it is never shown.
        timeout: Seconds for the whole look; what the caller does between the steps does not count.
        group: Consumer group of Kafka to look at.
        topics: Topics of Kafka to look at; none means all that may be seen.

    Raises:
        ConfigurationError: The URL or another argument makes no sense; the message says what to
            write, and does not quote the URL.
    """
    check_name("url", url)
    check_seconds("timeout", timeout)
    if group is not None:
        check_name("group", group)
    if isinstance(topics, str):
        raise ConfigurationError(f"topics={topics!r} is no list: write topics=[{topics!r}]")
    for topic in topics:
        check_name("topics", topic)
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme in REDIS_SCHEMES:
        if group is not None or topics:
            raise ConfigurationError("group= and topics= are about Kafka: leave them out for Redis")
        from .redis.examination import examine_redis  # noqa: PLC0415 - no driver before its use

        return examine_redis(url, timeout=timeout)
    if scheme in KAFKA_SCHEMES:
        from .kafka.examination import examine_kafka  # noqa: PLC0415 - as above

        return examine_kafka(url, timeout=timeout, group=group, topics=topics)
    raise ConfigurationError(f"the URL names no server that can be examined: {_KINDS}")
