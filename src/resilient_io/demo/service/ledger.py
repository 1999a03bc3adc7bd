"""The ledger: what was told and done, against what is in Kafka and in Redis at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.demo.told import Told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What a third party read from the real stores.

    Attributes:
        in_kafka: The ids of all records of the topic, as often as they are there.
        dead_letters: The ids of all records of the dead-letter topic.
        booked: The ids of all effects in Redis.
        times: How often each id was booked, as Redis counted.
        uncommitted: Records after the group's committed offsets.
    """

    in_kafka: Sequence[str]
    dead_letters: Sequence[str]
    booked: Sequence[str]
    times: Mapping[str, int]
    uncommitted: int


@dataclass(slots=True)
class Calls:
    """The handler's calls for one order.

    Attributes:
        made: How many there were.
        succeeded: Those that ended well.
        unknown: Those that ended in an error that leaves open whether it was booked.
    """

    made: int = 0
    succeeded: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The ledger's result: numbers of orders, each counted by its own id.

    Attributes:
        acknowledged: Their customers were told that Kafka has them.
        unknown: Their customers were told that nobody can say.
        not_sent: Their customers were told that Kafka has not got them.
        found: In Kafka at least once.
        repeated: In Kafka more than once.
        missing: Acknowledged, but not in Kafka.
        contradicted: In Kafka, though their customers were told that they are not.
        handled: Booked in Redis.
        dead: In the dead-letter topic.
        lost: In Kafka, but neither booked nor in the dead-letter topic.
        strangers: Booked, but not in Kafka.
        twice: Booked more than once, as Redis counted: the second time changed nothing.
        twice_unknown: Those among them whose handler was called again after an error that left
            open whether the first call had booked it.
        twice_delivered: Those among them that came from Kafka again after they were handled, or
            are there twice.
        unexplained: Booked more often than the handler could have.
        uncommitted: Records after the group's committed offsets.
        idempotent: Whether the broker can keep a producer's repeats apart.
    """

    acknowledged: int
    unknown: int
    not_sent: int
    found: int
    repeated: int
    missing: int
    contradicted: int
    handled: int
    dead: int
    lost: int
    strangers: int
    twice: int
    twice_unknown: int
    twice_delivered: int
    unexplained: int
    uncommitted: int
    idempotent: bool

    @property
    def balanced(self) -> bool:
        """Everything acknowledged is in Kafka, everything in Kafka was handled, and no more."""
        wrong = (
            self.missing,
            self.contradicted,
            self.lost,
            self.strangers,
            self.unexplained,
            self.uncommitted,
            self.repeated if self.idempotent else 0,
        )
        return not any(wrong) and (
            self.acknowledged <= self.found <= self.acknowledged + self.unknown
        )


class Ledger:
    """Keeps what customers were told and how often the handler was called, by the orders' ids."""

    def __init__(self) -> None:
        self.told: dict[str, Told] = {}
        """What each order's customer was told."""
        self.calls: dict[str, Calls] = {}
        """The handler's calls for each order."""

    def calls_for(self, number: str) -> Calls:
        """Give the calls for an order; none so far for a new one."""
        return self.calls.setdefault(number, Calls())

    def handled(self, number: str) -> bool:
        """Whether a call for an order ended well."""
        return number in self.calls and self.calls[number].succeeded > 0

    def audit(self, stores: Stores, *, idempotent: bool) -> Audit:
        """Compare with what is in the stores.

        Args:
            stores: What a third party found there.
            idempotent: Whether the broker can keep a producer's repeats apart.
        """
        in_kafka = Counter(stores.in_kafka)
        booked, dead = dict.fromkeys(stores.booked), dict.fromkeys(stores.dead_letters)
        told = Counter(self.told.values())
        twice = [number for number, times in stores.times.items() if times > 1]
        return Audit(
            acknowledged=told[Told.DONE],
            unknown=told[Told.UNKNOWN] + told[Told.NOTHING],
            not_sent=told[Told.NOT_DONE],
            found=len(in_kafka),
            repeated=sum(1 for times in in_kafka.values() if times > 1),
            missing=sum(
                1
                for number, was in self.told.items()
                if was is Told.DONE and number not in in_kafka
            ),
            contradicted=sum(
                1 for number in in_kafka if self.told.get(number, Told.NOT_DONE) is Told.NOT_DONE
            ),
            handled=len(booked),
            dead=len(dead),
            lost=sum(1 for number in in_kafka if number not in booked and number not in dead),
            strangers=sum(1 for number in booked if number not in in_kafka),
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
