"""A pipeline as those see it who want to see every call; see `observed.py`."""

from __future__ import annotations

from typing import Any

import redis.asyncio.client as driver

from .commands import SPECS, lookup
from .observed import through, told
from .pipeline import ResilientPipeline


class ObservedPipeline(ResilientPipeline):
    """A pipeline whose calls are seen."""

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the queued commands, as the pipeline does that nobody sees."""
        tracing = self._client._tracing
        before = tracing and tracing.current()

        async def make(*_: Any) -> Any:
            if tracing is None or not (self.command_stack or self.watching):
                return await ResilientPipeline.execute(self, raise_on_error)
            names = [(SPECS.get(args[0]) or lookup(args)).name for args, _ in self.command_stack]
            transaction = bool(self.is_transaction or self.explicit_transaction)
            with told(tracing), tracing.batch(names, before, transaction=transaction):
                return await ResilientPipeline.execute(self, raise_on_error)

        try:
            method = vars(driver.Pipeline)["execute"]
            replies: list[Any] = await through(method, self, make, (raise_on_error,), {})
            return replies
        finally:
            await self.reset()

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command now, as the pipeline does that nobody sees."""
        tracing = self._client._tracing
        before = tracing and tracing.current()

        async def make(*args: Any, **options: Any) -> Any:
            send = ResilientPipeline.immediate_execute_command
            if tracing is None:
                return await send(self, *args, **options)
            operation = (SPECS.get(args[0]) or lookup(args)).name
            with told(tracing), tracing.command(operation, before):
                return await send(self, *args, **options)

        method = vars(driver.Pipeline)["immediate_execute_command"]
        return await through(method, self, make, args, options)
