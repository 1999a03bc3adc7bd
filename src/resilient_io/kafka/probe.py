"""How health asks Kafka: over a connection of its own, or, in doubt, over new ones everywhere."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaConnectionError, KafkaError, NoError, for_code
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed

from .driver import drop
from .errors import Failure, connection_failure, meaning_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from .connect import Target
    from .protocols import Connection


GROUP = 0
"""The type of a group's coordinator (`aiokafka.client.CoordinationType`)."""

TRANSACTION = 1
"""The type of a transactional id's coordinator."""

_NO_LEADER = -1


@dataclass(frozen=True, slots=True)
class Seen:
    """What a broker says of its cluster.

    Attributes:
        brokers: Host and port of each broker by its node id.
        leaderless: Partitions of the topics asked for that have no leader now.
    """

    brokers: dict[int, tuple[str, int]] = field(default_factory=dict)
    leaderless: tuple[TopicPartition, ...] = ()


async def ask_metadata(connection: Connection, topics: Iterable[str], timeout: float) -> Seen:
    """Ask for the brokers, and for the leaders of some topics. Creates no topic.

    Args:
        connection: To any broker.
        topics: Those whose leaders matter; may be none.
        timeout: Longest wait in seconds.

    Raises:
        TimeoutError: No answer came.
        KafkaError: The connection was lost.
    """
    request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(request)
    brokers = {broker[0]: (broker[1], broker[2]) for broker in answer.brokers}
    leaderless = []
    for topic in answer.topics:
        error, name, partitions = topic[0], topic[1], topic[-1]
        if for_code(error) is NoError:
            leaderless += [
                TopicPartition(name, partition[1])
                for partition in partitions
                if partition[2] == _NO_LEADER
            ]
    return Seen(brokers, tuple(leaderless))


async def ask_coordinator(
    connection: Connection, kind: int, key: str, timeout: float
) -> tuple[str, int]:
    """Ask who coordinates a group or a transactional id.

    Args:
        connection: To any broker.
        kind: `GROUP` or `TRANSACTION`.
        key: The group's id, or the transactional id.
        timeout: Longest wait in seconds.

    Returns:
        Host and port.

    Raises:
        TimeoutError: No answer came.
        KafkaError: There is none now, asking is not allowed, or the connection was lost.
    """
    async with asyncio.timeout(timeout):
        answer: Any = await connection.send(FindCoordinatorRequest(key, kind))
    error = for_code(answer.error_code)
    if error is not NoError:
        raise error(key)
    return answer.host, answer.port


