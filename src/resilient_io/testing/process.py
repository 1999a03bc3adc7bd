"""A server's process, which tests can start, kill, freeze and restart."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

# Below the ports that Linux assigns to outgoing connections: while a server is down, a client
# could be assigned the server's port, and even connect to itself.
_PORTS: Final = range(10_000, 32_000)
_BLOCK: Final = 200
_POLL_INTERVAL: Final = 0.005
_PORT_ATTEMPTS: Final = 5
_LOG_LINES_SHOWN: Final = 10


class NoServerError(Exception):
    """This machine does not have the server; the message describes how to get it.

    With the pytest plugin, a test that raises this error is skipped, or fails if
    RESILIENT_IO_REQUIRE_SERVERS is 1.
    """


class ServerDidNotStartError(Exception):
    """The server exited, or did not answer in time; the message has the end of its log."""


def free_port() -> int:
    """Return a port of the loopback interface that is not in use.

    Several processes that use this function do not get the same ports, and a process gets a port
    again only after 198 others. So a port stays free between its choice and the start of its
    server, and while the server is down.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return distinct ports of the loopback interface that are not in use, as `free_port` does."""
    global _block  # noqa: PLW0603 - one block for the whole process
    if _block is None or _block.process != os.getpid():  # forked: the block is the parent's
        _block = _PortBlock()
    return [_block.next() for _ in range(count)]


class _PortBlock:
    """Ports that this process chooses from, one after the other.

    A socket that stays bound to the first port of the block tells other processes to use another
    block. The system closes it when the process ends.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        blocks = [_PORTS[start : start + _BLOCK] for start in range(0, len(_PORTS), _BLOCK)]
        random.shuffle(blocks)
        for block in blocks:
            claim = _bound(block[0])
            if claim is not None:
                claim.detach()  # it is not closed before the process ends
                self._ports = itertools.cycle(block[1:])
                return
        raise OSError(errno.EADDRINUSE, f"no block of free ports from {_PORTS[0]} to {_PORTS[-1]}")

    def next(self) -> int:
        """Return the next port that is not in use."""
        for port in itertools.islice(self._ports, _BLOCK):
            sock = _bound(port)
            if sock is not None:
                sock.close()
                return port
        raise OSError(errno.EADDRINUSE, "no free port: this process uses all that it may choose")


_block: _PortBlock | None = None


def _bound(port: int) -> socket.socket | None:
    """Return a socket that is bound to the port, or None if the port is in use."""
    sock = socket.socket()
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        return None
    return sock


class Server(abc.ABC):
    """A server, or a cluster, that `async with` starts and closes."""

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:  # also a cancellation must not leave the folder behind; re-raised
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @abc.abstractmethod
    async def start(self) -> None:
        """Start the processes that are not running."""

    @abc.abstractmethod
    def kill(self) -> None:
        """Kill the running processes (SIGKILL)."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Kill the running processes, and remove their folders."""

    async def restart(self) -> None:
        """Kill the running processes, and start all of them on the same ports."""
        self.kill()
        await self.start()


