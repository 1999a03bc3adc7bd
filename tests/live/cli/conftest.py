"""The command as a real process: started, read, interrupted, ended."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import sys
import termios

import pytest

COMMAND = [sys.executable, "-m", "resilient_io.cli"]
_TIMEOUT = 60.0


class Running:
    """A running command: its output so far, and its end."""

    def __init__(self, process, reader, terminal=None):
        self._process = process
        self._reader = reader
        self._terminal = terminal
        self.shown = ""

    async def until(self, wanted, *, past=0):
        """Read until the output contains a text, after so many characters; return the output."""
        async with asyncio.timeout(_TIMEOUT):
            while wanted not in self.shown[past:]:
                part = await self._reader.read(65536)
                assert part, f"ended without {wanted!r}:\n{self.shown}"
                self.shown += part.decode("utf-8", "replace")
        return self.shown

    def type(self, text):
        """Type a text into the terminal."""
        os.write(self._terminal, text.encode())

    def interrupt(self, number=signal.SIGINT):
        self._process.send_signal(number)

    async def ended(self):
        """Read the rest of the output; return the exit code."""
        async with asyncio.timeout(_TIMEOUT):
            with contextlib.suppress(OSError):  # a terminal whose other side is closed
                while part := await self._reader.read(65536):
                    self.shown += part.decode("utf-8", "replace")
            return await self._process.wait()


@contextlib.asynccontextmanager
async def started(command, **options):
    """Start a process whose output is a pipe."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **options,
    )
    try:
        yield Running(process, process.stdout)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@contextlib.asynccontextmanager
async def on_a_terminal(command):
    """Start a process whose output is a terminal of 100 columns."""
    master, terminal_end = pty.openpty()
    fcntl.ioctl(terminal_end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=terminal_end,
        stdout=terminal_end,
        stderr=terminal_end,
        env=environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        preexec_fn=lambda: (os.setsid(), fcntl.ioctl(0, termios.TIOCSCTTY, 0)),  # for prompts
    )
    os.close(terminal_end)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(master, "rb", 0)
    )
    try:
        yield Running(process, reader, master)
    finally:
        transport.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.sleep(0)


@pytest.fixture
def command():
    """Run the command; return its exit code, output and error output."""

    async def run(*arguments, stdin=None, prefix=COMMAND, env=None):
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | (env or {}),
        )
        try:
            async with asyncio.timeout(_TIMEOUT):
                out, err = await process.communicate(stdin.encode() if stdin else None)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, out.decode(), err.decode()

    return run


@pytest.fixture
def piped():
    """Start the command with a pipe for its output."""
    return lambda *arguments: started([*COMMAND, *arguments])


@pytest.fixture
def terminal():
    """Start the command on a terminal."""
    return lambda *arguments: on_a_terminal([*COMMAND, *arguments])


@pytest.fixture
def program():
    """Start a Python program with a pipe for its output."""
    return lambda code: started([sys.executable, "-c", code])


@pytest.fixture
async def silent_server():
    """A server that accepts connections and never answers; return its port."""
    held = []

    async def hold(reader, writer):
        held.append(writer)
        with contextlib.suppress(ConnectionError):
            await reader.read()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in held:
        writer.transport.abort()
    await asyncio.sleep(0.01)
