"""The health probe: PING over idle connections, or over a new one after a failure."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from redis.exceptions import RedisError, ResponseError

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed
from resilient_io.link import read_link
from resilient_io.text import clean_text

from .connect import connect
from .connection import ConnectionLost
from .driver_connection import StallTolerantTimeout, abort, query_over, socket_of
from .errors import refusal
from .ping_turns import PingTurns
from .standby import PING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.link import LinkState
    from resilient_io.retry import RetryPolicy

    from .connection import MultiplexedConnection
    from .multiplexer import Multiplexer

_PING_ALL = 5  # probes of a client, one of which also pings the connections that stand by


class RedisProbe:
    """Sends PING, and ROLE while writes are refused because the server is a replica."""

    __slots__ = (
        "_asked", "_connecting", "_multiplexer", "_pings", "_policy", "_refused_new", "turns",
    )  # fmt: skip

    def __init__(self, multiplexer: Multiplexer, policy: RetryPolicy, rng: random.Random) -> None:
        self._multiplexer = multiplexer
        self._policy = policy
        self.turns = PingTurns(multiplexer, rng)
        self._pings = 0
        self._connecting: AbstractConnection | None = None  # the new connection of a running probe
        self._refused_new = False
        """Whether the latest new connection was refused: PING over an open one says nothing."""
        self._asked = -math.inf  # when the latest probe of a suspicion began

    def links(self) -> list[LinkState]:
        """Return what the kernel knows about the open connections, if it tells."""
        connecting = None if self._connecting is None else read_link(socket_of(self._connecting))
        links = [connecting, self._multiplexer.first.link]
        return [*self._multiplexer.links(), *(link for link in links if link is not None)]

    def queued(self) -> float:
        """Return for how many seconds the first probe has waited for the turn to connect."""
        return self._multiplexer.first.queued

    def keep_alive(self) -> None:
        """Ping idle connections. One that is lost or silent is replaced like after any call."""
        multiplexer = self._multiplexer
        if multiplexer.bound or not multiplexer.connections:
            return
        if self.turns.replied_elsewhere() > -math.inf:
            return
        self.turns.note_ping()
        preferred = self._next_pinged()
        self._ping_idle(multiplexer.connections if preferred is None else [preferred])

    def _ping_idle(self, connections: Iterable[MultiplexedConnection]) -> None:
        for connection in connections:
            if not connection.in_flight:
                connection.ask(PING).add_done_callback(self._report_refusal)

    def _report_refusal(self, answer: asyncio.Future[object]) -> None:
        """Have the server probed if it answers that it does not serve.

        The answer counts as a sign of life, and would otherwise keep the probe from asking.
        """
        reports = self._multiplexer.reports
        try:
            self._check(answer.result())
            self.turns.note_answer()
        except ProbeFailed as problem:
            if problem.answered:  # the loss of a connection is reported by the connection
                reports.failed(problem.cause, problem.detail, answered=True)
        except ProbeDegraded as problem:
            reports.refused(problem.cause, problem.detail)

    async def __call__(self, suspicious: bool) -> float:
        """Probe the server, over a new connection if a failure was reported. Return the latency."""
        began = asyncio.get_running_loop().time()
        multiplexer = self._multiplexer
        # Never over a connection that is bound to a caller: in its MULTI, the reply would be one of
        # the caller's.
        if not multiplexer.first.ended and not multiplexer.bound:
            await self._try_first_connection()
        elif suspicious or self._doubts_open or multiplexer.bound or not multiplexer.connections:
            refused, self._asked = multiplexer.health.refused_at > self._asked, began
            if refused and multiplexer.connections and not multiplexer.bound:
                await self._ask_open()  # a new connection may take its time, or all of it
            elif not multiplexer.bound:
                # Replies overrule a new connection that hangs: in the lookup, for example.
                self._ping_idle(multiplexer.connections)
            await self._try_new_connection()
        else:
            await self._ping_open()
        return asyncio.get_running_loop().time() - began

    async def _try_first_connection(self) -> None:
        """Use the connection that the client is about to open anyway."""
        first = self._multiplexer.first
        await first.wait()
        if first.failure is not None:
            failure = first.failure
            raise ProbeFailed(failure.cause, failure.detail, definite=failure.definite)
        try:
            if self._multiplexer.connections:
                # After that, the client suspects its connections, too.
                async with StallTolerantTimeout(self._policy.response_timeout / 2):
                    await self._ping_all()
                return
        except ProbeFailed as problem:
            if problem.answered:
                raise
        except TimeoutError:
            pass
        await self._try_new_connection()  # it is silent, or was lost already

    async def _try_new_connection(self) -> None:
        multiplexer = self._multiplexer
        try:
            await self._ping_new_connection()
        except (RedisError, OSError) as error:
            failure = multiplexer.target.failure(error)
            problem = ProbeFailed(failure.cause, failure.detail, definite=failure.definite)
        except ProbeFailed as answer:
            problem = answer
        else:
            self._refused_new = False
            return
        if not problem.definite or not multiplexer.connections:
            raise problem from None
        # Only new connections fail, as long as an open one answers. One that is bound to a caller
        # cannot be asked: it counts as answering, unless the server itself refuses calls.
        if not multiplexer.bound:
            await self._ping_all()
        elif problem.answered:
            raise problem from None
        self._refused_new = True
        raise ProbeDegraded(problem.cause, problem.detail) from None

    async def _ask_open(self) -> None:
        """Raise if the server still answers that it does not serve. The first answer counts."""
        asked = [connection.ask(PING) for connection in self._multiplexer.connections]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        try:
            self._check(next(future for future in asked if future.done()).result())
        except ProbeFailed as problem:
            if problem.answered:  # a connection that was lost is replaced
                raise

    async def _ping_open(self) -> None:
        """Ping the connection in use, and sometimes all: a load balancer may forget one."""
        self.turns.note_ping()
        preferred = self._next_pinged()
        if preferred is None:
            await self._ping_all()
        else:
            self._check(await preferred.ask(PING))
        self.turns.note_answer()

    @property
    def _may_be_replica(self) -> bool:
        health = self._multiplexer.health
        return health.refusing and health.cause is Cause.READ_ONLY

    @property
    def _doubts_open(self) -> bool:
        """Whether to probe over a new connection, although the open ones answer.

        New ones are refused, or the name of the server may lead to a new master by now.
        """
        return self._refused_new or self._may_be_replica

    def _next_pinged(self) -> MultiplexedConnection | None:
        """Return the connection to ping, or None for all."""
        self._pings += 1
        return None if self._pings % _PING_ALL == 0 else self._multiplexer.preferred

    async def _ping_all(self) -> None:
        """Ping every open connection, so that one that a load balancer forgot is noticed."""
        futures = [connection.ask(PING) for connection in self._multiplexer.connections]
        for future in futures:
            self._check(await future)

    def _check(self, reply: object) -> None:
        if isinstance(reply, ConnectionLost):
            failure = reply.failure
            raise ProbeFailed(failure.cause, failure.detail, definite=failure.definite)
        if isinstance(reply, Exception):
            self._raise_refusal(reply)

    async def _ping_new_connection(self) -> None:
        timeout = self._policy.response_timeout
        try:
            connection = await connect(
                self._multiplexer.target,
                timeout=self._policy.connect_timeout,
                user_timeout=timeout,
                began=self._began,
            )
            await self._ping(connection)
        finally:
            self._connecting = None

    def _began(self, connection: AbstractConnection) -> None:
        self._connecting = connection

    async def _ping(self, connection: AbstractConnection) -> None:
        query = query_over(connection, self._policy.response_timeout)
        try:
            try:
                await query("PING")
                if self._may_be_replica:
                    role = await query("ROLE")
                    if role and role[0] not in (b"master", "master"):
                        detail = "the server says that it is a replica"
                        raise ProbeDegraded(Cause.READ_ONLY, detail)
            except RedisError as error:
                self._raise_refusal(error)
                if not isinstance(error, ResponseError):
                    raise
        finally:
            abort(connection)

    def _raise_refusal(self, error: Exception) -> None:
        """Raise what an error reply says about the server. Any other reply shows that it serves."""
        meaning = refusal(error)
        if meaning is None:
            return
        detail = clean_text(str(error), secrets=self._multiplexer.target.secrets)
        if meaning.degraded:
            raise ProbeDegraded(meaning.cause, detail) from None
        raise ProbeFailed(meaning.cause, detail, definite=True, answered=True) from None
