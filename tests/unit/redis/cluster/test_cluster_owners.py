"""The owners of slots after tables and redirections: compared with a look at each slot."""

import asyncio
import random
from collections import Counter

from redis.exceptions import MovedError

from resilient_io.redis.cluster import ResilientRedisCluster
from resilient_io.redis.cluster.nodes import NO_OWNER
from resilient_io.redis.cluster.slots import SLOTS, Node, Shard, SlotTable

NODES = [Node("10.0.0.1", 7000 + number) for number in range(6)]


def random_table(rng):
    """Return a table with some ranges, of which some have no owner."""
    shards = [Shard(node) for node in NODES]
    bounds = sorted(rng.sample(range(1, SLOTS), rng.randrange(6)))
    slots = []
    for end in (*bounds, SLOTS):
        slots += [rng.choice([*shards, None])] * (end - len(slots))
    return SlotTable(slots, shards)


def owner_in(table, slot):
    shard = table.slots[slot]
    return None if shard is None else shard.master.address


async def test_owners_counts_and_changes_are_those_of_each_slot():
    client, rng = ResilientRedisCluster("10.0.0.1", 7000, rng=random.Random(1)), random.Random(2)
    router, seen = client._router, []
    router.on_change(seen.append)
    for _ in range(12):
        for slot in rng.sample([0, 1, SLOTS - 1, *range(SLOTS)], rng.randrange(4)):
            member = router.members.get(rng.choice(NODES).address)
            moved = MovedError(f"{slot} 10.0.0.1:{rng.choice(NODES).port}")
            router.moved(moved, member)
            assert router.owners[slot].address == ("10.0.0.1", moved.port)
        before, newer = list(router.owners), dict(router._moved)
        table = random_table(rng)
        seen.clear()
        await router._use(table, asyncio.get_running_loop().time())
        expected = [owner_in(table, slot) for slot in range(SLOTS)]
        for slot, (address, _) in newer.items():
            if slot in router._moved:
                expected[slot] = address
        owners = router.owners
        assert [getattr(each, "address", None) for each in owners] == expected
        counts = Counter(owners)
        del counts[NO_OWNER]
        assert router.slots == counts
        pairs = {(old, new) for old, new in zip(before, owners, strict=True) if old != new}
        assert [set(changes) for changes in seen] == ([pairs] if pairs else [])
        await asyncio.sleep(rng.choice([0.1, 2.0]))  # MOVED counts more for a second
    await client.aclose()
