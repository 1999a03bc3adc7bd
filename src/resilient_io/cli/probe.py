"""`resilient-io probe`: a yes or no for exec probes, within a few tens of milliseconds.

It imports neither the drivers nor argparse, pathlib (10 ms) or http.client (25 ms).
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from resilient_io.text import clean_text, format_address

from . import GOOD, PROBLEMS, UNKNOWN, discard_output

if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP = """\
Usage: resilient-io probe (--file FILE | --url URL) [OPTIONS]

  Check whether a service is ready or alive: prints one line and sets the exit code.

  --file FILE        heartbeat file that the service writes
  --ready            whether the service may get traffic (with --file; the default)
  --live             whether the process itself works; never depends on other services (with --file)
  --started          whether the service has ever been ready (with --file)
  --max-age SECONDS  longest age of the heartbeat; by default 5 of its intervals, for --live 30
  --url URL          http:// address that answers 2xx for yes, for example
                     http://127.0.0.1:8080/readyz
  --timeout SECONDS  time limit for --url (1)
  --json             print the answer as JSON
  -h, --help         show this text

  Exit code: 0 yes, 1 no, 2 unknown or a wrong command line.
"""

_WITH_VALUE = ("--file", "--url", "--max-age", "--timeout")
_QUESTIONS = ("--ready", "--live", "--started")

INTERVALS = {"live": 30.0, "ready": 5.0, "started": 5.0}
"""How many of the writer's intervals a heartbeat may be old.

A service that was busy for a moment must not be restarted, but it need not get more work either.
"""

_NO = {"live": "not alive", "ready": "not ready", "started": "not started"}
_FIELDS = {"live": "alive", "ready": "ready", "started": "started"}
_LONGEST_FILE = 1 << 16
_LONGEST_ANSWER = 1 << 16
_TOO_LARGE = 1e12
_STATUS_PARTS = 2
_PORTS = 1 << 16
_DIGITS = 5


class _UsageError(Exception):
    """The command line is wrong."""


class Verdict(NamedTuple):
    """The answer of a probe."""

    good: bool | None
    summary: str
    facts: dict[str, object]


def main(arguments: Sequence[str]) -> int:
    """Probe a service and return the exit code."""
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(_HELP)
        sys.stdout.flush()
        return GOOD
    try:
        options = _parse(arguments)
        verdict = _probe(options)
    except _UsageError as error:
        sys.stderr.write(f"resilient-io probe: {clean_text(str(error))}\n")
        return UNKNOWN
    _write(verdict, as_json="--json" in options)
    if verdict.good is None:
        return UNKNOWN
    return GOOD if verdict.good else PROBLEMS


def _parse(arguments: Sequence[str]) -> dict[str, str]:
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
            quoted = repr(name) if name.startswith("-") else "argument"
            raise _UsageError(f"unknown option {quoted}; see resilient-io probe --help")
        if name in options:
            raise _UsageError(f"{name} is given twice")
        options[name] = value
    return options


def _probe(options: dict[str, str]) -> Verdict:
    questions = [name for name in _QUESTIONS if name in options]
    if "--file" in options and "--url" in options:
        raise _UsageError("--file and --url are mutually exclusive")
    if "--file" not in options and "--url" not in options:
        raise _UsageError("use --file FILE or --url URL")
    if len(questions) > 1:
        raise _UsageError(f"{questions[0]} and {questions[1]} are mutually exclusive")
    if "--url" in options:
        for name in (*questions, *(["--max-age"] if "--max-age" in options else [])):
            raise _UsageError(f"{name} needs --file; with --url the path asks the question")
        address = parse_address(options["--url"])
        if address is None:
            raise _UsageError("invalid --url: use http://host:port/path without credentials")
        return fetch(address, _seconds(options, "--timeout") if "--timeout" in options else 1.0)
    if "--timeout" in options:
        raise _UsageError("--timeout needs --url; use --max-age for the age of a file")
    max_age = _seconds(options, "--max-age") if "--max-age" in options else None
    question = questions[0].removeprefix("--") if questions else "ready"
    return read_heartbeat(options["--file"], question, max_age)


def _seconds(options: dict[str, str], name: str) -> float:
    try:
        seconds = float(options[name])
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise _UsageError(f"{name} must be a number of seconds above 0, for example {name} 5")
    return seconds


def _write(verdict: Verdict, *, as_json: bool) -> None:
    text = clean_text(verdict.summary)
    if as_json:
        import json  # noqa: PLC0415 - only if needed

        text = json.dumps({"ok": verdict.good, "summary": text, **verdict.facts})
    if sys.stdout is None:
        return  # closed; the exit code is the answer
    written = (text + "\n").encode(sys.stdout.encoding, "backslashreplace")
    try:
        sys.stdout.buffer.write(written)
        sys.stdout.flush()
    except OSError:  # the reader has closed the pipe, or the disk is full
        discard_output()


def read_heartbeat(path: str, question: str, max_age: float | None) -> Verdict:
    """Read a heartbeat file and answer a question from its age and its content."""
    no = _NO[question]
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            text = file.read(_LONGEST_FILE)
    except FileNotFoundError:
        return Verdict(False, f"{no}: there is no heartbeat at {path} yet", {})
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        return Verdict(None, f"cannot read {path}: {reason}", {})
    heartbeat = _parse_heartbeat(text)
    if heartbeat is None:
        return Verdict(None, f"{path} is not a heartbeat file of resilient-io", {})
    allowed = INTERVALS[question] * heartbeat["interval"] if max_age is None else max_age
    # If the clock was set back, a heartbeat from the future proves as little as an old one.
    age = abs(time.time() - heartbeat["at"])
    facts = {"age": round(age, 3), "allowed": allowed, "heartbeat": heartbeat}
    objection = _objection(heartbeat, question, age, allowed)
    if objection is not None:
        return Verdict(False, f"{no}{': ' if objection else ''}{objection}", facts)
    return Verdict(True, f"{_FIELDS[question]} ({heartbeat['state']}, {age:.1f} s ago)", facts)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for its writer


def _objection(heartbeat: dict[str, Any], question: str, age: float, allowed: float) -> str | None:
    """Return why the check failed (may be empty), or None if it passed."""
    stopped = bool(heartbeat.get("stopped"))
    if age > allowed:
        why = "it had stopped" if stopped else "the process hangs or has exited"
        return f"the heartbeat is {age:.1f} s old, {allowed:g} s are allowed: {why}"
    if stopped and question != "live":  # a service that has shut down must not be restarted
        return "it has stopped"
    if not heartbeat[_FIELDS[question]]:
        reasons = heartbeat.get("because")
        return "; ".join(map(str, reasons)) if isinstance(reasons, list) else ""
    return None


def _parse_heartbeat(text: bytes) -> dict[str, Any] | None:
    import json  # noqa: PLC0415 - only if needed

    try:
        found = json.loads(text)
        # JSON has infinite numbers, which no service writes.
        if isinstance(found, dict) and 0 < found["interval"] < _TOO_LARGE > found["at"] > 0:
            required = {name: found[name] for name in (*_FIELDS.values(), "state")}
            numbers = {name: float(found[name]) for name in ("at", "interval")}
            return {**found, **required, **numbers}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


Address = tuple[str, int, str]


def parse_address(url: str) -> Address | None:
    """Return host, port and path of an http:// URL; None for any other text."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() != "http" or not url.isascii():
        return None
    if any(sign.isspace() or not sign.isprintable() for sign in url):
        return None
    authority, slash, path = rest.partition("/")
    authority, mark, query = authority.partition("?")
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, "80"
    host = host.removeprefix("[").removesuffix("]")
    valid = port.isdigit() and len(port) <= _DIGITS and 0 < int(port) < _PORTS
    if not host or "@" in host or not valid:
        return None
    target = f"/{path}" if slash else f"/{mark}{query}"
    return host, int(port), target.partition("#")[0]


