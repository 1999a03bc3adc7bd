"""Which node gets a command: the slot table, and the task that keeps it fresh.

MOVED changes one slot at once. Everything else is learnt from CLUSTER SLOTS, which a background
task asks of two nodes that are not suspected of a failure. Only the first calls wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections import Counter
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import hiredis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.exceptions import InvalidResponse, ResponseError

from resilient_io.errors import Progress
from resilient_io.health import Cause
from resilient_io.retry import Backoff
from resilient_io.tasks import Signal, describe_task_end, log_task_death
from resilient_io.text import clean_text, describe_error, format_address

from ..attempt import AttemptFailed, end_of_wait, server_down
from ..errors import CLOSED, ConnectionFailure
from ..wrong_server import single_server
from .nodes import NO_OWNER, Member, Members
from .slots import SlotTable, epoch_of, newest, read_table, starts

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Sequence

    from redis.exceptions import AskError, MovedError

    from resilient_io.health import Dependency

    from ..attempt import Limits
    from ..connection import PendingRequest
    from ..errors import Refusal
    from ..multiplexer import Multiplexer
    from .nodes import NodeSettings, NoOwner
    from .slots import Address, AddressRules

OwnerChanges: TypeAlias = "Iterable[tuple[Member | NoOwner, Member | NoOwner]]"

_QUESTION = (("CLUSTER", "SLOTS"), ("CLUSTER", "INFO"))
_PACKED = b"".join(hiredis.pack_command(words) for words in _QUESTION)  # type: ignore[arg-type]

_ASKED_AT_ONCE = 2
_ANSWER_TIMEOUT = 1.0  # seconds that a node may take to answer over an open connection
_SECOND_ANSWER = 0.05  # seconds to wait for the second answer after the first

_SPACING = 0.02  # seconds between two refreshes, at least
_WATCHED_INTERVAL = 0.1  # seconds between refreshes while a node is suspected, plus 1 ms per node
_RETRY_BACKOFF = 0.05
_RETRY_BACKOFF_CAP = 1.0
_TRUSTED = 1.0  # seconds for which MOVED counts more than the answer of another node
_SETTLING = (1.0, 5.0)  # seconds after a change at which the table is looked at again
_IMPORTING = 30.0  # seconds after an ASK for which the connections to its node are kept
_MOST_IGNORED = 5
_WAKE = 0.1  # seconds between checks of a call that waits for the owner of its slot

_NOT_A_CLUSTER = "cluster support disabled"


class Router:
    """The owner of each slot, and the connections to it.

    Attributes:
        owners: By slot, the member that has it, or `NO_OWNER`. The hot path reads this list.
        table: The slot table, which also has the replicas.
        members: The nodes and their connections.
        failure: Why the last node that was asked gave no answer, until one does.
    """

    def __init__(
        self,
        startup: Sequence[Address],
        settings: NodeSettings,
        *,
        rules: AddressRules,
        health: Dependency,
        changed: Callable[[SlotTable], None],
        rng: random.Random,
        interval: float,
    ) -> None:
        self.owners: list[Member | NoOwner] = [NO_OWNER] * SLOTS
        self.table = SlotTable()
        self.members = Members(settings, search=self, suspected=self.suspect)
        self.failure: ConnectionFailure | None = None
        self.refreshes = 0
        self.closed = False
        self._startup = list(startup)
        self._settings = settings
        self._rules = rules
        self._health = health
        self._notify = changed
        self._listeners: list[Callable[[OwnerChanges], None]] = []
        self._rng = rng
        self._interval = interval
        self._moved: dict[int, tuple[Address, float]] = {}  # by MOVED, with the time
        self._places = [0]  # the only slots whose owner may differ from that of the slot before
        self._importing: dict[Address, float] = {}  # nodes that ASK named, with the latest time
        self._counts: Counter[Member | NoOwner] = Counter()
        self._changed_at = -math.inf  # loop time at which the table last changed
        self._ignored = 0  # refreshes in a row whose answers were older than the table
        self._followers: list[Callable[[], None]] = []
        self._wanted = Signal()
        self._change: asyncio.Future[None] | None = None
        self._attempted = Signal()  # set when the first refresh has ended
        self._task: asyncio.Task[None] | None = None
        self._asking: list[asyncio.Task[Any]] = []

    # -- lifecycle ---------------------------------------------------------------------------

    def start(self) -> None:
        """Start the task that refreshes the table. Idempotent."""
        if self._task is None:
            self.closed = self.members.closed = False
            self._wanted, self._attempted = Signal(), Signal()
            self._wanted.set()
            self._task = asyncio.get_running_loop().create_task(
                self._keep_fresh(), name="resilient-io redis slot table", context=Context()
            )
            self._task.add_done_callback(log_task_death)

    def liveness_failure(self) -> str | None:
        """Return why only a new process helps, or None."""
        ended = describe_task_end(self._task)
        if ended is not None:
            return f"the task of the slot table ended: {ended}"
        found = (member.runtime.liveness_failure() for member in self.members)
        return next((failure for failure in found if failure is not None), None)

    async def aclose(self) -> None:
        """End the task and close every member. Idempotent."""
        self.close()
        task, self._task = self._task, None
        tasks = [*([task] if task is not None else []), *self._asking]
        for each in tasks:
            each.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.members.aclose()

    def close(self) -> None:
        """End the waits for the owner of a slot. Idempotent."""
        self.closed = True
        self._publish_change()

    def forget_loop(self) -> None:
        """Forget the tasks of a loop that was closed."""
        self._task, self._asking, self._change = None, [], None
        self._places = self._note_moves(self._places)
        self._moved.clear()
        self._importing.clear()
        self._changed_at = -math.inf  # the times of two loops cannot be compared
        self.members.forget_loop()

    # -- for calls -----------------------------------------------------------------------------

    async def owner(self, slot: int, limits: Limits) -> Member | AttemptFailed:
        """Return the node that has a slot, or why none is known in time."""
        while True:
            member = self.owners[slot]
            if isinstance(member, Member):
                return member
            unknown = await self._until_change(limits, f"a node that serves slot {slot}")
            if unknown is not None:
                return unknown

    def known_owner(self, slot: int) -> Member | None:
        """Return the node that has a slot, or None if none is known."""
        member = self.owners[slot]
        return member if isinstance(member, Member) else None

    async def any_owner(self, limits: Limits) -> Member | AttemptFailed:
        """Return a node for a command without keys, preferably one that answers."""
        while True:
            owners = list(self.slots)
            healthy = [member for member in owners if not member.suspect]
            if healthy or owners:
                return self._rng.choice(healthy or owners)
            unknown = await self._until_change(limits, "a node of the cluster")
            if unknown is not None:
                return unknown

    async def until_known(self, limits: Limits) -> AttemptFailed | None:
        """Wait until the table is known. Return why it is not known in time, or None."""
        while not self._counts:
            unknown = await self._until_change(limits, "the slot table of the cluster")
            if unknown is not None:
                return unknown
        return None

    async def _until_change(self, limits: Limits, obstacle: str) -> AttemptFailed | None:
        """Wait for another table. Return why the wait is over without one, or None."""
        loop = asyncio.get_running_loop()
        health = self._health
        end = end_of_wait(health, limits.outage_wait)
        failure = CLOSED if self.closed else self.failure
        why = f" ({failure.detail})" if failure is not None else ""
        if failure is not None and (failure.permanent or self.closed):
            return AttemptFailed.because(failure, Progress.NOT_SENT, final=True)
        if end is not None and loop.time() >= end:
            return server_down(health)
        left = math.inf if limits.sent is None else limits.sent - loop.time()
        if left <= 0:
            return AttemptFailed(
                progress=Progress.NOT_SENT,
                cause=Cause.TIMED_OUT,
                detail=f"the deadline passed while the call waited for {obstacle}{why}",
                expired=True,
            )
        self.refresh_soon()
        await asyncio.wait([self.changed], timeout=min(left, _WAKE))
        return None

    def add_follower(self, follow: Callable[[], None]) -> None:
        """Call a function after each look at the table, before nodes that left are closed."""
        self._followers.append(follow)

    def remove_follower(self, follow: Callable[[], None]) -> None:
        """Call a function no longer."""
        self._followers = [each for each in self._followers if each != follow]

    @property
    def changed(self) -> asyncio.Future[None]:
        """A future that is done when the owner of any slot changes."""
        if self._change is None:
            self._change = asyncio.get_running_loop().create_future()
        return self._change

    def moved(self, error: MovedError, asked: Member) -> Member:
        """Assign a slot to the node that MOVED names, and refresh the table in the background."""
        slot, address = error.slot_id, self._address_in(error, asked)
        now = asyncio.get_running_loop().time()
        self._moved[slot] = (address, now)
        self.table.move(slot, address)
        member, before = self.members.get(address), self.owners[slot]
        if member is not before:
            self.owners[slot] = member
            self._counts[member] += 1
            if isinstance(before, Member):
                self._counts[before] -= 1
                self._move_waiting(before)
            self._publish_change()
            self._call_followers()
        self.refresh_soon()
        return member

    def _call_followers(self) -> None:
        for follow in list(self._followers):
            follow()

    def importing(self, error: AskError, asked: Member) -> Member:
        """Return the node that ASK names, which gets this one call. The table stays as it is."""
        address = self._address_in(error, asked)
        self._importing[address] = asyncio.get_running_loop().time()
        return self.members.get(address)

    def _address_in(self, error: AskError, asked: Member) -> Address:
        return self._rules.resolve(error.host, int(error.port), asked.address[0])

    def has_taken_over(self, slot: int, member: Member) -> bool:
        """Return whether another node has a slot that a member had."""
        owner = self.owners[slot]
        return isinstance(owner, Member) and owner.address != member.address

    def suspect(self, member: Member) -> None:
        """Refresh the table, without asking this member, until it answers or has no slots."""
        member.suspected_at = asyncio.get_running_loop().time()
        self.refresh_soon()

    def note_refusal(self, refusal: Refusal) -> None:  # noqa: ARG002 (the cluster decides)
        """Refresh the table: a node has refused a call."""
        self.refresh_soon()

    def refresh_soon(self) -> None:
        """Refresh the table in the background."""
        self._wanted.set()

    # -- for health ------------------------------------------------------------------------------

    async def first_attempt(self) -> None:
        """Wait until the table has been asked for once, successfully or not."""
        await self._attempted.wait()

    def on_change(self, listener: Callable[[OwnerChanges], None]) -> None:
        """Call a function with each pair of a former owner of slots and a new one."""
        self._listeners.append(listener)

    @property
    def slots(self) -> dict[Member, int]:
        """The number of slots of each member that has any."""
        return {
            member: count
            for member, count in self._counts.items()
            if count > 0 and isinstance(member, Member)
        }

    # -- refreshing ------------------------------------------------------------------------------

    async def _keep_fresh(self) -> None:
        backoff = Backoff(_RETRY_BACKOFF, _RETRY_BACKOFF_CAP, self._rng, floor=_SPACING)
        while True:
            if self._counts:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._wanted.wait()
            self._wanted.clear()
            known = await self._refresh()
            self._attempted.set()
            if known:
                backoff.reset()
                await asyncio.sleep(_SPACING)
            else:
                await asyncio.sleep(backoff.next())

    def _pause(self) -> float:
        """Return the longest time until the next refresh."""
        if any(member.suspect for member in self.slots):
            return (_WATCHED_INTERVAL + len(self.table.nodes) / 1000) * (1 + self._rng.random())
        steady = self._interval * (1 - 0.1 * self._rng.random())
        # Replicas appear some time after their master.
        since = asyncio.get_running_loop().time() - self._changed_at
        later = (after - since for after in _SETTLING if after > since)
        return min(steady, next(later, steady))

    async def _refresh(self) -> bool:
        """Ask two nodes at a time, until one answers. Return whether one did."""
        began = asyncio.get_running_loop().time()
        candidates = self._candidates()
        for at in range(0, len(candidates), _ASKED_AT_ONCE):
            answers = await self._ask_all(candidates[at : at + _ASKED_AT_ONCE])
            if not answers:
                continue
            self.failure = None
            # A cluster that was created again begins with lower epochs.
            ignored = self._ignored >= _MOST_IGNORED or all(each.suspect for each in self.slots)
            table = newest(answers, None if ignored else self.table)
            self._ignored = 0 if table is not None else self._ignored + 1
            if table is not None:
                await self._use(table, began)
            self.refreshes += 1
            return True
        return False

    def _candidates(self) -> list[Address]:
        """Return the nodes to ask, the best ones first. A suspected node is the last one."""
        members = list(self.members)
        self._rng.shuffle(members)
        ready = [each.address for each in members if each.connection and not each.suspect]
        suspected = [each.address for each in members if each.suspect]
        others = [address for address in self.table.nodes if address not in suspected]
        self._rng.shuffle(others)
        startup = list(self._startup)
        self._rng.shuffle(startup)
        return list(dict.fromkeys([*ready, *others, *startup, *suspected]))

    async def _ask_all(self, addresses: Sequence[Address]) -> list[SlotTable]:
        """Ask nodes at the same time, and return the answers that arrive together."""
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(self._ask(address), name="resilient-io redis ask for slots")
            for address in addresses
        ]
        self._asking = tasks
        try:
            pending = set(tasks)
            done: set[asyncio.Task[SlotTable | None]] = set()
            while pending and not any(task.result() for task in done):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=_SECOND_ANSWER)
            finished = [task for task in tasks if task.done()]
            return [table for task in finished if (table := task.result()) is not None]
        finally:
            unfinished = [task for task in tasks if not task.done()]
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished)
            self._asking = []

    async def _ask(self, address: Address) -> SlotTable | None:
        member = self.members.find(address)
        connection = member.connection if member is not None else None
        replies: Any
        if connection is None:
            replies = await self._settings.ask(address, *_QUESTION)
        else:
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT):
                    replies = await asyncio.shield(connection.ask(_PACKED, count=2))
            except TimeoutError:
                return None  # its watchdog reports that
        if isinstance(replies, ConnectionFailure | Exception):
            self._note_failure(address, replies)
            return None
        slots, info = replies
        if isinstance(slots, Exception):
            self._note_failure(address, slots)
            return None
        epoch = None if isinstance(info, Exception) else epoch_of(info)
        if member is not None and member.opened and not isinstance(info, Exception):
            self._check_state(member, info)
        try:
            return await read_table(
                slots, asked=address[0], rules=self._rules, epoch=epoch, known=self.table
            )
        except InvalidResponse as error:
            self._note_failure(address, error)
            return None

    def _check_state(self, member: Member, info: str | bytes) -> None:
        """End the refusals of a node that says that the cluster serves again."""
        health = member.health
        if health.refusing and health.cause is Cause.CLUSTER_DOWN:
            text = info if isinstance(info, str) else info.decode()
            if "cluster_state:ok" in text:
                member.multiplexer.write_accepted()

    def _note_failure(self, address: Address, error: ConnectionFailure | Exception) -> None:
        where = format_address(*address)
        if isinstance(error, Exception):
            alone = _NOT_A_CLUSTER in str(error)
            cause = Cause.WRONG_SERVER if alone else Cause.OTHER
            permanent = isinstance(error, ResponseError | InvalidResponse)
            detail = describe_error(single_server(where) if alone else error)
            error = ConnectionFailure(cause, detail, permanent=permanent)
        where = "" if where in error.detail else f"{where}: "
        self.failure = replace(error, detail=clean_text(f"{where}{error.detail}"))

    async def _use(self, table: SlotTable, began: float) -> None:
        """Use another table, except for slots of which MOVED has said something newer."""
        places = starts(table.slots)
        owners = self._owners_of(table, places)
        await asyncio.sleep(0)  # each part takes some milliseconds for a thousand nodes
        now = asyncio.get_running_loop().time()
        before, places_before = self.owners, self._note_moves(self._places)
        places = self._note_moves(places)
        recent = min(began, now - _TRUSTED)
        self._moved = {slot: move for slot, move in self._moved.items() if move[1] >= recent}
        for slot, (address, _) in self._moved.items():
            table.move(slot, address)
            owners[slot] = self.members.get(address)
        self.table, self.owners, self._places = table, owners, places
        # Between two of these slots, neither the old nor the new owner changes.
        changes = dict.fromkeys(
            (before[slot], owners[slot])
            for slot in sorted({*places_before, *places})
            if before[slot] is not owners[slot]
        )
        self._counts = Counter()
        for slot, end in itertools.pairwise([*places, SLOTS]):
            self._counts[owners[slot]] += end - slot
        del self._counts[NO_OWNER]
        if changes:
            self._changed_at = now
            for listener in self._listeners:
                listener(changes)
            self._reroute(dict.fromkeys(former for former, _ in changes))
        await asyncio.sleep(0)
        self._notify(table)
        self._call_followers()
        # A master without slots is not in the table while it gets its first one.
        self._importing = {
            address: at for address, at in self._importing.items() if at > now - _IMPORTING
        }
        moved = (address for address, _ in self._moved.values())
        self.members.keep([*table.nodes, *moved, *self._importing])

    def _note_moves(self, places: Sequence[int]) -> list[int]:
        """Return the slots at which the owner may change, with those that MOVED has changed."""
        moved = {each for slot in self._moved for each in (slot, slot + 1) if each < SLOTS}
        return sorted({*places, *moved})

    def _owners_of(self, table: SlotTable, places: Sequence[int]) -> list[Member | NoOwner]:
        """Return the owner of each slot. It may change at some places only."""
        owners: list[Member | NoOwner] = []
        for slot, end in itertools.pairwise([*places, SLOTS]):
            shard = table.slots[slot]
            owner = NO_OWNER if shard is None else self.members.get(shard.master.address)
            owners += [owner] * (end - slot)
        return owners

    def _reroute(self, before: Iterable[Member | NoOwner]) -> None:
        """Move the calls that were not sent to the new owners, in their order."""
        for member in before:
            if isinstance(member, Member):
                self._move_waiting(member)
                if member.suspect and not self._counts.get(member):
                    member.give_up()
        self._publish_change()

    def _move_waiting(self, member: Member) -> None:
        if member.opened and member.runtime.running:
            member.multiplexer.move_waiting(self._home_of)

    def _home_of(self, request: PendingRequest) -> Multiplexer | None:
        owner = NO_OWNER if request.slot is None else self.owners[request.slot]
        if not isinstance(owner, Member):
            return None
        if not owner.runtime.executor.closed:
            owner.start()
        return owner.multiplexer

    def _publish_change(self) -> None:
        change, self._change = self._change, None
        if change is not None and not change.done():
            change.set_result(None)
        if not self.closed:
            self._health.probe_soon()
