"""Durable writes: a write is followed by WAIT, and its caller learns whether replicas have it.

WAIT delays everything behind it on its connection, for as long as its timeout if a replica is gone.
So durable writes use an exclusive connection; the calls of other callers are not delayed. Those
that are made while one WAIT is in flight are sent together with the next one: a group. The writes
and WAIT are sent in one write to the socket. WAIT means nothing on another connection than that of
the writes: if the connection is lost in between, they were applied, and it is unknown how many
replicas have them.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

from hiredis import pack_command
from redis.exceptions import RedisError

from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.tasks import log_task_death
from resilient_io.text import clean_text

from .attempt import (
    AttemptFailed,
    Call,
    Limits,
    MultiplexedCall,
    expired_while_waiting,
    note_loss,
)
from .commands import Effect, Route, changes_data
from .connection import PendingRequest
from .errors import CLOSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from .commands import CommandSpec
    from .executor import Executor
    from .options import Durability
    from .runtime import Runtime


class Acknowledgements:
    """What the server replied to WAIT for one call. A call may take several exchanges."""

    def __init__(self, durability: Durability, groups: DurableGroups) -> None:
        self.durability = durability
        self.groups = groups
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
        """Note that the reply to WAIT did not come for a write that was applied."""
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
    return spec.route is Route.MULTIPLEXED and changes_data(spec, args)


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
            applied=_last_applied,
            limits=limits,
            timeout=self._timeout,
        )
        if isinstance(reply, AttemptFailed):
            note_loss(self._lost, reply)
        # Those before the last one are the replies to the commands before it.
        return reply[-1] if isinstance(reply, list) else reply

    async def _send_alone(self, request: PendingRequest, limits: Limits, timeout: float) -> Any:
        return await self._exchange_alone(
            request, call=self, limits=limits, timeout=timeout, suspect=bool(self._lost)
        )


async def exchange_and_wait(
    request: PendingRequest,
    acknowledgements: Acknowledgements,
    *,
    send: Callable[[PendingRequest, Limits, float], Awaitable[Any]],
    applied: Callable[[list[object]], bool],
    limits: Limits,
    timeout: float,
) -> Any:
    """Send a request followed by WAIT. Return the replies to the request, as a list.

    The reply to WAIT counts if a write was `applied` according to these replies. Whatever `send`
    returns instead of replies is returned if the request was not answered.
    """
    durability = acknowledgements.durability
    seconds = durability.wait_for(limits.until)
    if seconds == durability.timeout and not request.large:
        reply = await acknowledgements.groups.send(request, limits)
        if reply is not _ALONE:
            return _take(reply, request, acknowledgements, applied)
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
    request.connection = both.connection
    return _take(_Answered.of(reply, both, 0, count), request, acknowledgements, applied)


def _take(
    answered: _Answered,
    request: PendingRequest,
    acknowledgements: Acknowledgements,
    applied: Callable[[list[object]], bool],
) -> Any:
    """Return the replies to a request, or else the failed attempt, and take that to WAIT."""
    request.replies = answered.replies
    if len(answered.replies) < request.count:
        return answered.result
    if not applied(answered.replies):
        pass  # a replica refuses the write and WAIT, and the next attempt may reach the master
    # If everything was answered but WAIT, there is nothing to repeat.
    elif isinstance(answered.result, AttemptFailed):
        acknowledgements.add_problem(answered.result.detail)
    else:
        acknowledgements.add(answered.result)
    return answered.replies


class _Answered(NamedTuple):
    """The replies to one request of a group, and that to WAIT or what came instead of it."""

    replies: list[object]
    result: object

    @classmethod
    def of(cls, reply: object, both: PendingRequest, start: int, count: int) -> _Answered:
        """Return what belongs to the `count` commands from `start` on."""
        replies = both.replies[start : start + count]
        return cls(replies, reply[-1] if isinstance(reply, list) else reply)


_ALONE = object()
"""What `DurableGroups.send` returns if too little time is left to wait as long as the others."""


class _Member:
    """A request that waits for the next group, or is part of it."""

    __slots__ = ("future", "group", "limits", "request")

    def __init__(self, request: PendingRequest, limits: Limits) -> None:
        self.request = request
        self.limits = limits
        self.group: PendingRequest | None = None  # the request of the whole group
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def sent(self) -> bool:
        """Whether any part of its group was passed to a transport."""
        return self.group is not None and self.group.sent

    def settle(self, result: object) -> None:
        """End the wait of the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(result)


