"""The host checks, on the files of a made-up root."""

import pytest

from resilient_io import ConfigurationError
from resilient_io.doctor import Status, examine_host
from resilient_io.doctor.host import Cgroup, check_memory, judge_cpu, judge_kernel, read_cgroup

GIB = 1 << 30


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(root, **files):
    """Write the files of a container with cgroup v2, whose own group is the mount itself."""
    own = {name.replace("__", "."): text for name, text in files.items()}
    return write(
        root,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in own.items()},
        },
    )


def version_1(root, **files):
    """Write the files of a container with cgroup v1."""
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


def test_limits_of_cgroup_v2_are_read(tmp_path):
    root = version_2(
        tmp_path,
        cpu__max="10000 100000\n",
        cpu__stat="usage_usec 5\nnr_periods 200\nnr_throttled 150\nthrottled_usec 2500000\n",
        memory__max=f"{GIB}\n",
        memory__current=f"{GIB // 2}\n",
        memory__stat=f"anon 1\ninactive_file {GIB // 4}\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
    )
    assert read_cgroup(root) == Cgroup(
        cpus=0.1,
        periods=200,
        throttled=150,
        memory_limit=GIB,
        memory=GIB // 4,
        oom_kills=2,
    )


def test_limits_of_cgroup_v1_are_read(tmp_path):
    root = version_1(
        tmp_path,
        cpu___cpu__cfs_quota_us="50000\n",
        cpu___cpu__cfs_period_us="100000\n",
        cpu___cpu__stat="nr_periods 100\nnr_throttled 10\nthrottled_time 3000000000\n",
        memory___memory__limit_in_bytes=f"{GIB}\n",
        memory___memory__usage_in_bytes=f"{GIB // 2}\n",
        memory___memory__stat=f"cache 5\ntotal_inactive_file {GIB // 4}\n",
        memory___memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    )
    assert read_cgroup(root) == Cgroup(
        cpus=0.5,
        periods=100,
        throttled=10,
        memory_limit=GIB,
        memory=GIB // 4,
        oom_kills=1,
    )


def test_cgroup_without_limits_has_none(tmp_path):
    root = version_1(tmp_path, memory___memory__limit_in_bytes="9223372036854771712\n")
    group = read_cgroup(root)
    assert (group.cpus, group.memory_limit) == (None, None)
    root = version_2(tmp_path / "two", cpu__max="max 100000\n", memory__max="max\n")
    group = read_cgroup(root)
    assert (group.cpus, group.memory_limit) == (None, None)


def test_limits_of_parent_groups_count(tmp_path):
    base = "sys/fs/cgroup"
    root = write(
        version_2(tmp_path),
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


def test_limits_are_unknown_without_a_cgroup(tmp_path):
    assert read_cgroup(tmp_path) is None
    assert judge_cpu(None, None).status is Status.UNKNOWN
    assert check_memory(tmp_path).status is Status.UNKNOWN


def throttled(periods, times):
    return Cgroup(cpus=0.5, periods=periods, throttled=times)


@pytest.mark.parametrize(
    ("before", "after", "status", "said"),
    [
        ((100, 0), (105, 0), Status.OK, "limit 0.5 CPU, not throttled"),
        ((100, 1), (105, 1), Status.OK, "limit 0.5 CPU, hardly throttled"),
        ((4, 3), (4, 3), Status.OK, "hardly"),  # too few periods to judge
        ((95, 5), (100, 5), Status.NOTE, "in 5% of the periods since"),
        ((95, 60), (100, 60), Status.PROBLEM, "in 60% of the periods since"),
        ((99_995, 0), (100_000, 4), Status.PROBLEM, "in 80% of the current ones"),
        ((99_995, 0), (100_000, 1), Status.OK, "hardly"),
    ],
)
def test_throttling_is_judged_by_its_frequency(before, after, status, said):
    found = judge_cpu(throttled(*before), throttled(*after))
    assert found.status is status
    assert said in found.found
    if status is not Status.OK:
        assert "resources.limits.cpu" in found.advice


@pytest.mark.parametrize(
    ("used", "status"), [(10, Status.OK), (80, Status.NOTE), (95, Status.PROBLEM)]
)
def test_memory_is_judged_by_its_distance_from_the_limit(tmp_path, used, status):
    root = version_2(tmp_path, memory__max=f"{100 << 20}\n", memory__current=f"{used << 20}\n")
    found = check_memory(root)
    assert (found.status, found.found) == (status, f"{used} MiB of 100 MiB used ({used}%)")


def test_cached_files_do_not_count_as_used_memory(tmp_path):
    root = version_2(
        tmp_path,
        memory__max=f"{100 << 20}\n",
        memory__current=f"{99 << 20}\n",
        memory__stat=f"inactive_file {60 << 20}\n",
    )
    assert check_memory(root).found == "39 MiB of 100 MiB used (39%)"


def test_killed_processes_are_a_problem(tmp_path):
    found = check_memory(version_2(tmp_path, memory__max="max\n", memory__events="oom_kill 1\n"))
    assert found.status is Status.PROBLEM
    assert found.found.startswith("processes of this container that the kernel killed: 1")
    assert "OOMKilled" in found.advice


@pytest.mark.parametrize(
    ("release", "status", "said"),
    [
        ("3.16.0-4", Status.NOTE, "unregister_netdevice"),
        ("4.3.9", Status.NOTE, "unregister_netdevice"),
        ("4.4.0", Status.NOTE, "throttled"),
        ("4.14.153", Status.NOTE, "throttled"),
        ("4.14.154", Status.NOTE, "5 s more"),
        ("4.19.84-1", Status.NOTE, "5 s more"),
        ("5.0.0", Status.NOTE, "throttled"),
        ("5.3.9", Status.OK, "no known bugs"),
        ("5.4.0-42-generic", Status.OK, "no known bugs"),
        ("6.18.44", Status.OK, "no known bugs"),
        ("6.6", Status.OK, "no known bugs"),
        ("3.10.0-1160.el7.x86_64", Status.NOTE, "unregister_netdevice"),
        ("whatever", Status.UNKNOWN, "cannot be read"),
    ],
)
def test_known_kernel_bugs_are_reported(release, status, said):
    found = judge_kernel(release)
    assert found.status is status
    assert said in found.found
    assert release in found.found
    assert ("changelog" in found.advice) is (status is Status.NOTE)


def test_fixed_kernels_are_not_reported():
    for repaired in ("4.14.154", "4.19.84", "5.3.9", "5.4.0"):
        assert "throttled" not in judge_kernel(repaired).found
    assert "unregister" not in judge_kernel("4.4.0").found
    assert "5 s" not in judge_kernel("5.0.0").found


def test_examine_host_rejects_a_negative_timeout():
    with pytest.raises(ConfigurationError):
        examine_host(timeout=-1)
