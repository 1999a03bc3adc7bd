"""Callers that push unique ids through a failover, and the comparison of replies with the lists.

Each caller pushes to its own list, one id after the other, as fast as the client answers. At the
end the lists of the final master are read back, so that a lost or doubled write cannot hide.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

from resilient_io.errors import OutcomeUnknown
from resilient_io.redis import ResilientRedis
from resilient_io.testing import SentinelSetup
from resilient_io.testing.resp import encode, read_reply

CALLERS = 20
PAUSE = 0.001  # seconds between two calls of a caller


@dataclass(slots=True)
class Ledger:
    """The replies to callers, and when they arrived; times are those of the loop.

    Attributes:
        acknowledged: The time of the reply to each id.
        failed: The error and its time, by id.
        longest: The longest call, in seconds.
        switches: When Sentinels published `+switch-master`, in ascending order.
    """

    acknowledged: dict[str, float] = field(default_factory=dict)
    failed: dict[str, tuple[float, BaseException]] = field(default_factory=dict)
    longest: float = 0.0
    switches: list[float] = field(default_factory=list)

    def first_success(self, after: float, *, latency: float = 0.05) -> float:
        """Return how long after a fault the first write was acknowledged that came after it.

        Replies within `latency` of the fault belong to the old master.
        """
        later = [at for at in self.acknowledged.values() if at > after + latency]
        return min(later, default=float("inf")) - after

    def longest_gap(self, since: float) -> float:
        """Return the longest time without a success."""
        times = [since, *sorted(at for at in self.acknowledged.values() if at >= since)]
        return max((b - a for a, b in itertools.pairwise(times)), default=float("inf"))

    @property
    def unknown(self) -> int:
        """The number of calls whose outcome the client does not know."""
        return sum(isinstance(error, OutcomeUnknown) for _, error in self.failed.values())

    def errors(self) -> Counter[str]:
        """Return the number of failed calls by class and text."""
        return Counter(f"{type(error).__name__}: {error}" for _, error in self.failed.values())


@dataclass(slots=True)
class Audit:
    """The comparison of a ledger with the lists of the master.

    Attributes:
        lost: Acknowledged ids that are missing, with the time of their reply.
        doubled: Ids that are in their list more than once.
        applied: Ids of failed calls that are in their list.
    """

    lost: dict[str, float]
    doubled: list[str]
    applied: list[str]

    def lost_after(self, fault: float) -> int:
        """Return how many lost writes were acknowledged after the fault."""
        return sum(at > fault for at in self.lost.values())


class Callers:
    """`async with` runs the callers, and watches what the Sentinels publish."""

    def __init__(
        self, client: ResilientRedis, setup: SentinelSetup, *, count: int = CALLERS
    ) -> None:
        self.ledger = Ledger()
        self._client = client
        self._setup = setup
        self._count = count
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._watching = [
            loop.create_task(self._watch(sentinel.host, sentinel.port))
            for sentinel in self._setup.sentinels
            if sentinel.password is None
        ]
        self._tasks = [loop.create_task(self._push(number)) for number in range(self._count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Wait until each caller has ended its call. Idempotent."""
        self._stopping = True
        tasks, self._tasks = self._tasks, []
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        await asyncio.gather(*tasks)
        await asyncio.gather(*watching, return_exceptions=True)

    async def _push(self, number: int) -> None:
        loop, ledger, count = asyncio.get_running_loop(), self.ledger, 0
        while not self._stopping:
            value = f"{number}-{count}"
            count += 1
            began = loop.time()
            try:
                await self._client.rpush(f"list:{number}", value)
            except Exception as error:  # noqa: BLE001 - every error is counted
                ledger.failed[value] = (loop.time(), error)
                await asyncio.sleep(0.01)
            else:
                ledger.acknowledged[value] = loop.time()
            ledger.longest = max(ledger.longest, loop.time() - began)
            await asyncio.sleep(PAUSE)

    async def _watch(self, host: str, port: int) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(encode("SUBSCRIBE", "+switch-master"))
                while True:
                    message: Any = await read_reply(reader)
                    if message[0] == b"message":
                        self.ledger.switches.append(asyncio.get_running_loop().time())
            finally:
                writer.close()

    async def audit(self) -> Audit:
        """Stop the callers, and compare the replies with the lists of the master."""
        await self.stop()
        master = await self._setup.master()
        lost, doubled, applied = dict(self.ledger.acknowledged), [], []
        for number in range(self._count):
            values: Any = await master.query("LRANGE", f"list:{number}", 0, -1)
            for value, times in Counter(each.decode() for each in values).items():
                if times > 1:
                    doubled.append(value)
                if value in self.ledger.failed:
                    applied.append(value)
                lost.pop(value, None)
        return Audit(lost, doubled, applied)
