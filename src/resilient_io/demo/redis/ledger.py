"""The ledger: what callers were told about each write, against what is in the server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resilient_io.demo.told import Told

if TYPE_CHECKING:
    from resilient_io.testing import RedisServer


@dataclass(frozen=True, slots=True)
class Audit:
    """The ledger's result: numbers of writes, each counted by its own id.

    Attributes:
        acknowledged: Their callers were told that they were done.
        unknown: Their callers were told that nobody can say, or were never told anything.
        not_done: Their callers were told that nothing was done.
        found: In the server at least once.
        repeated: In the server more than once.
        lost: Acknowledged, but not in the server.
        contradicted: In the server, though their callers were told that nothing was done.
        strangers: In the server, though nobody wrote them.
    """

    acknowledged: int
    unknown: int
    not_done: int
    found: int
    repeated: int
    lost: int
    contradicted: int
    strangers: int

    @property
    def writes(self) -> int:
        """All that were called."""
        return self.acknowledged + self.unknown + self.not_done

    @property
    def balanced(self) -> bool:
        """Every write was done once if acknowledged, and at most once otherwise."""
        return (
            not (self.repeated or self.lost or self.contradicted or self.strangers)
            and self.acknowledged <= self.found <= self.acknowledged + self.unknown
        )


class Ledger:
    """Keeps what callers were told, by the id that each write carries.

    Args:
        name: Makes its keys in the server its own.
    """

    def __init__(self, name: str) -> None:
        self.pushes = f"demo:{name}:pushes"
        """The list that takes the pushes' ids."""
        self.increments = f"demo:{name}:increments"
        """The hash with a counter for each increment's id."""
        self._told: dict[str, Told] = {}

    def begin(self, number: str) -> None:
        """Note that a write is about to be called."""
        self._told[number] = Told.NOTHING

    def settle(self, number: str, told: Told) -> None:
        """Note what its caller was told."""
        self._told[number] = told

    async def audit(self, server: RedisServer) -> Audit:
        """Read everything back past both clients, and compare.

        Args:
            server: Is asked over a plain connection of its own.

        Raises:
            OSError: It does not answer.
        """
        times = await _read(server, self.pushes, self.increments)
        told = Counter(self._told.values())
        return Audit(
            acknowledged=told[Told.DONE],
            unknown=told[Told.UNKNOWN] + told[Told.NOTHING],
            not_done=told[Told.NOT_DONE],
            found=len(times),
            repeated=sum(1 for count in times.values() if count > 1),
            lost=sum(
                1 for number, was in self._told.items() if was is Told.DONE and number not in times
            ),
            contradicted=sum(1 for number in times if self._told.get(number) is Told.NOT_DONE),
            strangers=sum(1 for number in times if number not in self._told),
        )


async def _read(server: RedisServer, pushes: str, increments: str) -> Counter[str]:
    """Return how often each id was written."""
    times: Counter[str] = Counter()
    listed = await server.query("LRANGE", pushes, 0, -1)
    counted = await server.query("HGETALL", increments)
    if not isinstance(listed, list) or not isinstance(counted, list):
        raise TypeError(f"the server answered {listed!r:.80} and {counted!r:.80}")
    for number in listed:
        times[_text(number)] += 1
    for number, count in zip(counted[::2], counted[1::2], strict=True):
        times[_text(number)] += int(_text(count))
    return times


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"the server answered {value!r:.80} where text was expected")
    return value.decode()
