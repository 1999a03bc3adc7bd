"""Check the container that this process runs in: CPU limit and throttling, memory, kernel."""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from resilient_io.validation import check_seconds

from .steps import CheckResult, Checks, merged, note, ok, problem, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from .steps import Step

_T = TypeVar("_T")

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

_MICRO: Final = 1e-6
_NANO: Final = 1e-9
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
    yield await checks.run("CPU", functools.partial(_check_cpu, root))
    yield await checks.run("memory", functools.partial(_in_thread, check_memory, root))
    yield await checks.run("kernel", functools.partial(_in_thread, check_kernel, root))


async def _check_cpu(root: Path) -> CheckResult:
    before = await _in_thread(read_cgroup, root)
    if before is not None and before.cpus is not None:
        await asyncio.sleep(_WATCHED)
    return judge_cpu(before, await _in_thread(read_cgroup, root))


async def _in_thread(check: Callable[[Path], _T], root: Path) -> _T:
    # On an overloaded machine even files of /proc and of a cgroup may be slow.
    return await asyncio.get_running_loop().run_in_executor(None, check, root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cgroup:
    """The limits and counters of a control group; None and 0 if it has none.

    Attributes:
        version: 1 or 2.
        cpus: Processors that it may use on average; None for no limit.
        periods: Scheduler periods in which it had work to do.
        throttled: Periods in which it was stopped because its share was used up.
        throttled_seconds: Seconds for which its threads were stopped, added up.
        memory_limit: In bytes; None for no limit.
        memory: Bytes in use that the kernel cannot reclaim.
        oom_kills: Processes that the kernel killed because the memory was used up.
    """

    version: int
    cpus: float | None = None
    periods: int = 0
    throttled: int = 0
    throttled_seconds: float = 0.0
    memory_limit: int | None = None
    memory: int | None = None
    oom_kills: int = 0


def read_cgroup(root: Path) -> Cgroup | None:
    """Return the limits of this process; None if there is no cgroup.

    The limits of parent groups, such as a pod or a systemd slice, count, too.
    """
    mount = root / "sys/fs/cgroup"
    own: dict[str, str] = {}  # the path of this process's group by controller; "" for v2
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        own |= dict.fromkeys(controllers.split(","), path)
    if (mount / "cgroup.controllers").exists():
        groups = _with_parents(mount, own.get("", "/"))
        return _read_version_2(groups)
    if (mount / "memory").is_dir() or (mount / "cpu").is_dir():
        return _read_version_1(
            _with_parents(mount / "cpu", own.get("cpu", "/")),
            _with_parents(mount / "memory", own.get("memory", "/")),
        )
    return None


def _with_parents(mount: Path, own: str) -> list[Path]:
    """Return the folders of a group and of its parents, as far as they are visible.

    In a container the mount usually is the container's own group, whatever the path says.
    """
    parts = [part for part in own.split("/") if part]
    if ".." in parts:
        parts = []
    folders = [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()] or [mount]


def _read_version_2(groups: list[Path]) -> Cgroup:
    shares = []
    for folder in groups:
        # "quota period" in microseconds, or "max period".
        quota, _, period = (_read(folder / "cpu.max") or "").strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            shares.append(int(quota) / int(period))
    stat = _fields(groups[0] / "cpu.stat")
    limited, limit = _tightest(groups, "memory.max")
    return Cgroup(
        version=2,
        cpus=min(shares, default=None),
        periods=stat.get("nr_periods", 0),
        throttled=stat.get("nr_throttled", 0),
        throttled_seconds=stat.get("throttled_usec", 0) * _MICRO,
        memory_limit=limit,
        memory=_without_cache(limited, "memory.current", "inactive_file"),
        oom_kills=_fields(groups[0] / "memory.events").get("oom_kill", 0),
    )


def _read_version_1(cpu: list[Path], memory: list[Path]) -> Cgroup:
    shares = []
    for folder in cpu:
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota is not None and period and quota > 0:
            shares.append(quota / period)
    stat = _fields(cpu[0] / "cpu.stat")
    limited, limit = _tightest(memory, "memory.limit_in_bytes")
    return Cgroup(
        version=1,
        cpus=min(shares, default=None),
        periods=stat.get("nr_periods", 0),
        throttled=stat.get("nr_throttled", 0),
        throttled_seconds=stat.get("throttled_time", 0) * _NANO,
        memory_limit=limit,
        memory=_without_cache(limited, "memory.usage_in_bytes", "total_inactive_file"),
        oom_kills=_fields(memory[0] / "memory.oom_control").get("oom_kill", 0),
    )


def _tightest(groups: list[Path], name: str) -> tuple[Path, int | None]:
    """Return the group with the lowest limit and that limit; the own group without a limit."""
    limits = [(folder, limit) for folder in groups if (limit := _number(folder / name)) is not None]
    limits = [each for each in limits if each[1] < _UNLIMITED]
    return min(limits, key=lambda each: each[1]) if limits else (groups[0], None)


def _without_cache(group: Path, used: str, cache: str) -> int | None:
    """Return the memory that the kernel cannot reclaim, as the kubelet counts it."""
    total = _number(group / used)
    if total is None:
        return None
    return max(total - _fields(group / "memory.stat").get(cache, 0), 0)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is none ("max", say)."""
    try:
        return int(_read(path) or "")
    except ValueError:
        return None


def _fields(path: Path) -> dict[str, int]:
    """Return the "name number" lines of a file."""
    fields = {}
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            fields[name] = int(value)
    return fields


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def judge_cpu(before: Cgroup | None, after: Cgroup | None) -> CheckResult:
    """Return whether the container's CPU limit throttles this process.

    Args:
        before: Its cgroup; None without one.
        after: The same a little later: throttling at the start differs from current throttling.
    """
    if before is None or after is None:
        return unknown(_NO_CGROUP, cpus=_usable_cpus())
    limit = "no limit" if after.cpus is None else f"limit {after.cpus:g} CPU"
    share = after.throttled / after.periods if after.periods else 0.0
    periods = after.periods - before.periods
    throttled = after.throttled - before.throttled
    now = throttled / periods if periods > 0 else 0.0
    data = {
        "limit": after.cpus,
        "cpus": _usable_cpus(),
        "periods": after.periods,
        "throttled": after.throttled,
        "throttled_seconds": round(after.throttled_seconds, 3),
        "throttled_now": round(now, 3),
        "cgroup": after.version,
    }
    often = after.periods >= _ENOUGH_PERIODS and share > _SOMETIMES
    if not often and throttled < _MORE_THAN_ONCE:
        return ok(f"{limit}, {'hardly' if after.throttled else 'not'} throttled", **data)
    found = (
        f"{limit}: throttled in {share:.0%} of the periods since the container started "
        f"({after.throttled_seconds:.1f} s in total), in {now:.0%} of the current ones"
    )
    advice = (
        "The process stands still while it is throttled, so calls time out and heartbeats are "
        "late: raise resources.limits.cpu, or set only a request."
    )
    serious = share > _OFTEN or (now > _OFTEN and throttled >= _MORE_THAN_ONCE)
    return (problem if serious else note)(found, advice, **data)


def check_memory(root: Path) -> CheckResult:
    """Check how close the container is to its memory limit, and for processes that were killed."""
    group = read_cgroup(root)
    if group is None:
        return unknown(_NO_CGROUP)
    data = {"limit": group.memory_limit, "used": group.memory, "oom_kills": group.oom_kills}
    results = [_judge_memory(group)]
    if group.oom_kills:
        count = "a process" if group.oom_kills == 1 else f"{group.oom_kills} processes"
        results.append(
            problem(
                f"the kernel has killed {count} in this container: out of memory",
                "Look for OOMKilled in the pod's last state. Raise resources.limits.memory, or "
                "lower what is kept in memory (in-flight records, batch sizes, caches).",
            )
        )
    return merged(results, **data)


def _judge_memory(group: Cgroup) -> CheckResult:
    if group.memory_limit is None:
        return ok("no limit" if group.memory is None else f"no limit, {_mib(group.memory)} used")
    if group.memory is None:
        return unknown(f"limit {_mib(group.memory_limit)}; the use cannot be read")
    share = group.memory / group.memory_limit
    found = f"{_mib(group.memory)} of {_mib(group.memory_limit)} used ({share:.0%})"
    if share > _FULL:
        advice = "The kernel is about to kill it: raise resources.limits.memory, or use less."
        return problem(found, advice)
    if share > _FILLING:
        return note(found, "Watch it: at 100% the kernel kills the process without a warning.")
    return ok(found)


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"


Version = tuple[int, int, int]

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
_DISTRIBUTION: Final = re.compile(
    r"\.el\d|\.amzn\d|-generic|-default|\.fc\d|-azure|-aws|-gke|-cloud"
)
"""Releases of distributions that backport fixes to old kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _KernelBug:
    """A bug of some kernels.

    Attributes:
        before: The first mainline version without it.
        fixed: Versions of older lines with the fix.
        what: Its effect.
        advice: What to do.
        serious: Whether it takes the network away, rather than time.
    """

    before: Version
    fixed: tuple[Version, ...] = ()
    what: str
    advice: str
    serious: bool = False

    def affects(self, version: Version) -> bool:
        return version < self.before and not any(
            version[:2] == fixed[:2] and version >= fixed for fixed in self.fixed
        )


_KERNEL_BUGS: Final = (
    _KernelBug(
        before=(4, 4, 0),
        what=(
            'containers may lose their network for good ("unregister_netdevice: waiting for lo to '
            'become free" in the kernel log)'
        ),
        advice="Update the node's kernel to 4.4 or later; until then only a reboot helps.",
        serious=True,
    ),
    _KernelBug(
        before=(5, 4, 0),
        fixed=((4, 14, 154), (4, 19, 84), (5, 3, 9)),
        what="containers with a CPU limit are throttled long before they reach it",
        advice="Update the node's kernel to 4.14.154, 4.19.84 or 5.4, or set no CPU limit.",
    ),
    _KernelBug(
        before=(5, 0, 0),
        what="DNS lookups through NAT may take 5 s more (A and AAAA packets race)",
        advice="Update the node's kernel to 5.0 or later, or run a DNS cache on the node.",
    ),
)


def check_kernel(_root: Path) -> CheckResult:
    """Check the release of the running kernel."""
    return judge_kernel(platform.release())


def judge_kernel(release: str) -> CheckResult:
    """Return the known bugs of a kernel that matter in containers.

    Args:
        release: As `uname -r` prints it.
    """
    read = _RELEASE.match(release)
    if read is None:
        return unknown(f"the kernel version cannot be read from {release!r}")
    version = (int(read[1]), int(read[2]), int(read[3] or 0))
    bugs = [bug for bug in _KERNEL_BUGS if bug.affects(version)]
    if not bugs:
        return ok(f"{release}, no known bugs", release=release)
    backported = _DISTRIBUTION.search(release) is not None
    results = [
        (problem if bug.serious and not backported else note)(bug.what, bug.advice) for bug in bugs
    ]
    joined = merged(results, release=release)
    hint = (
        " Your distribution may have backported the fix: see its changelog." if backported else ""
    )
    return CheckResult(
        joined.status, f"{release}: {joined.found}", joined.advice + hint, joined.data
    )
