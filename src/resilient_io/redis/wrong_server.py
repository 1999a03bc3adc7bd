"""Servers of another kind than the client needs: what is wrong, and what to use instead.

A Sentinel, a server with data, a node of a cluster and a single server all speak RESP, and accept
connections of a client that needs another of them. Redis says so only indirectly ("unknown
command", MOVED), at the first command or never. The functions here find that out, and name the
constructor for the server that is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from redis import exceptions as driver
from redis.asyncio.sentinel import MasterNotFoundError

from resilient_io.errors import ConfigurationError
from resilient_io.text import clean_text, format_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

SENTINEL_PORT = 26379


class WrongServer(driver.ConnectionError):
    """The address leads to a server of another kind. The text says what to use instead."""


class UnknownMaster(WrongServer, MasterNotFoundError):
    """The Sentinels answer, but do not monitor a master of this name.

    Args:
        name: The name.
        monitored: The names that they monitor.
    """

    def __init__(self, name: str, monitored: Iterable[str]) -> None:
        known = " or ".join(repr(each) for each in sorted(set(monitored)))
        self.advice = f"use {known}" if known else "a Sentinel monitors no master at all"
        super().__init__(clean_text(f"no Sentinel knows a master {name!r}: {self.advice}"))


def no_sentinel(error: object, where: str) -> WrongServer | None:
    """Return the error for the address of a Sentinel where another server listens, or None.

    `error` is its reply to a command that every Sentinel knows.
    """
    if not _is_unknown_command(error):
        return None
    host, _, port = where.rpartition(":")
    return WrongServer(
        f"{where} is not a Sentinel but a server with data: pass the addresses of Sentinels (port "
        f"{SENTINEL_PORT} by default), or use ResilientRedis(host={host!r}, port={port})"
    )


def sentinel_instead_of_server(where: str) -> WrongServer:
    """Return the error for a Sentinel at the address of a server."""
    host, _, port = where.rpartition(":")
    return WrongServer(
        f"{where} is a Sentinel, which holds no data: use "
        f"ResilientRedis.from_sentinel([({host!r}, {port})], 'mymaster'), or the URL "
        f"redis+sentinel://{where}/mymaster/0, with the name of your master"
    )


def single_server(where: str) -> WrongServer:
    """Return the error for a single server at the address of a node of a cluster."""
    host, _, port = where.rpartition(":")
    return WrongServer(
        f"{where} is a single server, not a node of a cluster (cluster-enabled no): use "
        f"ResilientRedis(host={host!r}, port={port})"
    )


class NodeOfCluster(driver.MovedError):
    """The MOVED or ASK of a node of a cluster, in which a client of one node cannot follow it."""

    def __init__(self, reply: str, where: str) -> None:
        super().__init__(reply)
        self._where = where

    def __str__(self) -> str:
        """Return the reply, and what to use instead."""
        host, _, port = self._where.rpartition(":")
        return (
            f"{super().__str__()}: {self._where} is a node of a Redis Cluster: use "
            f"ResilientRedisCluster(host={host!r}, port={port}) instead of ResilientRedis"
        )

    def __reduce__(self) -> tuple[type[NodeOfCluster], tuple[str, str]]:
        """Pickle with the reply as the server sent it."""
        return type(self), (self.message, self._where)


def explain_reply(error: Exception, *, known: bool, where: str) -> Exception:
    """Return an error reply with a text that says what to use, if another server would help.

    Its class stays one of redis-py. `known` is whether the command is one of Redis, `where` the
    address that the client was given.
    """
    if isinstance(error, driver.AskError) and not isinstance(error, NodeOfCluster):
        return NodeOfCluster(str(error), where)
    if isinstance(error, driver.ClusterCrossSlotError):
        use = "in a cluster, all keys need the same slot: give them a common {hash tag}"
    elif known and _is_unknown_command(error):
        use = f"is {where} a Sentinel, a proxy or an older server? For Sentinels, use from_sentinel"
    else:
        return error
    if use not in str(error):
        error.args = (f"{error} ({use})",)
    return error


def check_pushes(option: str, *, needed: bool, protocol: object) -> None:
    """Raise if a call needs push messages, which a connection with RESP2 never receives.

    Raises:
        ConfigurationError: The client was created with `protocol=2`.
    """
    if needed and protocol not in (None, 3, "3"):
        raise ConfigurationError(
            f"{option} needs push messages, which RESP2 does not have: omit protocol={protocol}, "
            f"or use protocol=3"
        )


def needs_pushes(args: Sequence[object]) -> bool:
    """Return whether a command is CLIENT TRACKING ON whose reports go to its own connection."""
    words = [
        word.decode("ascii", "replace") if isinstance(word, bytes) else str(word) for word in args
    ]
    first, *rest = " ".join(words).upper().split(" TRACKING ")
    return (
        first == "CLIENT"
        and bool(rest)
        and rest[0].startswith("ON")
        and ("REDIRECT" not in rest[0].split())
    )


def wrong_database(db: object, detail: str, *, mode: str | None) -> str:
    """Return what is wrong with the number of a database that a server refused."""
    if mode == "cluster" or "cluster mode" in detail:
        return f"db={db}: a Redis Cluster has only database 0: use db=0 ({detail})"
    return f"db={db}: use a database that exists, by default 0 to 15 ({detail})"


_LOGIN_REQUIRED = ("HELLO must be", "Authentication required")
"""How a server begins its reply to a client that has not logged in. It describes the protocol."""


def wrong_login(detail: str, *, gave_password: bool) -> str:
    """Return why a server refused a login, and what to set."""
    if not gave_password and detail.startswith(_LOGIN_REQUIRED):
        return (
            "the server requires a password: use password=, and for an ACL user username=, or a "
            "URL that contains them"
        )
    if "username-password pair" in detail or "invalid password" in detail:
        return f"{detail.rstrip('.')}: check username= and password=, and the encoding of a URL"
    return detail


class HandshakeFacts:
    """What a server says about itself in the handshake, which redis-py reads and drops.

    With RESP2, HELLO is not sent, and so nothing is known.

    Args:
        connection: A connection that is not connected yet.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection: Any = connection
        self._read = connection.read_response
        self._facts: Mapping[Any, Any] = {}

    def __enter__(self) -> Self:
        self._connection.read_response = self._record
        return self

    def __exit__(self, *_: object) -> None:
        vars(self._connection).pop("read_response", None)

    async def _record(self, *args: Any, **options: Any) -> Any:
        reply = await self._read(*args, **options)
        if isinstance(reply, dict) and not self._facts:
            self._facts = reply
        return reply

    @property
    def mode(self) -> str | None:
        """Return "standalone", "cluster" or "sentinel", or None if the server has not said it."""
        mode = self._facts.get(b"mode", self._facts.get("mode"))
        return mode.decode("ascii", "replace") if isinstance(mode, bytes) else mode


def address_of(host: object, port: object) -> str:
    """Return an address for a message, without credentials that the host may contain."""
    name = str(host or "localhost").rpartition("@")[2]
    return clean_text(format_address(name, int(str(port))))


def _is_unknown_command(error: object) -> bool:
    return isinstance(error, driver.ResponseError) and "unknown command" in str(error).lower()