class ServerProcess(Server):
    """A server on the loopback interface, with a temporary folder.

    With `fixed_ports` it does not try other ports when its ports are in use.
    """

    host: str = "127.0.0.1"
    _start_timeout: ClassVar[float] = 15.0  # seconds
    _poll_interval: ClassVar[float] = _POLL_INTERVAL

    def __init__(self, *, fixed_ports: bool) -> None:
        self._fixed_ports = fixed_ports
        self.folder = Path(tempfile.mkdtemp(prefix="resilient-io-"))
        # For servers that are created and never started; `aclose` does it for the others.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: _Watchdog | None = None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._process is None:
            raise RuntimeError(f"{self!r} has no process: start it first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive (a frozen process is)."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Everything that the server has logged, including runs before a restart."""
        path = self.folder / "server.log"
        return path.read_text() if path.exists() else ""

    async def start(self) -> None:
        """Start the server and wait until clients can use it. A running server is left alone.

        If this fails or is cancelled, no process is left.

        Raises:
            NoServerError: This machine does not have the server.
            ServerDidNotStartError: The server exited, or did not answer in time.
        """
        if self.running:
            return
        for attempts_left in reversed(range(1 if self._fixed_ports else _PORT_ATTEMPTS)):
            await self._prepare()
            self._spawn(self._command())
            try:
                async with asyncio.timeout(self._start_timeout):
                    ready = await self._wait_ready()
            except TimeoutError:
                self.kill()
                raise ServerDidNotStartError(self._failure("did not answer")) from None
            except BaseException:  # cancelled: the process must not stay; re-raised
                self.kill()
                raise
            if ready:
                self._fixed_ports = True
                return
            if not attempts_left or "in use" not in self.log:
                raise ServerDidNotStartError(self._failure("exited immediately"))
            # Another process took a port after we had chosen it.
            self._choose_other_ports()

    def kill(self) -> None:
        """Kill the process (SIGKILL), if it runs.

        When this returns the process has ended: its port refuses connections, and its connections
        are closed.
        """
        if self._process is not None:
            self._process.kill()
            self._reap()

    async def terminate(self) -> None:
        """Ask the process to exit (SIGTERM), so that it saves its data, and wait until it does.

        If the wait is cancelled, the process still exits.
        """
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)  # a frozen process would not receive SIGTERM
        self._process.terminate()
        await self._wait_exited()
        self._reap()

    def freeze(self) -> None:
        """Stop the process (SIGSTOP): it accepts connections, keeps them, and does not answer."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is delivered asynchronously: wait until the process has stopped.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Resume a frozen process (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    async def aclose(self) -> None:
        """Kill the server and remove its folder. Idempotent; there is nothing to cancel."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # To be implemented for each kind of server

    async def _prepare(self) -> None:
        """Create what has to exist before the server starts."""

    @abc.abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Write the configuration, and return the command that starts the server."""

    @abc.abstractmethod
    async def _is_ready(self) -> bool:
        """Return whether clients can use it; OSError and asyncio.IncompleteReadError mean no."""

    @abc.abstractmethod
    def _choose_other_ports(self) -> None:
        """Choose other free ports."""

    @abc.abstractmethod
    def _description(self) -> str:
        """Return the program and the port, for errors."""

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
        self._watchdog = _Watchdog(self._process.pid, self.folder)

    async def _run(self, command: Sequence[str | Path]) -> int:
        """Run a command to its end and return the exit code; a cancellation kills it."""
        self._spawn(command)
        process = self._process
        try:
            await self._wait_exited()
        finally:
            self.kill()
        return -1 if process is None else process.returncode

    async def _wait_exited(self) -> None:
        while self.running:  # noqa: ASYNC110 - the loop has no event for the end of a process
            await asyncio.sleep(_POLL_INTERVAL)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._watchdog is not None:
            self._watchdog.dismiss()
            self._watchdog = None

    async def _wait_ready(self) -> bool:
        """Wait until the server is ready; return False if the process exits instead."""
        while self.running:
            try:
                if await self._is_ready():
                    return True
            except (OSError, asyncio.IncompleteReadError):
                pass  # not yet
            await asyncio.sleep(self._poll_interval)
        self._reap()
        return False

    def _failure(self, reason: str) -> str:
        lines = self.log.splitlines(keepends=True)
        shown = [line for line in lines if not line.startswith("\tat ")]  # not Java's stacks
        return f"{self._description()} {reason}:\n{''.join(shown[-_LOG_LINES_SHOWN:])}"


# `read` fails when the other end of the pipe is closed, which the kernel does even after SIGKILL.
# A `preexec_fn` with PR_SET_PDEATHSIG would be shorter, but it is not safe with threads.
_WATCHDOG: Final = 'read -r word || { kill -9 "$1" 2>/dev/null; sleep 0.1; rm -rf "$2"; }'


class _Watchdog:
    """A shell that kills a server and removes its folder if this process ends, however it ends."""

    def __init__(self, pid: int, folder: Path) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(pid), str(folder)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def dismiss(self) -> None:
        """End the watch without killing: the server has exited and was waited for."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._write_end, b"done\n")
        os.close(self._write_end)
        self._shell.wait()
