"""What callers do with the public API: one function for each kind of call.

A function `async def KIND(use: Use) -> None` makes the call of the plan and records one operation,
or several for a lock or a burst. Each write carries its own token, `tNUMBER.INDEX`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import batches, commands, health, lifecycle, locks, sharing
from .use import SPACING, Use

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["KINDS", "SPACING", "Use"]

KINDS: dict[str, Callable[[Use], Awaitable[None]]] = {
    "set": commands.set_,
    "set large": commands.set_large,
    "get large": commands.get_large,
    "set binary": commands.set_binary,
    "get binary": commands.get_binary,
    "set conditional": commands.set_conditional,
    "set expiring": commands.set_expiring,
    "get": commands.get,
    "get several": commands.get_several,
    "get range": commands.get_range,
    "get hash": commands.get_hash,
    "increment": commands.increment,
    "append": commands.append,
    "push": commands.push,
    "push binary": commands.push_binary,
    "pop binary": commands.pop_binary,
    "script large": commands.script_large,
    "hash set": commands.hash_set,
    "add": commands.add,
    "stream add": commands.stream_add,
    "delete": commands.delete,
    "echo": commands.echo,
    "script read": commands.script_read,
    "script push": commands.script_push,
    "script fail": commands.script_fail,
    "script registered": commands.script_registered,
    "pipeline": batches.pipeline,
    "transaction": batches.transaction,
    "watch": batches.watch,
    "peek": batches.peek,
    "manual": batches.manual,
    "burst": commands.burst,
    "traffic": commands.traffic,
    "pop": commands.pop,
    "pop now": commands.pop_now,
    "move": commands.move,
    "stream read": commands.stream_read,
    "lock": locks.lock,
    "lock block": locks.lock_block,
    "lock steal": locks.lock_steal,
    "close": lifecycle.close,
    "reopen": lifecycle.reopen,
    "visit": sharing.visit,
    "close pool": sharing.close_pool,
    "temporary": sharing.temporary,
    "wait up": health.wait_up,
    "look": health.look,
    "follow": health.follow,
    "misuse": lifecycle.misuse,
    "rotate": lifecycle.rotate,
    "late": commands.late,
    "name": commands.name,
    "no touch": commands.no_touch,
}
