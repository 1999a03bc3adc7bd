"""From where `watch` looks: the clients' own health, with each answer counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from resilient_io.doctor import read_kafka_url
from resilient_io.doctor.urls import KAFKA_SCHEMES, REDIS_SCHEMES
from resilient_io.errors import ConfigurationError
from resilient_io.health import Dependency, HealthSettings, ProbeDegraded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from resilient_io.health import Attachment

__all__ = ["Vantage", "Watched", "name_of", "vantages"]

_KNOCK = 0.15
_KNOCK_CAP = 2.0


def _unheard(_latency: float) -> None:
    pass


class Watched(Dependency):
    """A dependency that passes on how long each of its probes' answers took.

    Args:
        name: How it is called.
        interval: Seconds between probes while it is up; never longer while it is down.
        timeout: Seconds after which a probe has failed.

    Attributes:
        answered: Is called with the seconds that an answer took.
    """

    def __init__(self, name: str, *, interval: float, timeout: float) -> None:
        knock = min(_KNOCK, interval)
        settings = HealthSettings(
            interval=interval,
            timeout=timeout,
            reconnect_interval=knock,
            reconnect_interval_cap=max(min(_KNOCK_CAP, interval), knock),
        )
        super().__init__(name, settings=settings)
        self.answered: Callable[[float], object] = _unheard

    def start(
        self, probe: Callable[[bool], Awaitable[float]], *, last_reply: Callable[[], float]
    ) -> Attachment:
        """Attach a client, and listen to its probe."""

        async def heard(suspicious: bool) -> float:  # noqa: FBT001 (the probe's signature)
            try:
                latency = await probe(suspicious)
            except ProbeDegraded as answer:
                if answer.latency is not None:
                    self.answered(answer.latency)
                raise
            self.answered(latency)
            return latency

        return super().start(heard, last_reply=last_reply)


def name_of(url: str) -> str:
    """Say which server a URL names, without a login: as whoever connects to it reads it.

    Raises:
        ConfigurationError: It cannot be understood; the message does not quote it.
    """
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme in REDIS_SCHEMES:
        from resilient_io.redis.connect import RedisTarget  # noqa: PLC0415
        from resilient_io.redis.options import pool_from_url  # noqa: PLC0415 (when needed)

        return f"redis {RedisTarget(pool_from_url(url, {})).name}"
    if scheme in KAFKA_SCHEMES:
        from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415 (when needed)

        return KafkaTarget(read_kafka_url(url)["bootstrap_servers"]).name
    raise ConfigurationError(
        "a URL names no server: write redis://host:6379/0, rediss://… (TLS), unix:///path, "
        "kafka://host:9092,host:9092 or kafkas://… (TLS)"
    )


class Vantage(Protocol):
    """A place to watch a dependency from."""

    health: Watched

    async def open(self) -> None:
        """Begin; never waits for the dependency."""

    async def aclose(self) -> None:
        """End."""


class _OfRedis:
    def __init__(self, url: str, interval: float, timeout: float) -> None:
        from resilient_io.redis import ConnectionSettings, ResilientRedis  # noqa: PLC0415
        from resilient_io.redis.options import pool_from_url  # noqa: PLC0415
        from resilient_io.retry import RetryPolicy  # noqa: PLC0415 (each driver when needed)

        pool = pool_from_url(url, {})
        self.health = Watched(name_of(url), interval=interval, timeout=timeout)
        policy = RetryPolicy(connect_timeout=timeout, response_timeout=timeout, deadline=None)
        self._client = ResilientRedis.from_pool(
            pool, policy=policy, health=self.health, connections=ConnectionSettings(count=1)
        )

    async def open(self) -> None:
        await self._client.initialize()

    async def aclose(self) -> None:
        await self._client.aclose()
        await self.health.aclose()


class _OfKafka:
    def __init__(self, url: str, interval: float, timeout: float) -> None:
        from resilient_io.kafka.connect import KafkaTarget  # noqa: PLC0415
        from resilient_io.kafka.probe import KafkaProbe  # noqa: PLC0415 (each driver when needed)

        options = read_kafka_url(url)
        target = KafkaTarget(options.pop("bootstrap_servers"), options)
        self.health = Watched(target.name, interval=interval, timeout=timeout)
        self._probe = KafkaProbe(target=target, timeout=timeout)

    async def open(self) -> None:
        self.health.start(self._probe, last_reply=self._probe.last_reply)

    async def aclose(self) -> None:
        await self.health.aclose()
        self._probe.close()


def vantages(urls: Sequence[str], *, interval: float, timeout: float) -> list[Vantage]:
    """Give a place to watch each server from.

    Args:
        urls: `redis://`, `rediss://`, `unix://`, `kafka://` or `kafkas://`.
        interval: Seconds between looks.
        timeout: Seconds after which a look has failed.

    Raises:
        ConfigurationError: A URL cannot be understood; none is quoted.
    """
    names = [name_of(url) for url in urls]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"{name} is named twice: write it once")
    return [
        (_OfRedis if name.startswith("redis ") else _OfKafka)(url, interval, timeout)
        for url, name in zip(urls, names, strict=True)
    ]
