"""Records what calls pay for their repetitions, and what they get back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

import resilient_io.redis.runtime
from resilient_io.retry import RetryBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .history import History


_recording: list[tuple[History, Iterator[int]]] = []
"""The history of the present run, and the numbers of its budgets."""


class RecordedBudget(RetryBudget):
    """A retry budget whose changes are events of the history of the present run."""

    __slots__ = ("_history", "_number")

    def __init__(self, capacity: float, successes: Callable[[], int]) -> None:
        self._history, numbers = _recording[-1]
        self._number = next(numbers)
        super().__init__(capacity, successes)

    def try_spend(self, cost: float) -> bool:
        """Pay for a repetition, if there is enough."""
        before = self.tokens
        granted = super().try_spend(cost)
        self._note("paid" if granted else "not paid", cost, before)
        return granted

    def refund(self, cost: float) -> None:
        """Take back what was paid for a repetition that did not take place."""
        before = self.tokens
        super().refund(cost)
        self._note("refunded", cost, before)

    def _note(self, kind: str, cost: float, before: float) -> None:
        self._history.event(
            "client",
            kind,
            budget=self._number,
            size=self.capacity,
            call=_call(),
            cost=cost,
            before=before,
            after=self._tokens,
        )


@contextlib.contextmanager
def recorded(history: History) -> Iterator[None]:
    """Add an event for each payment and refund: "paid" or "refunded", with the tokens around it.

    Reading the tokens changes nothing: what successes have earned is only added up earlier.
    """
    module = resilient_io.redis.runtime
    original = module.RetryBudget
    module.RetryBudget = RecordedBudget
    _recording.append((history, itertools.count(1)))
    try:
        yield
    finally:
        module.RetryBudget = original
        _recording.pop()


def _call() -> int | None:
    """Return the number of the call whose task runs, or None."""
    task = asyncio.current_task()
    word, _, number = ("" if task is None else task.get_name()).partition(" ")
    return int(number) if word == "call" else None
