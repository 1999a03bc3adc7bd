"""The command as a real process: started, read line by line, interrupted, ended."""

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
_PATIENCE = 60.0


class Running:
    """A command that runs: what it has written so far, and its end."""

    def __init__(self, process, reader):
        self._process = process
        self._reader = reader
        self.shown = ""

    async def until(self, wanted, *, past=0):
        """Read until it has written something, after so many characters; return what it wrote."""
        async with asyncio.timeout(_PATIENCE):
            while wanted not in self.shown[past:]:
                part = await self._reader.read(65536)
                assert part, f"ended without {wanted!r}:\n{self.shown}"
                self.shown += part.decode("utf-8", "replace")
        return self.shown

    def interrupt(self, number=signal.SIGINT):
        self._process.send_signal(number)

    async def ended(self):
        """Read to its end; return its exit code."""
        async with asyncio.timeout(_PATIENCE):
            with contextlib.suppress(OSError):  # a terminal whose other side is gone
                while part := await self._reader.read(65536):
                    self.shown += part.decode("utf-8", "replace")
            return await self._process.wait()


@contextlib.asynccontextmanager
async def started(command, **options):
    """Run something whose output is a pipe."""
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
    """Run something whose output is a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    )
    os.close(theirs)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
    )
    try:
        yield Running(process, reader)
    finally:
        transport.close()
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.sleep(0)


@pytest.fixture
def command():
    """Run the command to its end; return its exit code and what it wrote."""

    async def run(*arguments, stdin=None, prefix=COMMAND):
        process = await asyncio.create_subprocess_exec(
            *prefix,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                out, err = await process.communicate(stdin.encode() if stdin else None)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode, out.decode(), err.decode()

    return run


@pytest.fixture
def piped():
    """Start the command, its output a pipe."""
    return lambda *arguments: started([*COMMAND, *arguments])


@pytest.fixture
def terminal():
    """Start the command on a terminal."""
    return lambda *arguments: on_a_terminal([*COMMAND, *arguments])


@pytest.fixture
def program():
    """Start a Python program, its output a pipe."""
    return lambda code: started([sys.executable, "-c", code])


@pytest.fixture
async def silent_server():
    """A server that accepts connections and never says a word; gives its port."""
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
