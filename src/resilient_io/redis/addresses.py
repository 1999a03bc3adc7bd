"""Where a server is: the source of its address, its name's addresses, and which one is tried first.

A target asks its source at each connect attempt. `ConfiguredAddress` is the host of the settings,
`sentinel.SentinelAddress` asks Sentinels. The host may be a name with several addresses, of which
some may be dead: they are tried one after the other, without waiting for a silent one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import itertools
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import RedisError

from resilient_io.errors import ConfigurationError
from resilient_io.tasks import SharedTask

from .errors import CLOSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

Address: TypeAlias = tuple[str, int]

AddressMap: TypeAlias = Callable[[Address], Address] | Mapping[Address, Address]
"""How clients reach the servers whose addresses Sentinels or a cluster announce.

A function of the announced `(host, port)` that returns the `(host, port)` to connect to, or a
mapping of those that differ.
"""

Result = TypeVar("Result")

STAGGER = 0.25
"""Seconds after which the next address is tried, too, while an earlier one has not answered."""

_MOST_TRIED = 4  # addresses in one attempt; the next attempt continues with the others

_NO_ROUTE = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAFNOSUPPORT)


def check_address_map(address_map: object) -> None:
    """Raise ConfigurationError if an address map is not a function or a mapping of addresses."""
    use = "use {('10.0.0.5', 6379): ('localhost', 16379)} or a function of (host, port)"
    if isinstance(address_map, Mapping):
        for announced, reached in address_map.items():
            if not (_is_server(announced) and _is_server(reached)):
                raise ConfigurationError(
                    f"address_map={{{announced!r}: {reached!r}}} does not map (host, port) to "
                    f"(host, port): {use}"
                )
    elif address_map is not None and not callable(address_map):
        raise ConfigurationError(f"address_map={address_map!r} is invalid: {use}")


def map_address(address_map: AddressMap | None, announced: Address) -> Address:
    """Return where the server that was announced at an address is reached from here.

    Raises a `ConnectionError` of redis-py if the application's function fails.
    """
    if address_map is None:
        return announced
    if isinstance(address_map, Mapping):
        return address_map.get(announced, announced)
    try:
        reached = address_map(announced)
    # The boundary to the application's code, which may raise anything.
    except Exception as error:  # noqa: BLE001
        raise ConnectionLostError(
            f"address_map raised {type(error).__name__} for {announced!r}"
        ) from None
    if not _is_server(reached):
        raise ConnectionLostError(
            f"address_map returned {reached!r} for {announced!r}: return (host, port)"
        )
    host, port = reached
    return host, port


def _is_server(address: object) -> bool:
    if not isinstance(address, tuple | list) or len(address) != 2:  # noqa: PLR2004 (host, port)
        return False
    host, port = address
    return isinstance(host, str) and bool(host) and type(port) is int and 0 < port < 1 << 16


class Place(NamedTuple):
    """One address of a server."""

    host: str  # the host as it was configured or announced; TLS verifies it
    port: int
    address: str  # the IP address


class AddressSource(Protocol):
    """Knows where the server is at present."""

    async def find(self) -> Sequence[tuple[str, int]]:
        """Return the current host and port, or several that are equal, the preferred one first.

        An error of redis-py or an OSError is raised.
        """
        ...

    async def aclose(self) -> None:
        """End what is in flight. Idempotent."""
        ...


class ConfiguredAddress:
    """The host and port of the settings."""

    __slots__ = ("_address",)

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)

    async def find(self) -> Sequence[tuple[str, int]]:
        """Return the host and port."""
        return (self._address,)

    async def aclose(self) -> None:
        """Do nothing: it has no connections."""


def closed() -> Exception:
    """Return the error of a lookup that was ended when the client was closed."""
    return ConnectionLostError(CLOSED.detail)


class Places:
    """The current addresses of a server, those that have not failed lately first."""

    __slots__ = ("_failed", "_lookup", "_source")

    def __init__(self, source: AddressSource) -> None:
        self._source = source
        self._lookup = SharedTask("resilient-io redis name lookup", ended=closed)
        self._failed: dict[tuple[str, int], None] = {}  # address and port, the latest failure last

    async def find(self) -> list[Place]:
        """Ask the source, and look up host names. At most four addresses are returned."""
        servers = await self._source.find()
        places: list[Place] = []
        for host, port in servers:
            if is_address(host):
                addresses: Sequence[str] = (host,)
            elif len(servers) > 1:
                addresses = await _look_up(host, port)
            else:
                addresses = await self._lookup.result(lambda: _look_up(*servers[0]))
            places += [Place(host, port, address) for address in addresses]
        if self._failed:
            known = [(place.address, place.port) for place in places]
            self._failed = {failed: None for failed in self._failed if failed in known}
            rank = {failed: position for position, failed in enumerate(self._failed)}
            places.sort(key=lambda place: rank.get((place.address, place.port), -1))
        return places[:_MOST_TRIED]

    def avoid(self, address: str, port: int) -> None:
        """Try an address last from now on: it failed, or its server refuses writes."""
        self._failed.pop((address, port), None)
        self._failed[address, port] = None

    async def aclose(self) -> None:
        """End a lookup that is in flight. Idempotent."""
        await self._lookup.aclose()
        await self._source.aclose()


async def _look_up(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _type, _protocol, _name, address in found:
        families.setdefault(family, []).append(str(address[0]))
    # One of each family in turn: if IPv6 leads nowhere, an IPv4 address is tried next.
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*families.values()))
    return list(dict.fromkeys(address for address in mixed if address is not None))


@functools.lru_cache(maxsize=64)
def is_address(host: str) -> bool:
    """Return whether a host is an IP address."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


