"""Credentials that a streaming provider rotates while connections are open."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any

from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from typing import TypeAlias

    from redis.asyncio.connection import ConnectionPool

    from .multiplexer import Multiplexer

    _Follower: TypeAlias = tuple[weakref.ref[ConnectionPool], weakref.ref[Multiplexer]]

_log = logging.getLogger("resilient_io.redis")

_ATTRIBUTE = "_resilient_io_followers"
"""Of a provider: the pools and multiplexers that use it."""


def follow_credentials(pool: ConnectionPool, multiplexer: Multiplexer) -> None:
    """Send AUTH on every open connection when a streaming provider rotates the credentials.

    A refused AUTH is logged and leaves the connection authenticated as before. A provider has a
    single listener, so that one serves all clients and nodes with this provider, and also calls the
    listener of redis-py's pools.
    """
    provider = pool.connection_kwargs.get("credential_provider")
    if not isinstance(provider, StreamingCredentialProvider):
        return
    followers: list[_Follower] = getattr(provider, _ATTRIBUTE, [])
    followers[:] = [each for each in followers if each[1]() not in (None, multiplexer)]
    followers.append((weakref.ref(pool), weakref.ref(multiplexer)))
    setattr(provider, _ATTRIBUTE, followers)

    async def rotate(token: Any) -> None:
        # At the same time: a server that does not answer must not delay the others.
        await asyncio.gather(*(_rotate(pool(), known(), token) for pool, known in followers))

    # Typed for a plain function; redis-py 8.1 itself registers a coroutine function here.
    provider.on_next(rotate)  # type: ignore[arg-type]


async def _rotate(pool: ConnectionPool | None, living: Multiplexer | None, token: Any) -> None:
    if pool is not None:
        await pool.re_auth_callback(token)
    if living is None:
        return
    secret = token.get_value()
    living.target.remember(secret)
    for connection in living.connections:
        try:
            await connection.query("AUTH", token.try_get("oid"), secret)
        except (RedisError, OSError) as error:
            name = living.health.name
            _log.warning(
                "%s: the server refused rotated credentials; the old ones stay in use: %s",
                name,
                living.target.failure(error).detail,
                extra={"event": "credentials_refused", "dependency": name},
            )
