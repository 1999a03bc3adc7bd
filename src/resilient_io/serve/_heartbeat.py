"""A heartbeat in a file, for whoever cannot ask over HTTP: an exec probe, a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import wall_clock
from resilient_io.errors import ConfigurationError
from resilient_io.health import HealthMonitor
from resilient_io.tasks import log_task_death
from resilient_io.text import redact_credentials
from resilient_io.validation import check_number, check_seconds

if TYPE_CHECKING:
    from typing import Self

    from resilient_io.health import MonitorChange, Subscription

__all__ = ["Heartbeat"]

_log = logging.getLogger("resilient_io.serve")

_CLOSING = 1.0
"""Seconds that the last beat gets to be written."""


class Heartbeat:
    """Writes how the service is into a file, every second and at every change.

    ```
    async with Heartbeat(monitor, "/tmp/heartbeat.json"):
        await work()
    ```

    `resilient-io probe --file /tmp/heartbeat.json` reads it. The file is one line of JSON, replaced
    as a whole: `at` (seconds since the epoch), `interval`, `ready`, `alive`, `started`, `draining`,
    `state`, `because` (reasons) and `stopped`. When the event loop is blocked it grows old, and
    that is the news. It is written in a thread of its own: those of the loop may all be busy, with
    names that nobody resolves for example, and the process is not stuck for that. If it cannot be
    written, that is logged once, and tried again every second. At the end it stays, with `stopped`
    true.

    Args:
        monitor: How the service is.
        path: The file; its folder must exist and be writable.
        interval: Seconds between two beats.

    Raises:
        ConfigurationError: An argument makes no sense.
        TypeError: `monitor` is no `HealthMonitor`, or `path` no path.
    """

    def __init__(
        self, monitor: HealthMonitor, path: str | os.PathLike[str], *, interval: float = 1.0
    ) -> None:
        if not isinstance(monitor, HealthMonitor):
            raise TypeError(f"{monitor!r} is no HealthMonitor: write HealthMonitor(redis.health)")
        if not os.fspath(path):
            message = f'path={path!r} names no file: write path="/tmp/heartbeat.json"'
            raise ConfigurationError(message)
        self.path = Path(path)
        self.interval = check_seconds("interval", interval)
        self._monitor = monitor
        self._news = asyncio.Event()
        self._stopping = False
        self._failing = False
        self._writer: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription[MonitorChange] | None = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Begin to beat, in the running loop; the first beat is written soon.

        Raises:
            RuntimeError: It beats already, or no event loop runs.
        """
        if self._task is not None:
            raise RuntimeError(f"the heartbeat in {self.path} beats already")
        self._stopping = False
        loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="resilient-io heartbeat")
        self._task = loop.create_task(
            self._beat(self._writer), name=f"resilient-io heartbeat {self.path}"
        )
        self._task.add_done_callback(log_task_death)
        self._subscription = self._monitor.on_change(lambda _: self._news.set())

    async def aclose(self, timeout: float = _CLOSING) -> None:
        """Write the last beat, which says that it has stopped.

        Closing twice is fine. Cancelling this leaves at once; then the last beat may be missing.

        Args:
            timeout: Longest wait in seconds for the file system.

        Raises:
            ConfigurationError: `timeout` is negative or no number.
        """
        check_number("timeout", timeout)
        task, self._task = self._task, None
        if task is None:
            return
        if self._subscription is not None:
            self._subscription.remove()
        self._stopping = True
        self._news.set()
        try:
            await asyncio.wait([task], timeout=timeout)
        finally:
            task.cancel()  # only a file system that hangs has kept it
            if self._writer is not None:
                self._writer.shutdown(wait=False)
        await asyncio.wait([task])

    def __repr__(self) -> str:
        how = "failing" if self._failing else "beating" if self._task is not None else "stopped"
        return f"<Heartbeat {self.path}: {how}>"

    async def _beat(self, writer: ThreadPoolExecutor) -> None:
        stopped = False
        while not stopped:
            self._news.clear()
            stopped = self._stopping
            await self._write(writer, self._words(stopped=stopped))
            if not stopped:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.interval):
                        await self._news.wait()

    def _words(self, *, stopped: bool) -> str:
        monitor = self._monitor
        how = {
            "at": round(wall_clock.now(), 3),
            "interval": self.interval,
            "ready": monitor.ready and not stopped,
            "alive": monitor.alive,
            "started": monitor.started,
            "draining": monitor.draining,
            "stopped": stopped,
            "state": monitor.state.value,
            "because": [*monitor.unready_reasons, *monitor.liveness_failures],
        }
        return redact_credentials(json.dumps(how)) + "\n"

    async def _write(self, writer: ThreadPoolExecutor, words: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(writer, _replace, self.path, words)
        except OSError as error:
            self._tell(error)
        else:
            self._tell(None)

    def _tell(self, error: OSError | None) -> None:
        """Log that writing has begun to fail, or to work again; not every time."""
        if (error is not None) is self._failing:
            return
        self._failing = error is not None
        if error is None:
            _log.info(
                "the heartbeat in %s is written again",
                self.path,
                extra={"event": "heartbeat_written_again", "path": str(self.path)},
            )
        else:
            _log.warning(
                "the heartbeat cannot be written: %s",
                error,
                extra={
                    "event": "heartbeat_not_written",
                    "path": str(self.path),
                    "error": type(error).__name__,
                },
            )


def _replace(path: Path, words: str) -> None:
    """Write the file as a whole, so that no reader ever sees a part of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(words, encoding="utf-8")
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
