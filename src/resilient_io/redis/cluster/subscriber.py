"""The subscriptions of one subscriber of a cluster: on any node, and on the nodes of slots."""

from __future__ import annotations

import asyncio
import contextlib
import math
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING

from redis.crc import key_slot

from resilient_io.errors import Progress
from resilient_io.health import Cause

from ..attempt import AttemptFailed, Call
from ..commands import Effect
from ..errors import CLOSED, ConnectionFailure
from ..subscription import MISPLACED, SubscriptionCall

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from redis.exceptions import MovedError

    from resilient_io.errors import ResilientIOError

    from ..attempt import Limits
    from ..messages import MessageQueue
    from ..subscription import Subscription
    from .nodes import Member
    from .router import Router
    from .slots import Address

_LEFT = ConnectionFailure(Cause.CONNECTION_LOST, "the node does not answer, or left the cluster")
_LOOKS = 8  # at the slot table, after a node has lost a slot
_LOOK_AGAIN = 0.1  # seconds between two of them

_SLOT_MOVED = ConnectionFailure(Cause.FAILOVER, "another node has the slot of a shard channel")


class ClusterSubscriber:
    """Messages of channels arrive from any node, those of shard channels from the slot's node.

    It refers neither to redis-py's object nor to the client, which are collected if they are
    dropped.

    Args:
        router: Knows the node of each slot.
        messages: Takes what channels and patterns receive.
        sharded_messages: Takes what shard channels receive.
        node: The address of the node for channels and patterns; None for any.
        rng: Chooses that node.
    """

    def __init__(
        self,
        router: Router,
        messages: MessageQueue,
        sharded_messages: MessageQueue,
        *,
        node: Address | None,
        rng: random.Random,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.messages = messages
        self.sharded_messages = sharded_messages
        self.ended = False
        self.ended_at = self.loop.time()
        self._router = router
        self._node = node
        self._rng = rng
        self._plain: Subscription | None = None
        self._plain_member: Member | None = None
        self._shards: dict[Member, Subscription] = {}
        router.add_follower(self.follow)

    @property
    def plain(self) -> Subscription | None:
        """The subscription to channels and patterns, if there is one."""
        return self._plain

    @property
    def plain_address(self) -> Address | None:
        """The address of the node of that subscription."""
        return None if self._plain_member is None else self._plain_member.address

    @property
    def sharded(self) -> bool:
        """Whether there is any subscription to a shard channel."""
        return bool(self._shards)

    def fixed(self) -> Member | None:
        """Return the node that the application has chosen for channels and patterns."""
        return None if self._node is None else self._router.members.get(self._node)

    def on(self, member: Member, *, sharded: bool) -> Subscription:
        """Return the subscription on a node that is open. That of channels may be elsewhere."""
        if sharded:
            return self._shard_on(member)
        if self._plain is None or self._plain.ended:
            self._open_plain(member)
        assert self._plain is not None, "it was opened"  # noqa: S101
        return self._plain

    def _shard_on(self, member: Member) -> Subscription:
        before = self._shards.get(member)
        if before is not None and not before.ended:
            return before
        opened = self._shards[member] = member.runtime.subscriptions.open(
            self.sharded_messages,
            {},
            moved=partial(self._moved, member),
            troubled=partial(self._shard_troubled, member),
        )
        if before is not None:
            before.hand_over(_all_of(before), opened, _LEFT)
        return opened

    def _open_plain(self, member: Member) -> None:
        before, self._plain_member = self._plain, member
        self._plain = opened = member.runtime.subscriptions.open(
            self.messages, {}, troubled=self._plain_troubled
        )
        if before is not None:
            before.hand_over(_all_of(before), opened, _LEFT)

    def holding(self, channel: bytes) -> Subscription | None:
        """Return the subscription that has a shard channel."""
        found = (each for each in self._shards.values() if channel in each.wanted["SSUBSCRIBE"])
        return next(found, None)

    @property
    def shard_channels(self) -> list[bytes]:
        """All shard channels."""
        return [each for sub in self._shards.values() for each in sub.wanted["SSUBSCRIBE"]]

    # -- following -----------------------------------------------------------------------------

    def follow(self) -> None:
        """Move subscriptions to the nodes that should have them now."""
        if self.ended or self._router.closed:
            return
        member, plain = self._plain_member, self._plain
        left = member is not None and member.address not in self._router.table.nodes
        if plain is not None and (plain.ended or left):
            self._leave_node()
        for member, subscription in list(self._shards.items()):
            self._follow_slots(member, subscription)
        for subscription in self._shards.values():
            subscription.changed.set()
            subscription.changed.clear()

    def _follow_slots(self, member: Member, subscription: Subscription) -> None:
        by_owner: dict[Member, list[bytes]] = {}
        for channel in subscription.wanted["SSUBSCRIBE"]:
            owner = self._router.known_owner(key_slot(channel))
            if owner is not None and owner is not member and not owner.runtime.executor.closed:
                by_owner.setdefault(owner, []).append(channel)
        for owner, channels in by_owner.items():
            owner.start()
            other = self._shard_on(owner)
            subscription.hand_over({"SSUBSCRIBE": channels}, other, _SLOT_MOVED)
        gone = bool(by_owner) or member.address not in self._router.table.nodes
        if gone and not (subscription.active or subscription.waiting):
            self._shards.pop(member, None)
            subscription.end()

    def _moved(self, member: Member, _subscription: Subscription, error: MovedError | None) -> None:
        if error is None:
            self._look_for_owner(_LOOKS)
        else:
            self._router.moved(error, member)
            self.follow()

    def _look_for_owner(self, left: int) -> None:
        """Have the slot table read now, and again soon: other nodes may not know the change yet."""
        if left and not self.ended:
            self._router.refresh_soon()
            self.loop.call_later(_LOOK_AGAIN, self._look_for_owner, left - 1)

    def _shard_troubled(self, member: Member, _subscription: Subscription) -> None:
        self._router.suspect(member)

    def _plain_troubled(self, _subscription: Subscription) -> None:
        if self._plain_member is not None:
            self._router.suspect(self._plain_member)
        self._leave_node()

    def _leave_node(self) -> None:
        """Receive the messages of channels from another node that answers, if there is one."""
        before, plain = self._plain_member, self._plain
        if self._node is not None or plain is None:
            return
        others = [
            each
            for each in self._router.slots
            if each is not before and not each.suspect and not each.runtime.executor.closed
        ]
        if others:
            member = self._rng.choice(others)
            member.start()
            if plain.ended:
                self._open_plain(member)
            else:
                self._plain_member = member
                plain.move(member.runtime.subscriptions, _LEFT)

    # -- the end -------------------------------------------------------------------------------

    def _subscriptions(self) -> list[Subscription]:
        plain = [] if self._plain is None else [self._plain]
        return [*plain, *self._shards.values()]

    def end(self) -> None:
        """End everything, without waiting. Idempotent."""
        if not self.ended:
            self.ended, self.ended_at = True, self.loop.time()
        self._router.remove_follower(self.follow)
        for subscription in self._subscriptions():
            subscription.end()

    def end_later(self) -> None:
        """End from wherever the subscriber is collected, which may be in another thread."""
        if not self.ended:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.loop.call_soon_threadsafe(self.end, context=Context())

    def disown(self, end: ResilientIOError) -> None:
        """Have readers raise, and never touch the connections: they are the parent process's."""
        self.ended = True
        self.messages.close(end)
        self.sharded_messages.close(end)

    def close(self, end: ResilientIOError) -> None:
        """End everything, without waiting, and have readers raise: the client is closed."""
        self.messages.close(end)
        self.sharded_messages.close(end)
        self.end()

    async def aclose(self) -> None:
        """End everything, and wait for the end. Cancelling returns immediately. Idempotent."""
        self.end()
        subscriptions = self._subscriptions()
        if subscriptions:
            await asyncio.gather(*(each.aclose() for each in subscriptions))


class ClusterSubscriptionCall(Call):
    """A command of a subscriber, for any node or for the node that has a slot.

    Args:
        subscriber: The subscriptions.
        router: Knows the node of each slot.
        operation: The name of the command.
        send: Sends it on the open connection of a subscription; None only to wait for it.
        slot: The slot of the shard channel, or None.
    """

    def __init__(
        self,
        subscriber: ClusterSubscriber,
        router: Router,
        operation: str,
        send: Callable[[Subscription], None] | None,
        *,
        slot: int | None = None,
    ) -> None:
        self.operation = operation
        self._subscriber = subscriber
        self._router = router
        self._send = send
        self._slot = slot

    @property
    def effect(self) -> Effect:
        """The effect of executing it twice."""
        return Effect.READ

    async def attempt(self, limits: Limits) -> object:
        """Wait for the node and its connection, and send."""
        # A node that is down may be replaced within the deadline.
        limits = limits._replace(outage_wait=math.inf)
        while True:
            member = await self._choose(limits)
            if isinstance(member, AttemptFailed):
                return member
            if self._router.closed or self._subscriber.ended:
                return AttemptFailed.because(CLOSED, Progress.NOT_SENT)
            await member.open()
            self.server = member.server
            subscription = self._subscriber.on(member, sharded=self._slot is not None)
            send = None if self._send is None else partial(self._send, subscription)
            call = SubscriptionCall(
                subscription, self.operation, send, misplaced=partial(self._misplaced, member)
            )
            result = await call.attempt(limits)
            if result is not MISPLACED:
                return result

    async def _choose(self, limits: Limits) -> Member | AttemptFailed:
        if self._slot is not None:
            return await self._router.owner(self._slot, limits)
        return self._subscriber.fixed() or await self._router.any_owner(limits)

    def _misplaced(self, member: Member) -> bool:
        return self._slot is not None and self._router.has_taken_over(self._slot, member)


def _all_of(subscription: Subscription) -> dict[str, list[bytes]]:
    return {name: list(channels) for name, channels in subscription.wanted.items()}


def slots_of(channels: Sequence[bytes]) -> dict[int, list[bytes]]:
    """Return shard channels by their slot."""
    found: dict[int, list[bytes]] = {}
    for channel in channels:
        found.setdefault(key_slot(channel), []).append(channel)
    return found
