"""Run checks one after the other within one time limit; each gives a step to show."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from resilient_io.text import clean_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

_T = TypeVar("_T")

_LONGEST: Final = 2000
"""Longest text of a step, in characters: several results may be joined in it."""


class Status(enum.StrEnum):
    """The result of a step."""

    OK = "ok"
    """No problem was found."""

    NOTE = "note"
    """It works, but is a risk, or the likely reason for another problem."""

    PROBLEM = "problem"
    """It does not work, or is about to stop working; the advice says what to do."""

    UNKNOWN = "unknown"
    """Could not be checked: no permission, or no time left. Proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an examination.

    Attributes:
        name: What was checked, in one or two words: "TCP", "reply".
        status: The result.
        seconds: How long the check took.
        found: What was found, in one line, without secrets.
        advice: What to do next, in one or two sentences; "" if there is nothing to do.
        data: The figures behind it, for programs; only what JSON can hold, and no secrets.
    """

    name: str
    status: Status
    seconds: float
    found: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the step as JSON would hold it."""
        return {
            "name": self.name,
            "status": str(self.status),
            "seconds": round(self.seconds, 6),
            "found": self.found,
            "advice": self.advice,
            "data": dict(self.data),
        }


def exit_code(steps: Iterable[Step]) -> int:
    """Return the exit code of a command that has shown these steps.

    Args:
        steps: All steps of all examinations.

    Returns:
        1 if a step is a problem; otherwise 2 if a step could not be checked; otherwise 0.
    """
    seen = {step.status for step in steps}
    if Status.PROBLEM in seen:
        return 1
    return 2 if Status.UNKNOWN in seen else 0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found; a step without its name and time."""

    status: Status
    found: str
    advice: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def ok(found: str, **data: Any) -> CheckResult:
    """Build an OK result."""
    return CheckResult(Status.OK, found, data=data)


def note(found: str, advice: str, **data: Any) -> CheckResult:
    """Build a note."""
    return CheckResult(Status.NOTE, found, advice, data)


def problem(found: str, advice: str, **data: Any) -> CheckResult:
    """Build a problem."""
    return CheckResult(Status.PROBLEM, found, advice, data)


def unknown(reason: str, advice: str = "", **data: Any) -> CheckResult:
    """Build a result for a check that could not run."""
    return CheckResult(Status.UNKNOWN, reason, advice, data)


_SEVERITY: Final = (Status.OK, Status.UNKNOWN, Status.NOTE, Status.PROBLEM)


def merged(results: Sequence[CheckResult], **data: Any) -> CheckResult:
    """Join several results; the most severe one comes first and gives its status.

    Args:
        results: At least one.
        **data: Figures behind all of them.
    """
    ordered = sorted(results, key=lambda each: -_SEVERITY.index(each.status))
    everything: dict[str, Any] = {}
    for each in ordered:
        everything |= each.data
    return CheckResult(
        ordered[0].status,
        "; ".join(each.found for each in ordered),
        " ".join(dict.fromkeys(each.advice for each in ordered if each.advice)),
        everything | data,
    )


def milder(result: CheckResult, *, others_work: bool) -> CheckResult:
    """Turn one server's problem into a note if other servers of the same list do its work."""
    if result.status is not Status.PROBLEM or not others_work:
        return result
    advice = f"{result.advice} Other servers of the list work."
    return note(result.found, advice, **result.data)


async def together(name: str, checks: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Run coroutines concurrently and return their results in order.

    Cancelling ends them all; an exception of one ends the others.

    Args:
        name: For the names of the tasks.
        checks: What to run.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(check, name=f"resilient-io doctor {name}") for check in checks]
    return [task.result() for task in tasks]


class Checks:
    """Runs the checks of one examination within one time limit.

    Args:
        timeout: Seconds for all checks together; time between them does not count.
        secrets: Passwords, which are removed from everything that a check found.

    Attributes:
        left: Seconds that are left.
    """

    def __init__(self, timeout: float, secrets: Iterable[str] = ()) -> None:
        self.left = timeout
        self._timeout = timeout
        self._secrets = tuple(secrets)

    async def run(
        self,
        name: str,
        check: Callable[[], Awaitable[CheckResult]],
        *,
        share: float = 1.0,
        on_timeout: CheckResult | None = None,
    ) -> Step:
        """Run one check and return its step.

        Args:
            name: The step's name.
            check: What to run.
            share: How much of the time that is left the check may use.
            on_timeout: The result if the time is used up; by default that it is unknown.
        """
        if self.left <= 0:
            return self._step(
                name,
                0.0,
                unknown(f"not checked: {self._timeout:g} s were used up", "Use a longer timeout."),
            )
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = self.left * share
        try:
            async with asyncio.timeout(limit):
                result = await check()
        except TimeoutError:
            result = on_timeout or unknown(
                f"not finished within {limit:.1f} s", "Use a longer timeout, or try again later."
            )
        except Exception as error:  # noqa: BLE001 - a boundary: whatever answers at the port, and
            # in whatever way it breaks its reader, the other checks can still run. The error's
            # text is not shown: it may quote what was read.
            result = unknown(f"the answer could not be read ({type(error).__name__})")
        seconds = loop.time() - began
        self.left -= seconds
        return self._step(name, seconds, result)

    def _step(self, name: str, seconds: float, result: CheckResult) -> Step:
        return Step(
            name=name,
            status=result.status,
            seconds=seconds,
            found=self._clean(result.found),
            advice=self._clean(result.advice),
            data=self._clean_data(result.data),
        )

    def _clean(self, text: str) -> str:
        return clean_text(text, limit=_LONGEST, secrets=self._secrets)

    def _clean_data(self, data: Any) -> Any:
        if isinstance(data, str):
            return self._clean(data)
        if isinstance(data, dict):
            return {self._clean(str(key)): self._clean_data(value) for key, value in data.items()}
        if isinstance(data, (list, tuple)):
            return [self._clean_data(value) for value in data]
        return data
