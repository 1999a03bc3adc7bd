"""Keeping the lanes open: dialling, replacing, fencing; one owned task for each lane."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError

from resilient_io.health import State
from resilient_io.tasks import describe_task_end, log_task_death

from .classification import connection_failure
from .dial import abort, ask_over, can_be_a_lane, dial, fence, introduce

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency
    from resilient_io.retry import RetryPolicy

    from .classification import Failure
    from .dial import Ask
    from .lane import Lane
    from .target import Target

    MakeLane = Callable[[AbstractConnection, str, int | None], Lane]

_BACKOFF = 0.05
_BACKOFF_CAP = 1.0
_PERMANENT_CAP = 10.0


class Kept(Protocol):
    """What the keeper tells: the set of lanes."""

    def lane_opened(self, slot: int, lane: Lane) -> None:
        """Take a new lane into use."""

    def dial_failed(self, slot: int, failure: Failure, error: BaseException) -> None:
        """Hear why there is no lane in this slot."""

    def go_without(self) -> None:
        """Hear that this driver's connections cannot be lanes."""

    def refresh(self) -> None:
        """Choose anew: a fence was settled."""


class Keeper:
    """Opens a lane for each slot, and another when it ends, until it is closed."""

    def __init__(
        self,
        kept: Kept,
        make_lane: MakeLane,
        *,
        target: Target,
        policy: RetryPolicy,
        health: Dependency,
        rng: random.Random,
        client_name: str | None,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            kept: Who hears about it.
            make_lane: Makes a lane of a connection, its name and its CLIENT ID.
            target: Where to dial, asked at every dial.
            policy: Its connect and response timeouts hold.
            health: Says whether dialling is worth it.
            rng: Jitter and names.
            client_name: The name that the caller chose for its connections, a prefix of ours.
        """
        self._kept = kept
        self._make_lane = make_lane
        self._target = target
        self._policy = policy
        self._health = health
        self._rng = rng
        self._names = f"{client_name or 'resilient-io'}:{rng.getrandbits(32):08x}"
        self._dialled = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._died: str | None = None
        self._fences: deque[Lane] = deque()
        self._worth_it = asyncio.Event()
        self._closing = False

    @property
    def fencing(self) -> bool:
        """Whether a dead lane may still write: nothing is sent until that is settled."""
        return bool(self._fences)

    def liveness_failure(self) -> str | None:
        """Say which task of ours is gone that nobody starts again; None while all is well."""
        return None if self._closing else self._died

    def start(self, slots: int) -> None:
        """Open that many lanes."""
        for slot in range(slots):
            self._own(self._keep(slot), f"lane {slot}")

    def hurry(self) -> None:
        """Dial now where it is paused: a probe has got through."""
        self._worth_it.set()
        self._worth_it.clear()

    def lost(self, lane: Lane, survivor: Lane | None) -> None:
        """Fence a dead lane whose calls were maybe applied; a successor does it otherwise."""
        if lane.fenced.done():
            return
        self._fences.append(lane)
        if survivor is not None and not self._closing:
            self._own(self._fence_over(survivor), "fence")

    async def aclose(self) -> None:
        """End every task; doing it twice is fine."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        while self._fences:
            self._fences.popleft().fenced.set_result(False)

    # -- one lane --------------------------------------------------------------------------

    async def _keep(self, slot: int) -> None:
        failures = 0
        while not self._closing:
            try:
                lane = await self._open()
            except (RedisError, OSError) as error:
                failures += 1
                failure = connection_failure(error, tls=self._target.uses_tls)
                self._kept.dial_failed(slot, failure, error)
                await self._until_worth_dialling(failures, permanent=failure.permanent)
                continue
            if lane is None:
                self._kept.go_without()
                return
            failures = 0
            self._kept.lane_opened(slot, lane)
            await asyncio.wait([lane.closed, lane.retired], return_when=asyncio.FIRST_COMPLETED)

    async def _open(self) -> Lane | None:
        self._dialled += 1
        policy = self._policy
        name = f"{self._names}-{self._dialled}"
        connection = await dial(
            self._target,
            client_name=None,
            timeout=policy.connect_timeout,
            user_timeout=policy.response_timeout,
        )
        lane = None
        try:
            if can_be_a_lane(connection):
                ask = ask_over(connection, policy.connect_timeout)
                identity = await introduce(ask, name)
                await self._settle_fences(ask)
                lane = self._make_lane(connection, name, identity)
        finally:
            if lane is None:
                # A connection that did not become a lane must not stay open.
                abort(connection)
        return lane

    async def _until_worth_dialling(self, failures: int, *, permanent: bool) -> None:
        cap = _PERMANENT_CAP if permanent else _BACKOFF_CAP
        pause = self._rng.uniform(0.01, min(cap, _BACKOFF * 2.0 ** min(failures, 10)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._worth_it.wait()
        if self._health.state is State.DOWN:
            # Only probes knock at a dependency that is down.
            await self._health.until_up()

    # -- fencing ---------------------------------------------------------------------------

    async def _settle_fences(self, ask: Ask) -> None:
        """Before anything is repeated or newly sent: what dead lanes sent must be over."""
        while self._fences:
            lane = self._fences[0]
            fenced = await fence(ask, client_id=lane.client_id, name=lane.name)
            if self._fences and self._fences[0] is lane:
                self._fences.popleft()
                self._health.note("lane fenced" if fenced else "lane could not be fenced")
                lane.fenced.set_result(fenced)

    async def _fence_over(self, survivor: Lane) -> None:
        try:
            await self._settle_fences(survivor.ask)
        except (RedisError, OSError):
            return  # the survivor died, too, which it has reported: the next lane does it
        self._kept.refresh()

    def _own(self, work: Coroutine[Any, Any, None], what: str) -> None:
        # In an empty context: neither the deadline nor the span of the call that happens to come
        # first is that of what outlives it.
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io {what}", context=Context()
        )
        self._tasks.append(task)
        task.add_done_callback(functools.partial(self._ended, what))

    def _ended(self, what: str, task: asyncio.Task[None]) -> None:
        self._tasks.remove(task)
        log_task_death(task)
        if task.cancelled() or task.exception() is not None:
            how = describe_task_end(task)
            if how is not None:
                self._died = f"the task of {what} is gone: {how}"
