"""The health probe of Kafka: metadata queries over connections of its own."""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NoError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import TopicPartition

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed
from resilient_io.link import read_link
from resilient_io.text import format_address

from .driver import abort_connection, oldest_request, retrieve_exception, socket_of
from .errors import ConnectionFailure, classify_error, connection_failure, describe_driver_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Self

    from resilient_io.link import LinkState

    from .connect import KafkaTarget
    from .driver import Connection

    Address = tuple[str, int]

GROUP = 0  # the type of a group's coordinator (`aiokafka.client.CoordinationType`)
TRANSACTION = 1  # the type of a transactional id's coordinator

_NO_LEADER = -1

_STAGGER = 0.1  # seconds between connection attempts while the cluster is not known to be up
_TOPICS = 100  # maximum number of topics whose leaders are checked
_NAMED = 3  # maximum number of partitions without a leader that are named
_CONFIRMATIONS = 2  # how often in a row a missing response must be seen before it counts

_NO_RESPONSE = ConnectionFailure(Cause.TIMED_OUT, "no response in time", definite=False)


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """The metadata of a cluster, as one broker knows it."""

    brokers: dict[int, Address] = field(default_factory=dict)
    leaderless: tuple[TopicPartition, ...] = ()
    missing: tuple[str, ...] = ()  # requested topics that do not exist


async def request_metadata(
    connection: Connection, topics: Iterable[str], timeout: float
) -> ClusterSnapshot:
    """Return the brokers, and what is wrong with some topics: no leader, or no such topic.

    The request never creates a topic.
    """
    request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
    async with asyncio.timeout(timeout):
        response: Any = await connection.send(request)
    brokers = {broker[0]: (broker[1], broker[2]) for broker in response.brokers}
    leaderless = []
    missing = []
    for topic in response.topics:
        error, name, partitions = topic[0], topic[1], topic[-1]
        if for_code(error) is NoError:
            leaderless += [
                TopicPartition(name, partition[1])
                for partition in partitions
                if partition[2] == _NO_LEADER
            ]
        elif for_code(error) is UnknownTopicOrPartitionError:
            missing.append(name)
    return ClusterSnapshot(brokers, tuple(leaderless), tuple(missing))


async def find_coordinator(connection: Connection, kind: int, key: str, timeout: float) -> Address:
    """Return host and port of the coordinator of a group or a transactional id."""
    async with asyncio.timeout(timeout):
        response: Any = await connection.send(FindCoordinatorRequest(key, kind))
    error = for_code(response.error_code)
    if error is not NoError:
        raise error(key)
    return response.host, response.port


# --- queries of several brokers


@dataclass(frozen=True, slots=True)
class MetadataResponse:
    """The metadata from one address, and the connection on which it arrived."""

    address: Address
    connection: Connection
    metadata: ClusterSnapshot


