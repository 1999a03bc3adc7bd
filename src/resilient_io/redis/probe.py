"""How health asks Redis: in band on idle lanes, or over a new connection when something failed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import RedisError, ResponseError

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed

from .connect import abort, ask_over, dial
from .connection import LaneLost, Ticket
from .errors import connection_failure, refusal

if TYPE_CHECKING:
    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .connect import Target
    from .multiplexer import Lanes

_PING = b"*1\r\n$4\r\nPING\r\n"


class RedisProbe:
    """Asks PING, and ROLE while writes are refused because the server is a replica."""

    def __init__(
        self, *, lanes: Lanes, target: Target, policy: RetryPolicy, health: Dependency
    ) -> None:
        """Prepare; health calls it with whether something was seen to fail."""
        self._lanes = lanes
        self._target = target
        self._policy = policy
        self._health = health

    async def __call__(self, suspicious: bool) -> float:
        """Return the seconds that the answer took.

        Raises:
            ProbeFailed: It does not answer, or answers that it does not serve.
            ProbeDegraded: It answers, but not all of its work can be done.
        """
        began = asyncio.get_running_loop().time()
        try:
            if suspicious or not self._lanes.open_lanes:
                await self._ask_anew()
            else:
                await self._ask_in_band()
        except (RedisError, OSError) as error:
            failure = connection_failure(error, tls=self._target.uses_tls)
            if self._lanes.open_lanes and failure.definite:
                # Only new connections fail, as long as an old one answers.
                await self._ask_in_band()
                raise ProbeDegraded(failure.cause, failure.detail) from error
            raise ProbeFailed(failure.cause, failure.detail, definite=failure.definite) from error
        return asyncio.get_running_loop().time() - began

    async def _ask_in_band(self) -> None:
        """Ping every lane: one that a load balancer forgot is noticed before it is needed."""
        tickets = []
        for lane in self._lanes.open_lanes:
            ticket = Ticket(_PING)
            lane.send_ticket(ticket)
            tickets.append(ticket)
        for ticket in tickets:
            reply = await ticket.future
            if isinstance(reply, LaneLost):
                definite = reply.cause is not Cause.TIMED_OUT
                raise ProbeFailed(reply.cause, reply.detail, definite=definite)
            if isinstance(reply, Exception):
                _read_refusal(reply)

    async def _ask_anew(self) -> None:
        connection = await dial(
            self._target,
            client_name=None,
            timeout=self._policy.connect_timeout,
            user_timeout=self._policy.response_timeout,
        )
        ask = ask_over(connection, self._policy.response_timeout)
        try:
            try:
                await ask("PING")
                if self._health.refusing and self._health.cause is Cause.READ_ONLY:
                    await self._ask_role(ask)
            except RedisError as error:
                _read_refusal(error)
                if not isinstance(error, ResponseError):
                    raise
        finally:
            abort(connection)

    async def _ask_role(self, ask: object) -> None:
        role = await ask("ROLE")  # type: ignore[operator]
        if role and role[0] not in (b"master", "master"):
            raise ProbeDegraded(Cause.READ_ONLY, "the server says that it is a replica")


def _read_refusal(error: Exception) -> None:
    """Raise what an error reply says of the server; any other is an answer, if to no question."""
    meaning = refusal(error)
    if meaning is None:
        return
    if meaning.degraded:
        raise ProbeDegraded(meaning.cause, str(error)) from error
    raise ProbeFailed(meaning.cause, str(error), definite=True) from error
