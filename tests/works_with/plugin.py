"""A pytest plugin that runs in the test suites of other libraries, on one of the two clients.

It imports nothing of this package, because it is loaded in the environment of another library.
The environment variables are:

- `WORKS_WITH_CLIENT`: "plain", or "resilient" to replace `redis.asyncio.Redis`.
- `WORKS_WITH_OUTCOMES`: the file to which each test appends its name and its outcome.
- `WORKS_WITH_ONLY`: the names of the tests to run, as a JSON list; empty for all.
- `WORKS_WITH_PORTS`: the servers as JSON, from the port that the tests use to the real port.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any, Final, Self

import pytest

_LOOPBACK: Final = {"127.0.0.1", "localhost", "::1", "0.0.0.0"}
_PORTS: Final = {
    int(port): int(real) for port, real in json.loads(os.environ["WORKS_WITH_PORTS"]).items()
}
_FAMILIES: Final = {socket.AF_INET, socket.AF_INET6}
_ONLY: Final = frozenset(json.loads(os.environ["WORKS_WITH_ONLY"]))
_OUTCOMES: Final = Path(os.environ["WORKS_WITH_OUTCOMES"])


# -- servers -------------------------------------------------------------------------------


class _Socket(socket.socket):
    """A socket that reaches the servers of this run instead of those on the usual ports.

    Tests flush what they find on port 6379, which could be the database of a developer. On other
    loopback ports nothing changes: tests use closed ports on purpose.
    """

    def connect(self, address: Any) -> None:
        super().connect(self._redirected(address))

    def connect_ex(self, address: Any) -> int:
        return super().connect_ex(self._redirected(address))

    def _redirected(self, address: Any) -> Any:
        if self.family not in _FAMILIES or address[0] not in _LOOPBACK:
            return address
        return (address[0], _PORTS.get(address[1], address[1]), *address[2:])


class _RedisContainer:
    """Stands in for `testcontainers.redis.RedisContainer`: the server runs already."""

    port = 6379

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        return port


class _DockerServices:
    """Stands in for the fixture of lovely-pytest-docker: what has no server here is skipped."""

    def start(self, *names: str) -> None:
        missing = [name for name in names if name not in _SERVICES]
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")

    def wait_for_service(self, *_: object, **__: object) -> None:
        pass


_SERVICES: Final = {"redis-basic"}


@pytest.fixture(scope="session")
def docker_services() -> _DockerServices:
    return _DockerServices()


def _replace_containers() -> None:
    module = types.ModuleType("testcontainers.redis")
    module.RedisContainer = _RedisContainer  # type: ignore[attr-defined]
    sys.modules.setdefault("testcontainers", types.ModuleType("testcontainers"))
    sys.modules["testcontainers.redis"] = module


# -- the client ----------------------------------------------------------------------------


def _replace_client() -> None:
    """Put `ResilientRedis` in the place of redis-py's asyncio client, wherever it is imported."""
    from resilient_io.redis import ResilientRedis

    for name in ("redis.asyncio", "redis.asyncio.client", "redis.asyncio.sentinel"):
        module: Any = importlib.import_module(name)
        for attribute in ("Redis", "StrictRedis"):
            if hasattr(module, attribute):
                setattr(module, attribute, ResilientRedis)
    sentinel: Any = importlib.import_module("redis.asyncio.sentinel").Sentinel
    for method in (sentinel.master_for, sentinel.slave_for):
        # The class is a default argument, which was bound when the module was imported.
        method.__defaults__ = (ResilientRedis, *method.__defaults__[1:])


def pytest_load_initial_conftests() -> None:
    """Replace the client before a conftest.py imports it."""
    socket.socket = _Socket  # type: ignore[misc]
    _replace_containers()
    if os.environ["WORKS_WITH_CLIENT"] == "resilient":
        _replace_client()


# -- tests and outcomes --------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the tests that are to be repeated, if there are any."""
    if _ONLY:
        config.hook.pytest_deselected(items=[each for each in items if each.nodeid not in _ONLY])
        items[:] = [each for each in items if each.nodeid in _ONLY]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Append each report to the file: a run that is killed keeps its outcomes."""
    outcome = {
        "test": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "detail": str(report.longrepr)[-2_000:] if report.failed else "",
    }
    with _OUTCOMES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(outcome) + "\n")
