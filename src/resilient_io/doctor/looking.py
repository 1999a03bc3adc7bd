"""One look after the other, each within what is left of the time for all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .step import Status, Step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

__all__ = ["Finding", "Looking", "blind", "merged", "note", "ok", "problem", "together"]

_T = TypeVar("_T")

_WORSE: Final = (Status.OK, Status.BLIND, Status.NOTE, Status.PROBLEM)
"""What outweighs what, when one look has found several things."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look has found; the time it took makes a `Step` of it.

    Attributes:
        status: What is made of it.
        found: What was seen.
        advice: What to do.
        data: The figures behind it.
    """

    status: Status
    found: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def ok(found: str, **data: Any) -> Finding:
    """Find all as it should be."""
    return Finding(Status.OK, found, data=data)


def note(found: str, advice: str, **data: Any) -> Finding:
    """Find what is worth knowing."""
    return Finding(Status.NOTE, found, advice, data)


def problem(found: str, advice: str, **data: Any) -> Finding:
    """Find what does not work."""
    return Finding(Status.PROBLEM, found, advice, data)


def blind(reason: str, advice: str = "", **data: Any) -> Finding:
    """Find nothing, for a reason."""
    return Finding(Status.BLIND, reason, advice, data)


def merged(findings: Sequence[Finding], **data: Any) -> Finding:
    """Make one finding of several: the worst says how it is, and comes first.

    Args:
        findings: At least one.
        **data: The figures behind all of them.
    """
    ordered = sorted(findings, key=lambda each: -_WORSE.index(each.status))
    everything: dict[str, Any] = {}
    for each in ordered:
        everything |= each.data
    return Finding(
        ordered[0].status,
        "; ".join(each.found for each in ordered),
        " ".join(each.advice for each in ordered if each.advice),
        everything | data,
    )


async def together(what: str, looks: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Do several things at once, and give their results in order. Cancelling ends all.

    Args:
        what: What is done, for the names of the tasks.
        looks: The things; what one raises ends the others, too.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(look, name=f"resilient-io doctor {what}") for look in looks]
    return [task.result() for task in tasks]


class Looking:
    """Takes steps, and shares out the time among them.

    Args:
        timeout: Seconds for all steps together; what happens between them does not count.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.left = timeout

    async def take(
        self,
        name: str,
        look: Callable[[], Awaitable[Finding]],
        *,
        share: float = 1.0,
        silence: Finding | None = None,
    ) -> Step:
        """Take one step, within the time that is left.

        Args:
            name: Of the step.
            look: What to do.
            share: How much of the time that is left it may use at most.
            silence: What it means that the time is used up; by default nothing: it is blind.
        """
        if self.left <= 0:
            return Step(
                name=name,
                status=Status.BLIND,
                seconds=0.0,
                found=f"no time was left of {self.timeout:g} s",
                advice="Give a longer timeout to see this.",
            )
        loop = asyncio.get_running_loop()
        began = loop.time()
        bound = self.left * share
        try:
            async with asyncio.timeout(bound):
                found = await look()
        except TimeoutError:
            found = silence or blind(
                f"no answer within {bound:.1f} s", "Give a longer timeout, or look again later."
            )
        except Exception as error:  # noqa: BLE001 - a boundary: whatever answers there, and in
            # whatever way it breaks what reads it, the other steps can still be taken. What the
            # error says is not shown: it may quote what was read.
            found = blind(f"the answer could not be understood ({type(error).__name__})")
        seconds = loop.time() - began
        self.left -= seconds
        return Step(
            name=name,
            status=found.status,
            seconds=seconds,
            found=found.found,
            advice=found.advice,
            data=found.data,
        )
