"""Callers that push unique ids, and the comparison of the replies with what is stored."""

import asyncio
import contextlib
import itertools
from collections import Counter
from dataclasses import dataclass, field

from redis.crc import key_slot
from redis.exceptions import RedisError

from resilient_io import OutcomeUnknown
from resilient_io.redis.cluster import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster

SHARDS = 3
SLOTS_OF_A_SHARD = (5461, 5461, 5462)


def keys_of_shard(shard: int, count: int) -> list[str]:
    """Return keys whose slots a cluster of three masters assigns to one of them."""
    first = sum(SLOTS_OF_A_SHARD[:shard])
    last = first + SLOTS_OF_A_SHARD[shard]
    found = (f"list{n}" for n in range(100_000) if first <= key_slot(f"list{n}".encode()) < last)
    return [next(found) for _ in range(count)]


@dataclass
class Comparison:
    """What the servers have, compared with the replies."""

    pushed: int
    lost: list[str]
    duplicates: list[str]
    unknown: int
    failed: dict[str, int]


@dataclass
class Ledger:
    """Callers of a cluster: some for each shard, each with a list of its own."""

    client: ResilientRedisCluster
    callers: int = 24
    pause: float = 0.0
    acknowledged: dict[str, float] = field(default_factory=dict)
    maybe: list[str] = field(default_factory=list)
    errors: list[tuple[float, int, Exception]] = field(default_factory=list)
    successes: list[list[float]] = field(default_factory=lambda: [[] for _ in range(SHARDS)])
    longest: float = 0.0
    ended: float = 0.0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Start the callers."""
        each = self.callers // SHARDS
        self.keys = [keys_of_shard(shard, each) for shard in range(SHARDS)]
        self._tasks = [
            asyncio.create_task(self._push(shard, key))
            for shard in range(SHARDS)
            for key in self.keys[shard]
        ]

    async def stop(self) -> None:
        """End the callers."""
        self.ended = asyncio.get_running_loop().time()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                task.result()

    async def _push(self, shard: int, key: str) -> None:
        time = asyncio.get_running_loop().time
        number = 0
        while True:
            number += 1
            item, began = f"{key}:{number}", time()
            try:
                await self.client.rpush(key, item)
            except asyncio.CancelledError:
                self.maybe.append(item)
                raise
            except (RedisError, OSError) as error:
                if isinstance(error, OutcomeUnknown):
                    self.maybe.append(item)
                self.errors.append((time(), shard, error))
                await asyncio.sleep(0.01)
            else:
                self.acknowledged[item] = time()
                self.successes[shard].append(time())
            self.longest = max(self.longest, time() - began)
            await asyncio.sleep(self.pause)

    def gap(self, shard: int, since: float) -> float:
        """Return the longest time without a success on a shard after a moment, until the end."""
        times = [since, *(at for at in self.successes[shard] if at >= since)]
        times.append(self.ended)
        return max(after - before for before, after in itertools.pairwise(times))

    def failures(self, shard: int | None = None) -> list[Exception]:
        """Return the errors of the calls on a shard, or of all."""
        return [error for _, each, error in self.errors if shard in (None, each)]

    async def compare(self, cluster: RedisServerCluster, since: float = 0.0) -> Comparison:
        """Read the lists back from the servers that own them. Count losses after a moment."""
        stored: Counter[str] = Counter()
        for keys in self.keys:
            for key in keys:
                master = (await cluster.shard_of(key_slot(key.encode()))).master
                items = await master.query("LRANGE", key, 0, -1)
                assert isinstance(items, list)
                stored.update(item.decode() for item in items if isinstance(item, bytes))
        lost = [item for item, at in self.acknowledged.items() if at >= since and not stored[item]]
        duplicates = [item for item, count in stored.items() if count > 1]
        failed = Counter(type(error).__name__ for error in self.failures())
        return Comparison(len(self.acknowledged), lost, duplicates, len(self.maybe), dict(failed))
