"""A call of a cluster client: each attempt chooses a node, and the one retry loop repeats it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import AskError, MovedError, RedisError

from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.text import clean_text

from ..attempt import AttemptFailed, Call
from ..commands import Effect
from ..errors import CLOSED, REDIRECTED, refusal_in_cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilient_io.errors import ResilientIOError

    from ..attempt import Carrier, Limits
    from .nodes import Member
    from .replicas import ReplicaReads
    from .router import Router

    MakeCall = Callable[[Member, bool], Call]

OF_A_SCRIPT = "script: "
"""Part of an error that a command inside a script has caused: the script may have done more."""


class ClusterCall(Call):
    """A call that each attempt sends to the node which has its slot, or to which it is redirected.

    `make` returns the call to one node, and whether ASKING comes before it. A new one is made for
    each node; the attempts of all of them are those of this call.

    Args:
        router: Knows the owner of each slot.
        make: Makes the call to a node.
        operation: Name of the command.
        slot: The slot of its keys; None for a command without keys.
        member: The node to which it is sent first; None for the owner of the slot.
        first: The call to that node, if the hot path has begun it.
        importing: The node to which ASK has redirected the command, if the hot path has sent it.
        reads: Chooses the node, if replicas may answer.
        bounded: Whether the policy's deadline applies. A blocking command has its own time limit.
    """

    def __init__(
        self,
        router: Router,
        make: MakeCall,
        operation: str,
        *,
        slot: int | None,
        member: Member | None = None,
        first: Call | None = None,
        importing: Member | None = None,
        reads: ReplicaReads | None = None,
        bounded: bool = True,
    ) -> None:
        self._router = router
        self._make = make
        self._slot = slot
        self._fixed = member if first is None else None
        self._reads = reads
        self._failed: list[Member] = []  # nodes that did not answer a read
        self._member = member
        self._inner = first
        self._importing = importing  # gets the next attempt, with ASKING
        self._carrier_member: Member | None = None
        self.operation = operation
        self.bounded = bounded

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        # Without a node, nothing was sent.
        return Effect.READ if self._inner is None else self._inner.effect

    def describe(self, error: ResilientIOError) -> None:
        """Add the details of the call to the node."""
        if self._inner is not None:
            self._inner.describe(error)

    async def attempt(self, limits: Limits) -> object:
        """Send the call to the node that has the slot now."""
        member, asking = self._importing, self._importing is not None
        self._importing = None
        if self._member is not None and self._inner is not None and self.server is None:
            member = self._member  # the hot path has begun the call there: see what became of it
        else:
            found = member or await self._choose(limits)
            if isinstance(found, AttemptFailed):
                return found
            member = self._router.members.current(found)
            if not (member.ready or await _open(member, limits)):
                return limits.too_late()
            if self._router.closed:
                return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
        if self._inner is None or member is not self._member or asking:
            self._inner, self._member = self._make(member, asking), member
        self.server = member.server
        try:
            result = await self._inner.attempt(limits)
        except RedisError as error:
            failed = self._refused(error, member)
            if failed is None:
                raise
            result = failed
        if asking:
            self._member = None  # so that a new call is made, without ASKING
        if isinstance(result, AttemptFailed):
            self._failed.append(member)
            return self._judge(result, member)
        return result

    async def _choose(self, limits: Limits) -> Member | AttemptFailed:
        if self._fixed is not None:
            return self._fixed
        if self._slot is None:
            return await self._router.any_owner(limits)
        if self._reads is not None:
            chosen = self._reads.choose(self._slot, self._failed)
            if chosen is not None:
                return chosen
        return await self._router.owner(self._slot, limits)

    def _refused(self, error: Exception, member: Member) -> AttemptFailed | None:
        """Return the failed attempt that an error reply means if another attempt may succeed."""
        meaning = refusal_in_cluster(error)
        if meaning is None or OF_A_SCRIPT in str(error):
            return None
        if isinstance(error, MovedError):
            self._router.moved(error, member)
            self._fixed = None
        elif isinstance(error, AskError):
            self._importing = self._router.importing(error, member)
        if self._slot is None and isinstance(error, AskError):
            self._slot = error.slot_id
        return AttemptFailed(
            progress=Progress.REFUSED,
            cause=meaning.cause,
            detail=f"{member.name}: {clean_text(str(error))}",
            error=error,
            refusal=meaning,
        )

    def _judge(self, failed: AttemptFailed, member: Member) -> AttemptFailed:
        """Return a failed attempt as the executor should see it. Refresh the table if needed."""
        router = self._router
        if failed.connection is not None:
            # A request that was not sent may have moved to another node meanwhile.
            member = router.members.carrying(failed.connection) or member
            self.server = member.server
        if failed.progress is Progress.MAYBE_APPLIED:
            self._carrier_member = member
        if failed.refusal is not None:
            meaning = refusal_in_cluster(failed.error) if failed.error is not None else None
            return failed if meaning is None else replace(failed, refusal=meaning)
        if failed.expired or failed.timed_out:
            router.suspect(member)
        elsewhere = self._slot is not None and router.has_taken_over(self._slot, member)
        if failed.progress is Progress.NOT_SENT and elsewhere and not failed.expired:
            # Its node was left, or is down, while another one has the slot by now.
            detail = f"{member.name}: {failed.detail}"
            return replace(
                failed, refusal=REDIRECTED, final=False, cause=Cause.OTHER, detail=detail
            )
        return replace(failed, detail=f"{member.name}: {failed.detail}")

    def taken_over(self, carrier: Carrier | None) -> bool:  # noqa: ARG002 (the latest one)
        """Return whether the node that may still apply a copy has lost the slot to another one.

        It then refuses the copy, or loses it together with its other data.
        """
        member = self._carrier_member
        if self._slot is None or member is None:
            return False
        return self._router.has_taken_over(self._slot, member)

    async def until_fenced(self, carrier: Carrier) -> bool:
        """Wait until a lost connection cannot apply anything, or another node has the slot."""
        while not (carrier.fenced.done() or self.taken_over(carrier)):
            futures: list[asyncio.Future[Any]] = [carrier.fenced, self._router.changed]
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        return self.taken_over(carrier) or carrier.fenced.result()


async def _open(member: Member, limits: Limits) -> bool:
    """Open the connections of a node. Return False if its earlier close does not end in time."""
    try:
        async with asyncio.timeout_at(limits.sent):
            await member.open()
    except TimeoutError:
        return False
    return True


class TableCall(Call):
    """Waits for the slot table, within the deadline of the call that needs it."""

    def __init__(self, router: Router, operation: str) -> None:
        self._router = router
        self.operation = operation

    @property
    def effect(self) -> Effect:
        """It changes nothing."""
        return Effect.READ

    async def attempt(self, limits: Limits) -> object:
        """Wait until the table is known."""
        return await self._router.until_known(limits)
