"""Runs seeds in several processes, and survives seeds that hang or end their process."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 10  # seeds that a process gets at once: 0.3 s of work

Job = tuple[int, str | None]  # seed and theme


class SimulationBroken(Exception):
    """The simulation cannot run at all, for example because a module cannot be imported."""


class _Worker:
    """One process, and the jobs that it has not finished."""

    def __init__(self, python: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [python, "-m", "tests.simulation.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment},
        )
        self._received = b""
        self.ready = False
        self.jobs: list[Job] = []
        self.running: Job | None = None
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()

    def give(self, jobs: list[Job]) -> None:
        """Start to run these jobs in the process."""
        self.jobs = jobs
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if it has ended, `messages` notices
            self._process.stdin.write(json.dumps(jobs).encode() + b"\n")
            self._process.stdin.flush()

    def messages(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived, or None if the process has ended."""
        received = os.read(self.output, 1 << 16)
        if not received:
            return None
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self, *, kill: bool) -> str:
        """End the process, wait for it, and return what it wrote to stderr."""
        if kill:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        self._errors.close()
        return text


def run_seeds(
    jobs: Iterable[Job],
    *,
    processes: int,
    arguments: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
    chunk: int = CHUNK,
    tick: float = 0.2,
) -> Iterator[dict[str, Any] | None]:
    """Yield the result of each job as it arrives, and None at least every `tick` seconds.

    A result is what `worker.summary` returns. Instead, it has a key "crash" with a traceback if the
    run raised, "hang" with a traceback if it did not end, and "died" if it ended its process.

    Args:
        jobs: Seeds and themes. The next ones are taken when a process is idle.
        processes: Number of processes.
        arguments: Arguments of the workers.
        environment: Variables for the workers.
        python: The interpreter.
        chunk: Number of jobs that a process gets at once.
        tick: Longest time without a yield.

    Raises:
        SimulationBroken: A worker cannot import the simulation or the client.
    """
    waiting = iter(jobs)
    rest: list[Job] = []  # jobs of workers that ended
    workers: list[_Worker] = []
    selector = selectors.DefaultSelector()

    def start() -> None:
        worker = _Worker(python, arguments, environment or {})
        workers.append(worker)
        selector.register(worker.output, selectors.EVENT_READ, worker)

    def end(worker: _Worker, *, kill: bool = False) -> str:
        selector.unregister(worker.output)
        workers.remove(worker)
        return worker.end(kill=kill)

    def assign(worker: _Worker) -> None:
        chosen = rest[:chunk]
        del rest[:chunk]
        while len(chosen) < chunk and (job := next(waiting, None)) is not None:
            chosen.append(job)
        if chosen:
            worker.give(chosen)
        else:
            end(worker)

    try:
        for _ in range(processes):
            start()
        while workers:
            ready = selector.select(tick)
            if not ready:
                yield None
            for key, _ in ready:
                worker: _Worker = key.data
                messages = worker.messages()
                if messages is None:
                    errors = end(worker)
                    if worker.running is None:
                        raise SimulationBroken(errors)
                    kind = "hang" if "Timeout (" in errors else "died"
                    seed, theme = worker.running
                    yield {"seed": seed, "theme": theme, kind: errors}
                    rest += worker.jobs
                    start()
                    continue
                for message in messages:
                    if "broken" in message:
                        raise SimulationBroken(message["broken"])
                    if "begins" in message:
                        seed, theme = message["begins"]
                        worker.running = (seed, theme)
                        worker.jobs.remove(worker.running)
                    elif "result" in message:
                        worker.running = None
                        yield message["result"]
                    else:  # ready or idle
                        assign(worker)
    finally:
        while workers:
            end(workers[0], kill=True)
        selector.close()
