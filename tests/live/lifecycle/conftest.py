"""Services as processes: their output, their log, their responses and their exit."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIMEOUT = 90
"""Seconds for what takes three on an idle machine, mostly the start of Python."""

EXAMPLES = HERE.parents[2] / "examples"


@pytest.fixture(autouse=True)
def default_signal_handlers():
    """Set the handlers that a program starts with.

    The process that started pytest may have ignored signals, as `nohup` and some CI runners do.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Service:
    """A process and its output, and requests to it."""

    def __init__(self, process):
        self.process = process
        self.lines = []
        self.messages = []
        self.port = None
        self._new_line = asyncio.Event()
        self._reading = asyncio.create_task(self._read(), name="reading a service")

    async def _read(self):
        while raw := await self.process.stdout.readline():
            line = raw.decode().rstrip()
            self.lines.append(line)
            with contextlib.suppress(ValueError):
                self.messages.append(json.loads(line))
            self._new_line.set()
        self._new_line.set()

    async def until(self, happened, what):
        """Wait for a line of the output."""
        async with asyncio.timeout(TIMEOUT):
            while not (found := happened()):
                assert not self._reading.done(), f"the service ended without {what}: {self.text}"
                self._new_line.clear()
                await self._new_line.wait()
        return found

    async def says(self, word):
        """Wait for a message of the service, and return it."""
        return await self.until(lambda: self.found(word), word)

    async def logs(self, text):
        """Wait for a log record."""
        return await self.until(lambda: [line for line in self.lines if text in line], text)

    def found(self, word):
        return next((each for each in self.messages if each.get("say") == word), None)

    def order(self):
        return [each["say"] for each in self.messages]

    @property
    def text(self):
        return "\n".join(self.lines)

    def send(self, number, pid=None):
        os.kill(self.process.pid if pid is None else pid, number)

    async def exit_code(self):
        async with asyncio.timeout(TIMEOUT):
            code = await self.process.wait()
            await self._reading
        return code

    async def get(self, path, method="GET", body=b""):
        """Return the status and the body; raise ConnectionRefusedError if it does not listen."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer, _, content = (await reader.read()).partition(b"\r\n\r\n")
            return int(answer.split()[1]), content.decode()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def becomes(self, path, status):
        """Wait until a path answers with a status."""
        async with asyncio.timeout(TIMEOUT):
            while True:
                with contextlib.suppress(OSError, IndexError):
                    if (await self.get(path))[0] == status:
                        return
                assert not self._reading.done(), f"the service has ended: {self.text}"
                await asyncio.sleep(0.02)


@pytest.fixture
async def launch():
    """Start a program: `await launch("plain_service.py", "wait", REDIS_PORT="6379")`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(program, *arguments, before=(), **environment):
            directory = HERE if (HERE / program).exists() else EXAMPLES
            process = await asyncio.create_subprocess_exec(
                *before,
                sys.executable,
                "-X",
                "dev",
                "-W",
                "error",
                directory / program,
                *arguments,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            service = Service(process)
            stack.push_async_callback(end, service)
            return service

        yield start


async def end(service):
    if service.process.returncode is None:
        service.process.send_signal(signal.SIGKILL)
    await service.process.wait()
    await asyncio.wait([service._reading])
    service._reading.result()


@pytest.fixture
async def plain(launch, redis_server):
    """Start the plain service: `await plain("wait", drain_delay=1.0)`, and wait until it runs."""

    async def start(what, *, before=(), running=True, environment=None, **options):
        service = await launch(
            "plain_service.py",
            what,
            json.dumps(options),
            before=before,
            REDIS_PORT=str(redis_server.port),
            **(environment or {}),
        )
        if running:
            service.port = (await service.says("running"))["port"]
        return service

    return start
