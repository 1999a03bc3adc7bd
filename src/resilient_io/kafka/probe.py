"""How health asks Kafka: over a connection of its own, or, in doubt, over new ones everywhere."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from resilient_io.health import Cause, ProbeDegraded, ProbeFailed

from .classification import Failure, connection_failure, meaning_of
from .internals import drop
from .questions import Seen, ask_coordinator, ask_metadata
from .round import Round

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .protocols import Connection
    from .target import Target

__all__ = ["KafkaProbe"]

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
