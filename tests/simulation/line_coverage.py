"""The lines of the client that a search executes: what no seed reaches is not tested."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .processes import ROOT
from .search import search

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TextIO

    from .processes import Job
    from .search import Summary

FILES = (
    *(
        "redis/executor.py",
        "redis/attempt.py",
        "redis/connection.py",
        "redis/response_queue.py",
        "redis/watchdog.py",
        "redis/lifetime.py",
    ),
    *("redis/connect.py", "redis/multiplexer.py", "redis/pool.py", "redis/pipeline.py"),
    *("redis/exclusive_call.py", "redis/driver_connection.py"),
    *("redis/batch.py", "redis/waiting.py", "redis/session.py"),
    *("redis/probe.py", "redis/runtime.py", "redis/sharing.py", "redis/scripts.py"),
    *("redis/lock.py", "redis/lock_keys.py", "redis/large_values.py"),
    *("health/prober.py", "health/machine.py", "health/dependency.py"),
)
_EXCLUDED = ("if TYPE_CHECKING:", "@overload", "raise NotImplementedError")

NOT_SIMULATED = {
    "TLS": (
        "if self._mismatch is not None:",
        "if cause is Cause.TIMED_OUT and self.uses_tls:",
        "async def _check_for(self, mismatch: str)",
        "self._mismatch = TLS_PORT",
        "return ssl.SSLError(1, TLS_PORT)",
        "load_files(connection)",
        "return await find_alert(connection._connection_arguments())",
        "connection: Any = self.connection(client_name=None, connect_timeout=None, place=place)",
        "if not self._wakes_directly or asyncio.current_task(self._loop) is not None:",
    ),
    "Unix sockets": ('if settings.get("path"):',),
    "Sentinel": (
        "if manager is not None:",
        "if plain is not None and isinstance(pool, SentinelConnectionPool):",
        "class SentinelNode:",
        "async def role_over(connection: AbstractConnection)",
        "def expect_master(self)",
        "async def check_role(self, connection: AbstractConnection)",
        "async def _role_of(self, address: tuple[str, int])",
        "def with_source(self, source: AddressSource)",
        "def address_map(self)",
        "def check_mode(self, mode: str | None, place: Place | None)",
        "async def connect_again(",
        "def leave_server(self",
        "async def _end_waits(self",
        "if is_ended_wait(reply):",
        "def _master_changed(self",
        "def _make_monitor(self)",
        "def sibling(self, target: RedisTarget",
        "def companion(self, kind: type[C]",
        "if target.master is not None:",
        "if self._monitor is not None:",
        "if failure is None and self._monitor is not None:",
        "for companion in list(self._companions.values()):",
        "if self.failover.in_progress:",
        "if self.failover.holding:",
        "def failover_began(self",
        "def failover_ended(self",
        "def remark(self",
        "if self._contact is not State.UNKNOWN and self._failovers:",
    ),
    "Redis Cluster": (
        "after = self._patient_backoff(",
        "def _patient_backoff(",
        "return  # another server has the answer",
        'await exchange(connection, ("ASKING",))',
        "if isinstance(remaining, AskError):",
        "except AskError:",
        "def server_changed(self)",
        "def move_waiting(",
        "def take(self, wanted:",
    ),
    "reads from replicas": (
        "replica = self._choose_replica(",
        "return ReplicaRead(make(replica)",
    ),
    "acknowledgements of replicas (WAIT)": (
        "if self._acknowledgements is not None:",
        "def not_replicated(",
        "if durability is not None and any_replicated(",
    ),
    "a second event loop, or one that was closed": (
        "if self._lifetime.loop_closed:",
        "self.binding.check(self._client)",
        "if self._loop is None or self._loop.is_closed():",
        "        if self._loop is not None:",
        "def abandon(self)",
        "except RuntimeError:  # no loop runs yet",
    ),
    "a forked process": (
        "if self._lifetime.forked:",
        "def note_fork(self)",
        "def disown(self)",
    ),
    "a defect of the probe itself": (
        'return ProbeFailed(Cause.OTHER, "the probe cancelled itself")',
        "if not self._logged_bug:",
        'return ProbeFailed(Cause.OTHER, f"the probe raised',
    ),
    "a socket of the kernel": ("return size + send_queue_size(sock.fileno())",),
}
"""Lines that cannot run in the simulation, by what it lacks. With a line, its block is left out."""


def measure(
    chosen: Iterator[Job], *, processes: int, arguments: Sequence[str], output: TextIO
) -> tuple[Summary, list[str]]:
    """Return the summary of a search, and the lines of a report about the lines it executed."""
    from coverage import Coverage  # a dependency of the tests that only this report needs

    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        summary = search(
            chosen, processes=processes, arguments=[*arguments, "--coverage", data], output=output
        )
        measured = Coverage(data_file=data, config_file=False, source_pkgs=["resilient_io"])
        measured.combine([folder])
        for text in _EXCLUDED:
            measured.exclude(text)
        for texts in NOT_SIMULATED.values():
            for text in texts:
                measured.exclude(re.escape(text))
        return summary, list(_report(measured))


def _report(measured: object) -> Iterator[str]:
    """Yield a line per file, and one for all."""
    yield "file                     lines  executed   missing lines"
    lines = executed = 0
    for name in FILES:
        path = ROOT / "src" / "resilient_io" / name
        _, statements, _, missing, text = measured.analysis2(str(path))  # type: ignore[attr-defined]
        yield _line(name, len(statements), len(missing), text)
        lines += len(statements)
        executed += len(statements) - len(missing)
    yield _line("all", lines, lines - executed, "")
    yield "not counted, because the simulation does not have it:"
    for reason, texts in NOT_SIMULATED.items():
        yield f"  {reason}: {len(texts)} {'place' if len(texts) == 1 else 'places'}"


def _line(name: str, lines: int, missing: int, text: str) -> str:
    share = 100 * (lines - missing) / lines if lines else 100.0
    return f"{name:23} {lines:6,}  {share:7.1f}%   {text}".rstrip()
