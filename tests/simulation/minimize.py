"""Reduces a failing plan to what a person can read: fewer faults, callers, calls and options.

A smaller plan fails if its run breaks the same rule. Leaving out one element changes what the
others meet (packets arrive at other times), so each reduction is tried, and kept if it still fails.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .plan import Call, Caller, ClientSetup, Fault, NetworkSettings, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .history import History, Violation
    from .run import Result

T = TypeVar("T")

START = 1000.0  # SimulatedLoop.time() starts here, and the plan with it
_QUIET = NetworkSettings(jitter=0.0, split=0.0, stall=0.0)
_DEFAULTS = ClientSetup(label="")


@dataclass(frozen=True, slots=True)
class Minimized:
    """The smallest plan that was found.

    Attributes:
        plan: The plan.
        result: Its run, which breaks the rule.
        violation: The broken rule.
        runs: Number of runs that were needed.
        complete: False if the budget was used up first: the plan may have more than it needs.
    """

    plan: Plan
    result: Result
    violation: Violation
    runs: int
    complete: bool


def minimize(
    plan: Plan,
    breaks: Callable[[Violation], bool],
    run: Callable[[Plan], Result],
    *,
    runs: int = 600,
    seconds: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
) -> Minimized | None:
    """Return the smallest failing plan, or None if the run of `plan` does not fail.

    Args:
        plan: The failing plan.
        breaks: Whether a violation is the one that is searched for.
        run: Runs a plan. A run that raises counts as one that does not fail.
        runs: Largest number of runs.
        seconds: Longest time, in seconds of `clock`.
        clock: The time; injected by tests.
    """
    minimizer = _Minimizer(breaks, run, runs, clock() + seconds, clock)
    if not minimizer.fails(plan):
        return None
    complete = True
    try:
        before = None
        while before != minimizer.plan:
            before = minimizer.plan
            minimizer.round()
    except _BudgetUsedUp:
        complete = False
    return Minimized(
        minimizer.plan, minimizer.result, minimizer.violation, minimizer.runs, complete
    )


class _BudgetUsedUp(Exception):
    """No run is left, or no time."""


class _Minimizer:
    """The smallest failing plan so far, and the steps that make it smaller."""

    plan: Plan
    result: Result
    violation: Violation

    def __init__(
        self,
        breaks: Callable[[Violation], bool],
        run: Callable[[Plan], Result],
        runs: int,
        until: float,
        clock: Callable[[], float],
    ) -> None:
        self._breaks = breaks
        self._run = run
        self._most_runs = runs
        self._until = until
        self._clock = clock
        self._passing: set[str] = set()  # plans that did not fail
        self._last: Result | None = None
        self.runs = 0

    def fails(self, plan: Plan) -> bool:
        """Return whether the plan fails, which makes it the smallest so far."""
        key = repr(plan)
        self._last = None
        if key in self._passing:
            return False
        if self.runs >= self._most_runs or self._clock() >= self._until:
            raise _BudgetUsedUp
        self.runs += 1
        try:
            result = self._run(plan)
        except Exception:  # noqa: BLE001 - a plan that the workload cannot run is of no use
            result = None
        self._last = result
        if result is not None:
            for violation in result.violations:
                if self._breaks(violation):
                    self.plan, self.result, self.violation = plan, result, violation
                    return True
        self._passing.add(key)
        return False

    def smaller(self, plan: Plan) -> bool:
        """Return whether the plan differs from the smallest and fails, too."""
        return plan != self.plan and self.fails(plan)

    def smaller_in_time(self, plan: Plan) -> bool:
        """Return whether the plan fails, too, perhaps with other pauses.

        Without some calls or stalls, the others begin at other times. Pauses can correct that.
        """
        starts, ends = _times_of_calls(self.plan, self.result.history)
        plan = _retimed(plan, starts, ends)
        for _ in range(2):
            if self.smaller(plan):
                return True
            if self._last is None:
                return False
            _, ends = _times_of_calls(plan, self._last.history)
            plan = _retimed(plan, starts, ends)
        return False

    def round(self) -> None:
        """Try every kind of reduction once, those that remove most first."""
        self._cut_the_end()
        self._network()  # early: on a regular network, the other reductions change less
        self._faults()
        self._callers()
        self._calls()
        self._cut_the_end()
        self._clients()
        self._network()
        self._server()
        self._client_options()
        self._call_options()
        self._arguments()
        self._pauses()
        self._start_earlier()
        self._numbers()

    def _remove(
        self,
        items: Sequence[T],
        keep: Callable[[Sequence[T]], Plan],
        smaller: Callable[[Plan], bool] | None = None,
    ) -> None:
        """Leave out as many items as possible: all, then halves, quarters ..., then single ones."""
        smaller = smaller or self.smaller
        kept = list(items)
        if not kept or smaller(keep([])):
            return
        size = (len(kept) + 1) // 2
        while True:
            removed = False
            first = 0
            while first < len(kept):
                rest = kept[:first] + kept[first + size :]
                if rest and smaller(keep(rest)):
                    kept = rest
                    removed = True
                else:
                    first += size
            if size == 1:
                if not removed:
                    return
            else:
                size = (size + 1) // 2

    def _cut_the_end(self) -> None:
        """Leave out the calls and faults that begin after the violation."""
        history = self.result.history
        end = _end_of_violation(history, self.violation)
        if end is None:
            return
        number, seconds = end
        began = self._calls_that_began(number)
        faults = {fault.number for fault in self.plan.faults if fault.at <= seconds - START}
        if not self.smaller(self.plan.keep(faults=faults, calls=began)):
            self.smaller(self.plan.keep(calls=began))
            self.smaller(self.plan.keep(faults=faults))

    def _calls_that_began(self, number: int) -> set[int]:
        """Return the calls that began before the record with this number.

        A call has one operation, or several with consecutive numbers, or none (closing a client).
        """
        numbers = sorted(call.number for caller in self.plan.callers for call in caller.calls)
        began = {
            _call_of(operation.number, numbers)
            for operation in self.result.history.operations
            if operation.started_at <= number
        }
        kept: set[int] = set()
        for caller in self.plan.callers:
            mine = [call.number for call in caller.calls]
            last = max((at for at, each in enumerate(mine) if each in began), default=-1)
            kept.update(mine[: last + 1])
        return kept

    def _faults(self) -> None:
        plan = self.plan
        self._remove(plan.faults, lambda kept: replace(plan, faults=tuple(kept)))

    def _callers(self) -> None:
        plan = self.plan
        self._remove(plan.callers, lambda kept: replace(plan, callers=tuple(kept)))

    def _calls(self) -> None:
        plan = self.plan
        numbers = [call.number for caller in plan.callers for call in caller.calls]
        self._remove(numbers, lambda kept: plan.keep(calls=set(kept)), self.smaller_in_time)
        plan = self.plan
        numbers = [call.number for caller in plan.callers for call in caller.calls]
        self._remove(numbers, lambda kept: plan.keep(calls=set(kept)))

    def _clients(self) -> None:
        """Leave out clients without callers, and sharing of health between clients."""
        for label in [client.label for client in self.plan.clients]:
            plan = self.plan
            without = tuple(
                replace(other, shares_health_of=None) if other.shares_health_of == label else other
                for other in plan.clients
                if other.label != label
            )
            used = any(caller.client == label for caller in plan.callers)
            if used or not without or not self.smaller(replace(plan, clients=without)):
                alone = replace(_client(plan, label), shares_health_of=None)
                self.smaller(_with_client(plan, alone))

    def _network(self) -> None:
        """Make the network regular, and our event loop fast."""
        plan = self.plan
        quiet = replace(_QUIET, latency=plan.network.latency)
        if plan.network == quiet or self.smaller_in_time(replace(plan, network=quiet)):
            return
        for field in ("stall", "split", "jitter"):
            if getattr(self.plan.network, field):
                network = replace(self.plan.network, **{field: 0.0})
                self.smaller_in_time(replace(self.plan, network=network))

    def _server(self) -> None:
        """Replace settings of the server by its defaults."""
        plan = self.plan
        self._remove(
            list(plan.server),
            lambda kept: replace(plan, server={name: plan.server[name] for name in kept}),
        )

    def _client_options(self) -> None:
        """Replace settings of the clients by their defaults."""
        for client in self.plan.clients:
            current = replace(client, protocol=_DEFAULTS.protocol, single=_DEFAULTS.single)
            if not self.smaller(_with_client(self.plan, current)):
                for field in ("protocol", "single"):
                    current = _client(self.plan, client.label)
                    current = replace(current, **{field: getattr(_DEFAULTS, field)})
                    self.smaller(_with_client(self.plan, current))
        plan = self.plan
        options = [
            (client.label, field, name)
            for client in plan.clients
            for field in ("policy", "connections", "health", "options", "form")
            for name in getattr(client, field)
        ]

        def keep(kept: Sequence[tuple[str, str, str]]) -> Plan:
            smaller = plan
            for client in plan.clients:
                fields = {
                    field: {
                        name: value
                        for name, value in getattr(client, field).items()
                        if (client.label, field, name) in kept
                    }
                    for field in ("policy", "connections", "health", "options", "form")
                }
                smaller = _with_client(smaller, replace(client, **fields))
            return smaller

        self._remove(options, keep)

    def _call_options(self) -> None:
        """Leave out cancellations, deadlines and views."""
        plan = self.plan
        options = [
            (call.number, field)
            for caller in plan.callers
            for call in caller.calls
            for field in ("cancel_after", "deadline", "view")
            if getattr(call, field) is not None
        ]

        def keep(kept: Sequence[tuple[int, str]]) -> Plan:
            removed = [option for option in options if option not in kept]

            def without(call: Call) -> Call:
                fields = {field: None for number, field in removed if number == call.number}
                return replace(call, **fields) if fields else call

            return _with_calls(plan, without)

        self._remove(options, keep)

    def _arguments(self) -> None:
        """Shorten batches, and leave out what makes a call special."""
        for number in [call.number for caller in self.plan.callers for call in caller.calls]:
            for name in list(_call(self.plan, number).arguments):
                while self._simpler_argument(number, name):
                    pass
        for fault in self.plan.faults:
            if fault.arguments.get("index"):
                first = replace(fault, arguments={**fault.arguments, "index": 0})
                self.smaller(_with_fault(self.plan, first))

    def _simpler_argument(self, number: int, name: str) -> bool:
        """Return whether an argument of a call could be made simpler."""
        call = _call(self.plan, number)
        return any(
            self.smaller(
                _with_calls(
                    self.plan, _replaced(replace(call, arguments={**call.arguments, name: value}))
                )
            )
            for value in _simpler(name, call.arguments[name])
        )

    def _pauses(self) -> None:
        """Leave out the pauses of callers, or shorten them."""
        plan = self.plan
        numbers = [
            call.number for caller in plan.callers for call in caller.calls if call.pause > 0
        ]

        def keep(kept: Sequence[int]) -> Plan:
            return _with_calls(
                plan, lambda call: call if call.number in kept else replace(call, pause=0.0)
            )

        self._remove(numbers, keep)
        for caller in self.plan.callers:
            for call in caller.calls:
                pause = call.pause
                while pause > 0.01:
                    pause = _short(pause / 2)
                    shorter = replace(call, pause=pause)
                    if not self.smaller(_with_calls(self.plan, _replaced(shorter))):
                        break

    def _start_earlier(self) -> None:
        """Make everything begin earlier, by the same time."""
        plan = self.plan
        begins = [caller.calls[0].pause for caller in plan.callers if caller.calls]
        begins += [fault.at for fault in plan.faults]
        for share in (1.0, 0.9, 0.5):
            earlier = min(begins, default=0.0) * share
            faults = tuple(replace(fault, at=round(fault.at - earlier, 6)) for fault in plan.faults)
            callers = tuple(
                replace(
                    caller,
                    calls=(
                        replace(caller.calls[0], pause=round(caller.calls[0].pause - earlier, 6)),
                        *caller.calls[1:],
                    ),
                )
                for caller in plan.callers
                if caller.calls
            )
            if earlier > 0.01 and self.smaller(replace(plan, faults=faults, callers=callers)):
                return

    def _numbers(self) -> None:
        """Round times to hundredths of a second, and durations of faults to tenths."""

        def call_rounded(call: Call) -> Call:
            return replace(
                call,
                pause=_short(call.pause),
                cancel_after=None if call.cancel_after is None else _short(call.cancel_after),
                deadline=None if call.deadline is None else _short(call.deadline),
            )

        def fault_rounded(fault: Fault) -> Fault:
            return replace(fault, at=_short(fault.at), seconds=_short(fault.seconds))

        faults = tuple(fault_rounded(fault) for fault in self.plan.faults)
        if self.smaller(replace(_with_calls(self.plan, call_rounded), faults=faults)):
            return
        for fault in self.plan.faults:
            self.smaller(_with_fault(self.plan, fault_rounded(fault)))
        for caller in self.plan.callers:
            for call in caller.calls:
                self.smaller(_with_calls(self.plan, _replaced(call_rounded(call))))


def _simpler(name: str, value: Any) -> list[Any]:
    """Return simpler values of an argument. Not 0 for timeouts: it means to wait forever."""
    if value is True:
        return [False]
    if name == "shape":  # a letter for each command of a batch
        return [value[:at] + value[at + 1 :] for at in range(len(value))] if len(value) > 1 else []
    if name in ("think", "hold") and value:
        return [0.0]
    if name == "count" and value > 2:
        return [2, value - 1] if value > 3 else [2]
    return []


def _short(seconds: float) -> float:
    """Return the seconds with few digits, but not zero if they are not zero."""
    rounded = round(seconds, 2 if seconds < 1 else 1)
    return rounded if rounded or not seconds else seconds


def _end_of_violation(history: History, violation: Violation) -> tuple[int, float] | None:
    """Return number and time of the last record that the violation concerns, or None."""
    ends = [
        (operation.ended_at, operation.ended)
        for operation in history.operations
        if operation.number in violation.operations
    ]
    if violation.at is not None:
        time_of_record = time_of(history, violation.at)
        if time_of_record is not None:
            ends.append((violation.at, time_of_record))
    known = [
        (number, seconds) for number, seconds in ends if number is not None and seconds is not None
    ]
    return max(known) if known and len(known) == len(ends) else None


def time_of(history: History, number: int) -> float | None:
    """Return the virtual time of the record with this number, or None."""
    records: tuple[Sequence[Any], ...] = (
        history.executions,
        history.written,
        history.health,
        history.events,
    )
    for kind in records:
        for record in kind:
            if record.at == number:
                seconds: float = record.time
                return seconds
    for operation in history.operations:
        for at, seconds_or_none in (
            (operation.started_at, operation.started),
            (operation.cancelled_at, operation.cancelled),
            (operation.ended_at, operation.ended),
        ):
            if at == number:
                return seconds_or_none
    return None


def _call_of(operation: int, calls: Sequence[int]) -> int:
    """Return the number of the call that an operation belongs to; `calls` is sorted."""
    return calls[max(bisect_right(calls, operation) - 1, 0)] if calls else operation


def _times_of_calls(plan: Plan, history: History) -> tuple[dict[int, float], dict[int, float]]:
    """Return when each call with operations began, and when it ended."""
    numbers = sorted(call.number for caller in plan.callers for call in caller.calls)
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    for operation in history.operations:
        call = _call_of(operation.number, numbers)
        starts[call] = min(operation.started, starts.get(call, operation.started))
        if operation.ended is not None:
            ends[call] = max(operation.ended, ends.get(call, 0.0))
    return starts, ends


def _retimed(plan: Plan, starts: Mapping[int, float], ends: Mapping[int, float]) -> Plan:
    """Return the plan with pauses after which its calls begin when they did in another run."""

    def retimed(caller: Caller) -> Caller:
        calls = []
        time_before = START
        for call in caller.calls:
            start = starts.get(call.number)
            if start is None:
                calls.append(call)
                continue
            calls.append(replace(call, pause=round(max(start - time_before, 0.0), 6)))
            time_before = ends.get(call.number, start)
        return replace(caller, calls=tuple(calls))

    return replace(plan, callers=tuple(retimed(caller) for caller in plan.callers))


def _call(plan: Plan, number: int) -> Call:
    """Return the call with this number."""
    return next(call for caller in plan.callers for call in caller.calls if call.number == number)


def _client(plan: Plan, label: str) -> ClientSetup:
    """Return the client with this label."""
    return next(client for client in plan.clients if client.label == label)


def _with_client(plan: Plan, client: ClientSetup) -> Plan:
    """Return the plan with another setup of one client."""
    return replace(
        plan,
        clients=tuple(client if other.label == client.label else other for other in plan.clients),
    )


def _with_fault(plan: Plan, fault: Fault) -> Plan:
    """Return the plan with another fault of the same number."""
    return replace(
        plan,
        faults=tuple(fault if other.number == fault.number else other for other in plan.faults),
    )


def _with_calls(plan: Plan, change: Callable[[Call], Call]) -> Plan:
    """Return the plan with every call changed."""

    def changed(caller: Caller) -> Caller:
        return replace(caller, calls=tuple(change(call) for call in caller.calls))

    return replace(plan, callers=tuple(changed(caller) for caller in plan.callers))


def _replaced(call: Call) -> Callable[[Call], Call]:
    """Return a function that replaces the call of the same number."""
    return lambda other: call if other.number == call.number else other
