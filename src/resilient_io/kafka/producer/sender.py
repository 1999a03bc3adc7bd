"""Hands batches over to the instance in service, one at a time for each partition."""

from __future__ import annotations

import asyncio
import functools
import math
from typing import TYPE_CHECKING

from aiokafka import errors as driver

from resilient_io.health import Cause
from resilient_io.histogram import Latencies

from ..driver import InstanceEnded
from ..errors import meaning_of
from .batch import confirm, fail, load, put_back
from .closing import drop_waiting
from .errors import refusal
from .sequence import attempts_of, is_idempotent, newest_batch, take_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import RecordMetadata

    from resilient_io.health import Dependency

    from ..protocols import ProducerDriver
    from ..supervisor import Supervisor
    from .buffer import Room
    from .errors import Verdicts
    from .metadata import Topics
    from .partition_queue import Cargo, Line


_CLOCK_SPACING = 1.0
"""Seconds for which the wall clock's distance from the loop's is believed."""

_LEADER_PAUSE = 0.1
_LONGEST_LEADER_PAUSE = 0.5
"""Seconds between two questions for the leader of a partition that has none."""

_HEAR = 0.9
"""Seconds between two looks at who has answered: a little less than between two probes."""

_TOO_LARGE = (driver.MessageSizeTooLargeError, driver.RecordListTooLargeError)

_NO_ANSWER = "it was handed over, and the connection to Kafka ended without an answer"


