"""The ledgers: the outcomes that callers were given, against what is in the servers at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo.timeline import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from resilient_io.testing import RedisServer


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAudit:
    """Numbers of writes to Redis, each counted by its id."""

    acknowledged: int  # their callers got a reply
    unknown: int  # their callers got an error that leaves the outcome open, or no answer
    not_done: int  # their callers got an error that says that nothing was done
    found: int  # in the server at least once
    repeated: int  # in the server more than once
    lost: int  # acknowledged, but not in the server
    contradicted: int  # in the server, but reported as not done
    foreign: int  # in the server, but never written

    @property
    def writes(self) -> int:
        """All calls."""
        return self.acknowledged + self.unknown + self.not_done

    @property
    def balanced(self) -> bool:
        """Whether every write was done once if acknowledged, and at most once otherwise."""
        return (
            not (self.repeated or self.lost or self.contradicted or self.foreign)
            and self.acknowledged <= self.found <= self.acknowledged + self.unknown
        )


class WriteLedger:
    """The outcome of each write to Redis, by the id that the write carries.

    Args:
        name: Part of its keys in the server.

    Attributes:
        outcomes: The outcomes by id.
        pushes: Key of the list with the ids of the pushes.
        increments: Key of the hash with a counter for the id of each increment.
    """

    def __init__(self, name: str) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.pushes = f"demo:{name}:pushes"
        self.increments = f"demo:{name}:increments"

    async def audit(self, server: RedisServer) -> WriteAudit:
        """Read everything back without both clients, and compare.

        Raises:
            OSError: The server does not answer.
        """
        times = Counter(texts(await server.query("LRANGE", self.pushes, 0, -1)))
        for number, count in pairs(await server.query("HGETALL", self.increments)).items():
            times[number] += int(count)
        counts = Counter(self.outcomes.values())
        return WriteAudit(
            acknowledged=counts[Outcome.DONE],
            unknown=counts[Outcome.UNKNOWN] + counts[Outcome.PENDING],
            not_done=counts[Outcome.NOT_DONE],
            found=len(times),
            repeated=sum(1 for count in times.values() if count > 1),
            lost=sum(
                1
                for number, outcome in self.outcomes.items()
                if outcome is Outcome.DONE and number not in times
            ),
            contradicted=sum(1 for each in times if self.outcomes.get(each) is Outcome.NOT_DONE),
            foreign=sum(1 for each in times if each not in self.outcomes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What plain clients read from Kafka and Redis."""

    in_kafka: Sequence[str]  # the ids of all records of the topic
    dead_letters: Sequence[str]  # the ids of all records of the dead-letter topic
    booked: Sequence[str]  # the ids of all orders in Redis
    times: Mapping[str, int]  # how often each id was booked, as Redis counted
    uncommitted: int  # records after the group's committed offsets


@dataclass(slots=True)
class Calls:
    """The handler's calls for one order."""

    succeeded: int = 0  # calls that succeeded
    unknown: int = 0  # calls that failed with an error that leaves the outcome open


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAudit:
    """Numbers of orders, each counted by its id."""

    acknowledged: int  # Kafka acknowledged them
    unknown: int  # their customers got an error that leaves the outcome open
    not_sent: int  # their customers got an error that says that they are not in Kafka
    found: int  # in Kafka at least once
    repeated: int  # in Kafka more than once
    missing: int  # acknowledged, but not in Kafka
    contradicted: int  # in Kafka, but reported as not sent
    handled: int  # booked in Redis
    dead: int  # in the dead-letter topic
    lost: int  # in Kafka, but neither booked nor in the dead-letter topic
    foreign: int  # booked, but not in Kafka
    twice: int  # booked more than once, as Redis counted: the second time changed nothing
    twice_unknown: int  # those among them that were repeated after an unknown outcome
    twice_delivered: int  # those among them that were redelivered after they had been handled
    unexplained: int  # booked more often than the handler's calls explain
    uncommitted: int  # records after the group's committed offsets
    idempotent: bool  # whether the broker supports idempotent producers

    @property
    def balanced(self) -> bool:
        """Whether everything acknowledged is in Kafka, and everything in Kafka was handled."""
        wrong = (
            self.missing,
            self.contradicted,
            self.lost,
            self.foreign,
            self.unexplained,
            self.uncommitted,
            self.repeated if self.idempotent else 0,
        )
        return not any(wrong) and (
            self.acknowledged <= self.found <= self.acknowledged + self.unknown
        )


class OrderLedger:
    """The outcome of each order, and the handler's calls for it, by the order's id."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.calls: dict[str, Calls] = {}

    def calls_for(self, number: str) -> Calls:
        """Return the handler's calls for an order."""
        return self.calls.setdefault(number, Calls())

    def handled(self, number: str) -> bool:
        """Return whether a call for an order succeeded."""
        return number in self.calls and self.calls[number].succeeded > 0

    def audit(self, stores: Stores, *, idempotent: bool) -> OrderAudit:
        """Compare with what is in Kafka and Redis.

        Args:
            stores: What plain clients found there.
            idempotent: Whether the broker supports idempotent producers.
        """
        in_kafka = Counter(stores.in_kafka)
        booked, dead = dict.fromkeys(stores.booked), dict.fromkeys(stores.dead_letters)
        counts = Counter(self.outcomes.values())
        twice = [number for number, times in stores.times.items() if times > 1]
        return OrderAudit(
            acknowledged=counts[Outcome.DONE],
            unknown=counts[Outcome.UNKNOWN] + counts[Outcome.PENDING],
            not_sent=counts[Outcome.NOT_DONE],
            found=len(in_kafka),
            repeated=sum(1 for times in in_kafka.values() if times > 1),
            missing=sum(
                1
                for number, outcome in self.outcomes.items()
                if outcome is Outcome.DONE and number not in in_kafka
            ),
            contradicted=sum(
                1
                for number in in_kafka
                if self.outcomes.get(number, Outcome.NOT_DONE) is Outcome.NOT_DONE
            ),
            handled=len(booked),
            dead=len(dead),
            lost=sum(1 for number in in_kafka if number not in booked and number not in dead),
            foreign=sum(1 for number in booked if number not in in_kafka),
            twice=len(twice),
            twice_unknown=sum(1 for number in twice if self.calls_for(number).unknown),
            twice_delivered=sum(1 for number in twice if self.calls_for(number).succeeded > 1),
            unexplained=sum(
                1 for number, times in stores.times.items() if not self._explains(number, times)
            ),
            uncommitted=stores.uncommitted,
            idempotent=idempotent,
        )

    def _explains(self, number: str, times: int) -> bool:
        calls = self.calls_for(number)
        return calls.succeeded <= times <= calls.succeeded + calls.unknown


def texts(reply: object) -> list[str]:
    """Return a reply of Redis as texts."""
    if not isinstance(reply, list) or not all(isinstance(each, bytes) for each in reply):
        raise TypeError(f"the server answered {reply!r:.80}")
    return [each.decode() for each in reply]


def pairs(reply: object) -> dict[str, str]:
    """Return the reply to HGETALL."""
    found = texts(reply)
    return dict(zip(found[::2], found[1::2], strict=True))
