"""Callers of the keys of one slot while it moves: reads, unique pushes, MGET and pipelines."""

import asyncio
import statistics
from collections import Counter
from dataclasses import dataclass, field

from redis.crc import key_slot
from redis.exceptions import RedisError

from resilient_io.redis import ResilientRedisCluster
from resilient_io.testing import RedisServerCluster

TAG = "{moving}"
SLOT = key_slot(b"moving")
KEYS = 200
LISTS = 6


@dataclass
class Load:
    """Callers that run until `stop`, and what was wrong with their replies."""

    client: ResilientRedisCluster
    wrong: list[object] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    pushed: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    async def fill(self) -> None:
        """Write the keys that are read."""
        pipe = self.client.pipeline()
        for number in range(KEYS):
            pipe.set(f"{TAG}{number}", number)
            pipe.set(f"other{number}", number)
        await pipe.execute()

    def start(self) -> None:
        """Start the callers."""
        calls = [self._get, self._get, self._mget, self._pipeline, self._transaction]
        for call in [*calls, *[self._push] * LISTS]:
            self._tasks.append(asyncio.create_task(self._repeat(call, len(self._tasks))))

    async def stop(self) -> None:
        """End the callers after their current call."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        self._tasks.clear()

    def take_latency(self) -> float:
        """Return the mean latency of GET, in seconds, since the last time."""
        mean = statistics.fmean(self.latencies)
        self.latencies.clear()
        return mean

    async def _repeat(self, call, caller) -> None:
        turn = 0
        while not self._stopping:
            turn += 1
            try:
                await call(caller, turn)
            except RedisError as error:
                self.errors.append(error)
            await asyncio.sleep(0.001)

    def _expect(self, found, expected) -> None:
        if found != expected:
            self.wrong.append((found, expected))

    async def _get(self, caller, turn) -> None:
        time = asyncio.get_running_loop().time
        number, began = (caller * 31 + turn) % KEYS, time()
        reply = await self.client.get(f"{TAG}{number}")
        self.latencies.append(time() - began)
        self._expect(reply, b"%d" % number)

    async def _mget(self, _caller, turn) -> None:
        numbers = [(turn * 7 + step) % KEYS for step in range(3)]
        reply = await self.client.mget([f"{TAG}{number}" for number in numbers])
        self._expect(reply, [b"%d" % number for number in numbers])

    async def _pipeline(self, caller, turn) -> None:
        numbers = [(turn * 11 + step) % KEYS for step in range(10)]
        item = f"{caller}:{turn}"
        pipe = self.client.pipeline()
        for number in numbers:
            pipe.get(f"{TAG}{number}").get(f"other{number}")
        pipe.rpush(f"{TAG}list:pipeline", item).rpush("otherlist", item)
        *values, _, _ = await pipe.execute()
        self._expect(values, [b"%d" % number for number in numbers for _ in range(2)])
        self.pushed[item] += 1

    async def _transaction(self, caller, turn) -> None:
        item = f"{caller}:{turn}"
        pipe = self.client.pipeline(transaction=True)
        pipe.rpush(f"{TAG}list:transaction", item).get(f"{TAG}1")
        _, value = await pipe.execute()
        self._expect(value, b"1")
        self.pushed[item] += 1

    async def _push(self, caller, turn) -> None:
        item = f"{caller}:{turn}"
        await self.client.rpush(f"{TAG}list:{caller}", item)
        self.pushed[item] += 1

    async def check(self, cluster: RedisServerCluster) -> None:
        """Compare what the new owner has with the replies of the callers."""
        owner = (await cluster.shard_of(SLOT)).master
        stored: Counter[str] = Counter()
        names = ["pipeline", "transaction", *range(5, 5 + LISTS)]
        for name in names:
            items = await owner.query("LRANGE", f"{TAG}list:{name}", 0, -1)
            stored.update(item.decode() for item in items)
        assert self.errors == []
        assert self.wrong == []
        assert len(self.pushed) > 100
        assert stored - self.pushed == Counter()  # no duplicates, nothing unknown
        assert self.pushed - stored == Counter()  # nothing is missing
