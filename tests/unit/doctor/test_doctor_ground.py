"""Our own ground, as files of a made-up root tell it."""

import asyncio

import pytest

from resilient_io.doctor import Status
from resilient_io.doctor.machine.cgroup import Cgroup, read_cgroup
from resilient_io.doctor.machine.kernel import judge_kernel
from resilient_io.doctor.machine.limits import (
    judge_cpu,
    look_at_connections,
    look_at_files,
    look_at_memory,
)
from resilient_io.doctor.machine.loop import look_at_loop
from resilient_io.doctor.machine.versions import judge_system, look_at_versions, numbers_of
from resilient_io.health.loop_lag import LoopLag

GIB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def second(root, **files):
    """A container with cgroup v2: its own group is the mount itself."""
    own = {name.replace("__", "."): text for name, text in files.items()}
    return write(
        root,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in own.items()},
        },
    )


def first(root, **files):
    """A container with cgroup v1."""
    own = {name.replace("___", "/").replace("__", "."): text for name, text in files.items()}
    return write(
        root,
        {
            "proc/self/cgroup": "3:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:pids:/docker\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "0\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in own.items()},
        },
    )


def test_the_limits_of_a_container_with_cgroup_v2(tmp_path):
    root = second(
        tmp_path,
        cpu__max="10000 100000\n",
        cpu__stat="usage_usec 5\nnr_periods 200\nnr_throttled 150\nthrottled_usec 2500000\n",
        memory__max=f"{GIB}\n",
        memory__current=f"{GIB // 2}\n",
        memory__stat=f"anon 1\ninactive_file {GIB // 4}\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
        pids__max="100\n",
        pids__current="95\n",
    )
    assert read_cgroup(root) == Cgroup(
        version=2,
        cpus=0.1,
        periods=200,
        throttled=150,
        throttled_for=2.5,
        memory_limit=GIB,
        memory=GIB // 4,
        killed=2,
        processes_limit=100,
        processes=95,
    )


def test_the_limits_of_a_container_with_cgroup_v1(tmp_path):
    root = first(
        tmp_path,
        cpu___cpu__cfs_quota_us="50000\n",
        cpu___cpu__cfs_period_us="100000\n",
        cpu___cpu__stat="nr_periods 100\nnr_throttled 10\nthrottled_time 3000000000\n",
        memory___memory__limit_in_bytes=f"{GIB}\n",
        memory___memory__usage_in_bytes=f"{GIB // 2}\n",
        memory___memory__stat=f"cache 5\ntotal_inactive_file {GIB // 4}\n",
        memory___memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
        pids___pids__max="max\n",
    )
    assert read_cgroup(root) == Cgroup(
        version=1,
        cpus=0.5,
        periods=100,
        throttled=10,
        throttled_for=3.0,
        memory_limit=GIB,
        memory=GIB // 4,
        killed=1,
    )


def test_a_machine_without_limits_has_none(tmp_path):
    root = first(tmp_path, memory___memory__limit_in_bytes="9223372036854771712\n")
    group = read_cgroup(root)
    assert (group.cpus, group.memory_limit) == (None, None)
    root = second(tmp_path / "two", cpu__max="max 100000\n", memory__max="max\n")
    group = read_cgroup(root)
    assert (group.cpus, group.memory_limit, group.processes_limit) == (None, None, None)


def test_the_limit_of_a_group_above_holds_too(tmp_path):
    base = "sys/fs/cgroup"
    root = write(
        second(tmp_path),
        {
            "proc/self/cgroup": "0::/pod/container\n",
            f"{base}/pod/memory.max": "1000\n",
            f"{base}/pod/memory.current": "950\n",
            f"{base}/pod/cpu.max": "20000 100000\n",
            f"{base}/pod/container/memory.max": "max\n",
            f"{base}/pod/container/memory.current": "5\n",
            f"{base}/pod/container/cpu.max": "max 100000\n",
            f"{base}/pod/container/cpu.stat": "nr_periods 7\n",
        },
    )
    group = read_cgroup(root)
    assert (group.memory_limit, group.memory, group.cpus, group.periods) == (1000, 950, 0.2, 7)


