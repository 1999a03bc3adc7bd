"""A server's process: started, killed, frozen and restarted at will, and never outliving ours."""

from __future__ import annotations

import abc
import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

from resilient_io.testing._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

_LOOK_AGAIN: Final = 0.005
_TRIES_FOR_A_PORT: Final = 5
_LINES_TOLD: Final = 10


class ServerDidNotStartError(Exception):
    """The server ended, or did not answer in time; the message holds the end of its log."""


class ServerProcess(abc.ABC):
    """A server of its own on the loopback interface, with a temporary folder.

    Args:
        fixed_ports: Never try other ports when somebody took them.
    """

    host: Final = "127.0.0.1"
    _start_timeout: ClassVar[float] = 15.0  # seconds
    _look_again: ClassVar[float] = _LOOK_AGAIN

    def __init__(self, *, fixed_ports: bool) -> None:
        self._fixed_ports = fixed_ports
        self.folder = Path(tempfile.mkdtemp(prefix="resilient-io-"))
        # For handles that are made and dropped; `aclose` does it for those that were started.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a cancel must not leave the folder behind; re-raised
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            RuntimeError: It is not running.
        """
        if self._process is None:
            raise RuntimeError(f"{self!r} has no process: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Its process lives (also when frozen)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it logged since it was made."""
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    async def start(self) -> None:
        """Start it, and wait until clients can use it; nothing if it runs.

        When this fails or is cancelled, no process is left.

        Raises:
            NoServerError: There is no server on this machine.
            ServerDidNotStartError: It ended at once, or did not answer in time.
        """
        if self.running:
            return
        for tries_left in reversed(range(1 if self._fixed_ports else _TRIES_FOR_A_PORT)):
            await self._prepare()
            self._spawn(self._command())
            try:
                async with asyncio.timeout(self._start_timeout):
                    answers = await self._answers()
            except TimeoutError:
                self.kill()
                raise ServerDidNotStartError(self._told("did not answer")) from None
            except BaseException:  # cancelled: the process must not stay; re-raised
                self.kill()
                raise
            if answers:
                self._fixed_ports = True
                return
            if not tries_left or "in use" not in self.log:
                raise ServerDidNotStartError(self._told("ended at once"))
            # Between the search and the start somebody else took a free port.
            self._take_other_ports()

    async def restart(self) -> None:
        """Kill it if it runs, and start it on the same port."""
        self.kill()
        await self.start()

    def kill(self) -> None:
        """End its process at once (SIGKILL); nothing if it does not run.

        The process is gone when this returns: its port refuses, its connections are closed.
        """
        if self._process is not None:
            self._process.kill()
            self._reap()

    async def terminate(self) -> None:
        """Ask it to end (SIGTERM), so that it saves and closes its connections; wait for that.

        A cancelled wait leaves it on its way out.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a frozen one would never hear it
        self._process.terminate()
        await self._wait_ended()
        self._reap()

    def freeze(self) -> None:
        """Stop its process (SIGSTOP): connections stay, and new ones are made, but none answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # A signal is delivered some time later; after this it has been.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    async def aclose(self) -> None:
        """Kill it and remove its folder; twice is fine, cancelling has no moment to hit."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What each kind of server has of its own

    async def _prepare(self) -> None:  # noqa: B027 - most need nothing
        """Make what has to be there before it starts."""

    @abc.abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Write its configuration, and give the command that starts it."""

    @abc.abstractmethod
    async def _is_ready(self) -> bool:
        """Tell whether clients can use it; OSError and asyncio.IncompleteReadError mean no."""

    @abc.abstractmethod
    def _take_other_ports(self) -> None:
        """Choose free ports again."""

    @abc.abstractmethod
    def _described(self) -> str:
        """Say which server it is, for errors."""

    # The process

    def _spawn(self, command: Sequence[str | Path]) -> None:
        self._reap()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests, not for their servers
            )
        self._watchdog = Watchdog(self._process.pid, self.folder)

    async def _run(self, command: Sequence[str | Path]) -> int:
        """Run a command that ends by itself, and give its exit code; a cancel kills it."""
        self._spawn(command)
        process = self._process
        try:
            await self._wait_ended()
        finally:
            self.kill()
        return -1 if process is None else process.returncode

    async def _wait_ended(self) -> None:
        while self.running:  # noqa: ASYNC110 - the end of a process is no event of the loop
            await asyncio.sleep(_LOOK_AGAIN)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    async def _answers(self) -> bool:
        """Wait until it is ready; False if its process ends instead."""
        while self.running:
            try:
                if await self._is_ready():
                    return True
            except (OSError, asyncio.IncompleteReadError):
                pass  # not yet
            await asyncio.sleep(self._look_again)
        self._reap()
        return False

    def _told(self, what: str) -> str:
        lines = self.log.splitlines(keepends=True)
        said = [line for line in lines if not line.startswith("\tat ")]  # not Java's stacks
        return f"{self._described()} {what}:\n{''.join(said[-_LINES_TOLD:])}"
