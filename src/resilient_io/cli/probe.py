"""`resilient-io probe`: a yes or no for exec probes, within a few tens of milliseconds.

It imports neither the drivers nor argparse nor anything that is not in the standard library.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from resilient_io.cli.exits import COULD_NOT_LOOK, GOOD, PROBLEMS, let_go_of_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.cli.heartbeat import Verdict

_HELP = """\
Usage: resilient-io probe (--file FILE | --url URL) [OPTIONS]

  Ask a service how it is, for exec probes: one line, and an exit code.

  --file FILE      the heartbeat file that the service writes
  --ready          may it get traffic? (with --file; the default)
  --live           does the process itself work? Never asks about a dependency (with --file)
  --started        has it heard from its dependencies once? (with --file)
  --max-age S      seconds that the heartbeat may be old; unless told, 5 of its intervals,
                   for --live 30
  --url URL        an http:// address that answers 2xx for yes, for example
                   http://127.0.0.1:8080/readyz
  --timeout S      seconds for --url (1)
  --json           the answer as JSON
  --help           this

  Exit code: 0 yes, 1 no, 2 it could not be found out.
"""

_WITH_VALUE = ("--file", "--url", "--max-age", "--timeout")
_QUESTIONS = ("--ready", "--live", "--started")


class _UsageError(Exception):
    """The command line cannot be understood."""


def main(arguments: Sequence[str]) -> int:
    """Probe.

    Args:
        arguments: Of the command line, after `probe`.

    Returns:
        The exit code.
    """
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(_HELP)
        sys.stdout.flush()
        return GOOD
    try:
        options = _parsed(arguments)
        verdict = _asked(options)
    except _UsageError as error:
        sys.stderr.write(f"resilient-io probe: {error}\n")
        return COULD_NOT_LOOK
    _say(verdict, as_json="--json" in options)
    if verdict.good is None:
        return COULD_NOT_LOOK
    return GOOD if verdict.good else PROBLEMS


def _parsed(arguments: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    left = list(arguments)
    while left:
        given = left.pop(0)
        name, equals, value = given.partition("=")
        if name in _WITH_VALUE:
            if not equals:
                if not left:
                    raise _UsageError(f"{name} needs a value")
                value = left.pop(0)
        elif (name not in _QUESTIONS and name != "--json") or equals:
            raise _UsageError(f"{given!r} is unknown; see resilient-io probe --help")
        if name in options:
            raise _UsageError(f"{name} is given twice")
        options[name] = value
    return options


def _asked(options: dict[str, str]) -> Verdict:
    questions = [name for name in _QUESTIONS if name in options]
    if ("--file" in options) == ("--url" in options):
        raise _UsageError("write --file FILE or --url URL")
    if len(questions) > 1:
        raise _UsageError(f"{questions[0]} and {questions[1]} are two questions: write one")
    if "--url" in options:
        return _asked_over_http(options, questions)
    if "--timeout" in options:
        raise _UsageError("--timeout is for --url; the age of a file is bounded by --max-age")
    from resilient_io.cli.heartbeat import judged  # noqa: PLC0415 (only what is needed)

    longest = _seconds(options, "--max-age") if "--max-age" in options else None
    question = questions[0].removeprefix("--") if questions else "ready"
    return judged(options["--file"], question, longest)


def _asked_over_http(options: dict[str, str], questions: Sequence[str]) -> Verdict:
    for name in (*questions, *(["--max-age"] if "--max-age" in options else [])):
        raise _UsageError(f"{name} is for --file; with --url the path asks the question")
    from resilient_io.cli.http_status import asked, parsed  # noqa: PLC0415 (as above)

    address = parsed(options["--url"])
    if address is None:
        raise _UsageError("the URL cannot be asked: write --url http://127.0.0.1:8080/readyz")
    return asked(address, _seconds(options, "--timeout") if "--timeout" in options else 1.0)


def _seconds(options: dict[str, str], name: str) -> float:
    try:
        seconds = float(options[name])
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise _UsageError(f"{name} {options[name]!r}: write seconds above 0, for example {name} 5")
    return seconds


def _say(verdict: Verdict, *, as_json: bool) -> None:
    text = verdict.said
    if as_json:
        import json  # noqa: PLC0415 (as above)

        text = json.dumps({"ok": verdict.good, "said": verdict.said, **verdict.facts})
    if sys.stdout is None:
        return  # nobody reads; the exit code is the answer
    written = (text + "\n").encode(sys.stdout.encoding, "backslashreplace")
    try:
        sys.stdout.buffer.write(written)
        sys.stdout.flush()
    except OSError:  # nobody reads, or the disk is full
        let_go_of_output()
