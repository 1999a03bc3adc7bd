"""A server must not outlive the process that started it, however that process ends."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# `read` fails when the other end of the pipe is gone, which the kernel sees to even after SIGKILL.
# A `preexec_fn` with PR_SET_PDEATHSIG would be shorter, but is not safe beside threads.
_SCRIPT = 'read -r word || { kill -9 "$1" 2>/dev/null; sleep 0.1; rm -rf "$2"; }'


class Watchdog:
    """A small shell that kills a process, and removes its folder, when this process ends.

    Args:
        pid: The process to kill.
        folder: The folder to remove after it.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "watchdog", str(pid), str(folder)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the tests, not for their servers
            )
        finally:
            os.close(read_end)

    def dismiss(self) -> None:
        """End the watch, without killing: the process has ended and was waited for."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._write_end, b"done\n")
        os.close(self._write_end)
        self._shell.wait()
