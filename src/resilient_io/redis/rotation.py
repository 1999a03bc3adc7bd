"""Rotated credentials: living connections log in anew, without losing what is in flight."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from redis.credentials import StreamingCredentialProvider
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from redis.asyncio.connection import ConnectionPool

    from resilient_io.health import Dependency

    from .lanes import Lanes

_log = logging.getLogger("resilient_io.redis")


class Logged(Protocol):
    """Who has lanes that are logged in."""

    lanes: Lanes
    health: Dependency


def follow_credentials(pool: ConnectionPool, engine: Logged) -> None:
    """Have every lane send AUTH when a streaming provider hands out new credentials.

    A refused AUTH leaves the connection logged in as before; it is logged. Connections made later
    ask the provider themselves. A provider tells one listener only, so the pool that it told
    before is told by us.

    Args:
        pool: The client's pool; its settings name the provider, if there is one.
        engine: Whose lanes log in; it is not kept alive for that.
    """
    provider = pool.connection_kwargs.get("credential_provider")
    if not isinstance(provider, StreamingCredentialProvider):
        return
    followed = weakref.ref(engine)

    async def rotate(token: Any) -> None:
        await pool.re_auth_callback(token)
        living = followed()
        if living is None:
            return
        for lane in living.lanes.open_lanes:
            try:
                await lane.ask("AUTH", token.try_get("oid"), token.get_value())
            except (RedisError, OSError) as error:
                _log.warning(
                    "%s: rotated credentials were refused, the old login stays: %s",
                    living.health.name,
                    error,
                    extra={"event": "credentials_refused", "dependency": living.health.name},
                )

    # Typed for a plain function; redis-py 8.1 itself registers a coroutine function here.
    provider.on_next(rotate)  # type: ignore[arg-type]
