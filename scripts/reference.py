"""Write the generated pages of the docs from the code, and the README's copies.

    python scripts/reference.py            write what is out of date
    python scripts/reference.py --check    change nothing; exit code 1 if something is out of date
    python scripts/reference.py --readme   write the README's copies only

The pages of docs/reference/ come from the docstrings and signatures of the public names, the one of
commands from the command table. The README's tables of speed are the first of each suite that
`make bench` put into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from docstrings import attribute_docs, describe, docstring_of

from resilient_io.redis.commands import Effect, Route, known_names, lookup

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"

_NOTICE = "<!-- Written by scripts/reference.py from the docstrings: change those. -->"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the reference.

    Attributes:
        title: Its heading.
        module: The module that it is about.
        introduction: Module whose docstring opens the page, if not that of `module`.
        without: Public names that are told about on another page.
        also: Further modules, all of whose `__all__` follows.
    """

    title: str
    module: str
    introduction: str = ""
    without: Sequence[str] = ()
    also: Sequence[str] = ()


PAGES: Final = {
    "resilient_io.md": Page("resilient_io", "resilient_io", without=("health", "kafka", "redis")),
    "health.md": Page("resilient_io.health", "resilient_io.health"),
    "redis.md": Page(
        "resilient_io.redis", "resilient_io.redis", also=("resilient_io.redis.commands",)
    ),
    "kafka.md": Page("resilient_io.kafka", "resilient_io.kafka"),
    "lifecycle.md": Page("resilient_io.lifecycle", "resilient_io.lifecycle"),
    "serve.md": Page("resilient_io.serve", "resilient_io.serve"),
    "telemetry.md": Page("resilient_io.telemetry", "resilient_io.telemetry"),
    "probing.md": Page("resilient_io.probing", "resilient_io.probing"),
    "doctor.md": Page("resilient_io.doctor", "resilient_io.doctor"),
    "testing.md": Page("resilient_io.testing", "resilient_io.testing"),
}


def page_text(page: Page) -> str:
    """Write a page."""
    module = importlib.import_module(page.module)
    lines = [f"# {page.title}", "", _NOTICE, "", *docstring_of(module), ""]
    if page.module == "resilient_io":
        errors = importlib.import_module("resilient_io.errors")
        lines += ["## Errors", "", *docstring_of(errors), "", *_elsewhere(module), ""]
    if page.module in {"resilient_io.kafka", "resilient_io.redis"}:
        errors = importlib.import_module(f"{page.module}.errors")
        lines += ["## Errors", "", *docstring_of(errors), ""]
    if page.module == "resilient_io.testing":
        lines += _fixtures()
    lines += ["## Names", ""]
    names = _names(module, page.without)
    told = [getattr(module, name) for name in names]
    for name, thing in zip(names, told, strict=True):
        lines += describe(name, thing, told)
    for also in page.also:
        further = importlib.import_module(also)
        lines += [f"## {also}", "", *docstring_of(further), ""]
        for name in _names(further, ()):
            lines += describe(name, getattr(further, name))
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _names(module: ModuleType, without: Sequence[str]) -> list[str]:
    return [name for name in module.__all__ if _home(module, name) not in without]


def _home(module: ModuleType, name: str) -> str:
    """Give the package under resilient_io in which a name is at home."""
    where: str = getattr(getattr(module, name), "__module__", "") or ""
    return [*where.split("."), ""][1]


def _elsewhere(module: ModuleType) -> list[str]:
    lines = ["These names of `resilient_io` have pages of their own:", ""]
    for home in ("health", "kafka", "redis"):
        names = [name for name in module.__all__ if _home(module, name) == home]
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append(f"- [{home}]({home}.md): {listed}")
    return lines


def _fixtures() -> list[str]:
    plugin = importlib.import_module("resilient_io.testing.pytest_plugin")
    lines = ["## Fixtures", "", *docstring_of(plugin), ""]
    tree = ast.parse(inspect.getsource(plugin))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            fixture = any("fixture" in ast.unparse(each) for each in node.decorator_list)
            if fixture and not node.name.startswith("_"):
                text = " ".join((ast.get_docstring(node) or "").split())
                lines.append(f"- `{node.name}`: {text}")
    return [*lines, ""]