_SILENT = Failure(Cause.TIMED_OUT, "no answer in time", definite=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was heard at one address, and the connection over which it was."""

    address: tuple[str, int]
    connection: Connection
    seen: Seen


class Round:
    """Dials and asks; leaving its `async with` ends all of it but what was kept.

    Args:
        target: How to dial.
        timeout: Seconds for making a connection, and again for the answer.
        topics: Those whose leaders are asked for.
    """

    def __init__(self, target: Target, *, timeout: float, topics: Sequence[str]) -> None:
        self._target = target
        self._timeout = timeout
        self._topics = topics
        self._tasks: dict[tuple[str, int], asyncio.Task[Answer]] = {}
        self._kept: Answer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        try:
            if any(not task.done() for task in tasks):
                await asyncio.wait(tasks)  # cancelled, they end within a few turns of the loop
        finally:
            for task in tasks:
                _discard(task, self._kept)

    async def ask(self, addresses: Sequence[tuple[str, int]], *, stagger: float = 0.0) -> None:
        """Begin asking, `stagger` seconds apart, until one has answered; failures do not wait."""
        loop = asyncio.get_running_loop()
        for number, address in enumerate(addresses):
            if address not in self._tasks:
                self._tasks[address] = loop.create_task(
                    self._ask_at(address), name=f"resilient-io ask {address[0]}:{address[1]}"
                )
            if not stagger or number == len(addresses) - 1:
                continue
            running = [task for task in self._tasks.values() if not task.done()]
            if running:
                await asyncio.wait(running, timeout=stagger, return_when=asyncio.FIRST_COMPLETED)
            if self._answers():
                return

    async def first(self) -> Answer | None:
        """Wait for the first answer; None when every address has failed."""
        while True:
            answers = self._answers()
            if answers:
                return answers[0]
            running = [task for task in self._tasks.values() if not task.done()]
            if not running:
                return None
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def settle(self, timeout: float) -> None:
        """Wait for all, at most so many seconds."""
        running = [task for task in self._tasks.values() if not task.done()]
        if running:
            await asyncio.wait(running, timeout=timeout)

    def failure(self, address: tuple[str, int]) -> Failure | None:
        """Say why an address that was asked has given no answer so far; None if it has."""
        task = self._tasks.get(address)
        if task is None or not task.done():
            return _SILENT
        error = task.exception()
        if error is None:
            return None
        return connection_failure(error, tls=self._target.uses_tls)

    def failures(self) -> list[Failure]:
        """Say why each address that was asked has given no answer."""
        found = [self.failure(address) for address in self._tasks]
        return [failure for failure in found if failure is not None]

    def keep(self, answer: Answer) -> Connection:
        """Give the connection of an answer to the caller, who closes it."""
        self._kept = answer
        return answer.connection

    def _answers(self) -> list[Answer]:
        return [
            task.result()
            for task in self._tasks.values()
            if task.done() and not task.cancelled() and task.exception() is None
        ]

    def _doubt(self) -> str:
        if self._target.logs_in:
            tls = "" if self._target.uses_tls else "is it a TLS port, or "
            return f"on the login ({tls}does it want another mechanism?)"
        return "on the first request" + ("" if self._target.uses_tls else " (is it a TLS port?)")

    async def _ask_at(self, address: tuple[str, int]) -> Answer:
        host, port = address
        try:
            connection = await self._target.dial(host, port, self._timeout)
        except KafkaConnectionError as error:
            if type(error) is KafkaConnectionError:
                raise KafkaConnectionError(f"{host}:{port} hung up {self._doubt()}") from error
            raise
        answered = False
        try:
            seen = await ask_metadata(connection, self._topics, self._timeout)
            answered = True
        except KafkaConnectionError as error:
            if not self._target.logs_in:
                raise KafkaConnectionError(
                    f"{host}:{port} hung up on the second request (does it want a login?)"
                ) from error
            raise
        finally:
            if not answered:
                drop(connection)
        return Answer(address, connection, seen)


def _discard(task: asyncio.Task[Answer], kept: Answer | None) -> None:
    if task.cancelled() or not task.done():
        return
    if task.exception() is None and task.result() is not kept:
        drop(task.result().connection)


_STAGGER = 0.1
"""Seconds between dials while it is not known to be up, so that many processes do not storm."""

_TOPICS = 100
"""How many topics' leaders are asked for at most."""

_NAMED = 3
"""How many partitions without a leader are named."""

_NO_TOPICS: tuple[str, ...] = ()

_TWICE = 2
"""How often in a row silence must be seen before it counts."""


class KafkaProbe:
    """Asks for metadata, for leaders and for a coordinator.

    While all is well it keeps one connection; in doubt it dials anew: the brokers last seen, then
    the bootstrap servers. The first that answers proves that the cluster is up. Give it to
    `health.start(probe, last_reply=probe.last_reply)`, and `close()` it after detaching.

    Args:
        target: Where the cluster is; told of the brokers seen.
        timeout: Seconds for making one connection, and for an answer over it.
        topics: Those that are written to; called at every probe.
        coordinator: What needs a coordinator: `questions.GROUP` or `TRANSACTION`, and its key.
    """

    def __init__(
        self,
        *,
        target: Target,
        timeout: float,
        topics: Callable[[], Iterable[str]] = lambda: _NO_TOPICS,
        coordinator: tuple[int, str] | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._topics = topics
        self._coordinator = coordinator
        self._kept: Connection | None = None
        self._up = False
        self._unchecked: list[tuple[str, int]] = []  # brokers that nobody has dialled yet
        self._lost: dict[tuple[str, int], tuple[Failure, int]] = {}
        self._without_coordinator = 0
        self._heard = -math.inf

    def heard(self) -> None:
        """Take note that a broker has just answered a client: then no probe is needed."""
        self._heard = asyncio.get_running_loop().time()

    def last_reply(self) -> float:
        """Give the loop time at which a broker last answered a client; `-math.inf` for never."""
        return self._heard

    def close(self) -> None:
        """Close its connection. It makes another if it is asked again."""
        kept, self._kept = self._kept, None
        if kept is not None:
            drop(kept)

    async def __call__(self, suspicious: bool) -> float:
        """Return the seconds that the answer took.

        Raises:
            ProbeFailed: No broker answers, or none lets us in.
            ProbeDegraded: One answers, but not all of the work can be done.
        """
        up, self._up = self._up, False
        if suspicious or self._kept is None or not self._kept.connected():
            seen, latency = await self._ask_everywhere(doubt=up)
        else:
            seen, latency = await self._ask_kept(self._kept)
        self._up = True
        self._target.saw(seen.brokers)
        await self._judge(seen, latency)
        return latency

    async def _ask_kept(self, kept: Connection) -> tuple[Seen, float]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        answered = False
        try:
            seen = await ask_metadata(kept, self._asked(), self._timeout)
            answered = True
        except (KafkaError, OSError) as error:
            raise _failed([connection_failure(error, tls=self._target.uses_tls)]) from error
        finally:
            if not answered:
                self.close()  # an answer that comes late would stand in the next one's way
        latency = loop.time() - began
        again = [address for address in seen.brokers.values() if address in self._lost]
        again += [address for address in self._unchecked if address in seen.brokers.values()]
        self._unchecked = []
        if again:
            async with Round(self._target, timeout=self._timeout, topics=()) as others:
                await others.ask(again)
                await others.settle(self._timeout / 2)
                self._note_lost(again, others)
        self._lost = {
            address: lost
            for address, lost in self._lost.items()
            if address in seen.brokers.values()  # else the cluster itself has given it up
        }
        return seen, latency

    async def _ask_everywhere(self, *, doubt: bool) -> tuple[Seen, float]:
        """Ask at all addresses; keep the connection that answered first.

        Args:
            doubt: It was up just now: look at all brokers at once, for those that are lost.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.close()
        addresses = self._target.addresses()
        async with Round(self._target, timeout=self._timeout, topics=self._asked()) as asked:
            await asked.ask(addresses, stagger=0.0 if doubt else _STAGGER)
            first = await asked.first()
            if first is None:
                raise _failed(asked.failures())
            latency = loop.time() - began
            brokers = list(first.seen.brokers.values())
            if doubt:
                await asked.settle(self._timeout / 2)
                self._note_lost([a for a in brokers if a in addresses], asked)
            self._unchecked = [
                address
                for address in brokers
                if address != first.address and not (doubt and address in addresses)
            ]
            self._kept = asked.keep(first)
        return first.seen, latency

    def _note_lost(self, addresses: list[tuple[str, int]], asked: Round) -> None:
        for address in addresses:
            failure = asked.failure(address)
            if failure is None:
                self._lost.pop(address, None)
            else:
                _, before = self._lost.get(address, (failure, 0))
                self._lost[address] = (failure, before + 1)

    def _asked(self) -> list[str]:
        topics: list[str] = []
        for topic in self._topics():
            topics.append(topic)
            if len(topics) == _TOPICS:
                break
        return topics

    # --- what is not well although it answers

    async def _judge(self, seen: Seen, latency: float) -> None:
        """Raise what is not well, the worst first."""
        if seen.leaderless:
            named = ", ".join(f"{p.topic}[{p.partition}]" for p in seen.leaderless[:_NAMED])
            left = len(seen.leaderless) - _NAMED
            more = f" and {left} more" if left > 0 else ""
            raise ProbeDegraded(Cause.NO_LEADER, f"of {named}{more}", latency=latency)
        if self._coordinator is not None and self._kept is not None:
            await self._ask_coordinator(self._kept, self._coordinator, latency)
        for node, address in seen.brokers.items():
            failure, times = self._lost.get(address, (None, 0))
            if failure is not None and (failure.definite or times >= _TWICE):
                host, port = address
                raise ProbeDegraded(
                    Cause.BROKER_LOST,
                    f"broker {node} at {host}:{port} cannot be reached: {failure.detail}",
                    latency=latency,
                )

    async def _ask_coordinator(
        self, kept: Connection, wanted: tuple[int, str], latency: float
    ) -> None:
        kind, key = wanted
        answered = False
        try:
            await ask_coordinator(kept, kind, key, self._timeout)
            answered = True
            self._without_coordinator = 0
        except KafkaError as error:
            meaning = meaning_of(error)
            answered = meaning.kind in ("refused", "permanent")
            # On a new cluster the first question makes the topic that coordinators need.
            self._without_coordinator += 1
            if meaning.kind == "permanent" or self._without_coordinator >= _TWICE:
                cause = Cause.AUTH if meaning.cause is Cause.AUTH else Cause.NO_COORDINATOR
                raise ProbeDegraded(cause, f"of {key}: {error}", latency=latency) from error
        except OSError as error:
            self._without_coordinator += 1
            if self._without_coordinator >= _TWICE:
                raise ProbeDegraded(
                    Cause.NO_COORDINATOR, f"of {key}: no answer", latency=latency
                ) from error
        finally:
            if not answered:
                self.close()


def _failed(failures: list[Failure]) -> ProbeFailed:
    """Say in one verdict why no address answered.

    A login that was refused says most; then silence, which must be seen again: as long as one
    address is only silent, the cluster may be there.
    """
    for worst in (
        *(failure for failure in failures if failure.permanent or failure.cause is Cause.AUTH),
        *(failure for failure in failures if not failure.definite),
        *failures,
    ):
        return ProbeFailed(worst.cause, worst.detail, definite=worst.definite)
    return ProbeFailed(Cause.UNREACHABLE, "no address was tried")