class Courier:
    """Carries what waits in the lines, whenever there is an instance to take it.

    Attributes:
        travelling: Batches that were handed over and are not settled.
        batches: How many were handed over, ever.
        latencies: How long those that were confirmed took from there on.
        open: Whether batches may be handed over; a transaction's end closes it.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor[ProducerDriver],
        topics: Topics,
        room: Room,
        health: Dependency,
        verdicts: Verdicts,
        heard: Callable[[], None],
        progressed: Callable[[], None],
    ) -> None:
        """Prepare.

        Args:
            supervisor: Owns the instance.
            topics: Know the leaders.
            room: Gets back the bytes of what is settled.
            health: While it is DOWN, nothing is handed over.
            verdicts: Makes the errors.
            heard: Called when all leaders have just confirmed batches.
            progressed: Called when a batch was settled.
        """
        self.travelling: dict[Line, Cargo] = {}
        self.batches = 0
        self.latencies = Latencies()
        self.open = True
        self._supervisor = supervisor
        self._topics = topics
        self._room = room
        self._health = health
        self._verdicts = verdicts
        self._heard = heard
        self._progressed = progressed
        self._loop = asyncio.get_running_loop()
        self._context = supervisor.context()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._held: list[Line] = []
        self._asking: asyncio.Task[None] | None = None
        self._given_up: ProducerDriver | None = None
        self._answered: dict[int | None, None] = {}  # nodes
        self._heard_at = -math.inf
        self._renewal: Exception | None = None
        self._epoch = 0.0
        self._epoch_until = -math.inf

    # --- handing over

    def hand_over(self, line: Line) -> None:
        """Hand over the front of a line that has nothing travelling, or hold it until that goes."""
        instance = self._supervisor.instance
        if (
            instance is None
            or instance is self._given_up
            or not self.open
            or self._renewal is not None
            or not self._health.available
        ):
            self._hold(line)
            return
        if not self._topics.has_leader(line):
            self._hold(line)
            self._ask_for_leaders()
            return
        now = self._loop.time()
        if now >= self._epoch_until:
            self._set_epoch(instance, now)
        cargo, freed = load(line, instance, instance.create_batch(), now, self._epoch)
        if freed:
            self._room.release(freed)
            self._progressed()
        if not cargo.count:
            line.idle = True
            return
        line.cargo = self.travelling[line] = cargo
        topic = self._topics.known.get(line.topic)
        if topic is not None and topic.sticky is line:
            topic.move_on()
        self.batches += 1
        task = self._loop.create_task(
            self._carry(cargo, instance), name="resilient-io kafka batch", context=self._context
        )
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)

    def wake(self) -> None:
        """Try the lines again that were held."""
        held, self._held = self._held, []
        for line in held:
            line.held = False
            self.hand_over(line)

    def _hold(self, line: Line) -> None:
        if not line.held:
            line.held = True
            self._held.append(line)

    def _set_epoch(self, instance: ProducerDriver, now: float) -> None:
        # Time comes from the loop alone, so the wall clock is read where aiokafka reads it.
        read = instance.create_batch().append(timestamp=None, key=None, value=b"")
        self._epoch = read.timestamp / 1000.0 - now
        self._epoch_until = now + _CLOCK_SPACING

    async def _carry(self, cargo: Cargo, instance: ProducerDriver) -> None:
        line = cargo.line
        try:
            future = await instance.send_batch(cargo.batch, line.topic, partition=line.partition)
        # The boundary to the driver: it asserts, too. Whatever it raises here, it took nothing.
        except Exception as error:  # noqa: BLE001
            self._not_taken(cargo, error)
        else:
            cargo.taken = newest_batch(instance, line.tp)
            future.add_done_callback(functools.partial(self._settled, cargo))

    def _ask_for_leaders(self) -> None:
        if self._asking is None:
            self._asking = self._loop.create_task(
                self._find_leaders(), name="resilient-io kafka leaders", context=self._context
            )

    async def _find_leaders(self) -> None:
        """Ask for metadata until no held line lacks a leader, or the instance is gone."""
        pause = _LEADER_PAUSE
        try:
            while lacking := self._leaderless():
                instance = self._supervisor.instance
                if instance is None:
                    return
                try:
                    answered = await self._topics.refresh(instance)
                except InstanceEnded:
                    return
                if answered:
                    self._fail_deleted(lacking)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_LEADER_PAUSE)
        finally:
            self._asking = None
        self.wake()

    def _leaderless(self) -> list[Line]:
        """Give the held lines that lack a leader; let those go in which nothing waits any more."""
        held, self._held = self._held, []
        for line in held:
            if line.records:
                self._held.append(line)
            else:
                line.held, line.idle = False, True
        return [line for line in self._held if not self._topics.has_leader(line)]

    def _fail_deleted(self, lacking: list[Line]) -> None:
        """Fail what waits for topics that Kafka said several times not to have."""
        names = dict.fromkeys(line.topic for line in lacking if self._topics.is_gone(line.topic))
        for name in names:
            drop_waiting(
                [line for line in self._topics.lines if line.topic == name],
                self._verdicts,
                self._room,
                lambda _sent, _call, name=name: refusal(  # type: ignore[misc]
                    driver.UnknownTopicOrPartitionError(name)
                ),
            )
        if names:
            self._topics.forget(list(names))
            self._progressed()

    # --- what became of a batch

    def _settled(self, cargo: Cargo, future: asyncio.Future[RecordMetadata]) -> None:
        if cargo.line.cargo is not cargo:
            if not future.cancelled():
                future.exception()
            return  # settled when its instance was retired
        if future.cancelled():
            self._failed(cargo, driver.KafkaError("the driver dropped it"))
            return
        error = future.exception()
        if error is None:
            self._note_answer(cargo.line)
            self.latencies.record(self._loop.time() - cargo.at)
            confirm(cargo, future.result(), self._verdicts)
            self._finish(cargo)
        elif isinstance(error, Exception):
            self._failed(cargo, error)

    def _note_answer(self, line: Line) -> None:
        """Say that no probe is needed, once all leaders have answered lately.

        One that is silent must be found by the probe, however much the others say.
        """
        self._answered[self._topics.leader_of(line)] = None
        now = self._loop.time()
        if now - self._heard_at >= _HEAR:
            self._heard_at = now
            if self._topics.leaders() <= self._answered.keys():
                self._heard()
            self._answered.clear()

    def _not_taken(self, cargo: Cargo, error: Exception) -> None:
        """Put a batch back that the driver did not take; the next instance will."""
        if cargo.line.cargo is not cargo:
            return
        if isinstance(error, InstanceEnded):
            self._given_up = cargo.instance
        elif not isinstance(error, driver.KafkaTimeoutError):
            self._break(cargo.instance, error)
        self._finish(cargo, freed=put_back(cargo))

    def _failed(self, cargo: Cargo, error: Exception) -> None:
        if isinstance(error, InstanceEnded):
            self._given_up = cargo.instance
        if isinstance(error, InstanceEnded) and not error.sent:
            self._finish(cargo, freed=put_back(cargo))
            return
        if isinstance(error, _TOO_LARGE) and cargo.count > 1:
            self._split(cargo, error)
            return
        meaning = meaning_of(error)
        once = attempts_of(cargo.taken) == 1
        if meaning.kind == "permanent" or (meaning.cause is Cause.FENCED and once):
            fail(cargo, self._verdicts, lambda _sent, _call: refusal(error))
        elif (
            once
            and meaning.kind in ("refused", "fatal")
            and isinstance(error, driver.BrokerResponseError)
        ):
            # An answer to its only attempt that says "not written".
            why = words(error)
            fail(cargo, self._verdicts, lambda sent, call: self._verdicts.refused(sent, why, call))
        else:
            why = _NO_ANSWER if isinstance(error, InstanceEnded) else words(error)
            fail(cargo, self._verdicts, lambda sent, call: self._verdicts.unknown(sent, why, call))
        if isinstance(error, InstanceEnded):
            pass
        elif meaning.fatal:
            self._break(cargo.instance, error)
        else:
            self._mend(cargo, error)
        self._finish(cargo)

    def _split(self, cargo: Cargo, error: Exception) -> None:
        """Send a batch that is too large for the topic again, in halves: nothing was written."""
        self._mend(cargo, error)
        line = cargo.line
        most = line.byte_limit if line.byte_limit is not None else cargo.batch.size()
        line.byte_limit = max(1, min(most, cargo.size) // 2)
        self._finish(cargo, freed=put_back(cargo))

    def _mend(self, cargo: Cargo, error: Exception) -> None:
        """See to it that later batches of the line are numbered as the broker expects.

        One that was refused at its only attempt gives its numbers back. After several attempts
        nobody knows which the broker has seen: the instance is replaced once nothing travels.
        """
        if not is_idempotent(cargo.instance):
            return
        if meaning_of(error).kind in ("permanent", "refused") and attempts_of(cargo.taken) == 1:
            take_back(cargo.instance, cargo.line.tp, cargo.count)
        elif self._renewal is None:
            self._renewal = error

    def _finish(self, cargo: Cargo, *, freed: int | None = None) -> None:
        """Let the line go on."""
        line = cargo.line
        self.travelling.pop(line, None)
        line.cargo = None
        if self._renewal is not None and not self.travelling:
            error, self._renewal = self._renewal, None
            self._break(cargo.instance, error)
        if line.records:
            self.hand_over(line)
        else:
            line.idle = True
        size = cargo.size if freed is None else freed
        if size:
            self._room.release(size)
        self._progressed()

    # --- instances come and go

    def _break(self, instance: ProducerDriver, error: Exception) -> None:
        """Have an instance replaced, and give it nothing more."""
        self._given_up = instance
        self._supervisor.broken(instance, error)

    def retired(self, instance: ProducerDriver, error: BaseException | None) -> None:
        """Settle what an ended instance still had: its sockets are closed, nobody will answer."""
        self._renewal = None
        cause = InstanceEnded("it ended", sent=True)
        cause.__cause__ = error
        for cargo in list(self.travelling.values()):
            if cargo.instance is instance:
                never = cargo.taken is None or attempts_of(cargo.taken) == 0
                self._failed(cargo, InstanceEnded("it ended") if never else cause)

    async def aclose(self) -> None:
        """End every task."""
        tasks = [*self._tasks]
        if self._asking is not None:
            tasks.append(self._asking)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def words(error: BaseException) -> str:
    """Say in one line what the driver raised."""
    if isinstance(error, InstanceEnded):
        return "the instance that had it ended before an answer came"
    said = " ".join(str(error).split())
    name = type(error).__name__
    return f"the driver gave up: {said if name in said else f'{name}: {said}'}"