class _GroupCall(Call):
    """A group, for the pool: it is not repeated, each of its calls is decided by itself."""

    operation = "WAIT"

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice; the worst one, because its calls may be any writes."""
        return Effect.NON_IDEMPOTENT


class DurableGroups:
    """Sends the durable writes of all callers in groups, each followed by one WAIT."""

    def __init__(self, runtime: Runtime, durability: Durability) -> None:
        self._runtime = runtime
        self._durability = durability
        self._forming: list[_Member] = []
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, runtime: Runtime, durability: Durability) -> DurableGroups:
        """Return the groups of all clients on one runtime that require the same durability."""
        return runtime.companion(_GroupsByDurability, lambda: _GroupsByDurability(runtime)).find(
            durability
        )

    async def send(self, request: PendingRequest, limits: Limits) -> Any:
        """Send a request with the next group, and return the replies. Cancelling withdraws it."""
        member = _Member(request, limits)
        task, loop = self._task, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            self._forming = []
            # In an empty context: it outlives the call that starts it, and the call's deadline.
            self._task = loop.create_task(
                self._run(), name="resilient-io redis durable writes", context=Context()
            )
            self._task.add_done_callback(log_task_death)
        self._forming.append(member)
        try:
            async with asyncio.timeout_at(limits.until):
                return await member.future
        except TimeoutError:
            return _Answered([], self._expired(member))
        finally:
            member.future.cancel()

    def _expired(self, member: _Member) -> AttemptFailed:
        if not member.sent:
            return expired_while_waiting(self._runtime.multiplexer.obstacle, overloaded=False)
        return AttemptFailed(
            progress=Progress.MAYBE_APPLIED,
            cause=Cause.TIMED_OUT,
            detail="no reply before the deadline",
            timed_out=True,
            expired=True,
        )

    async def aclose(self) -> None:
        """End the group that is in flight, and those that wait. Idempotent."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        """Send group after group, until no write waits."""
        members: list[_Member] = []
        try:
            while self._forming:
                members, self._forming = self._forming, []
                members = [each for each in members if self._joins(each)]
                if members:
                    await self._send_group(members)
        finally:  # the client is closing, otherwise nothing is left
            for member in [*members, *self._forming]:
                progress = Progress.MAYBE_APPLIED if member.sent else Progress.NOT_SENT
                member.settle(_Answered([], AttemptFailed.because(CLOSED, progress)))

    def _joins(self, member: _Member) -> bool:
        if member.future.done():
            return False
        if self._durability.wait_for(member.limits.until) < self._durability.timeout:
            member.settle(_ALONE)
            return False
        return True

    async def _send_group(self, members: Sequence[_Member]) -> None:
        runtime, seconds = self._runtime, self._durability.timeout
        words: tuple[Any, ...] = self._durability.command(seconds)
        raw: list[int] = []
        count = 0
        for member in members:
            raw += [count + position for position in member.request.raw]
            count += member.request.count
        both = PendingRequest(
            b"".join([*(bytes(member.request.data) for member in members), pack_command(words)]),
            count=count + 1,
            raw=frozenset(raw),
            extra_timeout=seconds,
        )
        for member in members:
            member.group = both
        reply = await runtime.pool.exchange(
            both,
            call=_GroupCall(),
            limits=_latest([member.limits for member in members]),
            timeout=runtime.policy.response_timeout + seconds,
        )
        start = 0
        for member in members:
            request = member.request
            request.connection = both.connection
            member.settle(_Answered.of(reply, both, start, request.count))
            start += request.count


class _GroupsByDurability:
    """The groups of one runtime: one at a time for each durability in use."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._groups: dict[Durability, DurableGroups] = {}

    def find(self, durability: Durability) -> DurableGroups:
        """Return the groups of one durability."""
        found = self._groups.get(durability)
        if found is None:
            found = self._groups[durability] = DurableGroups(self._runtime, durability)
        return found

    async def aclose(self) -> None:
        """End all groups."""
        for groups in list(self._groups.values()):
            await groups.aclose()


def _latest(limits: Sequence[Limits]) -> Limits:
    """Return the limits within which every member of a group may still be answered."""
    until = [each.until for each in limits]
    sent = [each.sent for each in limits]
    return Limits(
        None if None in until else max(each for each in until if each is not None),
        None if None in sent else max(each for each in sent if each is not None),
        outage_wait=max(each.outage_wait for each in limits),
    )


def _last_applied(replies: list[object]) -> bool:
    """Return whether the last command was not refused."""
    return not isinstance(replies[-1], Exception)


def any_replicated(specs: Iterable[CommandSpec], commands: Iterable[Sequence[object]]) -> bool:
    """Return whether one of several commands changes data that replicas have."""
    return any(is_replicated(spec, args) for spec, args in zip(specs, commands, strict=True))


def any_applied(
    specs: Iterable[CommandSpec], commands: Iterable[Sequence[object]], replies: Iterable[object]
) -> bool:
    """Return whether a command that changes data of replicas is among those that succeeded."""
    return any(
        not isinstance(reply, Exception) and is_replicated(spec, args)
        for spec, args, reply in zip(specs, commands, replies, strict=False)
    )
