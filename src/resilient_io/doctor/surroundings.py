"""Looking at what this process stands on."""

from __future__ import annotations

import asyncio
import functools
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from resilient_io.validation import check_seconds

from .looking import Looking
from .machine.cgroup import read_cgroup
from .machine.kernel import judge_kernel
from .machine.limits import judge_cpu, look_at_connections, look_at_files, look_at_memory
from .machine.loop import look_at_loop
from .machine.versions import look_at_versions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from .looking import Finding
    from .step import Step

__all__ = ["ground"]

_T = TypeVar("_T")

_WATCHED: Final = 0.5
"""Seconds for which the throttling of now is watched: five periods of the kernel's."""

_LOOKS: Final[dict[str, Callable[[Path], Finding]]] = {
    "memory": look_at_memory,
    "open files": look_at_files,
    "connections": look_at_connections,
    "kernel": lambda _: judge_kernel(platform.release()),
    "versions": look_at_versions,
}


def ground(*, timeout: float = 5.0, root: str | Path = "/") -> AsyncGenerator[Step, None]:
    """Look at what this process stands on; yields one step after the other.

    CPU limit and throttling, memory limit, open files, tracked connections, kernel, versions, and
    how late the event loop wakes up. It only reads. Nothing is raised but for arguments that make
    no sense. Cancelling leaves at once.

    Args:
        timeout: Seconds for the whole look; what the caller does between the steps does not count.
        root: The file system's root, for who looks at another than our own.

    Raises:
        ConfigurationError: `timeout` makes no sense.
    """
    check_seconds("timeout", timeout)
    return _ground(Looking(timeout), Path(root))


async def _ground(looking: Looking, root: Path) -> AsyncGenerator[Step, None]:
    yield await looking.take("CPU", functools.partial(_look_at_cpu, root))
    for name, look in _LOOKS.items():
        # A file of /proc or of a cgroup may be slow when the machine is in need: not in our loop.
        yield await looking.take(name, functools.partial(_aside, look, root))
    yield await looking.take("event loop", look_at_loop)


async def _look_at_cpu(root: Path) -> Finding:
    before = await _aside(read_cgroup, root)
    if before is not None and before.cpus is not None:
        await asyncio.sleep(_WATCHED)
    return judge_cpu(before, await _aside(read_cgroup, root))


async def _aside(look: Callable[[Path], _T], root: Path) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, look, root)
