"""The clients whose counters are read: their kinds and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    from resilient_io.kafka import ResilientKafkaConsumer, ResilientKafkaProducer
    from resilient_io.redis import ResilientRedis, ResilientRedisCluster

    Client: TypeAlias = (
        ResilientRedis | ResilientRedisCluster | ResilientKafkaProducer | ResilientKafkaConsumer
    )
    Clients: TypeAlias = Sequence[Client] | Mapping[str, Client]

Kind = Literal["redis", "producer", "consumer"]

_T = TypeVar("_T")


def kind_of(client: object) -> Kind:
    """Return the kind of a client. Its attributes decide, so that no driver is imported."""
    if hasattr(client, "stats") and hasattr(client, "liveness_failure"):
        if hasattr(client, "run_stats"):
            return "consumer"
        if hasattr(client, "send_and_wait"):
            return "producer"
        if hasattr(client, "execute_command"):
            return "redis"
    raise TypeError(
        f"clients must contain ResilientRedis, ResilientKafkaProducer or ResilientKafkaConsumer "
        f"objects, not {type(client).__name__}: pass clients=[redis, producer, consumer]"
    )


def name_clients(clients: object) -> dict[str, Any]:
    """Return the clients by name: the mapping's key, the client's own name, or its kind.

    A client's own name is its `name=`, or that of its dependency if no other client shares it.
    Names that occur twice are numbered from the second on.
    """
    if isinstance(clients, Mapping):
        for name, client in clients.items():
            if not isinstance(name, str):
                raise TypeError(f"a client's name must be a str, not {name!r}: {_EXAMPLE}")
            if not name:
                raise ConfigurationError(f"a client's name must not be empty: {_EXAMPLE}")
            kind_of(client)
        found = dict(clients)
    elif isinstance(clients, Sequence) and not isinstance(clients, str):
        found = dict(number_duplicates((_own_name(client, clients), client) for client in clients))
    else:
        raise TypeError(
            f"clients must be a sequence or a mapping, not {type(clients).__name__}: "
            f"pass clients=[redis] or {_EXAMPLE}"
        )
    _check_unique(found)
    return found


def number_duplicates(pairs: Iterable[tuple[str, _T]]) -> list[tuple[str, _T]]:
    """Return the pairs with unique names: a name that occurs again is followed by a number."""
    given = list(pairs)
    names = {name for name, _ in given}
    found: list[tuple[str, _T]] = []
    counts: dict[str, int] = {}
    for name, each in given:
        count = counts[name] = counts.get(name, 0) + 1
        chosen = name
        if count > 1:
            while (chosen := f"{name} {count}") in names:  # another one has this name already
                count += 1
            counts[name] = count
        found.append((chosen, each))
    return found


# What the default names of dependencies start with; the address follows.
_DEFAULT_NAMES = ("redis ", "kafka ")
_EXAMPLE = "pass clients={'cache': redis}"


def _own_name(client: Any, clients: Sequence[Any]) -> str:
    kind = kind_of(client)
    name = getattr(client, "name", None)
    if not isinstance(name, str) or not name:
        return kind
    if name == client.health.name:
        # Without `name=`, this is the name of the dependency, by default the server's address.
        shared = sum(getattr(each, "health", None) is client.health for each in clients) > 1
        if shared or name.startswith(_DEFAULT_NAMES):
            return kind
    return name


def _check_unique(clients: Mapping[str, Any]) -> None:
    """Reject clients that would be counted twice: views, and Redis clients on the same pool."""
    seen: dict[int, str] = {}
    for name, client in clients.items():
        # Private in resilient_io.redis: `with_policy()` and `client()` share their `_runtime`.
        counted = getattr(client, "_runtime", None) if kind_of(client) == "redis" else None
        first = seen.setdefault(id(client if counted is None else counted), name)
        if first != name:
            raise ConfigurationError(
                f"clients {first!r} and {name!r} are the same client, or one is a with_policy() "
                f"view of the other, or they share a connection_pool, and would be counted twice: "
                f"pass it once"
            )