# -- the command table ---------------------------------------------------------------------------

_COMMANDS_HEAD = """\
# The command table

<!-- Written by scripts/reference.py from src/resilient_io/redis/commands: change that. -->

What the gate knows of each command. `make lint` holds it against what real servers and redis-py
know. A command that is not here is accumulating and travels a lane; tell the table of it with
`resilient_io.redis.commands.register`.

**Effect**: what a second execution does, compared with one.

{effects}

"Up to" means that it depends on the arguments: plain `SET` is idempotent, `SET … NX` is checked.

**Route**: the connection that the command may travel.

{routes}

"Or dedicated" means that it depends on the arguments: `XREAD` with `BLOCK` waits on a connection of
its own.
"""


def commands_text() -> str:
    """Write the page of the command table."""
    effects = "\n".join(
        f"- {name.lower()}: {text}" for name, text in attribute_docs(Effect).items()
    )
    routes = "\n".join(f"- {name.lower()}: {text}" for name, text in attribute_docs(Route).items())
    lines = [_COMMANDS_HEAD.format(effects=effects, routes=routes)]
    lines += ["| command | effect | route | why, or what to use |", "|---|---|---|---|"]
    for name in known_names():
        spec = lookup((name,))
        effect = ("up to " if spec.judge else "") + spec.effect.name.lower()
        route = spec.route.value
        if spec.route is Route.MULTIPLEXED and lookup(_blocking(name)).route is Route.EXCLUSIVE:
            route += " or dedicated"
        words = " ".join(text for text in (spec.reason, spec.advice) if text)
        said = words.replace("|", "\\|")
        lines.append(f"| {name} | {effect} | {route} | {said} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _blocking(name: str) -> tuple[str, ...]:
    """Give the words of a command with the option that makes some commands block."""
    return (name, "GROUP", "group", "consumer", "BLOCK", "0", "STREAMS", "key", ">")


# -- the README's copies -------------------------------------------------------------------------

_SPEED: Final = re.compile(r"<!-- benchmarks (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
_MEASURED: Final = re.compile(
    r"<!-- measured (\w+): begin -->(?:(?!<!--).)*?\n((?:\|[^\n]*\n)+)", re.DOTALL
)
_REQUIRED: Final = "must reach"
"""Column of the measured tables from which on the README does not show them."""


def readme_text() -> str:
    """Put the tables of speed into the README, without what must be reached."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = ROOT / "docs" / "benchmarks.md"
    document = measured.read_text(encoding="utf-8") if measured.exists() else ""
    tables = {name: _without_targets(table) for name, table in _MEASURED.findall(document)}
    # What was not measured yet leaves the README as it is.
    return _SPEED.sub(
        lambda found: (
            f"<!-- benchmarks {found[1]} -->\n{tables.get(found[1], found[2])}<!-- end -->"
        ),
        text,
    )


def _without_targets(table: str) -> str:
    rows = [line.strip("|").split("|") for line in table.splitlines()]
    columns = [cell.strip() for cell in rows[0]].index(_REQUIRED)
    shown = [cells[:columns] for cells in rows]
    # A row with gaps is a further target for the rates above it, or about ours alone.
    return "".join(f"|{'|'.join(cells)}|\n" for cells in shown if all(map(str.strip, cells)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--readme", action="store_true", help="look at the README only")
    options = parser.parse_args()
    check = options.check
    written = {ROOT / "README.md": readme_text()}
    if not options.readme:
        written |= {REFERENCE / name: page_text(page) for name, page in PAGES.items()}
        written[REFERENCE / "commands.md"] = commands_text()
    outdated = [
        path
        for path, text in written.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in outdated:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is out of date: run python scripts/reference.py", file=sys.stderr)
        else:
            path.write_text(written[path], encoding="utf-8")
            print(f"written: {name}")
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
