"""The library can be simulated: its source uses no clock, no thread and no global randomness."""

import ast
from pathlib import Path

import pytest

import resilient_io

ROOT = Path(resilient_io.__file__).parent
# The testing kit drives real servers, the command a real terminal; the doctor checks the machine
# itself; an exec probe and the wall clock depend on the time of others.
OUTSIDE = ("testing", "cli", "doctor", "wall_clock.py")
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in OUTSIDE
)

FORBIDDEN_MODULES = {
    "time": "take the time from loop.time()",
    "datetime": "take the time from loop.time()",
    "threading": "use no threads",
    "concurrent": "use no threads",
    "multiprocessing": "use no processes",
    "secrets": "take randomness from the injected random.Random",
    "uuid": "take randomness from the injected random.Random",
}
ALLOWED = {
    ("lifecycle/signals.py", "threading"),  # only the main thread can handle signals
    ("kafka/dead_letters.py", "datetime"),  # the type of two arguments
    # A thread of its own, because the loop's threads may all wait for names that are not resolved.
    ("serve/heartbeat.py", "concurrent.futures"),
    ("serve/heartbeat.py", "secrets"),  # another user must not guess the name of its file
}
FORBIDDEN_CALLS = {
    ("asyncio", "wait_for"): "use asyncio.timeout: wait_for loses cancels on 3.11",
    ("asyncio", "to_thread"): "use no threads",
    ("os", "urandom"): "take randomness from the injected random.Random",
}


def complaints(source):
    """Return what breaks the rules in a module's source, one line each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        for name in imported(node):
            reason = FORBIDDEN_MODULES.get(name.partition(".")[0])
            if reason:
                found.append(f"line {node.lineno}: imports {name}: {reason}")
        if isinstance(node, ast.ImportFrom):
            found += [
                f"line {node.lineno}: imports {node.module}.{alias.name}"
                for alias in node.names
                if (node.module, alias.name) in FORBIDDEN_CALLS
                or (node.module == "random" and alias.name != "Random")
            ]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            pair = (node.value.id, node.attr)
            if pair in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: {'.'.join(pair)}: {FORBIDDEN_CALLS[pair]}")
            # SystemRandom is for client names and lock tokens, unless a generator was injected.
            if pair[0] == "random" and pair[1] not in ("Random", "SystemRandom"):
                found.append(f"line {node.lineno}: {'.'.join(pair)}: use the injected rng")
        if isinstance(node, ast.ExceptHandler) and catches_everything(node.type):
            found.append(f"line {node.lineno}: catches everything, cancellation included")
    return found


def imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module]
    return []


def catches_everything(caught):
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(kind, ast.Name) and kind.id == "BaseException" for kind in kinds)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_can_be_simulated(path):
    place = str(path.relative_to(ROOT))
    found = [
        complaint
        for complaint in complaints(path.read_text(encoding="utf-8"))
        if not any(
            place == allowed and f"imports {module}:" in complaint for allowed, module in ALLOWED
        )
    ]
    assert found == []


def test_only_the_retry_module_imports_tenacity():
    importers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(
            name.partition(".")[0] == "tenacity"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            for name in imported(node)
        )
    ]
    assert importers == ["retry.py"]


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "from time import monotonic",
        "import datetime as d",
        "import threading",
        "from concurrent.futures import ThreadPoolExecutor",
        "import random; random.random()",
        "from random import uniform",
        "import asyncio; asyncio.wait_for(x, 1)",
        "from asyncio import wait_for",
        "asyncio.to_thread(f)",
        "import uuid",
        "try:\n    x\nexcept:\n    pass",
        "try:\n    x\nexcept BaseException:\n    raise",
        "try:\n    x\nexcept (ValueError, BaseException):\n    raise",
    ],
)
def test_rule_detects_every_violation(source):
    assert complaints(source)


@pytest.mark.parametrize(
    "source",
    [
        "import random; rng = random.Random(1); rng.random()",
        "import asyncio; asyncio.timeout(1)",
        "try:\n    x\nexcept (ValueError, asyncio.CancelledError):\n    raise",
        "from resilient_io.time import x",
    ],
)
def test_rule_accepts_valid_code(source):
    assert complaints(source) == []
