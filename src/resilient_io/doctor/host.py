"""Check the container that this process runs in: CPU limit and throttling, memory, kernel."""

from __future__ import annotations

import asyncio
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from resilient_io.validation import check_seconds

from .steps import CheckResult, Checks, merged, note, ok, problem, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .steps import Step

_WATCHED: Final = 0.5
"""Seconds for which current throttling is measured: five periods of the kernel's scheduler."""

_OFTEN: Final = 0.25
"""Share of the periods in which throttling stalls a process so often that calls time out."""

_SOMETIMES: Final = 0.02
_ENOUGH_PERIODS: Final = 10
_MORE_THAN_ONCE: Final = 2
_FULL: Final = 0.9
_FILLING: Final = 0.75
_MIB: Final = 1 << 20

_UNLIMITED: Final = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""

_NO_CGROUP: Final = "there is no cgroup to read"


def examine_host(*, timeout: float = 5.0, root: str | Path = "/") -> AsyncGenerator[Step, None]:
    """Check what this process runs on: CPU, memory and kernel; yield one step after the other.

    It only reads. Only wrong arguments raise an error. Cancelling ends the examination
    immediately.

    Args:
        timeout: Seconds for all steps; the time that the caller spends between them does not
            count.
        root: The root of the file system to read.

    Raises:
        ConfigurationError: `timeout` is not a number above 0.
    """
    check_seconds("timeout", timeout)
    return _examine(Checks(timeout), Path(root))


async def _examine(checks: Checks, root: Path) -> AsyncGenerator[Step, None]:
    # In threads: on an overloaded machine even files of /proc and of a cgroup may be slow.
    yield await checks.run("CPU", lambda: _check_cpu(root))
    yield await checks.run("memory", lambda: asyncio.to_thread(check_memory, root))
    yield await checks.run("kernel", lambda: asyncio.to_thread(judge_kernel, platform.release()))