def test_without_a_cgroup_the_limits_cannot_be_seen(tmp_path):
    assert read_cgroup(tmp_path) is None
    assert judge_cpu(None, None).status is Status.BLIND
    assert look_at_memory(tmp_path).status is Status.BLIND


def throttled(periods, times, seconds=1.5):
    return Cgroup(version=2, cpus=0.5, periods=periods, throttled=times, throttled_for=seconds)


@pytest.mark.parametrize(
    ("before", "after", "status", "said"),
    [
        ((100, 0), (105, 0), Status.OK, "limit 0.5 CPU, not throttled"),
        ((100, 1), (105, 1), Status.OK, "limit 0.5 CPU, hardly throttled"),
        ((4, 3), (4, 3), Status.OK, "hardly"),  # a start says nothing yet
        ((95, 5), (100, 5), Status.NOTE, "in 5% of the periods since"),
        ((95, 60), (100, 60), Status.PROBLEM, "in 60% of the periods since"),
        ((99_995, 0), (100_000, 4), Status.PROBLEM, "in 80% of those of now"),
        ((99_995, 0), (100_000, 1), Status.OK, "hardly"),
    ],
)
def test_throttling_is_judged_by_how_often_it_happens(before, after, status, said):
    found = judge_cpu(throttled(*before), throttled(*after))
    assert found.status is status
    assert said in found.found
    if status is not Status.OK:
        assert "resources.limits.cpu" in found.advice


@pytest.mark.parametrize(
    ("used", "status"), [(10, Status.OK), (80, Status.NOTE), (95, Status.PROBLEM)]
)
def test_memory_is_judged_by_how_near_the_limit_is(tmp_path, used, status):
    root = second(tmp_path, memory__max=f"{100 << 20}\n", memory__current=f"{used << 20}\n")
    found = look_at_memory(root)
    assert (found.status, found.found) == (status, f"{used} MiB of 100 MiB used ({used}%)")


def test_cached_files_are_not_memory_in_use(tmp_path):
    root = second(
        tmp_path,
        memory__max=f"{100 << 20}\n",
        memory__current=f"{99 << 20}\n",
        memory__stat=f"inactive_file {60 << 20}\n",
    )
    assert look_at_memory(root).found == "39 MiB of 100 MiB used (39%)"


def test_a_process_that_the_kernel_killed_is_told(tmp_path):
    found = look_at_memory(second(tmp_path, memory__max="max\n", memory__events="oom_kill 1\n"))
    assert found.status is Status.PROBLEM
    assert found.found.startswith("the kernel has killed a process")
    assert "OOMKilled" in found.advice


def test_open_files_are_counted_against_their_limit(tmp_path, monkeypatch):
    for number in range(9):
        write(tmp_path, {f"proc/self/fd/{number}": ""})
    limits = {"soft": 20000}
    monkeypatch.setattr("resource.getrlimit", lambda _: (limits["soft"], 20000))
    assert look_at_files(tmp_path).status is Status.OK
    assert look_at_files(tmp_path).found == "9 of 20000 open files used"
    limits["soft"] = 256
    assert look_at_files(tmp_path).status is Status.NOTE
    limits["soft"] = 9
    assert look_at_files(tmp_path).status is Status.PROBLEM
    limits["soft"] = -1
    assert look_at_files(tmp_path).found == "9 open, no limit"


def test_a_container_full_of_processes_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (20000, 20000))
    found = look_at_files(second(tmp_path, pids__max="100\n", pids__current="95\n"))
    assert found.status is Status.PROBLEM
    assert found.found.startswith("95 of 100 processes and threads used")


@pytest.mark.parametrize(("used", "status"), [(10, Status.OK), (95, Status.PROBLEM)])
def test_a_full_table_of_connections_is_told(tmp_path, used, status):
    net = "proc/sys/net/netfilter"
    write(tmp_path, {f"{net}/nf_conntrack_count": str(used), f"{net}/nf_conntrack_max": "100"})
    found = look_at_connections(tmp_path)
    assert (found.status, found.data) == (status, {"used": used, "limit": 100})