def fetch(address: Address, timeout: float) -> Verdict:
    """Send a GET request; any 2xx is a yes."""
    import socket  # noqa: PLC0415 - only if needed

    until = time.monotonic() + timeout
    host, port, _ = address
    where = format_address(host, port)
    try:
        answer = _fetch(address, where, until)
    except TimeoutError:
        return Verdict(False, f"{where} did not answer within {timeout:g} s", {})
    except socket.gaierror as error:
        return Verdict(False, f"{host} cannot be resolved: {error.strerror}", {})
    except UnicodeError:  # of the encoding for international names
        return Verdict(False, f"{host} cannot be resolved: not a valid host name", {})
    except OSError as error:
        return Verdict(False, f"{where} cannot be reached: {error.strerror or error}", {})
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split(None, 2)
    if len(words) < _STATUS_PARTS or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Verdict(None, f"{where} does not speak HTTP", {})
    status = int(words[1])
    first = body.decode("utf-8", "replace").strip().partition("\n")[0].strip()
    shown = first if first.isprintable() and not first.startswith(("<", "{")) else ""
    summary = shown or words[-1].decode("ascii", "replace")
    return Verdict(200 <= status < 300, f"{status}: {summary}", {"status": status})  # noqa: PLR2004


def _fetch(address: Address, where: str, until: float) -> bytes:
    import socket  # noqa: PLC0415 - as above

    host, port, path = address
    # HTTP/1.0: no server answers in chunks or keeps the connection.
    request = (
        f"GET {path} HTTP/1.0\r\nHost: {where}\r\nAccept: text/plain, */*\r\n"
        "User-Agent: resilient-io probe\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((host, port), timeout=_left(until)) as connection:
        connection.settimeout(_left(until))
        connection.sendall(request.encode("ascii"))
        answer = b""
        while len(answer) < _LONGEST_ANSWER:
            connection.settimeout(_left(until))
            part = connection.recv(_LONGEST_ANSWER)
            if not part:
                break
            answer += part
    return answer


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
