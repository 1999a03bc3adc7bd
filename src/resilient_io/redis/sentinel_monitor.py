"""The watch on the Sentinels of a master: what they publish, and what they answer.

The client subscribes to every Sentinel, because only one of them leads a failover and publishes its
beginning. All are asked again after each event, and every second while something is wrong.
"""

from __future__ import annotations

import asyncio
import fnmatch
import math
from contextvars import Context
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from resilient_io.health import Cause, State
from resilient_io.retry import Backoff
from resilient_io.tasks import Signal, describe_task_end, log_task_death
from resilient_io.text import format_address

from .driver_connection import StallTolerantTimeout, abort

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine, Sequence

    from redis.asyncio.connection import AbstractConnection

    from resilient_io.health import Dependency, Reporter

    from .connect import RedisTarget, SentinelNode
    from .errors import ConnectionFailure
    from .failover import Failover
    from .sentinel import Answer, SentinelAddress
    from .topology import SentinelTopology

_BEGINS = "+try-failover"
_ABORTED = "-failover-abort-*"
_CHANNELS = (
    _BEGINS,
    *(f"-failover-abort-{why}" for why in ("not-elected", "no-good-slave", "slave-timeout")),
    "+promoted-slave",
    "+switch-master",
    "+failover-end",
    "+failover-end-for-timeout",
    "+config-update-from",
    *("+sdown", "-sdown", "+odown", "-odown"),
    *("+reboot", "+reset-master", "+monitor", "-monitor", "-tilt"),
)
"""What Sentinels publish about failovers. After each of these events, all are asked again."""

_PING_AFTER = 1.0  # seconds of silence of a Sentinel after which it gets a PING
_LIVENESS_TIMEOUT = 1.0  # seconds that its answer may take
_RECONNECT = 0.1  # seconds before the first attempt to subscribe again, at most
_RECONNECT_CAP = 0.5

_ASK_IN_FAILOVER = 0.25  # seconds between two questions while a failover is in progress
_ASK_IN_TROUBLE = 1.0  # the same while a subscription is lost, or the master is down
_ASK_SELDOM = 10.0
_LEAST_PAUSE = 0.02  # seconds between two questions after events

_ELECTION = 5.0
"""Seconds after a master was found to be down in which a failover can be expected."""

_REACHED_AFTER = 0.5  # seconds after a loss at which a reply to a Sentinel contradicts it


