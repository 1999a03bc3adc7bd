"""The command `python -m tests.simulation`, which `make simulate` runs."""

from __future__ import annotations

import argparse
import difflib
import faulthandler
import importlib
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import recorded
from .bugs import BUGS
from .known_findings import KNOWN, known_finding
from .line_coverage import measure
from .minimize import minimize
from .processes import SimulationBroken
from .search import count, differing_digests, jobs, search
from .timeline import render
from .worker import PACKAGE, SEED_LIMIT, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .history import Violation
    from .known_findings import KnownFinding
    from .plan import Plan
    from .processes import Job
    from .run import Result
    from .search import Summary

SEEDS = 2000
RULES_SHOWN = 3
MINIMIZE_SECONDS = 60.0

DESCRIPTION = """
Runs the real Redis client in a simulated event loop, network and Redis server. Each seed is another
schedule of calls, cancellations and faults; the same seed always does the same. Afterwards, rules
are checked: for example, that no write was executed twice. The smallest schedule that breaks a rule
is printed as a timeline.
"""
EPILOG = """
examples (make simulate ARGS="..."):
  --seeds 5000 --start random   search 5,000 seeds that were probably never tried
  --minutes 10 --theme blocking search for ten minutes with weight on blocking pops
  --replay 17                   minimize what seed 17 finds, and print its timeline
  --replay 17 --no-minimize --full    print everything that happened in seed 17
  --plant NAME                  plant a bug into the client; the search must find it
  --coverage --seeds 500        print the lines of the client that 500 seeds execute

exit code: 0 if no rule is broken, 1 if one is, 2 if the arguments are wrong
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    command = _search
    if options.list_themes:
        command = _list_themes
    elif options.replay is not None or options.plan is not None:
        command = _replay
    elif options.check_replay is not None:
        command = _check_replay
    elif options.planted_bugs:
        command = _planted_bugs
    try:
        options.start = _start(options.start)
        _check_names(options)
        return command(options)
    except (SimulationBroken, _UsageError) as error:
        print(f"error: {str(error).strip()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


class _UsageError(Exception):
    """An argument that does not fit."""


def _check_names(options: argparse.Namespace) -> None:
    known: list[tuple[str, str, Sequence[str]]] = []
    if options.theme:
        themes = [*importlib.import_module(f"{options.package}.draw").THEMES]
        known += [("theme", name, themes) for name in options.theme]
    if options.plant and options.package == PACKAGE:
        known.append(("planted bug", options.plant, [bug.name for bug in BUGS]))
    for kind, name, names in known:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
            listed = "--list-themes prints all" if kind == "theme" else "bugs.py has all"
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise _UsageError(f"no {kind} has the name {name!r}: {hint}({listed})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--seeds", type=int, metavar="N", help=f"number of seeds (default: {SEEDS})")
    what.add_argument(
        "--start", default="0", metavar="N", help='first seed, or "random" (default: 0)'
    )
    what.add_argument(
        "--theme",
        action="append",
        default=[],
        metavar="NAME",
        help="put all weight on one subject; several take turns (default: each seed draws one)",
    )
    what.add_argument("--list-themes", action="store_true", help="print the themes")
    what.add_argument("--minutes", type=float, metavar="M", help="stop after M minutes")
    what.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of processes (default: one per CPU)",
    )
    what.add_argument("--plant", metavar="BUG", help="plant a bug of planted_bugs.py first")
    what.add_argument(
        "--strict", action="store_true", help="count known findings (known_findings.py) as well"
    )
    one = parser.add_argument_group("one seed")
    one.add_argument("--replay", type=int, metavar="SEED", help="minimize this seed and print it")
    one.add_argument("--plan", type=Path, metavar="FILE", help="replay the plan in this file")
    one.add_argument(
        "--save", type=Path, metavar="FILE", help="write the minimized plan to a file (plans/)"
    )
    one.add_argument("--rule", metavar="NAME", help="only violations of this rule")
    one.add_argument(
        "--faults", type=_numbers, metavar="1,3", help="keep only these faults (or: none)"
    )
    one.add_argument(
        "--calls", type=_numbers, metavar="4,7", help="keep only these calls (or: none)"
    )
    one.add_argument("--full", action="store_true", help="fold nothing in the timeline")
    parser.add_argument("--no-minimize", action="store_true", help="do not minimize what was found")
    other = parser.add_argument_group("measurements")
    other.add_argument(
        "--coverage", action="store_true", help="print the lines of the client that are executed"
    )
    other.add_argument(
        "--check-replay",
        type=int,
        metavar="N",
        help="run N seeds forward, backward, in other processes and with other hash seeds; "
        "print how many differ",
    )
    other.add_argument(
        "--pythons", nargs="+", metavar="PYTHON", help="interpreters for --check-replay"
    )
    other.add_argument(
        "--planted-bugs",
        action="store_true",
        help="plant each bug and print the first seed that finds it",
    )
    other.add_argument(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="for --planted-bugs: keep in this file what the client breaks without a bug",
    )
    parser.add_argument("--package", default=PACKAGE, help=argparse.SUPPRESS)
    parser.add_argument("--every", type=float, default=10.0, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=SEED_LIMIT, help=argparse.SUPPRESS)
    return parser


def _numbers(text: str) -> frozenset[int]:
    """Return the numbers of a list with commas."""
    if text == "none":
        return frozenset()
    return frozenset(int(number) for number in text.split(","))


def _start(text: str) -> int:
    """Return the first seed."""
    if text == "random":
        start = random.SystemRandom().randrange(1_000_000_000)
        print(f"Starting with seed {start}.")
        return start
    try:
        return int(text)
    except ValueError:
        raise _UsageError(f'--start must be a number or "random", not {text!r}') from None


def _list_themes(options: argparse.Namespace) -> int:
    """Print the names of the themes."""
    for name in importlib.import_module(f"{options.package}.draw").THEMES:
        print(name)
    return 0


def _known(options: argparse.Namespace) -> tuple[KnownFinding, ...]:
    return () if options.strict else KNOWN


def _worker_arguments(options: argparse.Namespace) -> list[str]:
    """Return the arguments of the workers."""
    arguments = ["--package", options.package, "--limit", str(options.limit)]
    return [*arguments, "--plant", options.plant] if options.plant else arguments


def _command(options: argparse.Namespace, job: Job, *more: str) -> str:
    """Return the command that replays a seed."""
    seed, theme = job
    words = ["--replay", str(seed)]
    if theme is not None:
        words += ["--theme", f"'{theme}'" if " " in theme else theme]
    if options.plan is not None:
        words, more = ["--plan", str(options.plan)], ()
    if options.plant:
        words += ["--plant", options.plant]
    return f'make simulate ARGS="{" ".join([*words, *more])}"'


def _search(options: argparse.Namespace) -> int:
    """Search seeds, and print what was found."""
    seeds = options.seeds
    if seeds is None and options.minutes is None:
        seeds = SEEDS
    chosen = jobs(seeds, options.start, options.theme)
    if options.coverage:
        summary, report = measure(
            chosen,
            processes=options.processes,
            arguments=_worker_arguments(options),
            output=sys.stderr,
        )
        print("\n".join(report))
        print()
    else:
        summary = search(
            chosen,
            processes=options.processes,
            arguments=_worker_arguments(options),
            minutes=options.minutes,
            known=_known(options),
            output=sys.stderr,
            every=options.every,
        )
    for line in summary.table(lambda job: _command(options, job)):
        print(line)
    _print_failures(summary, options)
    return 1 if summary.rules else 0


def _print_failures(summary: Summary, options: argparse.Namespace) -> None:
    """Print tracebacks, and the timelines of the rules that were broken first."""
    for name, found in summary.rules.items():
        if not found.is_rule:
            print(f"\n{name}, seed {found.first[0]}:")
            print("\n".join(found.violation.detail.splitlines()[-30:]))
    rules = [name for name, found in summary.rules.items() if found.is_rule]
    if options.no_minimize or not rules:
        return
    run, draw_plan = load(options.plant, options.package)
    for rule in rules[:RULES_SHOWN]:
        seed, theme = summary.rules[rule].first
        print()
        _show(
            draw_plan(seed, theme),
            (seed, theme),
            rule,
            run,
            options,
            seconds=MINIMIZE_SECONDS / RULES_SHOWN,
        )
    if len(rules) > RULES_SHOWN:
        print(f"\nNot shown: {', '.join(rules[RULES_SHOWN:])}. Replay their seeds.")


def _replay(options: argparse.Namespace) -> int:
    """Run one seed and print its timeline."""
    if len(options.theme) > 1:
        raise _UsageError("--replay takes one --theme")
    run, draw_plan = load(options.plant, options.package)
    run = _limited(run, options.limit)
    if options.plan is not None:
        plan = _recorded(options.plan)
        job: Job = (plan.seed, plan.theme)
    else:
        job = (options.replay, options.theme[0] if options.theme else None)
        plan = draw_plan(*job).keep(faults=options.faults, calls=options.calls)
    result = run(plan)
    rules: list[str] = []
    for violation in result.violations:
        wanted = options.rule in (None, violation.rule)
        if wanted and violation.rule not in rules:
            if known_finding(violation, _known(options)) is not None:
                print(f"known finding: {violation.rule}: {violation.detail}\n")
            else:
                rules.append(violation.rule)
    for rule in rules:
        _show(plan, job, rule, run, options)
    if not rules:
        if options.full or options.no_minimize:
            print(render(result, full=options.full, color=_color()))
        calls = count(len(result.history.operations), "call")
        print(f"Seed {plan.seed} with {calls} breaks no rule.")
        return 0
    return 1


def _recorded(path: Path) -> Plan:
    """Return the plan of a file."""
    try:
        return recorded.load(path).plan
    except (OSError, ValueError) as error:
        raise _UsageError(str(error)) from None


def _limited(run: Callable[[Plan], Result], limit: float) -> Callable[[Plan], Result]:
    """Return a `run` that ends this process with a traceback if it does not end."""

    def limited(plan: Plan) -> Result:
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
        try:
            return run(plan)
        finally:
            faulthandler.cancel_dump_traceback_later()

    return limited


def _show(
    plan: Plan,
    job: Job,
    rule: str,
    run: Callable[[Plan], Result],
    options: argparse.Namespace,
    *,
    seconds: float = MINIMIZE_SECONDS,
) -> None:
    """Minimize a plan that breaks a rule, and print its timeline."""
    known = _known(options)

    def breaks(violation: Violation) -> bool:
        return violation.rule == rule and known_finding(violation, known) is None

    # Without a run after the first, there is nothing to minimize.
    found = minimize(plan, breaks, run, runs=1 if options.no_minimize else 600, seconds=seconds)
    if found is None:
        print(f"{rule}: seed {plan.seed} does not break it here; other code, or another Python?")
        return
    if options.save is not None:
        finding = f"{found.violation.detail}."
        recorded.save(options.save, recorded.Recorded(finding, rule, found.plan))
        print(f"Saved as {options.save}: describe the cause there, in `finding`.")
    note = ""
    kept: list[str] = []
    if not options.no_minimize:
        note = (
            f"Minimized from {_size(plan)} to {_size(found.plan)} in {count(found.runs, 'run')}"
            f"{'' if found.complete else ', with no time left to make it smaller'}."
        )
        faults, calls = _parts(found.plan)
        if any(breaks(each) for each in run(plan.keep(faults=faults, calls=calls)).violations):
            kept = ["--faults", _listed(faults), "--calls", _listed(calls)]
    print(
        render(
            found.result,
            found.violation,
            rule=rule_in_words(rule, options.package),
            replay=_command(options, job, *kept),
            note=note,
            full=options.full,
            color=_color(),
        )
    )


def _parts(plan: Plan) -> tuple[frozenset[int], frozenset[int]]:
    """Return the numbers of the faults and calls of a plan."""
    faults = frozenset(fault.number for fault in plan.faults)
    return faults, frozenset(call.number for caller in plan.callers for call in caller.calls)


def _size(plan: Plan) -> str:
    faults, calls = _parts(plan)
    return f"{count(len(calls), 'call')} and {count(len(faults), 'fault')}"


def _listed(numbers: frozenset[int]) -> str:
    return ",".join(str(number) for number in sorted(numbers)) or "none"


def rule_in_words(rule: str, package: str = PACKAGE) -> str:
    """Return the docstring of the check of this name, in one paragraph."""
    try:
        checks = importlib.import_module(f"{package}.checks").ALL
    except ImportError:
        return ""
    words = next((check.__doc__ or "" for check in checks if check.__name__ == rule), "")
    return " ".join(words.split("\n\n")[0].split())


def _color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _check_replay(options: argparse.Namespace) -> int:
    """Print the number of seeds that do not replay."""
    total = 0
    for python in options.pythons or [sys.executable]:
        differing = differing_digests(
            options.check_replay,
            options.start,
            options.theme,
            processes=options.processes,
            arguments=_worker_arguments(options),
            python=python,
        )
        total += len(differing)
        print(f"{python}: {len(differing)} of {options.check_replay} seeds have differing digests")
        for (seed, theme), digests in list(differing.items())[:10]:
            print(f"  seed {seed}{f', theme {theme}' if theme else ''}: {' '.join(digests)}")
    return 1 if total else 0


def _planted_bugs(options: argparse.Namespace) -> int:
    """Plant each bug, search for it, and print a table."""
    seeds = SEEDS if options.seeds is None else options.seeds
    measured = importlib.import_module(f"{options.package}.measure_bugs").measure(
        list(jobs(seeds, options.start, options.theme)),
        None if options.plant is None else [options.plant],
        processes=options.processes,
        arguments=_worker_arguments(options)[:4],
        known=_known(options),
        baseline=options.baseline,
        output=sys.stdout,
    )
    return 1 if any(each.job is None for each in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
