"""The limits of our container: CPU, memory and processes, as cgroup v2 or v1 tells them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .files import fields_of, number_in, text_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Cgroup", "read_cgroup"]

_UNLIMITED: Final = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""

_MICRO: Final = 1e-6
_NANO: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """What a control group says of itself; None and 0 where it does not.

    Attributes:
        version: 1 or 2.
        cpus: How many processors it may use on average; None for no limit.
        periods: Periods in which it wanted to run.
        throttled: Those in which it was stopped because its share was used up.
        throttled_for: Seconds for which its threads were stopped, all together.
        memory_limit: In bytes; None for no limit.
        memory: Bytes in use that the kernel cannot simply take back.
        killed: Processes that the kernel killed in it for want of memory.
        processes_limit: How many processes and threads; None for no limit.
        processes: How many there are.
    """

    version: int
    cpus: float | None = None
    periods: int = 0
    throttled: int = 0
    throttled_for: float = 0.0
    memory_limit: int | None = None
    memory: int | None = None
    killed: int = 0
    processes_limit: int | None = None
    processes: int | None = None


def read_cgroup(root: Path) -> Cgroup | None:
    """Read the limits that hold for this process; None where there is no cgroup to read.

    Limits of the groups above count too: a pod's, or a systemd slice's.

    Args:
        root: The file system's root.
    """
    mounted = root / "sys/fs/cgroup"
    own = _own_groups(text_of(root / "proc/self/cgroup") or "")
    if (mounted / "cgroup.controllers").exists():
        return _read_second(_line_of(mounted, own.get("", "/")))
    if (mounted / "memory").is_dir() or (mounted / "cpu").is_dir():
        return _read_first(mounted, own)
    return None


def _own_groups(text: str) -> dict[str, str]:
    """Read /proc/self/cgroup: the path of our group by controller, "" for v2."""
    groups = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _line_of(mounted: Path, own: str) -> list[Path]:
    """Give our group's folder and those above it, as far as they can be seen from here.

    In a container the mount usually is the container's own group, whatever the path says.
    """
    parts = [part for part in own.split("/") if part]
    if ".." in parts:
        parts = []
    folders = [mounted.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()] or [mounted]


def _read_second(line: list[Path]) -> Cgroup:
    own = line[0]
    shares = [share for folder in line if (share := _share(folder / "cpu.max")) is not None]
    stat = fields_of(own / "cpu.stat")
    limited = _tightest(line, "memory.max")
    # Where no group has a limit, the root's own figures tell of the whole machine.
    group = own if limited is None else limited[0]
    used = number_in(group / "memory.current")
    crowded = _tightest(line, "pids.max")
    return Cgroup(
        version=2,
        cpus=min(shares, default=None),
        periods=stat.get("nr_periods", 0),
        throttled=stat.get("nr_throttled", 0),
        throttled_for=stat.get("throttled_usec", 0) * _MICRO,
        memory_limit=None if limited is None else limited[1],
        memory=_without_cache(used, fields_of(group / "memory.stat").get("inactive_file", 0)),
        killed=fields_of(own / "memory.events").get("oom_kill", 0),
        processes_limit=None if crowded is None else crowded[1],
        processes=None if crowded is None else number_in(crowded[0] / "pids.current"),
    )


def _tightest(line: list[Path], name: str) -> tuple[Path, int] | None:
    limits = [(folder, limit) for folder in line if (limit := number_in(folder / name)) is not None]
    return min(limits, key=lambda each: each[1], default=None)


def _share(path: Path) -> float | None:
    """Read cpu.max: "quota period" in microseconds, or "max period"."""
    quota, _, period = (text_of(path) or "").strip().partition(" ")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read_first(mounted: Path, own: dict[str, str]) -> Cgroup:
    cpu = _line_of(mounted / "cpu", own.get("cpu", "/"))
    memory = _line_of(mounted / "memory", own.get("memory", "/"))
    pids = _line_of(mounted / "pids", own.get("pids", "/"))
    shares = []
    for folder in cpu:
        quota = number_in(folder / "cpu.cfs_quota_us")
        period = number_in(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            shares.append(quota / period)
    stat = fields_of(cpu[0] / "cpu.stat")
    limited = _tightest(memory, "memory.limit_in_bytes")
    if limited is not None and limited[1] > _UNLIMITED:
        limited = None
    group = memory[0] if limited is None else limited[0]
    used = number_in(group / "memory.usage_in_bytes")
    cache = fields_of(group / "memory.stat").get("total_inactive_file", 0)
    crowded = _tightest(pids, "pids.max")
    return Cgroup(
        version=1,
        cpus=min(shares, default=None),
        periods=stat.get("nr_periods", 0),
        throttled=stat.get("nr_throttled", 0),
        throttled_for=stat.get("throttled_time", 0) * _NANO,
        memory_limit=None if limited is None else limited[1],
        memory=_without_cache(used, cache),
        killed=fields_of(memory[0] / "memory.oom_control").get("oom_kill", 0),
        processes_limit=None if crowded is None else crowded[1],
        processes=None if crowded is None else number_in(crowded[0] / "pids.current"),
    )


def _without_cache(used: int | None, cache: int) -> int | None:
    """Take off what the kernel gives up before it kills: as the kubelet counts."""
    return None if used is None else max(used - cache, 0)


def usable_cpus() -> int:
    """Count the processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