class SentinelMonitor:
    """Follows the failovers of one master, in tasks that its owner ends with `aclose`.

    Args:
        target: The target, which is a master that Sentinels monitor.
        failover: What is done about a failover.
        topology: Shows what is known about the servers.
        health: The state of the master.
        reports: What the client reports to it.
        rng: Source of jitter.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        source: SentinelAddress,
        failover: Failover,
        topology: SentinelTopology,
        health: Dependency,
        reports: Reporter,
        rng: random.Random,
    ) -> None:
        self._source = source
        self._nodes: Sequence[SentinelNode] = target.sentinels
        self._failover = failover
        self.topology = topology
        self._health = health
        self._reports = reports
        self._rng = rng
        self._tasks: list[asyncio.Task[None]] = []
        self._died: str | None = None
        self._asked = Signal()
        self._heard: set[str] = set()  # Sentinels to which a subscription was tried
        self._lost: dict[str, ConnectionFailure] = {}  # why a Sentinel has no subscription
        self._undecided = False  # whether the latest answers did not name a master
        self._flagged: dict[str, bool] = {}  # whether a Sentinel said that it fails over
        self._different: dict[str, float] = {}  # since when a Sentinel names another master
        self._reported = ""
        self._remark = ""

    def start(self) -> None:
        """Subscribe to each Sentinel, in the running loop."""
        for node in self._nodes:
            self._start_task(self._follow(node), f"sentinel {node.name}")
        self._start_task(self._ask_repeatedly(), "sentinels")
        self._start_task(self.topology.measure_repeatedly(), "replica lag")

    def ask(self) -> None:
        """Ask all Sentinels soon: something has happened that they may know more about."""
        self._asked.set()

    def liveness_failure(self) -> str | None:
        """Return which of the tasks ended because of a bug, or None."""
        return self._died

    async def aclose(self) -> None:
        """End all tasks. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._failover.end()

    # -- events ------------------------------------------------------------------------------

    async def _follow(self, node: SentinelNode) -> None:
        """Keep a subscription to one Sentinel."""
        loop = asyncio.get_running_loop()
        backoff = Backoff(_RECONNECT, _RECONNECT_CAP, self._rng, floor=_RECONNECT / 2)
        while True:
            connection: AbstractConnection | None = None
            began = loop.time()
            try:
                connection = await node.subscribe(_CHANNELS)
                self._note_subscription(node, None)
                await self._listen(connection)
            except (RedisError, OSError) as error:
                if connection is None:
                    self._note_subscription(node, node.failure(error))
            finally:
                if connection is not None:
                    abort(connection)
            if connection is not None and loop.time() - began > _RECONNECT_CAP:
                backoff.reset()
                self.ask()
            else:
                await asyncio.sleep(backoff.next())

    async def _listen(self, connection: AbstractConnection) -> None:
        """Read events until the connection is lost, or its Sentinel is silent."""
        asked = False
        while True:
            try:
                async with StallTolerantTimeout(_LIVENESS_TIMEOUT if asked else _PING_AFTER):
                    # A read that is cancelled must not close the connection.
                    message: Any = await connection.read_response(
                        disconnect_on_error=False, push_request=True
                    )
            except TimeoutError:
                if asked:
                    raise
                await connection.send_command("PING", check_health=False)
                asked = True
                continue
            asked = False
            kind, *words = [_text(word) for word in message] if isinstance(message, list) else [""]
            if kind == "message":
                self._take_event(*words)

    def _take_event(self, channel: str, text: str) -> None:
        if self._source.service not in text.split(" "):
            return  # of another master
        self._health.note("sentinel event", event_name=channel, detail=text)
        if channel == _BEGINS:
            self._failover.begin(_IN_PROGRESS)
        elif fnmatch.fnmatchcase(channel, _ABORTED):
            self._failover.end()
        self.ask()

    def _note_subscription(self, node: SentinelNode, failure: ConnectionFailure | None) -> None:
        if failure is None:
            self._lost.pop(node.name, None)
        else:
            self._lost[node.name] = failure
        self._heard.add(node.name)
        self.topology.note_subscribed(len(self._heard - self._lost.keys()))
        self.ask()

    # -- questions ---------------------------------------------------------------------------

    async def _ask_repeatedly(self) -> None:
        while True:
            await self._pause()
            self._asked.clear()
            self._undecided = False
            try:
                await self._source.ask()
            except (RedisError, OSError) as error:
                self._undecided = True
                self._health.note("no master known", detail=str(error))
            answers = [answer for answer in self._source.answers if answer is not None]
            down_after = max((answer.down_after for answer in answers), default=0.0)
            self._failover.expect(down_after + _ELECTION if answers else 0.0)
            self._check_flags()
            self._compare()
            self._report()
            self._explain(answers)
            await asyncio.sleep(_LEAST_PAUSE)

    async def _pause(self) -> None:
        """Wait until the next question is due."""
        down = self._health.state is State.DOWN
        trouble = self._lost or self._different or self._undecided or down
        pause = _ASK_IN_TROUBLE if trouble else _ASK_SELDOM
        if self._failover.in_progress:
            pause = _ASK_IN_FAILOVER
        try:
            async with asyncio.timeout(pause):
                await self._asked.wait()
        except TimeoutError:
            return

    def _check_flags(self) -> None:
        """Hold calls if a Sentinel whose events were missed has begun to fail over."""
        for node, answer in zip(self._nodes, self._source.answers, strict=True):
            if answer is None:
                continue
            flagged = "failover_in_progress" in answer.flags
            # The flag stays for a while after the new master is known.
            began = flagged and not self._flagged.get(node.name, False)
            self._flagged[node.name] = flagged
            if began and node.name in self._lost and not self._failover.in_progress:
                self._failover.begin(_IN_PROGRESS)

    def _compare(self) -> None:
        """Note since when each Sentinel has named another master."""
        now, known = asyncio.get_running_loop().time(), self._source.known
        different: dict[str, float] = {}
        for node, answer in zip(self._nodes, self._source.answers, strict=True):
            if answer is not None and known is not None and answer.address != known.address:
                different[node.name] = self._different.get(node.name, now)
        self._different = different

    # -- health ------------------------------------------------------------------------------

    def _report(self) -> None:
        """Report lost and contradicting Sentinels as a lost part of the whole."""
        detail, cause = self._describe()
        if not detail and self._reported:
            self._reports.part_back(_PART)
        elif detail and (detail != self._reported or _PART not in self._health.parts_lost):
            self._reports.part_lost(_PART, cause, detail)
        self._reported = detail

    def _describe(self) -> tuple[str, Cause]:
        """Return what is wrong with the Sentinels, or an empty text."""
        lost, total = self._lost, len(self._nodes)
        if lost:
            how_many = f"all {total}" if len(lost) == total else f"{len(lost)} of {total}"
            effect = ", so a failover would not be noticed" if len(lost) == total else ""
            which = "; ".join(f"{name}: {failure.detail}" for name, failure in lost.items())
            cause = next(iter(lost.values())).cause
            return f"{how_many} cannot be reached{effect} ({which})", cause
        since = asyncio.get_running_loop().time() - _CONTRADICTS_AFTER
        wrong = [
            f"{node.name} says {format_address(*answer.address)}"
            for node, answer in zip(self._nodes, self._source.answers, strict=True)
            if answer is not None and self._different.get(node.name, math.inf) <= since
        ]
        if wrong and not self._failover.in_progress:
            which = ", ".join(wrong)
            return f"not all agree that {self._source.known} is the master: {which}", Cause.OTHER
        return "", Cause.OTHER

    def _explain(self, answers: Sequence[Answer]) -> None:
        """Add to the detail of an outage that the Sentinels reach the master, if they do."""
        known, health, remark = self._source.known, self._health, ""
        if health.state is State.DOWN and known is not None:
            since = health.since + _REACHED_AFTER
            own = [answer for answer in answers if answer.address == known.address]
            reaching = sum(answer.last_reply > since for answer in own)
            if reaching:
                remark = (
                    f"{reaching} of {len(self._nodes)} Sentinels reach the master {known}, "
                    f"this client does not"
                )
        if remark != self._remark:
            self._remark = remark
            self._reports.remark(remark)

    def _start_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(
            work, name=f"resilient-io redis {name}", context=Context()
        )
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        log_task_death(task)
        how = None if task.cancelled() else describe_task_end(task)
        if how is not None:
            self._died = f"the task of the Sentinels ended: {how}"


_PART = "Sentinels"

_IN_PROGRESS = "the Sentinels are replacing the master"

_CONTRADICTS_AFTER = 3.0  # seconds that a Sentinel may need to learn about a failover


def _text(word: object) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
