"""What the commands share: output to a terminal, a pipe or a log file, and their event loop."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resilient_io.errors import ConfigurationError
from resilient_io.text import redact_credentials

from . import INTERRUPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_CLEANUP = 0.1
"""Seconds that an interrupted task gets to clean up."""

_WIDEST_HEAD = 40
"""Widest head of a finding, in columns, that gets a column of its own on a terminal."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def standard_output() -> Console:
    """Return a rich console without markup: the texts contain what servers say, with brackets."""
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
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Report:
    """Shows findings: in color on a terminal, as plain lines in a pipe, or as lines of JSON."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self._console = console
        self._as_json = as_json

    def heading(self, text: str) -> None:
        """Show the subject of the next findings. In JSON, each finding names it."""
        if not self._as_json:
            self._print(text)

    def finding(
        self, facts: dict[str, Any], head: Text, found: str, advice: str, *, indent: int
    ) -> None:
        """Show a finding: the JSON `facts`, or `head` and `found`, and `advice` below at `indent`.

        On a terminal, `found` is next to `head` or, if that is wide, below it.
        """
        if self._as_json:
            json_line(facts)
            return
        if not self._console.is_terminal:
            write_line(f"{head.plain}{found}")  # whole, for grep
            if advice:
                write_line(f"{'':{indent}}-> {advice}")
            return
        body = Text(clean_line(found))
        if head.cell_len <= _WIDEST_HEAD:
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
        self._console.print(clean_line(text), style="bold", soft_wrap=True)


def complain(command: str, message: object) -> None:
    """Write in one line why a command cannot run."""
    sys.stderr.write(f"resilient-io {command}: {clean_line(str(message))}\n")


def quiet_loggers() -> None:
    """Keep log records of the library off the terminal: the command shows the same itself."""
    for name in ("resilient_io", "aiokafka"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False


def read_text(path: str, refusal: str) -> str:
    """Return the text of a file, or of the standard input for "-"; `refusal` begins each error."""
    try:
        if path != "-":
            return Path(path).read_text(encoding="utf-8")
        if sys.stdin is None:
            raise ConfigurationError(f"{refusal}: it is closed")
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{refusal}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f"{refusal}: {error.strerror}") from None


class Interruption(asyncio.Event):
    """Set by the first Ctrl-C or SIGTERM. A second one ends the process as usual."""

    async def before(self, other: Coroutine[Any, Any, object]) -> bool:
        """Wait for a coroutine until the interruption, and then cancel the coroutine.

        Cancelling the wait cancels both. An exception of the coroutine is raised.

        Returns:
            Whether the interruption came before the coroutine ended.
        """
        task = asyncio.create_task(other, name="until interrupted")
        interrupted = asyncio.create_task(self.wait(), name="interruption")
        try:
            await asyncio.wait([task, interrupted], return_when=asyncio.FIRST_COMPLETED)
            finished = task.done()
        finally:
            interrupted.cancel()
            task.cancel()
            await asyncio.wait([task, interrupted], timeout=_CLEANUP)
        if finished:
            task.result()
        elif task.done() and not task.cancelled():
            task.exception()  # raised during its cleanup; the interruption takes precedence
        return not finished


class _LookupThreads(ThreadPoolExecutor):
    """The loop's threads, counted: a name lookup that hangs cannot be stopped."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="resilient-io")
        self.busy = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        self.busy += 1
        future = super().submit(function, *args, **options)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: Future[Any]) -> None:
        self.busy -= 1


def run_loop(command: Callable[[Interruption], Coroutine[Any, Any, int]]) -> int:
    """Run a command in an event loop that Ctrl-C ends quickly; return its exit code."""
    threads = _LookupThreads()
    runner = asyncio.Runner()
    try:
        runner.get_loop().set_default_executor(threads)
        try:
            code = runner.run(_interruptible(command))
        except KeyboardInterrupt:
            code = INTERRUPTED
        if threads.busy:
            # Python would wait for these threads, as long as the resolver hangs.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    finally:
        runner.close()
    return code


async def _interruptible(command: Callable[[Interruption], Coroutine[Any, Any, int]]) -> int:
    loop = asyncio.get_running_loop()
    interruption = Interruption()

    def interrupted() -> None:
        interruption.set()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupted)
    return await command(interruption)
