"""One failed test is one failure: what it leaves behind does not make other tests fail."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]

SETTINGS = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

LEAVING = """
import asyncio
import gc
import logging

async def fail():
    raise ValueError

async def test_that_fails_and_leaves_tasks_a_socket_and_a_coroutine_behind():
    tasks = [asyncio.ensure_future(fail()) for _ in range(3)]
    coroutine = fail()
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    connection = await asyncio.open_connection(*server.sockets[0].getsockname())
    await asyncio.sleep(0.01)
    assert False

def test_that_hears_nothing_of_it(caplog):
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
"""


def test_a_failed_test_leaves_nothing_to_the_next(tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_two.py").write_text(LEAVING)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed in" in done.stdout, done.stdout
