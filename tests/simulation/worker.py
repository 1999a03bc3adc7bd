"""A process that runs seeds for a search: `python -m tests.simulation.worker`.

It reads one request per line of stdin, a JSON list of [seed, theme], and writes a line of JSON to
stdout for each seed before it runs it, and one with the result. It ends when stdin is closed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from .plan import Plan
    from .run import Result

PACKAGE = "tests.simulation"
SEED_LIMIT = 20.0  # seconds of real time; a seed usually takes less than 0.03 s

_FILLS_CACHES = (1, 10, 100, 1000)
"""Numbers of seeds after which `gc.freeze` excludes what is still in use: caches."""

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+) *(.*)")
"""A line of /proc/self/maps: begin, end, permissions, inode (0 for memory without a file), name."""

_HUGE_PAGE = 1 << 21  # bytes
_MADV_COLLAPSE = 25  # of Linux 6.1 and later


def load(
    plant: str | None = None, package: str = PACKAGE
) -> tuple[Callable[[Plan], Result], Callable[[int, str | None], Plan]]:
    """Return `run` and `draw_plan`, after a bug was planted into the client.

    Bugs replace source text. Therefore nothing else may import the client before.

    Args:
        plant: The name of the bug, or None.
        package: The package of the simulation; tests of the command use another one.
    """
    if plant is not None:
        importlib.import_module(f"{package}.planted_bugs").plant(plant)
    run = importlib.import_module(f"{package}.run").run
    return run, importlib.import_module(f"{package}.draw").draw_plan


def summary(
    seed: int, theme: str | None, result: Result, *, digest: bool = False
) -> dict[str, Any]:
    """Return what a search needs to know about a run, as plain data."""
    return {
        "seed": seed,
        "theme": theme,
        "digest": result.digest if digest else "",
        "virtual": result.virtual_seconds,
        "calls": len(result.history.operations),
        "violations": [
            [violation.rule, violation.detail, list(violation.operations), violation.at]
            for violation in result.violations
        ],
    }


def serve(requests: TextIO, replies: TextIO, options: argparse.Namespace) -> None:
    """Run the seeds of all requests."""

    def reply(**facts: Any) -> None:
        replies.write(json.dumps(facts) + "\n")
        replies.flush()

    try:
        run, draw_plan = load(options.plant, options.package)
    except Exception:  # noqa: BLE001 - the search shows it
        reply(broken=traceback.format_exc())
        return
    # The collector would look at all that was imported again and again. It runs after each seed.
    gc.disable()
    gc.collect()
    gc.freeze()
    use_huge_pages()
    ran = 0
    spent = time.process_time()
    reply(ready=True)
    for request in requests:
        for seed, theme in json.loads(request):
            reply(begins=[seed, theme])
            # A thread in C ends this process, even if the seed is stuck in a loop without await.
            faulthandler.dump_traceback_later(options.limit, exit=True)
            collected = _full_collections()
            try:
                finished = run(draw_plan(seed, theme))
                result = summary(seed, theme, finished, digest=options.digests)
                finished.history.clear()
                del finished
            except Exception:  # noqa: BLE001 - a defect of the simulation, or of the client
                result = {"seed": seed, "theme": theme, "crash": traceback.format_exc()}
            faulthandler.cancel_dump_traceback_later()
            # What the run left behind is young, unless the run has collected garbage itself. After
            # a full collection, Python would have to allocate its free lists again.
            gc.collect(1 if _full_collections() == collected else 2)
            ran += 1
            if ran in _FILLS_CACHES:
                gc.freeze()  # what is left are caches
                use_huge_pages()
            before, spent = spent, time.process_time()
            reply(result=result | {"cpu": spent - before})
        gc.collect()  # also what something referred to until the next run
        reply(idle=True)


def use_huge_pages() -> None:
    """Move the memory of this process to huge pages, if Linux has some.

    A run reads and writes all over the process. With fewer pages, it takes less time, most of all
    on a virtual machine, where an address is looked up in two page tables.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for begin, end, permissions, inode, name in _MAPPING.findall(maps.read_text()):
        if permissions == "rw-p" and inode == "0" and name in ("", "[heap]"):
            first = -(-int(begin, 16) // _HUGE_PAGE)
            for page in range(first, int(end, 16) // _HUGE_PAGE):
                advise(page * _HUGE_PAGE, _HUGE_PAGE, _MADV_COLLAPSE)  # fails on other kernels


def _full_collections() -> int:
    """Return how often garbage of all ages was collected."""
    return gc.get_stats()[2]["collections"]


def main() -> None:
    """Run a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plant")
    parser.add_argument("--package", default=PACKAGE)
    parser.add_argument("--digests", action="store_true", help="hash the history of each seed")
    parser.add_argument("--limit", type=float, default=SEED_LIMIT)
    parser.add_argument("--coverage", help="start of a file name for the executed lines")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which ends this one
    faulthandler.enable()
    # Prints of the client must not end up between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if options.coverage is None:
        serve(sys.stdin, replies, options)
        return
    from coverage import Coverage  # a test dependency that only this option needs

    file = f"{options.coverage}.{os.getpid()}"
    measured = Coverage(data_file=file, config_file=False, source_pkgs=["resilient_io"])
    measured.start()
    try:
        serve(sys.stdin, replies, options)
    finally:
        measured.stop()
        measured.save()


if __name__ == "__main__":
    main()
