"""Credentials that a streaming provider rotates while connections are open."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool

    from .multiplexer import Multiplexer
    from .subscription import Subscriptions

_log = logging.getLogger("resilient_io.redis")


def follow_credentials(
    pool: ConnectionPool, multiplexer: Multiplexer, subscriptions: Subscriptions
) -> None:
    """Send AUTH on every open connection when a streaming provider rotates the credentials.

    A refused AUTH is logged and leaves the connection authenticated as before. A provider has a
    single listener, so the listener of redis-py's pool is called, too.
    """
    provider = pool.connection_kwargs.get("credential_provider")
    if not isinstance(provider, StreamingCredentialProvider):
        return
    reference, subscribers = weakref.ref(multiplexer), weakref.ref(subscriptions)

    async def rotate(token: Any) -> None:
        await pool.re_auth_callback(token)
        living = reference()
        if living is None:
            return
        secret = token.get_value()
        living.target.remember(secret)
        subscribed = subscribers()
        queries = [connection.query for connection in living.connections]
        for query in [*queries, *(subscribed.queries if subscribed is not None else ())]:
            try:
                await query("AUTH", token.try_get("oid"), secret)
            except (RedisError, OSError) as error:
                name = living.health.name
                _log.warning(
                    "%s: the server refused rotated credentials; the old ones stay in use: %s",
                    name,
                    living.target.failure(error).detail,
                    extra={"event": "credentials_refused", "dependency": name},
                )

    # Typed for a plain function; redis-py 8.1 itself registers a coroutine function here.
    provider.on_next(rotate)  # type: ignore[arg-type]
