"""Rebalances that stop only the partitions that move (KIP-429), on aiokafka's coordinator.

aiokafka 0.14 revokes all partitions before it joins the group again, and replaces the assignment
afterwards, which discards all positions and fetched records. With `CooperativeStickyAssignor`, the
few methods of its `GroupCoordinator` that do this are overridden on the instance. All names are
those of aiokafka 0.14, which `tests/unit/kafka/consumer/test_cooperative.py` checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka.client import ConnectionGroup
from aiokafka.consumer.subscription_state import TopicPartitionState
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.errors import CommitFailedError, IllegalGenerationError, UnknownMemberIdError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.structs import OffsetAndMetadata

from . import internals
from .assignor import (
    NO_GENERATION,
    CooperativeStickyAssignor,
    Member,
    encode_assignment,
    withhold_owned,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from aiokafka import TopicPartition

    from ..driver import ConsumerDriver
    from .group import Rebalancer

_STRATEGY = "partition_assignment_strategy"
_NO_PARTITIONS: frozenset[TopicPartition] = frozenset()
_OUTDATED = {IllegalGenerationError.errno, UnknownMemberIdError.errno}
_NOWHERE = -1
"""A position that no fetch has: what arrives for it is discarded."""


def with_own_assignor(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a new aiokafka instance: each has its own cooperative assignor."""
    own = dict(options)
    if _STRATEGY in own:
        own[_STRATEGY] = tuple(
            each() if each is CooperativeStickyAssignor else each for each in own[_STRATEGY]
        )
    return own


def rebalance_cooperatively(instance: ConsumerDriver, rebalancer: Rebalancer) -> None:
    """Keep the partitions that stay with this member, if it has a `CooperativeStickyAssignor`.

    Call this after the start and before the instance subscribes.
    """
    driver: Any = instance
    for assignor in getattr(driver._coordinator, "_assignors", ()):
        if isinstance(assignor, CooperativeStickyAssignor):
            _CooperativeMember(instance, assignor, rebalancer)


