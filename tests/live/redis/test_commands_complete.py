"""The table contains every command of the servers on this machine."""

import importlib.util
import json
from pathlib import Path

import pytest

_TESTS = Path(__file__).parents[2]
_SCRIPT = _TESTS.parent / "scripts" / "command_table.py"
_NAMES = json.loads((_TESTS / "unit" / "redis" / "test_commands_names.json").read_text())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(_SCRIPT.stem, _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("shared_redis")  # it skips or fails without a server
async def test_the_table_contains_every_command_of_the_servers_here(script):
    servers = await script.names_of_servers()
    assert servers
    for version, commands in servers.items():
        assert {"GET", "CONFIG GET", "XADD"} <= set(commands)
        assert script.problems(commands) == [], version
        # The unit tests check the stored names.
        assert _NAMES.get(version, commands) == commands
