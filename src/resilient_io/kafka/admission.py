"""Waiting for an instance: who is let in, who is told at once why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from typing import TYPE_CHECKING, Generic

from resilient_io.deadlines import current_deadline
from resilient_io.health import Cause, State

from .errors import KafkaAuthenticationFailed, KafkaClosed, KafkaDeadlineExceeded, KafkaUnavailable
from .protocols import DriverT

if TYPE_CHECKING:
    from resilient_io.health import Dependency
    from resilient_io.retry import WhileDown

__all__ = ["Admission"]


class Admission(Generic[DriverT]):
    """Holds the instance in service, and those who wait for one.

    Args:
        role: What kind of instance, for errors.
        health: Of the cluster.
        while_down: What calls do while it is down, unless they say otherwise.

    Attributes:
        instance: The one in service; None while there is none.
        refusal: Why there is none and waiting does not help; None when all is well.
        closed: Whether there will never be one again.
    """

    def __init__(self, role: str, health: Dependency, while_down: WhileDown) -> None:
        self.instance: DriverT | None = None
        self.refusal: Exception | None = None
        self.closed = False
        self._role = role
        self._health = health
        self._while_down = while_down
        self._waiting: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        """Let those who wait look again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def ready(
        self, until: float | None, operation: str, while_down: WhileDown | None
    ) -> DriverT:
        """Wait for an instance; see `Supervisor.ready`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        fails = (while_down or self._while_down) == "fail"
        # Who comes while it is down is told at once; who was let in may wait for its return.
        impatient = fails and self._health.state in (State.DOWN, State.UNKNOWN)
        bound = current_deadline()
        if bound is not None and (until is None or bound < until):
            until = bound
        try:
            async with asyncio.timeout_at(until):
                while True:
                    self._raise_trouble(operation, began, fails=fails, impatient=impatient)
                    if self.instance is not None:
                        return self.instance
                    await self._wait()
        except TimeoutError:
            raise KafkaDeadlineExceeded(
                f"no {self._role} was ready in time",
                dependency=self._health.name,
                operation=operation,
                elapsed=loop.time() - began,
            ) from None

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)

    def _raise_trouble(self, operation: str, began: float, *, fails: bool, impatient: bool) -> None:
        elapsed = asyncio.get_running_loop().time() - began
        name, cause = self._health.name, self._health.cause
        if self.closed:
            raise KafkaClosed(
                f"the {self._role} was closed",
                dependency=name,
                operation=operation,
                elapsed=elapsed,
            )
        if self.refusal is not None:
            told = copy.copy(self.refusal)
            told.add_note(f"{name}: no {self._role} can be in service because of this")
            raise told from self.refusal
        if self._health.available or cause is None:
            return
        if impatient or (fails and cause.permanent):
            kind = KafkaAuthenticationFailed if cause is Cause.AUTH else KafkaUnavailable
            detail = f": {self._health.detail}" if self._health.detail else ""
            raise kind(
                f"it is down ({cause.value}{detail})",
                dependency=name,
                operation=operation,
                elapsed=elapsed,
            )
