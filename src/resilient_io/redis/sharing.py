"""What the clients on one pool share: their runtime. Closing the pool closes it, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import ConnectionPool

    from .runtime import Runtime

    Options = tuple[object, ...]


class PoolRuntimes:
    """The runtimes of the clients on one pool: one for each combination of their own options.

    It is an attribute of the pool, so that both are collected together. The pool has one loop at a
    time; while its runtime is in use in another running loop, a new client gets a new runtime.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: list[tuple[Options, Runtime]] = []

    @classmethod
    def of(cls, pool: ConnectionPool) -> PoolRuntimes:
        """Return the runtimes of a pool."""
        found: PoolRuntimes | None = vars(pool).get(_ATTRIBUTE)
        if found is None:
            found = cls()
            setattr(pool, _ATTRIBUTE, found)
            # redis-py 8.1 `ConnectionPool.aclose` calls `disconnect`, as applications do.
            pool.disconnect = found._disconnect_after(pool.disconnect)  # type: ignore[method-assign]
        return found

    def find(self, options: Options) -> Runtime | None:
        """Return the runtime of a client with these options that may be used here."""
        for known, runtime in self._known:
            if known == options and runtime.usable_here:
                return runtime
        return None

    def add(self, options: Options, runtime: Runtime) -> None:
        """Share a runtime from now on. Those that are not in use any more are forgotten."""
        self._known = [(known, each) for known, each in self._known if each.users or each.running]
        self._known.append((options, runtime))

    def _disconnect_after(self, disconnect: Callable[..., Any]) -> Callable[..., Any]:
        async def disconnect_all(inuse_connections: bool = True) -> None:
            """Close the connections of the pool, and the shared ones of its clients."""
            closings = []
            if inuse_connections:
                # Before the first await: calls from now on open their client again.
                begun = [each.close_with_pool() for _, each in self._known]
                closings = [each for each in begun if each is not None]
            await disconnect(inuse_connections)
            for closing in closings:
                await asyncio.wait([closing])
                closing.result()

        return disconnect_all


_ATTRIBUTE = "_resilient_io_runtimes"