class MetadataQuery:
    """Connects to several brokers and requests metadata from each.

    Leaving its `async with` closes every connection except the one passed to `keep`.
    """

    def __init__(self, target: KafkaTarget, *, timeout: float, topics: Sequence[str]) -> None:
        self._target = target
        self._timeout = timeout
        self._topics = topics
        self._tasks: dict[Address, asyncio.Task[MetadataResponse]] = {}
        self._kept: MetadataResponse | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        try:
            if any(not task.done() for task in tasks):
                await asyncio.wait(tasks)  # cancelled, they end within a few loop iterations
        finally:
            for task in tasks:
                if _succeeded(task) and task.result() is not self._kept:
                    abort_connection(task.result().connection)

    async def start(self, addresses: Sequence[Address], *, stagger: float = 0.0) -> None:
        """Start requests, `stagger` seconds apart, until there is a response.

        A failed request starts the next one immediately.
        """
        loop = asyncio.get_running_loop()
        for number, address in enumerate(addresses):
            if address not in self._tasks:
                self._tasks[address] = loop.create_task(
                    self._request(address), name=f"resilient-io query {format_address(*address)}"
                )
            if not stagger or number == len(addresses) - 1:
                continue
            await self._wait_for_one(timeout=stagger)
            if self._responses():
                return

    async def first(self) -> MetadataResponse | None:
        """Wait for the first response. Return None when every address has failed."""
        while True:
            responses = self._responses()
            if responses:
                return responses[0]
            if not await self._wait_for_one(timeout=None):
                return None

    async def wait(self, timeout: float) -> None:
        """Wait for all requests, at most `timeout` seconds."""
        running = self._running()
        if running:
            await asyncio.wait(running, timeout=timeout)

    def failure(self, address: Address) -> ConnectionFailure | None:
        """Return why there is no response from an address yet, or None if there is one."""
        task = self._tasks.get(address)
        if task is None or not task.done():
            return _NO_RESPONSE
        error = task.exception()
        if error is None:
            return None
        target = self._target
        failure = connection_failure(error, tls=target.uses_tls, secrets=target.secrets())
        if failure.cause is Cause.RESET and not target.brokers:  # which never answered
            port = "without TLS" if target.uses_tls else "that requires TLS or a login"
            failure = replace(failure, detail=f"{failure.detail} (is this a port {port}?)")
        return failure

    def failures(self) -> list[ConnectionFailure]:
        """Return why there is no response, for each address without one."""
        found = [self.failure(address) for address in self._tasks]
        return [failure for failure in found if failure is not None]

    def keep(self, response: MetadataResponse) -> Connection:
        """Return the connection of a response to the caller, which must close it."""
        self._kept = response
        return response.connection

    def _running(self) -> list[asyncio.Task[MetadataResponse]]:
        return [task for task in self._tasks.values() if not task.done()]

    async def _wait_for_one(self, timeout: float | None) -> bool:
        running = self._running()
        if running:
            await asyncio.wait(running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        return bool(running)

    def _responses(self) -> list[MetadataResponse]:
        return [task.result() for task in self._tasks.values() if _succeeded(task)]

    async def _request(self, address: Address) -> MetadataResponse:
        host, port = address
        try:
            connection = await self._target.connect(host, port, self._timeout)
        except KafkaConnectionError as error:
            if type(error) is KafkaConnectionError:
                raise KafkaConnectionError(self._closed_early()) from error
            raise
        received = False
        try:
            metadata = await request_metadata(connection, self._topics, self._timeout)
            received = True
        except KafkaConnectionError as error:
            if not self._target.uses_sasl:
                raise KafkaConnectionError(
                    "the broker closed the connection after the second request (does it require "
                    "SASL authentication?)"
                ) from error
            raise
        finally:
            if not received:
                abort_connection(connection)
        return MetadataResponse(address, connection, metadata)

    def _closed_early(self) -> str:
        """Return what the end of a connection before the first response suggests."""
        tls = self._target.uses_tls
        if self._target.uses_sasl:
            when = "during authentication"
            port = "" if tls else "is this a TLS port, or "
            hint = f"({port}does it require another SASL mechanism?)"
        else:
            when, hint = "after the first request", "" if tls else "(is this a TLS port?)"
        return f"the broker closed the connection {when} {hint}".rstrip()


def _succeeded(task: asyncio.Task[MetadataResponse]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


# --- the probe


class KafkaProbe:
    """Checks that a broker answers, that partitions have leaders, and that a coordinator exists.

    While all is well it keeps one connection. If a failure is suspected, it makes new connections:
    to the brokers last seen, then to the bootstrap servers. The first response proves that the
    cluster is up.
    """

    def __init__(
        self,
        *,
        target: KafkaTarget,
        timeout: float,
        topics: Callable[[], Iterable[str]] = tuple,
        coordinator: tuple[int, str] | None = None,
    ) -> None:
        self._target = target
        self._timeout = timeout
        self._topics = topics
        self._coordinator = coordinator
        self._kept: Connection | None = None
        self._nudge: asyncio.Task[ClusterSnapshot] | None = None
        self._up = False
        self._unchecked: list[Address] = []  # brokers without a connection attempt so far
        self._lost: dict[Address, tuple[ConnectionFailure, int]] = {}
        self._coordinator_failures = 0
        self._last_reply = -math.inf
        self.requested_at = -math.inf
        """Loop time of the latest request on the kept connection."""

    def note_reply(self) -> None:
        """Report that a broker has just answered a client, so that no probe is needed now."""
        self._last_reply = asyncio.get_running_loop().time()

    def last_reply(self) -> float:
        """Return the loop time of the last response to a client; `-math.inf` if there was none."""
        return self._last_reply

    @property
    def connection(self) -> Connection | None:
        """The connection that is kept for the next probe."""
        return self._kept

    def links(self) -> list[LinkState]:
        """Return what the kernel knows about the kept connection, if it tells."""
        link = read_link(socket_of(self._kept)) if self._kept is not None else None
        return [link] if link is not None else []

    def nudge(self) -> None:
        """Send a request on the kept connection, so that its host has something to acknowledge."""
        kept = self._kept
        if kept is None or not kept.connected() or oldest_request(kept) is not None:
            return
        if self._nudge is not None and not self._nudge.done():
            return
        loop = asyncio.get_running_loop()
        self.requested_at = loop.time()
        self._nudge = loop.create_task(
            request_metadata(kept, (), self._timeout), name="resilient-io kafka nudge"
        )
        self._nudge.add_done_callback(retrieve_exception)

    def close(self) -> None:
        """Close the kept connection. The next probe makes another."""
        if self._nudge is not None:
            self._nudge.cancel()
            self._nudge = None
        kept, self._kept = self._kept, None
        if kept is not None:
            abort_connection(kept)

    async def __call__(self, suspicious: bool) -> float:
        """Return the time that the response took, in seconds."""
        was_up, self._up = self._up, False
        if suspicious or self._kept is None or not self._kept.connected():
            metadata, latency = await self._query_all(check_brokers=was_up)
        else:
            metadata, latency = await self._query_kept(self._kept)
        self._up = True
        self._target.update_brokers(metadata.brokers)
        await self._check(metadata, latency)
        return latency

    async def _query_kept(self, kept: Connection) -> tuple[ClusterSnapshot, float]:
        loop = asyncio.get_running_loop()
        began = self.requested_at = loop.time()
        received = False
        try:
            metadata = await request_metadata(kept, self._requested_topics(), self._timeout)
            received = True
        except (KafkaError, OSError) as error:
            failure = connection_failure(
                error, tls=self._target.uses_tls, secrets=self._target.secrets()
            )
            raise _probe_failed([failure]) from None
        finally:
            if not received:
                self.close()  # a late response would be taken for that of the next request
        latency = loop.time() - began
        brokers = list(metadata.brokers.values())
        again = [address for address in brokers if address in self._lost]
        again += [address for address in self._unchecked if address in brokers]
        self._unchecked = []
        if again:
            async with MetadataQuery(self._target, timeout=self._timeout, topics=()) as query:
                await query.start(again)
                await query.wait(self._timeout / 2)
                self._update_lost(again, query)
        # A broker that the cluster itself no longer lists is not lost.
        self._lost = {address: lost for address, lost in self._lost.items() if address in brokers}
        return metadata, latency

    async def _query_all(self, *, check_brokers: bool) -> tuple[ClusterSnapshot, float]:
        """Query all addresses and keep the connection of the first response."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.close()
        addresses = self._target.addresses()
        async with MetadataQuery(
            self._target, timeout=self._timeout, topics=self._requested_topics()
        ) as query:
            await query.start(addresses, stagger=0.0 if check_brokers else _STAGGER)
            first = await query.first()
            if first is None:
                raise _probe_failed(query.failures())
            latency = loop.time() - began
            brokers = list(first.metadata.brokers.values())
            if check_brokers:
                await query.wait(self._timeout / 2)
                self._update_lost([a for a in brokers if a in addresses], query)
            self._unchecked = [
                address
                for address in brokers
                if address != first.address and not (check_brokers and address in addresses)
            ]
            self._kept = query.keep(first)
        return first.metadata, latency

    def _update_lost(self, addresses: list[Address], query: MetadataQuery) -> None:
        for address in addresses:
            failure = query.failure(address)
            if failure is None:
                self._lost.pop(address, None)
            else:
                _, before = self._lost.get(address, (failure, 0))
                self._lost[address] = (failure, before + 1)

    def _requested_topics(self) -> list[str]:
        return list(itertools.islice(self._topics(), _TOPICS))

    async def _check(self, metadata: ClusterSnapshot, latency: float) -> None:
        """Raise what is wrong although a broker answers, the worst first."""
        if metadata.leaderless:
            named = ", ".join(f"{p.topic}[{p.partition}]" for p in metadata.leaderless[:_NAMED])
            left = len(metadata.leaderless) - _NAMED
            more = f" and {left} more" if left > 0 else ""
            raise ProbeDegraded(Cause.NO_LEADER, f"no leader of {named}{more}", latency=latency)
        if self._coordinator is not None and self._kept is not None:
            await self._check_coordinator(self._kept, self._coordinator, latency)
        for node, address in metadata.brokers.items():
            failure, times = self._lost.get(address, (None, 0))
            if failure is not None and (failure.definite or times >= _CONFIRMATIONS):
                raise ProbeDegraded(
                    Cause.BROKER_LOST,
                    f"broker {node} at {format_address(*address)} is unreachable: {failure.detail}",
                    latency=latency,
                )

    async def _check_coordinator(
        self, kept: Connection, wanted: tuple[int, str], latency: float
    ) -> None:
        kind, key = wanted
        self.requested_at = asyncio.get_running_loop().time()
        received = False
        try:
            await find_coordinator(kept, kind, key, self._timeout)
            received = True
            self._coordinator_failures = 0
        except (KafkaError, OSError) as error:
            meaning = classify_error(error)
            received = meaning.kind in ("refused", "permanent")
            # In a new cluster the first request creates the topic that coordinators need.
            self._coordinator_failures += 1
            if meaning.kind == "permanent" or self._coordinator_failures >= _CONFIRMATIONS:
                said = describe_driver_error(error, secrets=self._target.secrets())
                raise ProbeDegraded(
                    Cause.AUTH if meaning.cause is Cause.AUTH else Cause.NO_COORDINATOR,
                    f"no coordinator of {key}: {said}",
                    latency=latency,
                ) from None
        finally:
            if not received:
                self.close()


def _probe_failed(failures: list[ConnectionFailure]) -> ProbeFailed:
    """Return one error for the failures at all addresses.

    Refused credentials are the clearest cause. A timeout is next, and must be seen again: as long
    as one address only timed out, the cluster may be up.
    """
    for worst in (
        *(failure for failure in failures if failure.permanent or failure.cause is Cause.AUTH),
        *(failure for failure in failures if not failure.definite),
        *failures,
    ):
        return ProbeFailed(worst.cause, worst.detail, definite=worst.definite)
    return ProbeFailed(Cause.UNREACHABLE, "no address was tried")
