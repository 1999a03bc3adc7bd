"""What a consumer does by itself, again and again: commits, shows life, looks for trouble."""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from resilient_io.health import Cause, State
from resilient_io.tasks import describe_task_end, log_task_death

from ..driver import connections_of, oldest_request, reconnect
from . import internals

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import TopicPartition

    from resilient_io.health import Dependency

    from ..protocols import Connection, ConsumerDriver
    from ..supervisor import Supervisor
    from .assignment import Holding, Holdings
    from .fetcher import Feed
    from .iteration import Walk
    from .options import ConsumerSettings


_TICK = 1.0
"""Seconds between two rounds, at most."""

_HEAR = 0.9
"""Seconds between two looks at who has answered; a little less than a round, which may be early."""


class Kept(Protocol):
    """The consumer that is kept up."""

    supervisor: Supervisor[ConsumerDriver]
    settings: ConsumerSettings
    health: Dependency
    holdings: Holdings
    feed: Feed
    walk: Walk[Any] | None

    async def commit_due(self) -> bool:
        """Commit what is contiguous now."""
        raise NotImplementedError


class Upkeep:
    """A task that goes its rounds.

    Args:
        engine: Whose parts are kept up.
        stalls: Looks for partitions that do not move; None for not at all.
        silence: Looks for connections that say nothing.
        heard: Told when all that we need of the cluster has just answered: no probe is needed then.
    """

    def __init__(
        self,
        engine: Kept,
        stalls: StallWatch | None,
        silence: SilenceWatch,
        heard: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._stalls = stalls
        self._silence = silence
        self._heard = heard
        self._heard_at = -math.inf
        self._answers: dict[TopicPartition, int | None] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._committing: asyncio.Task[bool] | None = None
        self._due: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begin, in the running loop."""
        self._task = asyncio.get_running_loop().create_task(
            self._go_round(),
            name="resilient-io kafka upkeep",
            context=self._engine.supervisor.context(),
        )
        self._task.add_done_callback(log_task_death)

    def liveness_failure(self) -> str | None:
        """Say that nobody commits any more; None while all is well, and after `aclose`."""
        how = None if self._closed else describe_task_end(self._task)
        return None if how is None else f"the task that commits is gone: {how}"

    def commit_soon(self) -> None:
        """Commit in the next tick of the loop."""
        if self._due is not None and not self._due.done():
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                self._due.set_result(None)

    async def aclose(self) -> None:
        """End."""
        self._closed = True
        ending = [task for task in (self._task, self._committing) if task is not None]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        if self._stalls is not None:
            self._stalls.close()

    # --- inside

    async def _go_round(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._engine.settings.commit_interval
        tick = _TICK if interval is None else min(_TICK, interval)
        commit_at = loop.time()
        while True:
            self._due = loop.create_future()
            await asyncio.wait([self._due], timeout=tick)
            now = loop.time()
            self._look(now)
            if interval is not None and (self._due.done() or now >= commit_at):
                self._commit()
                commit_at = now + interval - tick / 2

    def _look(self, now: float) -> None:
        engine = self._engine
        instance = engine.supervisor.instance
        if engine.walk is not None:
            engine.walk.settle()
            if instance is not None and engine.walk.moved():
                # The driver gave its records long ago; that they are being handled counts, too.
                internals.note_poll(instance)
        if self._stalls is not None:
            self._stalls.look(engine.holdings.all, engine.feed.paused, now)
        if instance is not None and now - self._heard_at >= _HEAR:
            self._heard_at = now
            if self._all_answered(instance):
                self._heard()
        if instance is not None and engine.health.state.answering:
            self._silence.look(instance, now)
        else:
            self._silence.forget()

    def _all_answered(self, instance: ConsumerDriver) -> bool:
        """Tell whether each partition's leader has answered since the last time, and the group's.

        One that is silent must be found by the probe, however much the others say.
        """
        engine = self._engine
        before = self._answers
        self._answers = {
            holding.partition: holding.answered
            for holding in engine.holdings.all
            if not engine.feed.paused(holding.partition)
        }
        return (
            bool(self._answers)
            and internals.has_coordinator(instance)
            and all(before.get(partition) != at for partition, at in self._answers.items())
        )

    def _commit(self) -> None:
        if self._committing is not None and not self._committing.done():
            return
        # In a task of its own: what it waits for may be the silence that the next look finds.
        self._committing = asyncio.get_running_loop().create_task(
            self._engine.commit_due(), name="resilient-io kafka commit"
        )


_LOOKS = 2
"""Looks in a row that must find the same silence: the first may only come before the answer that
already lies in the socket, because our own loop was blocked."""


@dataclass(slots=True)
class Owed:
    """What a connection owes: the answer to this request, of which so much has come."""

    connection: Connection
    request: object
    received: int
    since: float
    looks: int = 0


class SilenceWatch:
    """Closes connections that are silent for too long, so that the driver dials anew.

    A path that was lost without a word (a load balancer that forgot us, a broker's machine that
    went away) is otherwise noticed after the driver's `request_timeout_ms` only; the member may
    have lost its place in the group by then. A large answer that is still coming is no silence.

    Args:
        response: Seconds that most answers may take.
        fetch: Seconds more that the broker may wait for records.
        join: Seconds more that the group may wait for its members.
    """

    __slots__ = ("_fetch", "_join", "_owed", "_response", "closed")

    def __init__(self, response: float, *, fetch: float, join: float) -> None:
        self._response = response
        self._fetch = fetch
        self._join = join
        self._owed: list[Owed] = []
        self.closed = 0

    def look(self, instance: ConsumerDriver, now: float) -> None:
        """Compare with the last look.

        Args:
            instance: The one in service.
            now: The loop's time.
        """
        owed = []
        for connection in connections_of(instance):
            request = oldest_request(connection)
            if request is None or not connection.connected():
                continue
            received = internals.received(connection)
            before = next((each for each in self._owed if each.connection is connection), None)
            if before is None or before.request is not request or before.received != received:
                owed.append(Owed(connection, request, received, now))
                continue
            if now - before.since >= self._limit(request):
                before.looks += 1
                if before.looks >= _LOOKS:
                    self.closed += 1
                    reconnect(connection)
                    continue
            owed.append(before)
        self._owed = owed

    def forget(self) -> None:
        """Begin anew: while the cluster is away, silence tells nothing."""
        self._owed = []

    def _limit(self, request: object) -> float:
        kind = internals.kind_of(request)
        if kind == "fetch":
            return self._response + self._fetch
        return self._response + (self._join if kind == "join" else 0.0)


class StallWatch:
    """Makes health DEGRADED while a partition is stalled.

    What is paused on purpose is not stalled, and neither is anything while Kafka is away: then the
    time begins anew.

    Args:
        health: Is told of stalled partitions as lost parts.
        after: Seconds without movement, with records waiting.
        group: Whose partitions they are, for the name of the part.
    """

    __slots__ = ("_after", "_group", "_health", "_moved", "_stalled")

    def __init__(self, health: Dependency, after: float, group: str | None) -> None:
        self._health = health
        self._after = after
        self._group = group
        self._moved: dict[TopicPartition, tuple[int | None, float]] = {}
        self._stalled: dict[TopicPartition, bool] = {}

    def look(
        self, holdings: list[Holding], paused: Callable[[TopicPartition], bool], now: float
    ) -> None:
        """Compare with the last look.

        Args:
            holdings: The partitions that are ours.
            paused: Tells whether one is paused.
            now: The loop's time.
        """
        down = self._health.state is State.DOWN
        moved: dict[TopicPartition, tuple[int | None, float]] = {}
        stalled: dict[TopicPartition, bool] = {}
        for holding in holdings:
            partition, at, end = holding.partition, holding.resume, holding.end
            before = self._moved.get(partition)
            waiting = end is not None and (at is None or at < end)
            if before is None or before[0] != at or not waiting or down or paused(partition):
                moved[partition] = (at, now)
                continue
            moved[partition] = before
            if now - before[1] >= self._after:
                stalled[partition] = True
                # Going DOWN forgot it; otherwise once is enough.
                if partition not in self._stalled:
                    self._health.part_lost(
                        self._part(partition),
                        Cause.STALLED,
                        f"it has stood at {at} for {now - before[1]:.0f} s, with {end} to reach",
                    )
        for partition in self._stalled:
            if partition not in stalled:
                self._health.part_back(self._part(partition))
        self._moved, self._stalled = moved, stalled

    def close(self) -> None:
        """Take back what was said."""
        for partition in self._stalled:
            self._health.part_back(self._part(partition))
        self._stalled = {}

    def _part(self, partition: TopicPartition) -> str:
        whose = "" if self._group is None else f"{self._group}: "
        return f"{whose}{partition.topic}[{partition.partition}]"


class Standing:
    """Doubts the place in the group once its coordinator was not heard for a session.

    By then it may have given our partitions to others: what is handled after that cannot be
    committed, and is handled again. There is no doubt before the first confirmation, so never
    without a group.

    Args:
        session: Seconds (`session_timeout_ms`) after which the group gives a member up.
        moved: Called when the doubt begins or ends.

    Attributes:
        doubtful: Whether nobody knows if the partitions are still ours.
    """

    __slots__ = ("_closed", "_moved", "_session", "_timer", "doubtful")

    def __init__(self, session: float, moved: Callable[[], None]) -> None:
        self._session = session
        self._moved = moved
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.doubtful = False

    def confirm(self, asked: float) -> None:
        """The group has said that we belong to it.

        Args:
            asked: Loop time at which it was asked; it has counted from then, or from later.
        """
        loop = asyncio.get_running_loop()
        if self._closed or loop.time() >= asked + self._session:
            return  # such an old answer tells nothing of now
        self._disarm()
        self._timer = loop.call_at(asked + self._session, self._doubt)
        if self.doubtful:
            self.doubtful = False
            self._moved()

    def close(self) -> None:
        """Look no more; twice is fine."""
        self._closed = True
        self._disarm()

    def _doubt(self) -> None:
        self._timer = None
        self.doubtful = True
        self._moved()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
