"""Exit codes, and where the commands write: a terminal, a pipe or a log file.

`probe` imports this module, so rich, json and logging are imported only where they are needed.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any

from resilient_io.text import redact_credentials

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

GOOD = 0
PROBLEMS = 1
UNKNOWN = 2
"""The question could not be answered; also for a wrong command line."""

INTERRUPTED = 130


def discard_output() -> None:
    """Send further output nowhere: its reader has closed the pipe.

    Otherwise the interpreter's last flush would print a traceback.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def standard_output() -> Console:
    """Return a rich console without markup: the texts contain what servers say, with brackets."""
    from rich.console import Console  # noqa: PLC0415 - see above

    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows only ASCII shows escapes instead of raising an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(markup=False, highlight=False, emoji=False)


def clean_line(text: str) -> str:
    """Return a text without control characters and credentials, for one line of output."""
    shown = (sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return redact_credentials("".join(shown))


def write_line(line: str) -> None:
    """Write a line and flush it."""
    sys.stdout.write(clean_line(line) + "\n")
    sys.stdout.flush()


def json_line(facts: dict[str, Any]) -> None:
    """Write a line of JSON, which escapes control characters, and flush it."""
    import json  # noqa: PLC0415 - see above

    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Report:
    """Shows findings: in color on a terminal, as plain lines in a pipe, or as lines of JSON."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self._console = console
        self._as_json = as_json

    def heading(self, text: str) -> None:
        """Show what the next findings are about; in JSON, each finding has it."""
        if not self._as_json:
            self._print(text)

    def finding(
        self,
        facts: dict[str, Any],
        head: Text,
        found: str,
        advice: str,
        *,
        indent: int,
        in_columns: bool = False,
    ) -> None:
        """Show a finding: the JSON `facts`, or `head` and `found`, and `advice` below at `indent`.

        On a terminal, `found` is in a column of its own next to `head`, or below it.
        """
        if self._as_json:
            json_line(facts)
            return
        if not self._console.is_terminal:
            write_line(f"{head.plain}{found}")  # whole, for grep
            if advice:
                write_line(f"{'':{indent}}-> {advice}")
            return
        from rich.padding import Padding  # noqa: PLC0415 - see above
        from rich.table import Table  # noqa: PLC0415 - see above
        from rich.text import Text  # noqa: PLC0415 - see above

        body = Text(clean_line(found))
        if in_columns:
            row = Table.grid(expand=True)
            row.add_column(width=head.cell_len)
            row.add_column(ratio=1, overflow="fold")
            row.add_row(head, body)
            self._console.print(row)
        else:
            self._console.print(head, soft_wrap=True)
            self._console.print(Padding(body, (0, 0, 0, indent)))
        if advice:
            text = Text(clean_line(f"-> {advice}"), style="cyan")
            self._console.print(Padding(text, (0, 0, 0, indent)))

    def summary(self, text: str, facts: dict[str, Any]) -> None:
        """Show the counts."""
        if self._as_json:
            json_line({"event": "summary", **facts})
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(clean_line(text), style="bold")
        else:
            write_line(text)


def complain(command: str, message: object) -> None:
    """Write in one line why a command cannot run."""
    sys.stderr.write(f"resilient-io {command}: {clean_line(str(message))}\n")


def quiet_loggers() -> None:
    """Keep log records of the library off the terminal: the command shows the same itself."""
    import logging  # noqa: PLC0415 - see above

    for name in ("resilient_io", "aiokafka"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
