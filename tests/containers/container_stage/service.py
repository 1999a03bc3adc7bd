"""One of the two services, as Docker sees it."""

import re
import time

_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", re.MULTILINE)


class Service:
    """A service in its container."""

    def __init__(self, name, made):
        self.name = name
        self.made = made

    @property
    def docker(self):
        return self.made.get_wrapped_container()

    def log(self, since=None, until=None):
        """What it logged between two times."""
        return self.docker.logs(since=since, until=until).decode(errors="replace")

    def records(self, since=None, until=None):
        """How many log records, and how many lines they take."""
        said = self.log(since, until)
        return len(_RECORD.findall(said)), len(said.splitlines())

    def state(self):
        """Docker's word on it."""
        self.docker.reload()
        return self.docker.attrs["State"]

    @property
    def restarts(self):
        self.docker.reload()
        return self.docker.attrs["RestartCount"]

    @property
    def health(self):
        """What its HEALTHCHECK came to; None if it has none."""
        return self.state().get("Health", {}).get("Status")

    def stop(self, grace):
        """Send SIGTERM, and SIGKILL after `grace` seconds; how long it took, and the exit code."""
        began = time.monotonic()
        self.docker.stop(timeout=grace)
        return time.monotonic() - began, self.state()["ExitCode"]

    def throttled(self):
        """How often it was stopped because its share of the CPU was used up."""
        read = "cat /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/cpu/cpu.stat"
        _, output = self.docker.exec_run(["sh", "-c", f"{read} 2>/dev/null"])
        return int(re.search(rb"nr_throttled (\d+)", output)[1])

    def memory_peak(self):
        """The most memory it had at once, in bytes."""
        read = "cat /sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes"
        _, output = self.docker.exec_run(["sh", "-c", f"{read} 2>/dev/null"])
        return int(output.split()[0])