class Race(Generic[Result]):
    """Attempts at several places, each begun a little later, of which the first answer counts.

    Args:
        open_at: Makes the attempt at one place.
        discard: Called with the result of an attempt that succeeds at the same moment as another.
        avoid: Called with each place that failed or was slower than a later one.
        final: Whether the failure at one place ends the race: the next would refuse as well.
    """

    def __init__(
        self,
        open_at: Callable[[Place], Awaitable[Result]],
        *,
        discard: Callable[[Result], None],
        avoid: Callable[[Place], None],
        final: Callable[[Exception], bool],
    ) -> None:
        self._open_at = open_at
        self._discard = discard
        self._avoid = avoid
        self._final = final
        self._attempts: dict[asyncio.Task[Result], Place] = {}
        self._errors: list[Exception] = []

    async def run(self, places: Sequence[Place]) -> Result:
        """Return the first result. The next attempt begins after a failure, or after 0.25 s.

        If all fail, the error is raised that tells most. Cancelling ends all attempts.
        """
        winner: asyncio.Task[Result] | None = None
        remaining = list(places)
        try:
            while winner is None:
                running = [task for task in self._attempts if not task.done()]
                if remaining:
                    running.append(self._start(remaining.pop(0)))
                if not running:
                    raise min(self._errors, key=_is_local)
                done, _ = await asyncio.wait(
                    running,
                    timeout=STAGGER if remaining else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                winner = self._find_winner([task for task in running if task in done])
            return winner.result()
        finally:
            await self._end(winner)

    def _start(self, place: Place) -> asyncio.Task[Result]:
        async def attempt() -> Result:
            return await self._open_at(place)

        task = asyncio.get_running_loop().create_task(attempt(), name="resilient-io redis connect")
        self._attempts[task] = place
        return task

    def _find_winner(self, done: Sequence[asyncio.Task[Result]]) -> asyncio.Task[Result] | None:
        for task in done:
            try:
                task.result()
            except (RedisError, OSError) as error:
                if self._final(error):
                    raise
                self._errors.append(error)
            else:
                return task
        return None

    async def _end(self, winner: asyncio.Task[Result] | None) -> None:
        others = {task: place for task, place in self._attempts.items() if task is not winner}
        for task, place in others.items():
            self._avoid(place)
            task.cancel()
        unfinished = [task for task in others if not task.done()]
        if unfinished:
            await asyncio.wait(unfinished)
        for task in others:
            if not task.cancelled() and task.exception() is None:
                self._discard(task.result())


def _is_local(error: Exception) -> bool:
    """Return whether this host cannot reach an address: it has no IPv6, for example."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None and cause.errno in _NO_ROUTE
