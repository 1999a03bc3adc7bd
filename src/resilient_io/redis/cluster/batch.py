"""The commands of a pipeline for one node. Each has its own outcome, and may be redirected."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.client import NEVER_DECODE
from redis.exceptions import AskError, MovedError

from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.text import clean_text

from ..attempt import (
    ASKING,
    MOVED,
    AttemptFailed,
    Call,
    Command,
    await_reply,
    block_of,
    final_error,
    needs_own_connection,
    note_loss,
    submit,
)
from ..commands import Effect, effect_of, effect_of_batch
from ..connection import NotMultiplexable, PendingRequest
from ..errors import CLOSED, REDIRECTED, refusal_in_cluster, remove_secrets
from ..response_queue import LARGE
from ..scripts import RUNS_BY_HASH
from .call import OF_A_SCRIPT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resilient_io.retry import RetryPolicy

    from ..attempt import Carrier, Limits
    from ..commands import CommandSpec
    from ..connection import MultiplexedConnection
    from ..errors import Refusal
    from .nodes import Member
    from .replicas import ReplicaReads
    from .router import Router


class QueuedCommand(NamedTuple):
    """A command of a pipeline, and where it is to be sent."""

    position: int  # its place in the pipeline, from 0
    spec: CommandSpec
    args: tuple[Any, ...]
    options: Mapping[str, Any]
    data: bytes  # the command as it is sent
    slot: int | None  # of its keys
    member: Member | None = None  # the node that gets it, even if another one has the slot


class _LeftNodeError(Exception):
    """Ends the wait of a request that was not sent: another node has one of its slots by now."""


class NodeBatch(Call):
    """Commands for the same node. Each attempt sends those without a reply, in their order.

    A node that refuses a command (MOVED, ASK, TRYAGAIN) says nothing about the others. Refused
    commands are sent again, in their order, to the nodes that have their slots then. If a
    connection is lost, the effect of the commands without a reply decides.

    Attributes:
        replies: The replies by position.
        open: The commands without a reply by position.
        unsure: The positions of commands that may have been applied, and have no reply.
    """

    def __init__(
        self,
        router: Router,
        commands: Sequence[QueuedCommand],
        policy: RetryPolicy,
        *,
        redirections: bool = True,
        reads: ReplicaReads | None = None,
    ) -> None:
        self.replies: dict[int, object] = {}
        self.unsure: set[int] = set()
        self.operation = "PIPELINE"
        self._router = router
        self.open = {command.position: command for command in commands}
        self._policy = policy
        self._redirections = redirections
        self._exclusive = any(command.spec.block is not None for command in commands)
        self.bounded = not self._exclusive
        self._sending = commands  # what the effect refers to
        self._importing: dict[int, Member] = {}  # gets a command in the next attempt, after ASKING
        self._refusals: list[AttemptFailed] = []
        self._reloaded = False  # whether scripts were missing once
        self._lost: list[MultiplexedConnection] = []
        self._carrier_member: Member | None = None
        self._reads = reads
        self._failed: list[Member] = []  # nodes that did not answer reads

    @property
    def effect(self) -> Effect:
        """The effect of executing twice what was sent without a reply."""
        unanswered = [each for each in self._sending if each.position not in self.replies]
        return effect_of_batch(
            [each.spec for each in unanswered], [each.args for each in unanswered]
        )

    async def attempt(self, limits: Limits) -> object:
        """Send the commands without a reply, each to the node that has its slot now.

        The replies are in `replies`; the result is None or an `AttemptFailed`.
        """
        late = limits.too_late()
        if late is not None:
            return late
        began = asyncio.get_running_loop().time()
        importing, self._importing = self._importing, {}
        self._refusals = []
        groups = await self._by_member(importing, limits)
        if isinstance(groups, AttemptFailed):
            return groups
        for member, commands in groups.items():
            failed = await self._send(member, commands, importing, limits)
            if failed is not None:
                self._failed.append(member)
                return failed if self.bounded else failed.served_since(began)
        # A pause is necessary unless all were redirected.
        refusals = sorted(self._refusals, key=lambda each: each.refusal is REDIRECTED)
        return refusals[0] if refusals else None

    async def _by_member(
        self, importing: Mapping[int, Member], limits: Limits
    ) -> dict[Member, list[QueuedCommand]] | AttemptFailed:
        """Return the commands without a reply by their node, in their order."""
        groups: dict[Member, list[QueuedCommand]] = {}
        for command in self.open.values():
            found: Member | AttemptFailed | None = importing.get(command.position, command.member)
            if found is None and command.slot is not None:
                found = await self._owner(command.slot, limits)
            elif found is None:
                found = next(iter(groups), None) or await self._router.any_owner(limits)
            if isinstance(found, AttemptFailed):
                return found
            groups.setdefault(found, []).append(command)
        if self._reads is None or importing:
            return groups
        # All reads of a shard go to the same node.
        chosen: dict[Member, list[QueuedCommand]] = {}
        for member, commands in groups.items():
            slot = commands[0].slot
            replica = None if slot is None else self._reads.choose(slot, self._failed)
            chosen.setdefault(replica or member, []).extend(commands)
        return chosen

    async def _owner(self, slot: int, limits: Limits) -> Member | AttemptFailed:
        return self._router.known_owner(slot) or await self._router.owner(slot, limits)

    async def _send(
        self,
        member: Member,
        commands: Sequence[QueuedCommand],
        importing: Mapping[int, Member],
        limits: Limits,
    ) -> AttemptFailed | None:
        """Send commands to a node in one write, and take its replies."""
        if self._router.closed:
            return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
        member = self._router.members.current(member)
        await member.open()
        self.server = member.server
        self._sending = commands
        while True:
            loads = self._loads_for(member, commands)
            request = self._request(commands, importing, loads, limits)
            reply = await self._exchange(member, request, commands, limits)
            if reply is not MOVED:  # otherwise its connection does not answer, and all are reads
                break
        if isinstance(reply, NotMultiplexable):
            raise reply
        if isinstance(reply, _LeftNodeError):
            return AttemptFailed(
                progress=Progress.NOT_SENT,
                cause=Cause.OTHER,
                detail=f"{member.name}: another node has the slots by now",
                refusal=REDIRECTED,
            )
        if isinstance(reply, AttemptFailed):
            self._take(member, commands, _answers(request.replies, len(loads), commands, importing))
            return self._judge(reply, member)
        replies = [reply] if request.count == 1 else reply
        if loads:
            found = zip(loads, replies, strict=False)
            loaded = [sha for sha, each in found if not isinstance(each, Exception)]
            member.runtime.scripts.loaded(request.connection, loaded)
        answers = _answers(replies, len(loads), commands, importing)
        undecided = self._take(member, commands, answers)
        return final_error(undecided) if undecided is not None else None

    def _request(
        self,
        commands: Sequence[QueuedCommand],
        importing: Mapping[int, Member],
        loads: Mapping[str, bytes],
        limits: Limits,
    ) -> PendingRequest:
        parts = [*loads.values()]
        raw = []
        for command in commands:
            if command.position in importing:
                parts.append(ASKING)
            if NEVER_DECODE in command.options:
                raw.append(len(parts))
            parts.append(command.data)
        data = b"".join(parts)
        request = PendingRequest(
            data,
            count=len(parts),
            raw=frozenset(raw),
            large=len(data) > LARGE,
            extra_timeout=0.0 if self.bounded else self._timeout(commands),
            expires=limits.sent,
            movable=limits.behind is None,
        )
        slots = {command.slot for command in commands}
        if len(slots) == 1 and not importing:
            request.slot = commands[0].slot  # moves together with the slot
        return request

    def _timeout(self, commands: Sequence[QueuedCommand]) -> float:
        block = 0.0
        if self._exclusive:
            block = block_of(Command(each.spec, each.args, each.options) for each in commands)
        return self._policy.response_timeout + block

    async def _exchange(
        self,
        member: Member,
        request: PendingRequest,
        commands: Sequence[QueuedCommand],
        limits: Limits,
    ) -> Any:
        multiplexer, timeout = member.multiplexer, self._timeout(commands)
        if self._exclusive or needs_own_connection(multiplexer, request, self, self._lost):
            return await member.pool.exchange(
                request, call=self, limits=limits, timeout=timeout, suspect=bool(self._lost)
            )
        submit(multiplexer, request, self)
        if request.connection is not None or request.slot is not None:
            return await await_reply(
                multiplexer, request, call=self, limits=limits, timeout=timeout
            )
        watch = _WaitingBatch(self._router, member, request, commands)
        try:
            return await await_reply(
                multiplexer, request, call=self, limits=limits, timeout=timeout
            )
        finally:
            watch.end()

    def _loads_for(self, member: Member, commands: Sequence[QueuedCommand]) -> dict[str, bytes]:
        """Return SCRIPT LOAD for the scripts that the node may not have, by their hash."""
        hashes = [
            command.args[1]
            for command in commands
            if command.spec.name in RUNS_BY_HASH and len(command.args) > 1
        ]
        if not hashes:
            return {}
        return member.runtime.scripts.missing_on(member.multiplexer.current, hashes)

    # -- replies -------------------------------------------------------------------------------

    def _take(
        self, member: Member, commands: Sequence[QueuedCommand], answers: Sequence[object]
    ) -> Exception | None:
        """Take the replies to the first of these commands. Return an error that decides nothing.

        An error proves nothing about a write that was sent before: that copy may be applied.
        """
        undecided: Exception | None = None
        for command, answer in zip(commands, answers, strict=False):
            if isinstance(answer, Exception):
                remove_secrets(answer, member.multiplexer.target.secrets)
                if self._is_refused(member, command, answer):
                    continue
                if command.position in self.unsure:
                    undecided = undecided or answer
                    continue
            self.replies[command.position] = answer
            del self.open[command.position]
            self.unsure.discard(command.position)
        self._reopen_without_scripts(member, commands, answers)
        return undecided

    def _is_refused(self, member: Member, command: QueuedCommand, error: Exception) -> bool:
        """Return whether a command is to be sent again, and note where."""
        meaning = refusal_in_cluster(error)
        if meaning is None or (meaning is REDIRECTED and not self._redirections):
            return False
        if meaning is not REDIRECTED and OF_A_SCRIPT in str(error):
            return False  # the script may have changed something before
        if isinstance(error, MovedError):
            owner = self._router.moved(error, member)
            if command.member is not None:
                self.open[command.position] = command._replace(member=owner)
        elif isinstance(error, AskError):
            self._importing[command.position] = self._router.importing(error, member)
        self._note_refusal(member, error, meaning)
        return True

    def _note_refusal(self, member: Member, error: Exception, meaning: Refusal) -> None:
        self._refusals.append(
            AttemptFailed(
                progress=Progress.REFUSED,
                cause=meaning.cause,
                detail=f"{member.name}: {clean_text(str(error))}",
                error=error,
                refusal=meaning,
            )
        )

    def _reopen_without_scripts(
        self, member: Member, commands: Sequence[QueuedCommand], answers: Sequence[object]
    ) -> None:
        """Send the last commands again, once, if they miss a script that the client knows.

        One that is followed by a command that was executed keeps its error: it would be executed
        out of order.
        """
        if self._reloaded:
            return
        for command, answer in reversed(list(zip(commands, answers, strict=False))):
            load = member.runtime.scripts.load_for(command.spec.name, command.args, answer)
            if load is None or not isinstance(answer, Exception):
                break
            self._reloaded = True
            self.replies.pop(command.position, None)
            self.open = dict(sorted({**self.open, command.position: command}.items()))
            self._note_refusal(member, answer, REDIRECTED)

    # -- failures ------------------------------------------------------------------------------

    def _judge(self, failed: AttemptFailed, member: Member) -> AttemptFailed:
        """Return a failed attempt as the executor should see it, and note what it leaves open."""
        router = self._router
        if failed.connection is not None:
            # A request that was not sent may have moved to another node meanwhile.
            member = router.members.carrying(failed.connection) or member
            self.server = member.server
        rest = [each for each in self._sending if each.position not in self.replies]
        if failed.progress is Progress.MAYBE_APPLIED:
            self._carrier_member = member
            self.unsure.update(each.position for each in rest if _writes(each))
        note_loss(self._lost, failed)
        if failed.expired or failed.timed_out:
            router.suspect(member)
        if failed.progress is Progress.NOT_SENT and not failed.expired and self._left(member):
            detail = f"{member.name}: {failed.detail}"
            return replace(
                failed, refusal=REDIRECTED, final=False, cause=Cause.OTHER, detail=detail
            )
        return failed

    def _left(self, member: Member) -> bool:
        """Return whether another node has the slots of all commands that are sent."""
        return all(
            command.slot is not None and self._router.has_taken_over(command.slot, member)
            for command in self._sending
            if command.position not in self.replies
        )

    def taken_over(self, carrier: Carrier | None) -> bool:  # noqa: ARG002 (the latest one)
        """Return whether other nodes have the slots of what an earlier copy may still change."""
        member = self._carrier_member
        return member is not None and self._left(member)

    async def until_fenced(self, carrier: Carrier) -> bool:
        """Wait until a lost connection cannot apply anything, or other nodes have the slots."""
        while not (carrier.fenced.done() or self.taken_over(carrier)):
            waiting: list[asyncio.Future[Any]] = [carrier.fenced, self._router.changed]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return self.taken_over(carrier) or carrier.fenced.result()


def _answers(
    replies: Sequence[object],
    start: int,
    commands: Sequence[QueuedCommand],
    importing: Mapping[int, Member],
) -> Sequence[object]:
    """Return the replies to the commands, without those to SCRIPT LOAD and ASKING."""
    if not importing:
        return replies[start:]
    answers: list[object] = []
    for command in commands:
        start += command.position in importing
        answers += replies[start : start + 1]
        start += 1
    return answers


def _writes(command: QueuedCommand) -> bool:
    return effect_of(command.spec, command.args) is not Effect.READ


class _WaitingBatch:
    """Ends the wait of a request for a connection when another node gets one of its slots."""

    def __init__(
        self,
        router: Router,
        member: Member,
        request: PendingRequest,
        commands: Sequence[QueuedCommand],
    ) -> None:
        self._router = router
        self._member = member
        self._request = request
        self._slots = {each.slot: None for each in commands if each.slot is not None}
        self._wait()

    def _wait(self) -> None:
        self._change = self._router.changed
        self._change.add_done_callback(self._changed)

    def _changed(self, _change: object) -> None:
        request, router = self._request, self._router
        if request.done() or request.connection is not None:
            return
        if any(router.has_taken_over(slot, self._member) for slot in self._slots):
            request.interrupt(_LeftNodeError())
            self._member.multiplexer.abandon(request)
        else:
            self._wait()

    def end(self) -> None:
        """End the watch."""
        self._change.remove_done_callback(self._changed)
