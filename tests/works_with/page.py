"""The page docs/works-with.md, rendered from `results.json` and the reasons in `libraries.toml`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from .suites import HERE, ROOT, libraries, redis_py

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .suites import Library

PAGE: Final = ROOT / "docs" / "works-with.md"
RESULTS: Final = HERE / "results.json"

_PART: Final = re.compile(r"(<!-- works with: begin -->\n).*?(<!-- works with: end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the two runs of a library's tests came to.

    Attributes:
        library: Its name on PyPI.
        version: The release.
        plain: How many tests passed on redis-py.
        resilient: How many passed on ResilientRedis, at once or when repeated.
        missing: The tests that passed on redis-py only.
        redis_py: The version of redis-py.
    """

    library: str
    version: str
    plain: int
    resilient: int
    missing: tuple[str, ...]
    redis_py: str = redis_py()


def read_results() -> dict[str, Result]:
    if not RESULTS.is_file():
        return {}
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    return {row["library"]: Result(**row | {"missing": tuple(row["missing"])}) for row in rows}


def write_results(results: Mapping[str, Result]) -> None:
    rows = [asdict(results[name]) for name in libraries() if name in results]
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def unexplained(library: Library, result: Result) -> list[str]:
    """Return the tests that are missing without a reason."""
    return [
        test
        for test in result.missing
        if not any(fnmatchcase(test, known.test) for known in library.exceptions)
    ]


def updated(page: str) -> str:
    """Return the page with the table and the exceptions of the recorded results."""
    return _PART.sub(lambda part: part[1] + "\n".join(_lines()) + "\n" + part[2], page)


def _lines() -> Iterator[str]:
    known, results = libraries(), read_results()
    yield "| library | what it does with Redis | tests passed on redis-py | on `ResilientRedis` |"
    yield "|---|---|---|---|"
    for name, result in results.items():
        project = f"[{name}](https://pypi.org/project/{name}/) {result.version}"
        counts = f"{result.plain:,} | {result.resilient:,}"
        yield f"| {project} | {known[name].uses_redis} | {counts} |"
    yield ""
    versions = sorted({result.redis_py for result in results.values()})
    yield f"redis-py {', '.join(versions)}. Not run:"
    yield ""
    for name in results:
        if known[name].left_out:
            yield f"- {name}: {known[name].left_out}"
    yield ""
    yield "### Exceptions"
    yield ""
    yield "These tests pass on redis-py, and not, or not always, on `ResilientRedis`:"
    yield ""
    exceptions = list(_exceptions(known, results))
    yield from exceptions or [
        "None: every test that passes on redis-py passes on `ResilientRedis`."
    ]


def _exceptions(known: Mapping[str, Library], results: Mapping[str, Result]) -> Iterator[str]:
    # All known ones: some pass when the machine is busy, or when they are repeated.
    for name, result in results.items():
        for each in known[name].exceptions:
            yield f"- **{name}**, `{each.test.partition('::')[2]}`: {each.reason}"
        for test in unexplained(known[name], result):
            yield f"- **{name}**, `{test}`: not explained yet."