class _CooperativeMember:
    """Replaces what aiokafka's coordinator does before and after it joins the group.

    As long as the group uses another assignor (a member knows only that one), it revokes all
    partitions before it joins, as aiokafka does.
    """

    def __init__(
        self, instance: ConsumerDriver, assignor: CooperativeStickyAssignor, rebalancer: Rebalancer
    ) -> None:
        driver: Any = instance
        coordinator = driver._coordinator
        self._instance = instance
        self._assignor = assignor
        self._rebalancer = rebalancer
        self._coordinator = coordinator
        self._subscription = driver._subscription
        self._client = driver._client
        self._assignors = {each.name: each for each in coordinator._assignors}
        self._cooperative = False  # whether the group has used the cooperative assignor last
        self._expelled = False  # since the partitions were assigned
        self._joining = False  # while the response to a request to join may be pending
        self._held = _NO_PARTITIONS  # the assigned partitions until they are revoked
        self._generation = NO_GENERATION  # in which they were assigned
        self._assignment: Any = None  # aiokafka's, as of the last time this member joined

        self._prepare = coordinator._on_join_prepare
        self._complete = coordinator._on_join_complete
        self._perform = coordinator._perform_assignment
        self._send = coordinator._send_req
        self._reset = coordinator.reset_generation
        coordinator._on_join_prepare = self._join_prepared
        coordinator._on_join_complete = self._join_completed
        coordinator._perform_assignment = self._assignment_performed
        coordinator._send_req = self._request_sent
        coordinator.reset_generation = self._generation_reset
        coordinator._lookup_assignor = self._assignors.get
        # `CoordinatorGroupRebalance.perform_group_join` joins once for each assignor, each time
        # with one more of them. It gets one, and `_request_sent` adds the others.
        coordinator._assignors = (assignor,)

    # --- before joining

    async def _join_prepared(self, previous: Any) -> None:
        if self._cooperative and not self._expelled and self._unchanged():
            self._coordinator._group_subscription = None  # as the original does
            return
        try:
            await self._prepare(previous)  # the listener revokes all partitions
        finally:
            self._held = _NO_PARTITIONS
            self._expelled = False

    def _unchanged(self) -> bool:
        """Return whether aiokafka has the assignment of the last time this member joined."""
        # A pattern that matches another topic makes a new subscription, without an assignment.
        subscription = self._subscription.subscription
        return (
            subscription is not None
            and subscription.assignment is self._assignment is not None
            and self._assignment.active
        )

    def _generation_reset(self) -> None:
        """The group does not know this member any more: its partitions may be of others."""
        self._expelled = True
        self._reset()
        self._coordinator._performed_join_prepare = False  # prepare again: revoke everything

    # --- requests

    async def _request_sent(self, request: Any) -> Any:
        if isinstance(request, OffsetCommitRequest):
            return await self._commit_sent(request)
        if isinstance(request, JoinGroupRequest):
            made: Any = request
            made._group_protocols = self._protocols()
            self._joining = True
        return await self._send(request)

    async def _commit_sent(self, request: OffsetCommitRequest) -> Any:
        member = internals.member_of(self._instance)
        if self._joining:
            # The request to join occupies its connection until all members have joined.
            response = await self._client.send(
                self._coordinator.coordinator_id, request, group=ConnectionGroup.DEFAULT
            )
        else:
            response = await self._send(request)
        if self._joining or internals.member_of(self._instance) != member:
            # Refused because the next generation has begun. aiokafka would take it for expelled.
            codes = {code for _, partitions in response.topics for _, code in partitions}
            if codes & _OUTDATED:
                raise CommitFailedError("the group was rebalanced during the commit")
        return response

    def _protocols(self) -> list[tuple[str, bytes]]:
        """Return the names of all assignors, each with the metadata for the leader."""
        topics = tuple(sorted(self._subscription.subscription.topics))
        held, generation = self._held, self._generation
        if self._expelled or not held:
            held, generation = _NO_PARTITIONS, NO_GENERATION
        protocols = []
        for name, assignor in self._assignors.items():
            # Kafka's assignor before Kafka 3.5 reads the generation from the user data.
            user_data = generation.to_bytes(4, signed=True)
            if assignor is not self._assignor:
                given = assignor.metadata(topics)
                if not isinstance(given, bytes):
                    given = given.encode()
                user_data = Member.decode(given).user_data
            protocols.append((name, Member(topics, held, generation, user_data).encode()))
        return protocols

    # --- as the leader

    async def _assignment_performed(self, response: Any) -> Any:
        members = {each[0]: Member.decode(each[-1]) for each in response.members}
        self._assignor.joined(members)
        assignments = await self._perform(response)
        # Also with another assignor: a member that has just joined may know only that one, while
        # the others still read.
        decode = ConsumerProtocol.ASSIGNMENT.decode
        assigned = {
            name: (decode(each) if isinstance(each, bytes) else each).partitions()
            for name, each in assignments.items()
        }
        allowed = withhold_owned(assigned, members)
        return {name: encode_assignment(each) for name, each in allowed.items()}

    # --- after joining

    async def _join_completed(
        self, generation: int, member_id: str, protocol: str, assigned: bytes
    ) -> None:
        self._joining = False
        expelled, self._expelled = self._expelled, False
        before, unchanged = self._held, self._unchanged()
        assignment = ConsumerProtocol.ASSIGNMENT.decode(assigned)
        self._held = frozenset(assignment.partitions())
        self._generation = generation
        self._cooperative = protocol == self._assignor.name
        if before:
            # aiokafka starts it at the end: draining may take longer than a session.
            self._coordinator._start_heartbeat_task()
        if before and not expelled:
            self._rebalancer.joined_again(self._instance)
        if before and not expelled and unchanged:
            self._assignors[protocol].on_assignment(assignment)
            await self._take_over(before)
        else:
            if before:
                await self._rebalancer.revoke(self._instance)
            await self._complete(generation, member_id, protocol, assigned)
            subscription = self._subscription.subscription
            self._assignment = None if subscription is None else subscription.assignment
        if not expelled and before - self._held:
            self._coordinator.request_rejoin()  # to let the others have them

    async def _take_over(self, before: frozenset[TopicPartition]) -> None:
        """Begin with the partitions that are new, and give up those that are gone."""
        added, gone = self._held - before, before - self._held
        add_partitions(self._instance, added)
        await self._rebalancer.assign(self._instance, added)
        if gone:
            await self._rebalancer.revoke(self._instance, gone)
            if self._unchanged():
                remove_partitions(self._instance, gone)


# `Assignment` and `TopicPartitionState`: aiokafka makes new ones for each assignment, and its
# fetcher then discards everything.


def add_partitions(instance: ConsumerDriver, partitions: Collection[TopicPartition]) -> None:
    """Add partitions to aiokafka's assignment; the fetcher continues with the others."""
    driver: Any = instance
    assignment = driver._subscription.subscription.assignment
    for partition in sorted(partitions):
        assignment._tp_state[partition] = TopicPartitionState(assignment)
    if partitions:
        assignment._topic_partitions |= frozenset(partitions)
        driver._fetcher._notify(driver._fetcher._wait_consume_future)


def remove_partitions(instance: ConsumerDriver, partitions: Iterable[TopicPartition]) -> None:
    """Remove partitions from aiokafka's assignment; the fetcher continues with the others."""
    driver: Any = instance
    assignment = driver._subscription.subscription.assignment
    assignment._topic_partitions -= frozenset(partitions)
    for partition in partitions:
        # The state stays, because the response to a fetch may still be on its way.
        state = assignment._tp_state[partition]
        state.seek(_NOWHERE)
        state.update_committed(OffsetAndMetadata(_NOWHERE, ""))  # the fetcher may wait for it
        driver._fetcher._records.pop(partition, None)
