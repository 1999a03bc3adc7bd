"""A heartbeat file: a probe for services without an HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import wall_clock
from resilient_io.errors import ConfigurationError
from resilient_io.health import HealthMonitor
from resilient_io.tasks import log_task_death
from resilient_io.text import clean_text
from resilient_io.validation import check_number, check_seconds, check_type

if TYPE_CHECKING:
    from typing import Self

    from resilient_io.health import MonitorChange, Subscription

_log = logging.getLogger("resilient_io.serve")

_CLOSE_TIMEOUT = 1.0  # seconds for writing the last heartbeat


class Heartbeat:
    """Writes the health of the service to a file, every second and on every change.

    ```
    async with Heartbeat(monitor, "/tmp/heartbeat.json"):
        await work()
    ```

    `resilient-io probe --file /tmp/heartbeat.json` reads it. The file is one line of JSON that is
    replaced atomically: `at` (seconds since the epoch), `interval`, `ready`, `alive`, `started`,
    `draining`, `state`, `because` (reasons) and `stopped`. While the event loop is blocked, the
    file is not updated, and the probe fails because of its age. The file is written in a separate
    thread, because slow name lookups can occupy all threads of the event loop's executor. If
    writing fails, that is logged once and retried every second. When the heartbeat is closed, the
    file stays, with `stopped` true.

    Args:
        monitor: The health of the service.
        path: The file; its directory must exist and be writable.
        interval: Seconds between two heartbeats.

    Raises:
        ConfigurationError: An argument has a wrong value.
        TypeError: `monitor` is not a `HealthMonitor`, or `path` is not a path.
    """

    def __init__(
        self, monitor: HealthMonitor, path: str | os.PathLike[str], *, interval: float = 1.0
    ) -> None:
        if not os.fspath(path):
            raise ConfigurationError('path is empty: pass a file, such as "/tmp/heartbeat.json"')
        self.path = Path(path)
        self.interval = check_seconds("interval", interval)
        self._monitor = check_type(
            "monitor", monitor, HealthMonitor, use="HealthMonitor(redis.health)"
        )
        self._changed = asyncio.Event()
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
        """Start writing, in the running event loop; the first heartbeat is written soon.

        Raises:
            RuntimeError: The heartbeat is running already, or there is no running event loop.
        """
        if self._task is not None:
            raise RuntimeError(f"the heartbeat in {self.path} is running already")
        self._stopping = False
        loop = asyncio.get_running_loop()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="resilient-io heartbeat")
        self._task = loop.create_task(
            self._run(self._writer), name=f"resilient-io heartbeat {self.path}"
        )
        self._task.add_done_callback(log_task_death)
        self._subscription = self._monitor.on_change(lambda _: self._changed.set())

    async def aclose(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Write the last heartbeat, with `stopped` true, if that takes at most `timeout` seconds.

        Closing is idempotent. If this is cancelled, it returns immediately, and the last heartbeat
        may not be written.

        Raises:
            ConfigurationError: `timeout` is negative or not a number.
        """
        check_number("timeout", timeout)
        task, self._task = self._task, None
        if task is None:
            return
        if self._subscription is not None:
            self._subscription.remove()
        self._stopping = True
        self._changed.set()
        try:
            await asyncio.wait([task], timeout=timeout)
        finally:
            task.cancel()  # it still runs only if the file system does not answer
            if self._writer is not None:
                self._writer.shutdown(wait=False)
        await asyncio.wait([task])

    def __repr__(self) -> str:
        state = "failing" if self._failing else "running" if self._task is not None else "stopped"
        return f"<Heartbeat {self.path}: {state}>"

    async def _run(self, writer: ThreadPoolExecutor) -> None:
        stopped = False
        while not stopped:
            self._changed.clear()
            stopped = self._stopping
            await self._write(writer, self._text(stopped=stopped))
            if not stopped:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.interval):
                        await self._changed.wait()

    def _text(self, *, stopped: bool) -> str:
        monitor = self._monitor
        reasons = (*monitor.unready_reasons, *monitor.liveness_failures)
        document = {
            "at": round(wall_clock.now(), 3),
            "interval": self.interval,
            "ready": monitor.ready and not stopped,
            "alive": monitor.alive,
            "started": monitor.started,
            "draining": monitor.draining,
            "stopped": stopped,
            "state": monitor.state.value,
            "because": [clean_text(reason) for reason in reasons],
        }
        return json.dumps(document) + "\n"

    async def _write(self, writer: ThreadPoolExecutor, text: str) -> None:
        """Write the file; log when writing starts to fail, and when it works again."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(writer, _replace, self.path, text)
        except OSError as error:
            if not self._failing:
                self._failing = True
                _log.warning(
                    "cannot write the heartbeat file: %s",
                    error,
                    extra={
                        "event": "heartbeat_not_written",
                        "path": str(self.path),
                        "error": type(error).__name__,
                    },
                )
            return
        if self._failing:
            self._failing = False
            _log.info(
                "the heartbeat file %s is written again",
                self.path,
                extra={"event": "heartbeat_written_again", "path": str(self.path)},
            )


def _replace(path: Path, text: str) -> None:
    """Replace the file atomically.

    The name of the temporary file is random, and the file must not exist (`O_EXCL`, which follows
    no symbolic link; `O_NOFOLLOW` says so once more). Otherwise a user who can write to the same
    directory, such as /tmp, could place a link there and have another file overwritten.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(draft, flags, 0o644)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 (a descriptor)
            file.write(text)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
