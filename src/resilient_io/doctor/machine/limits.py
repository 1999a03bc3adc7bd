"""What our container and our process may use, and how near they are to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from resilient_io.doctor.looking import Finding, blind, merged, note, ok, problem

from .cgroup import Cgroup, read_cgroup, usable_cpus
from .files import number_in

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["judge_cpu", "look_at_connections", "look_at_files", "look_at_memory"]

_OFTEN: Final = 0.25
"""Share of the periods in which a throttled process stalls so often that timeouts follow."""

_SOMETIMES: Final = 0.02
_ENOUGH_PERIODS: Final = 10
_MORE_THAN_ONCE: Final = 2
_FULL: Final = 0.9
_FILLING: Final = 0.75
_FEW_FILES: Final = 1024
_MIB: Final = 1 << 20

_NO_CGROUP: Final = "there is no cgroup to read here"


def judge_cpu(before: Cgroup | None, after: Cgroup | None) -> Finding:
    """Say whether the container's CPU limit stops us.

    Args:
        before: What its cgroup said; None without one.
        after: What it said a little later, to tell a throttling of now from one of the start.
    """
    if before is None or after is None:
        return blind(_NO_CGROUP, cpus=usable_cpus())
    limit = "no limit" if after.cpus is None else f"limit {after.cpus:g} CPU"
    share = after.throttled / after.periods if after.periods else 0.0
    periods = after.periods - before.periods
    throttled = after.throttled - before.throttled
    now = throttled / periods if periods > 0 else 0.0
    data = {
        "limit": after.cpus,
        "cpus": usable_cpus(),
        "periods": after.periods,
        "throttled": after.throttled,
        "throttled_seconds": round(after.throttled_for, 3),
        "throttled_now": round(now, 3),
        "cgroup": after.version,
    }
    often = after.periods >= _ENOUGH_PERIODS and share > _SOMETIMES
    if not often and throttled < _MORE_THAN_ONCE:
        return ok(f"{limit}, {'hardly' if after.throttled else 'not'} throttled", **data)
    found = (
        f"{limit}: throttled in {share:.0%} of the periods since the container started "
        f"({after.throttled_for:.1f} s in all), in {now:.0%} of those of now"
    )
    advice = (
        "While throttled nothing of the process runs, so calls time out and heartbeats are late: "
        "raise resources.limits.cpu, or set only a request."
    )
    serious = share > _OFTEN or (now > _OFTEN and throttled >= _MORE_THAN_ONCE)
    return (problem if serious else note)(found, advice, **data)


def look_at_memory(root: Path) -> Finding:
    """Look how near the container is to its memory limit, and whether the kernel has killed."""
    group = read_cgroup(root)
    if group is None:
        return blind(_NO_CGROUP)
    data = {"limit": group.memory_limit, "used": group.memory, "oom_kills": group.killed}
    findings = [_memory_used(group)]
    if group.killed:
        times = "a process" if group.killed == 1 else f"{group.killed} processes"
        findings.append(
            problem(
                f"the kernel has killed {times} in this container for want of memory",
                "Look for OOMKilled in the pod's last state; raise resources.limits.memory, or "
                "lower what is held (in-flight records, batch sizes, caches).",
            )
        )
    return merged(findings, **data)


def _memory_used(group: Cgroup) -> Finding:
    if group.memory_limit is None:
        return ok("no limit" if group.memory is None else f"no limit, {_mib(group.memory)} used")
    if group.memory is None:
        return blind(f"limit {_mib(group.memory_limit)}; how much is used cannot be read")
    share = group.memory / group.memory_limit
    found = f"{_mib(group.memory)} of {_mib(group.memory_limit)} used ({share:.0%})"
    if share > _FULL:
        return problem(
            found, "It is about to be killed: raise resources.limits.memory, or use less."
        )
    if share > _FILLING:
        return note(found, "Watch it: at 100% the kernel kills the process without a word.")
    return ok(found)


def look_at_files(root: Path) -> Finding:
    """Look at the limit of open files, and of processes and threads."""
    import resource  # noqa: PLC0415 (not on Windows)

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = sum(1 for _ in (root / "proc/self/fd").iterdir())
    except OSError:
        used = 0
    unlimited = soft == resource.RLIM_INFINITY
    data = {"limit": None if unlimited else soft, "used": used}
    if unlimited:
        findings = [ok(f"{used} open, no limit")]
    elif used > soft * _FULL:
        findings = [
            problem(
                f"{used} of {soft} open files used",
                "No more connections can be made soon: raise the limit (ulimit -n, LimitNOFILE=), "
                "or look for what leaks them in /proc/<pid>/fd.",
            )
        ]
    elif soft < _FEW_FILES:
        findings = [
            note(
                f"at most {soft} open files, {used} used",
                f"Each connection is one: raise the limit to {_FEW_FILES} at least (ulimit -n).",
            )
        ]
    else:
        findings = [ok(f"{used} of {soft} open files used")]
    return merged([*findings, *_look_at_processes(root)], **data)


def _look_at_processes(root: Path) -> list[Finding]:
    group = read_cgroup(root)
    if group is None or not group.processes_limit or group.processes is None:
        return []
    if group.processes <= group.processes_limit * _FULL:
        return []
    return [
        problem(
            f"{group.processes} of {group.processes_limit} processes and threads used",
            "No thread can be started soon, and names are looked up in threads: raise the "
            "container's pids limit, or look for what leaks them.",
        )
    ]


def look_at_connections(root: Path) -> Finding:
    """Look whether the kernel's table of tracked connections is full: then packets vanish."""
    net = root / "proc/sys/net/netfilter"
    used, limit = number_in(net / "nf_conntrack_count"), number_in(net / "nf_conntrack_max")
    if used is None or not limit:
        return ok("connections are not tracked here")
    data = {"used": used, "limit": limit}
    found = f"{used} of {limit} tracked connections used ({used / limit:.0%})"
    if used > limit * _FULL:
        return problem(
            found,
            "When the table is full the kernel drops packets of new connections: raise "
            "net.netfilter.nf_conntrack_max on the node, or find who opens so many.",
            **data,
        )
    return ok(found, **data)


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"
