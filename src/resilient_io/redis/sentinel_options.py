"""Sentinels as an application names them: a list of addresses, or a URL.

Both become a pool of redis-py, the same as `redis.asyncio.Sentinel(...).master_for(...)` makes, so
that all of them lead to one kind of target. A URL has several hosts, which redis-py's do not:

```
redis+sentinel://[user:password@]s1:26379[,s2:26379…]/mymaster[/db][?option=value&…]
```

User and password are those of the servers. `rediss+sentinel` uses TLS for the servers and for the
Sentinels. Options are those of redis-py's URLs, for the servers; with the prefix `sentinel_` they
are for the Sentinels (`sentinel_username`, `sentinel_password`, `sentinel_ssl=no`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from resilient_io.errors import ConfigurationError
from resilient_io.text import format_address, quote_url
from resilient_io.urls import quoting_url
from resilient_io.validation import check_count, check_name

from .addresses import check_address_map, map_address
from .wrong_server import SENTINEL_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .addresses import Address, AddressMap

SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")

SENTINEL_FORM = "redis+sentinel://[user:password@]host:26379[,host:26379]/mymaster[/db]"

_PREFIX = "sentinel_"
_TLS_PREFIX = "ssl_"
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(?::(\d{1,5}))?")

_ADDRESS = re.compile(r"[^/?#]*")

_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '([a-z][a-z_]*)'")

_FOR_MANAGER = ("min_other_sentinels", "force_master_ip", "sentinel_kwargs", "address_map")
"""Options of `SentinelManager`, which `from_url` accepts, too."""


class SentinelManager(Sentinel):
    """redis-py's `Sentinel`, with a map from the announced addresses to those that are reached.

    Args:
        sentinels: Host and port of each Sentinel. They are not mapped.
        address_map: Applied to each address of a server that a Sentinel announces.
        **options: Those of redis-py's `Sentinel`.
    """

    def __init__(
        self,
        sentinels: Sequence[Address],
        *,
        address_map: AddressMap | None = None,
        **options: Any,
    ) -> None:
        super().__init__(sentinels, **options)  # type: ignore[no-untyped-call]
        self.address_map = address_map

    async def discover_master(self, service_name: str) -> Address:
        """Return where the master is reached."""
        address: Address = await super().discover_master(service_name)
        return map_address(self.address_map, address)

    async def discover_slaves(self, service_name: str) -> Sequence[Address]:
        """Return where the replicas are reached that the Sentinels take for alive."""
        replicas: Any = await super().discover_slaves(service_name)
        return [map_address(self.address_map, address) for address in replicas]


class _SentinelPool(SentinelConnectionPool):
    """redis-py's pool, which closes its own connections to the Sentinels, too."""

    async def aclose(self) -> None:
        """Close every connection."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def pool_from_sentinels(
    sentinels: Iterable[Address],
    service_name: str,
    options: Mapping[str, Any],
    *,
    sentinel_kwargs: Mapping[str, Any] | None = None,
    min_other_sentinels: int = 0,
    force_master_ip: str | None = None,
    address_map: AddressMap | None = None,
) -> SentinelConnectionPool:
    """Return a pool of redis-py for the master that Sentinels monitor.

    `options` are those of the connections to the servers. Raises ConfigurationError.
    """
    addresses = _check_sentinels(sentinels)
    check_name("service_name", service_name, example="mymaster")
    check_count("min_other_sentinels", min_other_sentinels, least=0)
    check_address_map(address_map)
    for name in ("host", "port", "path", "unix_socket_path"):
        if name in options:
            raise ConfigurationError(
                f"{name}= and Sentinels contradict each other: the Sentinels know where the server "
                f"is; omit {name}="
            )
    try:
        manager = SentinelManager(
            addresses,
            address_map=address_map,
            # As in redis-py: without them, the socket options apply to Sentinels, too.
            sentinel_kwargs=None if sentinel_kwargs is None else dict(sentinel_kwargs),
            min_other_sentinels=min_other_sentinels,
            force_master_ip=force_master_ip,
            **{key: value for key, value in options.items() if key.startswith("socket_")},
        )
    except TypeError as error:
        unknown = _UNKNOWN_OPTION.search(str(error))
        raise ConfigurationError(
            f"unknown option of the Sentinels{f': {unknown[1]!r}' if unknown else ''}; "
            f"sentinel_kwargs= and the options sentinel_… of a URL are those of redis.asyncio.Redis"
        ) from None
    return _SentinelPool(service_name, manager, **options)  # type: ignore[no-untyped-call]


def _check_sentinels(sentinels: object) -> list[Address]:
    use = "use [('sentinel-1', 26379), ('sentinel-2', 26379)]"
    if not isinstance(sentinels, list | tuple) or not sentinels:
        raise ConfigurationError(
            f"sentinels={_quote(sentinels)} is not a list of (host, port) with at least one: {use}"
        )
    addresses = []
    for each in sentinels:
        if not isinstance(each, list | tuple) or len(each) != 2:  # noqa: PLR2004 (host, port)
            raise ConfigurationError(f"{_quote(each)} in sentinels is not (host, port): {use}")
        host, port = each
        valid = isinstance(port, int | str) and str(port).isdecimal() and 0 < int(port) < 1 << 16
        if not isinstance(host, str) or not host or "/" in host or "@" in host or not valid:
            raise ConfigurationError(
                f"({_quote(host)}, {_quote(port)}) in sentinels is not (host, port): {use}"
            )
        addresses.append((host, int(port)))
    return addresses


def _quote(value: object) -> str:
    return quote_url(value) if isinstance(value, str) else repr(value)


def is_sentinel_url(url: str) -> bool:
    """Return whether a URL names Sentinels."""
    return url.partition("://")[0].lower() in SENTINEL_SCHEMES


def pool_from_sentinel_url(url: str, options: Mapping[str, Any]) -> SentinelConnectionPool:
    """Return a pool of redis-py for the URL of Sentinels. `options` override those of the URL.

    Raises ConfigurationError or ValueError. A text of the former quotes no part of a password.
    """
    scheme, _, rest = url.partition("://")
    address = _ADDRESS.match(rest)
    # Not by `urlsplit`, which rejects an IPv6 address behind another host.
    netloc = address[0] if address else ""
    parts = urlsplit(f"//{rest[len(netloc) :]}")
    login, at, servers = netloc.rpartition("@")
    with quoting_url(url, of="Sentinel"):
        sentinels = [_read_server(each) for each in servers.split(",") if each]
        service_name, db = _read_path(parts.path, sentinels)
    tls = scheme.lower() == "rediss+sentinel"
    query = parse_qsl(parts.query, keep_blank_values=True)
    manager = {name: value for name, value in query if name in _FOR_MANAGER[:2]}
    for_sentinels = {
        name.removeprefix(_PREFIX): value for name, value in query if name.startswith(_PREFIX)
    }
    for_servers = {
        name: value for name, value in query if name not in manager and not name.startswith(_PREFIX)
    }
    with quoting_url(url, of="Sentinel"):
        sentinel_tls = _read_flag("sentinel_ssl", for_sentinels.pop("ssl", None), default=tls)
    given: dict[str, Any] = _parse(f"{login}{at}", f"/{db}" if db else "", for_servers)
    if tls:
        given["ssl"] = True
        inherited = {key: given[key] for key in given if key.startswith(_TLS_PREFIX)}
    else:
        inherited = {}
    sentinel_kwargs: dict[str, Any] = {} if not sentinel_tls else {**inherited, "ssl": True}
    sentinel_kwargs |= _parse("", "", for_sentinels)
    sentinel_kwargs |= options.get("sentinel_kwargs") or {}
    own = {key: options[key] for key in _FOR_MANAGER if key in options}
    if "min_other_sentinels" in manager:
        with quoting_url(url, of="Sentinel"):
            own.setdefault("min_other_sentinels", _read_count(manager["min_other_sentinels"]))
    if "force_master_ip" in manager:
        own.setdefault("force_master_ip", manager["force_master_ip"])
    own["sentinel_kwargs"] = sentinel_kwargs
    given |= {key: value for key, value in options.items() if key not in _FOR_MANAGER}
    return pool_from_sentinels(sentinels, service_name, given, **own)


def _parse(login: str, path: str, query: Mapping[str, str]) -> dict[str, Any]:
    """Convert a login and options as redis-py does for its own URLs."""
    parsed = dict(parse_url(f"redis://{login}localhost{path}?{urlencode(query)}"))
    del parsed["host"]
    return parsed


def _read_server(text: str) -> Address:
    match = _SERVER.fullmatch(text)
    port = int(match[2] or SENTINEL_PORT) if match else 0
    if match is None or not 0 < port < 1 << 16:
        # Not quoted: it may be a part of a password that is not URL-encoded.
        raise ConfigurationError(
            f"a host cannot be parsed, or its port is not a number from 1 to 65535: use "
            f"{SENTINEL_FORM}; URL-encode special characters in user and password "
            f"(@ is %40, / is %2F, , is %2C)"
        )
    return unquote(match[1].strip("[]")), port


def _read_path(path: str, sentinels: Sequence[Address]) -> tuple[str, str]:
    """Return the name of the master and the database, which may be empty."""
    if not sentinels:
        raise ConfigurationError(f"it has no host: use {SENTINEL_FORM}")
    service_name, _, db = path.removeprefix("/").removesuffix("/").partition("/")
    if not service_name:
        where = ",".join(format_address(*each) for each in sentinels)
        raise ConfigurationError(f"it has no name of a master after {where}: use {SENTINEL_FORM}")
    if db and not db.isdecimal():
        raise ConfigurationError(
            f"the part after the name of the master is not the number of a database: use "
            f"{SENTINEL_FORM}"
        )
    return unquote(service_name), db


def _read_flag(name: str, value: str | None, *, default: bool) -> bool:
    if value is None:
        return default
    flag = _YES.get(value.lower())
    if flag is None:
        raise ConfigurationError(f"{name}= must be yes or no")
    return flag


def _read_count(value: str) -> int:
    if not value.isdecimal():
        raise ConfigurationError("min_other_sentinels= must be a number")
    return int(value)
