"""Installs a library into an environment of its own, and runs its tests on one of the clients."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from resilient_io.testing import RedisServer

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]

CLIENTS: Final = ("plain", "resilient")
_PORTS: Final = (6379, 7379)
"""The ports on which the libraries' tests expect a Redis server."""
_TEST_TIMEOUT: Final = 60
"""Seconds until pytest-timeout ends a test that hangs."""


class SuiteError(Exception):
    """A library could not be installed, or its tests did not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Tests that pass on redis-py and not on ResilientRedis; see `libraries.toml`."""

    test: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A row of `libraries.toml`, which describes the fields."""

    module: str
    name: str
    version: str
    uses_redis: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    repository: str = ""
    tag: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    left_out: str = ""
    exceptions: tuple[Known, ...] = ()


def libraries() -> dict[str, Library]:
    """Return the libraries of `libraries.toml`, by their names on PyPI."""
    table = tomllib.loads((HERE / "libraries.toml").read_text(encoding="utf-8"))
    rows: dict[str, Library] = {}
    for module, row in table.items():
        row["exceptions"] = tuple(Known(**each) for each in row.get("exceptions", ()))
        row["requirements"], row["tests"] = tuple(row["requirements"]), tuple(row["tests"])
        rows[row["name"]] = Library(module=module, **row)
    return rows


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What a run of a library's tests came to.

    Attributes:
        passed: Names of the tests that passed.
        failed: Names of the tests that failed, each with the end of its traceback.
    """

    passed: frozenset[str]
    failed: dict[str, str]


class Suite:
    """The tests of one library, with the environment to run them in.

    Args:
        library: The library.
        folder: Where sources and environments are kept for the next run.
    """

    def __init__(self, library: Library, folder: Path) -> None:
        self.library = library
        name = f"{library.name}-{library.version}"
        self._source = folder / "sources" / name
        self._environment = folder / "environments" / f"{name}-py{sys.version_info.minor}"
        self._copy = folder / "runs" / name

    _options = (f"--timeout={_TEST_TIMEOUT}",)  # of pytest-timeout

    @property
    def _python(self) -> Path:
        return self._environment / "bin" / "python"

    def prepare(self) -> None:
        """Fetch the source and create the environment, unless they are there from an earlier run.

        Raises:
            SuiteError: A package or a repository cannot be had.
        """
        if not self._source.is_dir():
            self._fetch()
        # The release is tested as it was installed, so its source must not be found first.
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._source, self._copy, symlinks=True)
        for parent in (self._copy, self._copy / "src"):
            shutil.rmtree(parent / self.library.module, ignore_errors=True)
        self._install()

    def _fetch(self) -> None:
        library = self.library
        self._source.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._source.parent) as temporary:
            new = Path(temporary) / "source"
            if library.repository:
                clone = ("git", "clone", "--quiet", "--depth=1", f"--branch={library.tag}")
                _run([*clone, library.repository, new])
            else:
                requirement = f"{library.name}=={library.version}"
                download = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
                _run([*download, f"--no-binary={library.name}", "--dest", temporary, requirement])
                (archive,) = Path(temporary).glob("*.tar.gz")
                shutil.unpack_archive(archive, temporary, filter="data")
                archive.unlink()
                (unpacked,) = Path(temporary).iterdir()
                unpacked.rename(new)
            new.rename(self._source)

    def _install(self) -> None:
        library = self.library
        requirements = [
            f"{library.name}=={library.version}",
            *library.requirements,
            "pytest-timeout",
            *_dependencies(),
        ]
        # An override replaces a requirement together with its extras.
        overrides = [f"redis[hiredis]=={redis_py()}"]
        state = hashlib.sha256(json.dumps([requirements, overrides]).encode()).hexdigest()
        stamp = self._environment / "requirements.sha256"
        if stamp.is_file() and stamp.read_text() == state:
            return
        _run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, self._environment])
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(overrides))
            file.flush()
            install = ("uv", "pip", "install", "--quiet", "--python", self._python)
            _run([*install, "--override", file.name, *requirements])
        stamp.write_text(state)

    def run(self, client: str, only: Collection[str] = ()) -> Outcomes:
        """Run the tests on a client, with a new server.

        Args:
            client: One of `CLIENTS`.
            only: Names of tests to run; all of them if it is empty.

        Raises:
            SuiteError: pytest did not run the tests.
        """
        return asyncio.run(self._run(client, only))

    async def _run(self, client: str, only: Collection[str]) -> Outcomes:
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(RedisServer(options={"databases": 32}))
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            outcomes = Path(temporary) / "outcomes.jsonl"
            output = self._copy.with_name(f"{self._copy.name}-{client}.log")
            environment = {
                key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")
            } | {
                **self.library.environment,
                "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", HERE))),
                "WORKS_WITH_CLIENT": client,
                "WORKS_WITH_OUTCOMES": str(outcomes),
                "WORKS_WITH_PORTS": json.dumps(dict.fromkeys(_PORTS, server.port)),
                "WORKS_WITH_ONLY": json.dumps(sorted(only)),
            }
            with output.open("w") as log:
                pytest = await asyncio.create_subprocess_exec(
                    self._python,
                    *("-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "-o", "addopts="),
                    *("--tb=short", "-q", *self._options),
                    # redis-py 8 deprecates what the libraries still call.
                    *("-W", "ignore::DeprecationWarning"),
                    *self.library.tests,
                    cwd=self._copy,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
                try:
                    status = await pytest.wait()
                finally:
                    if pytest.returncode is None:
                        pytest.kill()
            if not outcomes.is_file():
                raise SuiteError(f"pytest exited with {status} before the first test: see {output}")
            return _read(outcomes)


def _read(file: Path) -> Outcomes:
    passed: set[str] = set()
    failed: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        if report["outcome"] == "failed":
            failed[report["test"]] = report["detail"]
        elif report["outcome"] == "passed" and report["when"] == "call":
            passed.add(report["test"])
    return Outcomes(frozenset(passed - failed.keys()), failed)


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SuiteError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-2_000:]}")


def _dependencies() -> list[str]:
    """Return what this package depends on."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["project"]["dependencies"])


def redis_py() -> str:
    """Return the locked version of redis-py."""
    lock = (ROOT / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    version = re.search(r"^redis==(\S+)", lock, re.MULTILINE)
    if version is None:
        raise SuiteError("requirements/runtime.txt has no version of redis: run `make lock`")
    return version[1]
