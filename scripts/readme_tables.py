"""Copy the benchmark tables of docs/benchmarks.md into the README.

    python scripts/readme_tables.py            write them
    python scripts/readme_tables.py --check    change nothing; exit with 1 if they differ

`make bench ARGS=--write-docs` runs this script. The README shows the first table of each suite,
without the columns about targets.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
BENCHMARKS: Final = ROOT / "docs" / "benchmarks.md"

_COPY: Final = re.compile(r"<!-- benchmarks (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
_MEASURED: Final = re.compile(
    r"<!-- measured (\w+): begin -->(?:(?!<!--).)*?\n((?:\|[^\n]*\n)+)", re.DOTALL
)
_FIRST_OMITTED: Final = "must reach"
"""First column of the measured tables that the README leaves out."""


def with_current_tables(readme: str) -> str:
    """Return the README's text with the tables of docs/benchmarks.md."""
    measured = BENCHMARKS.read_text(encoding="utf-8")
    tables = {name: _without_targets(table) for name, table in _MEASURED.findall(measured)}
    # A suite that was not measured yet keeps the README's table.
    return _COPY.sub(
        lambda copy: f"<!-- benchmarks {copy[1]} -->\n{tables.get(copy[1], copy[2])}<!-- end -->",
        readme,
    )


def _without_targets(table: str) -> str:
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    columns = [cell.strip() for cell in rows[0]].index(_FIRST_OMITTED)
    shown = [cells[:columns] for cells in rows]
    return "".join(f"|{'|'.join(cells)}|\n" for cells in shown if _compares(cells))


def _compares(cells: list[str]) -> bool:
    """Return whether a row compares clients.

    Others are a further target for the row above, or about resilient-io alone.
    """
    name, *peers, ours = map(str.strip, cells)
    return all([name, ours, *peers]) and set(peers) != {"-"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = with_current_tables(before)
    if before == after:
        return 0
    if check:
        print("README.md is out of date: run python scripts/readme_tables.py", file=sys.stderr)
        return 1
    README.write_text(after, encoding="utf-8")
    print("written: README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
