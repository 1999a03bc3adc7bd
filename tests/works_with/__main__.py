"""The command `python -m tests.works_with`, which `make works-with` runs.

It runs the tests of libraries that use redis-py's asyncio client, once on redis-py and once with
`ResilientRedis` in its place. A test that passes on redis-py must pass on `ResilientRedis`, or be
listed with a reason in `libraries.toml`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .page import PAGE, Result, read_results, unexplained, updated, write_results
from .suites import CLIENTS, ROOT, Suite, SuiteError, libraries

if TYPE_CHECKING:
    from .suites import Library

FOLDER: Final = ROOT / ".works-with"
_REPEATS: Final = 2
"""How often tests that failed on ResilientRedis alone are repeated: many of them check times."""


def measure(library: Library, folder: Path) -> Result:
    """Run the tests of a library on both clients.

    Raises:
        SuiteError: The library cannot be had, or pytest did not run its tests.
    """
    suite = Suite(library, folder)
    suite.prepare()
    plain, resilient = (suite.run(client) for client in CLIENTS)
    passed = set(resilient.passed)
    failed = dict(resilient.failed)
    for _ in range(_REPEATS):
        if not (missing := plain.passed - passed):
            break
        repeated = suite.run("resilient", missing)
        passed |= repeated.passed
        failed |= repeated.failed
    missing = plain.passed - passed
    for test in sorted(missing):
        print(f"\n--- {test} (passes on redis-py)\n{failed.get(test, 'it did not run')}")
    return Result(
        library=library.name,
        version=library.version,
        plain=len(plain.passed),
        resilient=len(passed),
        missing=tuple(sorted(missing)),
    )


def main() -> int:
    known = libraries()
    parser = argparse.ArgumentParser(
        prog="make works-with", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("library", nargs="*", help=f"all by default: {', '.join(known)}")
    parser.add_argument(
        "--folder",
        type=Path,
        default=FOLDER,
        help="keeps sources (sources/NAME-VERSION; what is there is not fetched), environments and "
        "the logs of pytest (runs/)",
    )
    parser.add_argument("--write-docs", action="store_true", help=f"update {PAGE.name}")
    arguments = parser.parse_args()
    if unknown := set(arguments.library) - known.keys():
        parser.error(f"unknown library {', '.join(unknown)}: use {', '.join(known)}")
    results: list[Result] = []
    broken = False
    for name in arguments.library or known:
        library = known[name]
        started = time.monotonic()
        print(f"{name} {library.version} ...", flush=True)
        try:
            result = measure(library, arguments.folder.resolve())
        except SuiteError as error:
            print(f"{name}: {error}", file=sys.stderr)
            broken = True
            continue
        results.append(result)
        print(
            f"{name} {library.version}: {result.plain} tests pass on redis-py,"
            f" {result.resilient} on ResilientRedis ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
        if tests := unexplained(library, result):
            broken = True
            print(
                f"{name}: without a reason in libraries.toml:", *tests, sep="\n  ", file=sys.stderr
            )
    if arguments.write_docs:
        write_results({**read_results(), **{each.library: each for each in results}})
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"written: {PAGE.relative_to(ROOT)}")
    return broken


if __name__ == "__main__":
    sys.exit(main())
