"""The clients whose counters are read: told apart by their shape, and named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from resilient_io.health import Dependency
    from resilient_io.kafka.consumer.stats import ConsumerStats
    from resilient_io.kafka.processing.stats import RunStats
    from resilient_io.kafka.producer.reports import ProducerStats
    from resilient_io.redis import RedisStats

__all__ = ["Consumer", "Kind", "Producer", "Redis", "kind_of", "named", "unique"]

T = TypeVar("T")

Kind = Literal["redis", "producer", "consumer"]


class _Client(Protocol):
    @property
    def health(self) -> Dependency: ...

    def liveness_failure(self) -> str | None: ...


class Redis(_Client, Protocol):
    """What is read of a `ResilientRedis`."""

    def stats(self) -> RedisStats:
        """Return its counters."""
        ...


class Producer(_Client, Protocol):
    """What is read of a `ResilientKafkaProducer`."""

    def stats(self) -> ProducerStats:
        """Return its counters."""
        ...


class Consumer(_Client, Protocol):
    """What is read of a `ResilientKafkaConsumer`."""

    @property
    def group_id(self) -> str | None:
        """The consumer group."""
        ...

    def stats(self) -> ConsumerStats:
        """Return its counters."""
        ...

    def run_stats(self) -> RunStats | None:
        """Return those of its `run`."""
        ...

    def known_lag(self) -> Mapping[tuple[str, int], int]:
        """Return how far it is behind."""
        ...


def kind_of(client: object) -> Kind:
    """Tell what a client is, without importing a driver that nobody uses.

    Raises:
        ConfigurationError: It is none of ours.
    """
    if hasattr(client, "stats") and hasattr(client, "liveness_failure"):
        if hasattr(client, "run_stats"):
            return "consumer"
        if hasattr(client, "send_and_wait"):
            return "producer"
        if hasattr(client, "execute_command"):
            return "redis"
    raise ConfigurationError(
        f"clients holds a {type(client).__name__}: write clients=[redis, producer, consumer], "
        f"with a ResilientRedis, ResilientKafkaProducer or ResilientKafkaConsumer"
    )


def named(clients: object) -> dict[str, object]:
    """Give each client a name: the caller's, or else what it is, with a number from the second on.

    Raises:
        ConfigurationError: They are neither a sequence nor a mapping, none of ours, or one is
            given twice.
    """
    if isinstance(clients, Mapping):
        for name in clients:
            if not isinstance(name, str) or not name:
                raise ConfigurationError(
                    f"{name!r} is no name of a client: write clients={{'cache': redis}}"
                )
        for client in clients.values():
            kind_of(client)
        found = dict(clients)
    elif isinstance(clients, Sequence):
        found = dict(unique((kind_of(client), client) for client in clients))
    else:
        raise ConfigurationError(
            f"clients={clients!r} is no list: write clients=[redis], or clients={{'cache': redis}}"
        )
    _check_that_none_is_twice(found)
    return found


def _check_that_none_is_twice(clients: Mapping[str, object]) -> None:
    """Refuse what would be counted twice: views of a Redis client share its counters."""
    seen: dict[int, str] = {}
    for name, client in clients.items():
        counted = getattr(client, "_engine", None) if kind_of(client) == "redis" else None
        first = seen.setdefault(id(client if counted is None else counted), name)
        if first != name:
            raise ConfigurationError(
                f"clients {first!r} and {name!r} are the same, or a with_policy() of it, and would "
                f"be counted twice: give it once"
            )


def unique(pairs: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Number those that have the same name, from the second on."""
    given = list(pairs)
    names = {name for name, _ in given}
    found: list[tuple[str, T]] = []
    counts: dict[str, int] = {}
    for name, each in given:
        count = counts[name] = counts.get(name, 0) + 1
        chosen = name
        if count > 1:
            while (chosen := f"{name} {count}") in names:  # somebody is called so
                count += 1
            counts[name] = count
        found.append((chosen, each))
    return found
