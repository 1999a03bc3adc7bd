"""The process that holds one client: a line of JSON that says what to do, a line of JSON back.

Each client has a process of its own, so that CPU, memory and garbage are its own (the threads of
compiled clients included) and no client's idle tasks run in another's time. Only one process works
at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TextIO

_PATIENCE = 60.0


class WorkerFailedError(Exception):
    """A worker ended, or did not answer in time; its own message stands on standard error."""


class Worker:
    """A client in a process of its own.

    Args:
        module: Its module, whose `main` calls `run`.
        client: Which client it holds.
        arguments: What else its module wants to know; the kind of loop comes last.
    """

    def __init__(self, module: str, client: str, *arguments: str) -> None:
        self.client = client
        self._command = [sys.executable, "-m", module, client, *arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        """Start the process."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def do(self, order: str, **details: Any) -> dict[str, float]:
        """Have it do something and return what it measured.

        Raises:
            WorkerFailedError: It ended instead, or took longer than a minute.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"do": order, **details}).encode() + b"\n")
        try:
            async with asyncio.timeout(_PATIENCE):
                line = await process.stdout.readline()
        except TimeoutError:
            raise WorkerFailedError(f"{self.client} did not end {order} {details}") from None
        if not line:
            raise WorkerFailedError(f"{self.client} ended during {order} {details}")
        result: dict[str, float] = json.loads(line)
        return result


class Servant(Protocol):
    """What a worker process needs of a client; each order is a method of it."""

    async def close(self) -> None:
        """Close what is open."""


async def _serve(servant: Servant, answers: TextIO) -> None:
    """Do what standard input says until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        result = await getattr(servant, order.pop("do"))(**order)
        print(json.dumps(result), file=answers, flush=True)
    await servant.close()


def run(make: Callable[[], Servant], loop: str) -> None:
    """Be a worker process.

    Args:
        make: Makes what does the work.
        loop: "asyncio" or "uvloop".
    """
    # Whatever a client prints must not get between our answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    logging.disable()
    factory = None
    if loop == "uvloop":
        import uvloop  # noqa: PLC0415 (only where it is measured)

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(make(), answers))
