"""How a service ends: what comes after what, and how long each may take."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ._report import LifecycleReport, LifecycleStep, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._body import Body
    from ._budget import Budget
    from ._part import Part
    from ._times import Times
    from ._workers import Workers

__all__ = ["Ending"]

_CUTS = 3
"""How often a body or a worker is cancelled that goes on after that."""

_AFTER_A_CUT = 1.0
"""Longest seconds for each of these."""


@dataclass(kw_only=True)
class Ending:
    """The steps, in order; each is bounded, and none of them keeps those after it from theirs.

    Attributes:
        reason: Why it ends.
        times: What was asked for.
        budget: The time there is, from the signal on.
        body: The block; None if it was never entered.
        workers: What runs beside it.
        parts: What was started, in the order of closing: those of the service, the monitor, the
            servers.
        notice: Whether the endpoints get time to notice.
        chain: Lets the handlers that were there hear the signal; says whether somebody else then
            ends the body.
        stopping: Set when work is to end.
    """

    reason: str
    times: Times
    budget: Budget
    body: Body | None
    workers: Workers
    parts: list[Part]
    notice: bool
    chain: Callable[[], bool]
    stopping: asyncio.Event
    steps: list[LifecycleStep] = field(default_factory=list)

    async def run(self) -> LifecycleReport:
        """Do all of it; the report says what took how long."""
        if self.notice and self.body is not None and self.times.notice:
            await self._let_them_notice(self.body)
        hosted = self.chain()
        self.stopping.set()
        sources = [part for part in self.parts if part.takes_in]
        rest = [part for part in self.parts if not part.takes_in]
        loop = asyncio.get_running_loop()
        closing = [
            loop.create_task(
                part.close(self.budget, len(rest) + 1),
                name=f"resilient-io lifecycle closing {part.name}",
            )
            for part in sources
        ]
        self.steps += await asyncio.gather(*closing)
        await self._end_workers(len(rest) + 1)
        if self.body is not None:
            await self._end_body(self.body, len(rest), hosted=hosted)
        for after, part in zip(reversed(range(len(rest))), rest, strict=True):
            self.steps.append(await part.close(self.budget, after))
        return LifecycleReport(
            reason=self.reason,
            seconds=round(self.budget.spent, 6),
            grace=self.times.grace,
            hurried=self.budget.hurried,
            steps=tuple(self.steps),
        )

    async def _let_them_notice(self, body: Body) -> None:
        """Go on as before, while those who send us work find out that we are not ready."""
        began = self.budget.spent

        def until() -> float:
            return 0.0 if self.budget.hurried else self.times.notice

        await self.budget.wait(body.gone, until)
        self._step("notice", began)

    async def _end_workers(self, after: int) -> None:
        """Let the workers end by themselves, now that nothing comes in; else cancel them."""
        began = self.budget.spent
        if not self.workers.busy:
            return
        loop = asyncio.get_running_loop()
        gone = loop.create_task(
            _all_ended(self.workers.busy), name="resilient-io lifecycle workers ending"
        )
        try:
            outcome: Outcome = "done"
            if not await self.budget.wait(gone, lambda: self._patience(after)):
                outcome = "late"
                for _ in range(_CUTS):
                    for task in self.workers.busy:
                        task.cancel()
                    if await self.budget.wait(gone, lambda: self._after_a_cut(after)):
                        break
        finally:
            gone.cancel()
        left = f"{len(self.workers.busy)} go on" if self.workers.busy else ""
        self._step("workers", began, outcome, left)

    async def _end_body(self, body: Body, after: int, *, hosted: bool) -> None:
        """Let the body end by itself; else cancel it, unless it is somebody else's to end."""
        began = self.budget.spent

        def patience() -> float:
            return self.budget.share(after) if hosted else self._patience(after)

        outcome: Outcome = "done"
        left = ""
        if self.workers.error is not None and not hosted:
            body.cut()
        if not await self.budget.wait(body.gone, patience):
            outcome = "late"
            for _ in range(0 if hosted else _CUTS):
                body.cut()
                if await self.budget.wait(body.gone, lambda: self._after_a_cut(after)):
                    break
        if not body.gone.done():
            left = "the server had not ended" if hosted else "it swallows cancellations"
        if body.gone.done() and self.budget.spent - began == 0.0:
            return
        self._step("body", began, outcome, left)

    def _patience(self, after: int) -> float:
        if self.budget.hurried:
            return 0.0
        return min(self.times.body_timeout, self.budget.share(after))

    def _after_a_cut(self, after: int) -> float:
        return min(_AFTER_A_CUT, self.budget.share(after))

    def _step(self, name: str, began: float, outcome: Outcome = "done", left: str = "") -> None:
        seconds = round(self.budget.spent - began, 6)
        self.steps.append(LifecycleStep(name=name, seconds=seconds, outcome=outcome, left=left))


async def _all_ended(tasks: list[asyncio.Task[object]]) -> None:
    await asyncio.wait(tasks)