async def _check_cpu(root: Path) -> CheckResult:
    before = await asyncio.to_thread(read_cgroup, root)
    if before is not None and before.cpus is not None:
        await asyncio.sleep(_WATCHED)
    return judge_cpu(before, await asyncio.to_thread(read_cgroup, root))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The limits and counters of a control group."""

    cpus: float | None = None  # processors that it may use on average
    periods: int = 0  # scheduler periods in which it had work to do
    throttled: int = 0  # those in which it was stopped because its share was used up
    memory_limit: int | None = None  # in bytes
    memory: int | None = None  # bytes in use that the kernel cannot reclaim
    oom_kills: int = 0  # processes that the kernel killed because the memory was used up


_MEMORY_FILES: Final = {
    1: ("limit_in_bytes", "usage_in_bytes", "oom_control", "total_inactive_file"),
    2: ("max", "current", "events", "inactive_file"),
}
"""Files of the limit, the use and the OOM kills; the field of the cached files in memory.stat."""


def read_cgroup(root: Path) -> Cgroup | None:
    """Return the limits of this process; None if there is no cgroup.

    The limits of parent groups, such as a pod or a systemd slice, count, too.
    """
    mount = root / "sys/fs/cgroup"
    own: dict[str, str] = {}  # the path of this process's group by controller; "" for v2
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        own |= dict.fromkeys(controllers.split(","), path)
    if (mount / "cgroup.controllers").exists():
        version = 2
        cpu = memory = _with_parents(mount, own.get("", "/"))
    elif (mount / "memory").is_dir() or (mount / "cpu").is_dir():
        version = 1
        cpu = _with_parents(mount / "cpu", own.get("cpu", "/"))
        memory = _with_parents(mount / "memory", own.get("memory", "/"))
    else:
        return None
    limit_file, use_file, kills_file, cached = _MEMORY_FILES[version]
    limits = [
        (limit, folder)
        for folder in memory
        if (limit := _number(folder / f"memory.{limit_file}")) is not None and limit < _UNLIMITED
    ]
    limit, limited = min(limits, key=lambda each: each[0]) if limits else (None, memory[0])
    used = _number(limited / f"memory.{use_file}")
    if used is not None:  # as the kubelet counts it
        used = max(used - _fields(limited / "memory.stat").get(cached, 0), 0)
    stat = _fields(cpu[0] / "cpu.stat")
    return Cgroup(
        cpus=min((share for each in cpu if (share := _cpus(each)) is not None), default=None),
        periods=stat.get("nr_periods", 0),
        throttled=stat.get("nr_throttled", 0),
        memory_limit=limit,
        memory=used,
        oom_kills=_fields(memory[0] / f"memory.{kills_file}").get("oom_kill", 0),
    )


def _with_parents(mount: Path, own: str) -> list[Path]:
    """Return the folders of a group and of its parents, as far as they are visible.

    In a container the mount usually is the container's own group, whatever the path says.
    """
    parts = [part for part in own.split("/") if part]
    if ".." in parts:
        parts = []
    folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()] or [mount]


def _cpus(folder: Path) -> float | None:
    """Return the CPU limit of a group: quota / period, in one file (v2) or in two (v1)."""
    text = _read(folder / "cpu.max") or " ".join(
        _read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
    )
    quota, period = (*text.split(), "", "")[:2]
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return None  # no limit: "max" or -1


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is none ("max", say)."""
    try:
        return int(_read(path))
    except ValueError:
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the "name number" lines of a file."""
    pairs = (line.partition(" ")[::2] for line in _read(path).splitlines())
    return {name: int(value) for name, value in pairs if value.strip().isdecimal()}


def judge_cpu(before: Cgroup | None, after: Cgroup | None) -> CheckResult:
    """Return whether the container's CPU limit throttles this process.

    `after` is read a little later: throttling at the start differs from current throttling.
    """
    if before is None or after is None:
        return unknown(_NO_CGROUP)
    limit = "no limit" if after.cpus is None else f"limit {after.cpus:g} CPU"
    share = after.throttled / after.periods if after.periods else 0.0
    periods = after.periods - before.periods
    throttled = after.throttled - before.throttled
    now = throttled / periods if periods > 0 else 0.0
    data = {"limit": after.cpus, "throttled": round(share, 3), "throttled_now": round(now, 3)}
    often = after.periods >= _ENOUGH_PERIODS and share > _SOMETIMES
    if not often and throttled < _MORE_THAN_ONCE:
        return ok(f"{limit}, {'hardly' if after.throttled else 'not'} throttled", **data)
    serious = share > _OFTEN or (now > _OFTEN and throttled >= _MORE_THAN_ONCE)
    return (problem if serious else note)(
        f"{limit}: throttled in {share:.0%} of the periods since the container started, in "
        f"{now:.0%} of the current ones",
        "The process stands still while it is throttled, so calls time out and heartbeats are "
        "late: raise resources.limits.cpu, or set only a request.",
        **data,
    )


def check_memory(root: Path) -> CheckResult:
    """Check how close the container is to its memory limit, and for processes that were killed."""
    group = read_cgroup(root)
    if group is None:
        return unknown(_NO_CGROUP)
    limit, used = group.memory_limit, group.memory
    shown = "the use cannot be read" if used is None else f"{used / _MIB:.0f} MiB used"
    if limit is None:
        result = ok(f"no limit, {shown}")
    elif used is None:
        result = unknown(f"limit {limit / _MIB:.0f} MiB, {shown}")
    else:
        share = used / limit
        found = f"{used / _MIB:.0f} MiB of {limit / _MIB:.0f} MiB used ({share:.0%})"
        advice = "At 100% the kernel kills the process: raise resources.limits.memory, or use less."
        level = problem if share > _FULL else note
        result = level(found, advice) if share > _FILLING else ok(found)
    results = [result]
    if group.oom_kills:
        results.append(
            problem(
                f"processes of this container that the kernel killed: {group.oom_kills}",
                "Look for OOMKilled in the pod's last state. Raise resources.limits.memory, or "
                "lower what is kept in memory (in-flight records, batch sizes, caches).",
            )
        )
    return merged(results, limit=limit, used=used, oom_kills=group.oom_kills)


_RELEASE: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")

_KERNEL_BUGS: Final = (
    (
        [(4, 4, 0)],
        'containers may lose their network for good ("unregister_netdevice" in the kernel log)',
        "Update the node's kernel to 4.4 or later; until then only a reboot helps.",
    ),
    (
        [(5, 4, 0), (4, 14, 154), (4, 19, 84), (5, 3, 9)],
        "containers with a CPU limit are throttled long before they reach it",
        "Update the node's kernel to 4.14.154, 4.19.84 or 5.4, or set no CPU limit.",
    ),
    (
        [(5, 0, 0)],
        "DNS lookups through NAT may take 5 s more (A and AAAA packets race)",
        "Update the node's kernel to 5.0 or later, or run a DNS cache on the node.",
    ),
)
"""First mainline version without the bug, and later versions of older lines; its effect; advice."""


def judge_kernel(release: str) -> CheckResult:
    """Return the known bugs of a kernel, named as `uname -r` does, that matter in containers."""
    read = _RELEASE.match(release)
    if read is None:
        return unknown(f"the kernel version cannot be read from {release!r}")
    version = (int(read[1]), int(read[2]), int(read[3] or 0))
    bugs = [
        (effect, advice)
        for (first, *backports), effect, advice in _KERNEL_BUGS
        if version < first
        and not any(version[:2] == fixed[:2] and version >= fixed for fixed in backports)
    ]
    if not bugs:
        return ok(f"{release}, no known bugs", release=release)
    return note(
        f"{release}: {'; '.join(effect for effect, _ in bugs)}",
        f"{' '.join(advice for _, advice in bugs)} Your distribution may have backported the "
        f"fix: see its changelog.",
        release=release,
    )
