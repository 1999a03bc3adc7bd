"""The command `python -m tests.works_with`, on the tests of a made-up library."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.works_with import __main__ as command
from tests.works_with import page
from tests.works_with.page import PAGE, RESULTS, Result, unexplained, updated
from tests.works_with.suites import Known, Library, Suite, SuiteError, libraries

TESTS = """
import asyncio
import pytest
import redis.asyncio
from redis.asyncio.client import Redis
from redis.asyncio.sentinel import Sentinel

def is_ours(client):
    return type(client).__module__.startswith("resilient_io")

def connected(client):
    async def main():
        async with client:
            return await client.ping()
    return asyncio.run(main())

def test_reaches_a_server_on_the_usual_port():
    assert connected(redis.asyncio.Redis(host="localhost", port=6379))

@pytest.mark.parametrize("path", ["class", "module", "url", "function", "sentinel"])
def test_is_replaced(path):
    make = {
        "class": redis.asyncio.StrictRedis,
        "module": Redis,
        "url": lambda: Redis.from_url("redis://127.0.0.1"),
        "function": lambda: redis.asyncio.from_url("redis://127.0.0.1"),
        "sentinel": lambda: Sentinel([("127.0.0.1", 1)]).master_for("mymaster"),
    }
    assert is_ours(make[path]())

def test_passes_on_redis_py_only():
    assert not is_ours(redis.asyncio.Redis())

@pytest.fixture
def broken():
    yield
    raise RuntimeError("teardown")

def test_fails_after_it_passed(broken):
    pass

def test_is_skipped():
    pytest.skip("no reason")
"""
LIBRARY = Library(
    module="made_up",
    name="made-up",
    version="1.0",
    uses_redis="nothing",
    requirements=(),
    tests=("test_made_up.py",),
)
REPLACED = "test_made_up.py::test_is_replaced"
ONLY_PLAIN = "test_made_up.py::test_passes_on_redis_py_only"


@pytest.fixture
def suite(tmp_path, monkeypatch):
    suite = Suite(LIBRARY, tmp_path)
    source = tmp_path / "sources" / "made-up-1.0"
    (source / "src" / "made_up").mkdir(parents=True)
    (source / "test_made_up.py").write_text(TESTS)
    (source / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    # This environment has what the made-up tests need.
    monkeypatch.setattr(Suite, "_python", Path(sys.executable))
    monkeypatch.setattr(Suite, "_install", lambda self: None)
    monkeypatch.setattr(Suite, "_options", ())
    return suite


def test_resilient_run_replaces_redis_py_wherever_it_is_imported(suite):
    suite.prepare()
    outcomes = suite.run("resilient")
    assert sum(test.startswith(REPLACED) for test in outcomes.passed) == 5
    assert "test_made_up.py::test_reaches_a_server_on_the_usual_port" in outcomes.passed
    assert ONLY_PLAIN in outcomes.failed
    assert "teardown" in outcomes.failed["test_made_up.py::test_fails_after_it_passed"]
    assert len(outcomes.passed | outcomes.failed.keys()) == 8
    # The release is imported, not its source.
    assert not list(suite._copy.glob("**/made_up"))


def test_plain_run_leaves_redis_py_alone(suite):
    suite.prepare()
    only = {ONLY_PLAIN, f"{REPLACED}[class]"}
    outcomes = suite.run("plain", only)
    assert outcomes.passed == {ONLY_PLAIN}
    assert outcomes.failed.keys() == {f"{REPLACED}[class]"}


def test_run_that_collects_nothing_is_an_error(suite):
    suite.prepare()
    (suite._copy / "test_made_up.py").write_text("import no_such_module\n")
    with pytest.raises(SuiteError, match=r"before the first test: see .*made-up-1.0-plain.log"):
        suite.run("plain")


def test_page_shows_the_recorded_results():
    text = PAGE.read_text(encoding="utf-8")
    assert text == updated(text), "run `make works-with ARGS=--write-docs`, or undo your change"


def test_every_recorded_exception_has_a_reason():
    known = libraries()
    assert RESULTS.is_file()
    for name, result in page.read_results().items():
        assert result.version == known[name].version
        assert unexplained(known[name], result) == []
        assert result.resilient >= result.plain - len(result.missing)


def test_exception_covers_the_tests_of_its_pattern():
    library = replace(LIBRARY, exceptions=(Known(test="test_a.py::*", reason="it is slow"),))
    result = Result(
        library="made-up",
        version="1.0",
        plain=3,
        resilient=1,
        missing=("test_a.py::test_b", "test_c.py::test_d"),
    )
    assert unexplained(library, result) == ["test_c.py::test_d"]


def test_unknown_library_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["works-with", "no-such-library"])
    with contextlib.suppress(SystemExit):
        command.main()
    assert "unknown library no-such-library: use arq, " in capsys.readouterr().err


def test_command_fails_for_an_unexplained_test(monkeypatch, capsys, tmp_path):
    result = Result(library="arq", version="1.0", plain=2, resilient=1, missing=("test_a",))
    monkeypatch.setattr(command, "measure", lambda library, folder: result)
    monkeypatch.setattr(sys, "argv", ["works-with", "arq", f"--folder={tmp_path}"])
    assert command.main()
    captured = capsys.readouterr()
    assert "2 tests pass on redis-py, 1 on ResilientRedis" in captured.out
    assert "without a reason in libraries.toml:\n  test_a" in captured.err