def test_without_tracking_no_connection_is_lost_to_it(tmp_path):
    assert look_at_connections(tmp_path).status is Status.OK


@pytest.mark.parametrize(
    ("release", "status", "said"),
    [
        ("3.16.0-4", Status.PROBLEM, "unregister_netdevice"),
        ("4.3.9", Status.PROBLEM, "unregister_netdevice"),
        ("4.4.0", Status.NOTE, "throttled"),
        ("4.14.153", Status.NOTE, "throttled"),
        ("4.14.154", Status.NOTE, "5 s more"),
        ("4.19.84-1", Status.NOTE, "5 s more"),
        ("5.0.0", Status.NOTE, "throttled"),
        ("5.3.9", Status.OK, "nothing bad"),
        ("5.4.0-42-generic", Status.OK, "nothing bad"),
        ("6.18.44", Status.OK, "nothing bad"),
        ("6.6", Status.OK, "nothing bad"),
        ("3.10.0-1160.el7.x86_64", Status.NOTE, "unregister_netdevice"),
        ("whatever", Status.BLIND, "cannot be read"),
    ],
)
def test_kernels_known_to_be_bad(release, status, said):
    found = judge_kernel(release)
    assert found.status is status
    assert said in found.found
    assert release in found.found
    assert ("changelog" in found.advice) is ("el7" in release)


def test_a_kernel_without_a_flaw_is_not_blamed_for_it():
    for repaired in ("4.14.154", "4.19.84", "5.3.9", "5.4.0"):
        assert "throttled" not in judge_kernel(repaired).found
    assert "unregister" not in judge_kernel("4.4.0").found
    assert "5 s" not in judge_kernel("5.0.0").found


def test_the_versions_of_what_runs_here_are_named_and_good(tmp_path):
    found = look_at_versions(tmp_path)
    assert found.status is Status.OK
    assert set(found.data) == {"python", "openssl", "redis", "hiredis", "aiokafka", "tenacity"}


@pytest.mark.parametrize(
    ("name", "version", "status", "said"),
    [
        ("redis", "7.0.1", Status.PROBLEM, "redis>=8.1,<9.0"),
        ("redis", "9.0.0", Status.PROBLEM, "redis>=8.1,<9.0"),
        ("redis", "8.12.0", Status.OK, ""),
        ("aiokafka", "0.13.0", Status.PROBLEM, "aiokafka>=0.14,<0.15"),
        ("hiredis", None, Status.NOTE, "redis[hiredis]"),
        ("aiokafka", None, Status.PROBLEM, "resilient-io"),
    ],
)
def test_a_library_that_we_were_not_made_for(tmp_path, monkeypatch, name, version, status, said):
    import importlib.metadata

    real = importlib.metadata.version

    def pretend(asked):
        if asked != name:
            return real(asked)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", pretend)
    found = look_at_versions(tmp_path)
    assert found.status is status
    assert said in found.advice


@pytest.mark.parametrize(
    ("release", "bad"),
    [
        ('NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.17.3\n', True),
        ("ID=alpine\nVERSION_ID=3.18.0\n", False),
        ("ID=alpine\nVERSION_ID=3.9\n", True),
        ('ID=debian\nVERSION_ID="12"\n', False),
        ("", False),
    ],
)
def test_an_alpine_whose_resolver_never_asks_over_tcp(release, bad):
    assert bool(judge_system(release)) is bad


def test_numbers_of_versions():
    assert numbers_of("8.1.0") == (8, 1, 0)
    assert numbers_of("8.1.0rc1") == (8, 1, 0)
    assert numbers_of("0.14") == (0, 14)
    assert numbers_of("next") == ()


async def test_a_stall_of_long_ago_is_not_told_as_one_of_now():
    watch = LoopLag.acquire()
    try:
        asyncio.get_running_loop().block(0.3)
        await asyncio.sleep(3600)
        found = await look_at_loop()
    finally:
        watch.release()
    assert found.status is Status.NOTE
    assert found.found.startswith("wakes up in time now, but woke up ")
    assert found.data["worst_now"] < 0.05
