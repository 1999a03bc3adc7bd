"""Durable writes: a write is followed by WAIT, and its caller learns whether replicas have it.

WAIT delays everything behind it on its connection, for as long as its timeout if a replica is gone.
So a durable write has an exclusive connection; the calls of other callers are not delayed. The
write and WAIT are sent in one write to the socket. WAIT means nothing on another connection than
that of the write: if the connection is lost in between, the write was applied, and it is unknown
how many replicas have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hiredis import pack_command
from redis.exceptions import RedisError

from resilient_io.text import clean_text

from .attempt import AttemptFailed, MultiplexedCall, note_loss
from .commands import Effect, Route, effect_of
from .connection import PendingRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from .attempt import Limits
    from .commands import CommandSpec
    from .executor import Executor
    from .options import Durability

_NOT_REPLICATED = (
    "ACL", "AUTH", "BGREWRITEAOF", "BGSAVE", "CLIENT", "CLUSTER", "CONFIG", "DEBUG", "FAILOVER",
    "HELLO", "LATENCY", "MEMORY", "MIGRATE", "MODULE", "MONITOR", "PUBLISH", "QUIT", "REPLICAOF",
    "RESET", "SAVE", "SCRIPT", "SELECT", "SENTINEL", "SHUTDOWN", "SLAVEOF", "SLOWLOG", "SPUBLISH",
    "WAIT", "WAITAOF",
)  # fmt: skip
"""First words of the commands that change something but no data of replicas."""


class Acknowledgements:
    """What the server replied to WAIT for one call. A call may take several exchanges."""

    def __init__(self, durability: Durability) -> None:
        self.durability = durability
        self.attempts = 0
        self._replicas: int | None = None  # the fewest of all exchanges
        self._synced = True
        self._problem = ""

    def add(self, reply: object) -> None:
        """Take the reply to WAIT or WAITAOF, which may be an error."""
        if isinstance(reply, Exception):
            self.add_problem(clean_text(str(reply)))
            return
        local, replicas = reply if isinstance(reply, list) else (1, reply)
        self._synced = self._synced and bool(local)
        count = int(str(replicas))
        self._replicas = count if self._replicas is None else min(count, self._replicas)

    def add_problem(self, detail: str) -> None:
        """Note that there is no reply to WAIT for a write that was applied."""
        self._problem = self._problem or detail

    @property
    def replicas(self) -> int | None:
        """How many replicas have the writes; None if that is unknown."""
        return None if self._problem else self._replicas

    @property
    def shortfall(self) -> str | None:
        """What the writes lack, in words, or None."""
        wanted, found = self.durability.replicas, self.replicas
        kind = " on disk" if self.durability.fsync else ""
        if found is None:
            why = self._problem or "no reply to WAIT"
            return f"applied, replicated to an unknown number of {wanted}{kind}: {why}"
        if not self._synced:
            return f"applied, not on disk yet, replicated to {found} of {wanted}{kind}"
        if found < wanted:
            return f"applied, replicated to {found} of {wanted}{kind}"
        return None

    def check(self, executor: Executor, operation: str, reply: object, started: float) -> None:
        """Raise if fewer replicas have the writes than required.

        Raises:
            RedisNotReplicated: The call was applied, and would have returned `reply`.
        """
        shortfall = self.shortfall
        if shortfall is not None:
            raise executor.not_replicated(
                operation,
                shortfall,
                reply=reply,
                replicas=self.replicas,
                attempts=self.attempts,
                started=started,
            )


def is_replicated(spec: CommandSpec, args: Sequence[object]) -> bool:
    """Return whether a command changes data that replicas have, too.

    A blocking pop does not count: its caller has the element when it is answered, and would lose
    it if it were cancelled while it waits for replicas.
    """
    return (
        spec.route is Route.MULTIPLEXED
        and spec.name.partition(" ")[0] not in _NOT_REPLICATED
        and effect_of(spec, args) is not Effect.READ
    )


async def wait_over(connection: AbstractConnection, acknowledgements: Acknowledgements) -> None:
    """Wait for replicas after writes on an exclusive connection of the caller."""
    durability = acknowledgements.durability
    try:
        await connection.send_command(*durability.command(durability.timeout))
        acknowledgements.add(await connection.read_response())
    except (RedisError, OSError) as error:
        acknowledgements.add_problem(clean_text(str(error)) or "timed out")


class DurableCall(MultiplexedCall):
    """One write and WAIT on an exclusive connection. `acknowledgements` has the result of WAIT.

    Args:
        *args: As for `MultiplexedCall`.
        acknowledgements: Receives the replies to WAIT.
        **options: As for `MultiplexedCall`.
    """

    def __init__(
        self,
        *args: Any,
        acknowledgements: Acknowledgements,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._acknowledgements = acknowledgements

    async def attempt(self, limits: Limits) -> object:
        """Send the write and WAIT, and wait for both replies."""
        self._acknowledgements.attempts += 1
        return await super().attempt(limits)

    async def _exchange(
        self, limits: Limits, request: PendingRequest | None = None, *, before: bytes = b""
    ) -> Any:
        request = self._request(limits, before)
        reply = await exchange_and_wait(
            request,
            self._acknowledgements,
            send=self._send_alone,
            limits=limits,
            timeout=self._timeout,
        )
        if isinstance(reply, AttemptFailed):
            note_loss(self._lost, reply)
        return reply[0] if isinstance(reply, list) and not before else reply

    async def _send_alone(self, request: PendingRequest, limits: Limits, timeout: float) -> Any:
        return await self._exchange_alone(
            request, call=self, limits=limits, timeout=timeout, suspect=bool(self._lost)
        )


async def exchange_and_wait(
    request: PendingRequest,
    acknowledgements: Acknowledgements,
    *,
    send: Callable[[PendingRequest, Limits, float], Awaitable[Any]],
    limits: Limits,
    timeout: float,
) -> Any:
    """Send a request followed by WAIT. Return the replies to the request, as a list.

    Whatever `send` returns instead of replies is returned if the request was not answered.
    """
    durability = acknowledgements.durability
    seconds = durability.wait_for(limits.until)
    words: tuple[Any, ...] = durability.command(seconds)
    count = request.count
    both = PendingRequest(
        request.data + pack_command(words),
        count=count + 1,
        raw=request.raw,
        large=request.large,
        extra_timeout=request.extra_timeout + seconds,
        expires=request.expires,
        movable=request.movable,
    )
    reply = await send(both, limits, timeout + seconds)
    request.connection, request.replies = both.connection, both.replies[:count]
    if isinstance(reply, list):
        acknowledgements.add(reply[count])
        return reply[:count]
    if len(both.replies) >= count and isinstance(reply, AttemptFailed):
        # Everything was answered but WAIT, so there is nothing to repeat.
        acknowledgements.add_problem(reply.detail)
        return both.replies[:count]
    return reply


def any_replicated(specs: Iterable[CommandSpec], commands: Iterable[Sequence[object]]) -> bool:
    """Return whether one of several commands changes data that replicas have."""
    return any(is_replicated(spec, args) for spec, args in zip(specs, commands, strict=True))
