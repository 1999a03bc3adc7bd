"""Print the size and structure of the package, and the files that a call passes through.

The files of a call are those of resilient_io in which a function runs between the caller's `await`
and its result: in the caller's task, and in callbacks of the event loop, such as those of the
connection. Background tasks (the health probe, reconnecting) do not count. The calls are real: a
GET whose connection is reset, and a record that is sent. Both use embedded servers.
`--without-calls` prints only what the source shows.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from resilient_io import ResilientKafkaProducer, ResilientRedis
from resilient_io.testing import FaultProxy, embedded_kafka, embedded_redis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator
    from types import FrameType

    Graph = dict[str, set[str]]

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "resilient_io"
SHOWN = 12


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(module: str, path: Path, tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a module imports, also only for types."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            inner = [node.module] if node.module else []
            base = ".".join([*(above if node.level else []), *inner])
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from modules & {name if name in modules else base for name in names}


def cycles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that reach each other."""
    reached: Graph = {}
    for start in graph:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for target in graph.get(waiting.pop(), ()):
                if target not in found:
                    found.add(target)
                    waiting.append(target)
        reached[start] = found
    groups = {
        tuple(sorted(other for other in reached[node] if node in reached.get(other, ())))
        for node in graph
        if node in reached[node]
    }
    return [list(group) for group in sorted(groups)]


def folders_of(graph: Graph, files: dict[str, Path]) -> Graph:
    """Return which folder imports which; a folder may import those within it, and the reverse."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for module, targets in graph.items():
        source = folder_of(module, files)
        for target in targets:
            other = folder_of(target, files)
            if not f"{other}.".startswith(f"{source}.") and not source.startswith(f"{other}."):
                found[source].add(other)
    return dict(found)


def folder_of(module: str, files: dict[str, Path]) -> str:
    return module if files[module].stem == "__init__" else module.rpartition(".")[0]


def source_measures() -> Iterator[tuple[str, int, Iterable[str]]]:
    paths = sorted(SOURCE.rglob("*.py"))
    files = {module_of(path): path for path in paths}
    trees = {module: ast.parse(path.read_text()) for module, path in files.items()}
    yield "source files", len(paths), ()
    yield "lines of Python", sum(path.read_text().count("\n") for path in paths), ()

    protocols: list[str] = []
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name].add(module)
                if any(ast.unparse(base).partition("[")[0] == "Protocol" for base in node.bases):
                    protocols.append(f"{module}.{node.name}")
    yield "Protocol classes", len(protocols), protocols
    shared = {name: sorted(where) for name, where in classes.items() if len(where) > 1}
    described = [f"{name}: {', '.join(where)}" for name, where in sorted(shared.items())]
    yield "class names in more than one file", len(shared), described

    graph = {
        module: set(imports_of(module, files[module], tree, set(files))) - {module}
        for module, tree in trees.items()
    }
    found = cycles(graph) + cycles(folders_of(graph, files))
    yield "import cycles, also between folders", len(found), map(" <-> ".join, found)


async def files_of(call: Awaitable[object]) -> tuple[set[str], set[str]]:
    """Return the files, without the testing kit, that run in the caller's task and in callbacks."""
    caller = asyncio.current_task()
    root = str(SOURCE / PACKAGE) + "/"
    ignored = f"{root}testing/"
    found: dict[object, set[str]] = {caller: set(), None: set()}

    def trace(frame: FrameType, event: str, argument: object) -> None:
        del event, argument
        path = frame.f_code.co_filename
        task = asyncio.current_task()
        if task in found and path.startswith(root) and not path.startswith(ignored):
            found[task].add(path.removeprefix(root))

    sys.settrace(trace)
    try:
        await call
    finally:
        sys.settrace(None)
    return found[caller], found[None]


async def files_of_get() -> tuple[set[str], set[str]]:
    async with (
        embedded_redis() as server,
        FaultProxy(server.port) as proxy,
        ResilientRedis.from_url(proxy.url) as redis,
    ):
        await redis.set("key", "value")
        proxy.reset_on("GET")
        return await files_of(redis.get("key"))


async def files_of_send() -> tuple[set[str], set[str]]:
    async def send() -> None:
        await (await producer.send("topic", b"value"))

    async with embedded_kafka() as server:
        await server.create_topic("topic")
        async with ResilientKafkaProducer(
            bootstrap_servers=server.bootstrap_servers, enable_idempotence=False
        ) as producer:
            await send()  # connects, and queries the topic's metadata
            return await files_of(send())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-calls", action="store_true", help="do not trace calls")
    parser.add_argument("--verbose", action="store_true", help="list what is counted")
    arguments = parser.parse_args()
    measures = list(source_measures())
    if not arguments.without_calls:
        for name, run in (
            ("files of a GET whose connection dies", files_of_get),
            ("files of a record, from send to its future", files_of_send),
        ):
            own, callbacks = asyncio.run(run())
            measures.append((f"{name}: in the caller's task", len(own), sorted(own)))
            both = own | callbacks
            measures.append((f"{name}: with callbacks of the loop", len(both), sorted(both)))
    for name, count, items in measures:
        print(f"{count:7,}  {name}")
        if arguments.verbose:
            for item in items:
                print(f"           {item}")


if __name__ == "__main__":
    main()
