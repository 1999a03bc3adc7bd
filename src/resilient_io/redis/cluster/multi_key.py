"""Commands for keys of several slots, and iterating over the keys of all masters.

redis-py's `delete`, `exists`, `touch`, `unlink`, `mget_nonatomic` and `mset_nonatomic` send one
command for each slot. No other command is split: it raises `CrossSlotKeys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import TimeoutError as TimedOutError

from ..errors import RedisClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from .router import Router


class MultiKeyCommands(RedisCluster):
    """What redis-py's cluster client builds on several commands."""

    _router: Router

    async def _split_command_across_slots(self, command: str, *keys: Any) -> Any:  # type: ignore[override]
        """Send one command for the keys of each slot, and return the sum of the replies."""
        if len(keys) == 1:
            return await self.execute_command(command, *keys)
        by_slot = self._partition_keys_by_slot(keys)
        return sum(await self._execute_pipeline_by_slot(command, by_slot))

    async def _execute_pipeline_by_slot(  # type: ignore[override]
        self, command: str, slots_to_args: Mapping[int, Iterable[Any]]
    ) -> list[Any]:
        """Send one command for each slot, and return the replies."""
        pipeline = self.pipeline()
        for args in slots_to_args.values():
            pipeline.execute_command(command, *args)
        return await pipeline.execute()

    if not TYPE_CHECKING:  # type checkers see redis-py's own signature

        async def scan_iter(
            self,
            match: Any = None,
            count: int | None = None,
            _type: str | None = None,
            **options: Any,
        ) -> AsyncIterator[Any]:
            """Yield the keys of all masters, as redis-py does.

            A key may come several times. If another node takes over a shard meanwhile, its keys are
            read from the beginning there, because a cursor means nothing to another node. A key
            whose slot moves to another master meanwhile may be missed, as with every client.

            Args:
                match: Pattern of the keys.
                count: Number of keys to look at in each step.
                _type: Type of the values.
                **options: `target_nodes=` chooses the nodes, as in redis-py.
            """
            if "target_nodes" in options:
                scanned = super().scan_iter(match=match, count=count, _type=_type, **options)
                async for key in scanned:
                    yield key
                return
            await self._until_known("SCAN")
            for slot in self._first_slots():
                async for key in self._scan_shard(slot, match, count, _type, options):
                    yield key

    def _first_slots(self) -> list[int]:
        """Return one slot of each master that has any."""
        found: dict[int, int] = {}
        for slot, shard in enumerate(self._router.table.slots):
            if shard is not None:
                found.setdefault(id(shard), slot)
        return list(found.values())

    async def _scan_shard(
        self, slot: int, match: Any, count: int | None, kind: str | None, options: dict[str, Any]
    ) -> AsyncIterator[Any]:
        scan: Any = self.scan  # redis-py types it for a single server
        cursor, address = 0, None
        while True:
            shard = self._router.table.slots[slot]
            if shard is not None and shard.master.address != address:
                cursor, address = 0, shard.master.address
            node = self.get_node(*address) if address is not None else None
            try:
                cursors, keys = await scan(
                    cursor=cursor,
                    match=match,
                    count=count,
                    _type=kind,
                    target_nodes=[node],
                    **options,
                )
            except (ConnectionLostError, TimedOutError) as error:
                after = self._router.table.slots[slot]
                moved = after is not None and after.master.address != address
                if isinstance(error, RedisClosed) or not moved:
                    raise
                continue
            for key in keys:
                yield key
            cursor = next(iter(cursors.values()))
            if not cursor:
                return
