"""A blocking pop whose caller went away: ended so that no element is lost, where that can be.

Closing the connection would lose an element that is already on its way. So the server is asked,
over a lane, to unblock the connection; then its one reply is read. It is empty, or it is the
element, which is put back at the end it came from. Nobody waits for that: it is a bounded task of
the client's.

What cannot be helped: the server or the network fails in that moment, an ACL forbids CLIENT
UNBLOCK, or another consumer has taken later elements meanwhile (then the order changes). BLMOVE
and streams have none of these troubles.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from .call import Command
    from .dedicated import DedicatedConnections
    from .lanes import Lanes

_log = logging.getLogger("resilient_io.redis")

GRACE = 1.0
"""Seconds within which it has to be over; then the connection is closed."""


class Losses:
    """Elements that may have been lost: the first is logged, more are counted until it works again.

    In an outage every cancelled pop may lose one.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._count = 0

    def add(self, operation: str, error: Exception) -> None:
        """Note that a cancelled pop could not be ended cleanly."""
        self._count += 1
        if self._count == 1:
            _log.warning(
                "a cancelled %s could not be ended cleanly, so an element may be lost; "
                "more are counted until one can: %s",
                operation,
                str(error) or type(error).__name__,
                extra={"event": "element_perhaps_lost", "operation": operation},
            )

    def over(self) -> None:
        """Note that one could be ended, or that there will be none any more."""
        if self._count > 1:
            _log.warning(
                "%d more cancelled pops could not be ended cleanly meanwhile, so as many elements "
                "may be lost",
                self._count - 1,
                extra={"event": "elements_perhaps_lost", "count": self._count - 1},
            )
        self._count = 0


async def salvage(
    connection: AbstractConnection,
    command: Command,
    *,
    lanes: Lanes,
    dedicated: DedicatedConnections,
    losses: Losses,
) -> None:
    """End a blocking command that nobody waits for any more, and put back what it popped.

    Args:
        connection: The lent connection on which it blocks.
        command: The command.
        lanes: Where the server is asked.
        dedicated: Where the connection is given back.
        losses: Where it is noted when that fails.
    """
    clean = False
    try:
        async with asyncio.timeout(GRACE):
            await _ask(lanes, "CLIENT", "UNBLOCK", dedicated.identity(connection))
            # As bytes: what cannot be decoded has to go back as it was, too.
            reply: Any = await connection.read_response(disable_decoding=True)
            clean = True
            if reply is not None:
                for restoring in _RESTORE[command.spec.name](reply):
                    await _ask(lanes, *restoring)
    except (RedisError, OSError) as error:
        losses.add(command.spec.name, error)
    else:
        losses.over()
    finally:
        dedicated.give_back(connection, clean=clean)


def can_be_salvaged(command: Command) -> bool:
    """Tell whether the command pops elements that can be put back."""
    return command.spec.name in _RESTORE


async def _ask(lanes: Lanes, *words: Any) -> object:
    lane = lanes.current
    if lane is None:
        raise ConnectionResetError("there is no open lane to ask over")
    return await lane.ask(*words)


def _push(end: str) -> Callable[[Any], list[Sequence[Any]]]:
    def restore(reply: Any) -> list[Sequence[Any]]:
        key, element = reply
        return [(end, key, element)]

    return restore


def _add_back(reply: Any) -> list[Sequence[Any]]:
    key, member, score = reply
    return [("ZADD", key, "NX", score, member)]


_RESTORE: dict[str, Callable[[Any], list[Sequence[Any]]]] = {
    "BLPOP": _push("LPUSH"),
    "BRPOP": _push("RPUSH"),
    "BZPOPMIN": _add_back,
    "BZPOPMAX": _add_back,
}
"""How each pop is undone, from its raw reply."""
