"""The table contains every command of the servers and of redis-py, and agrees with their flags."""

import importlib.util
import json
from pathlib import Path

import pytest

from resilient_io.redis.commands import Effect, known_names, lookup
from resilient_io.redis.commands.table import ROWS

_HERE = Path(__file__)
_SCRIPT = _HERE.parents[3] / "scripts" / "command_table.py"
_NAMES = json.loads(_HERE.with_name("test_commands_names.json").read_text())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(_SCRIPT.stem, _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stored_names_cover_redis_valkey_and_redis_py():
    assert [origin.split()[0] for origin in sorted(_NAMES)] == ["Redis", "Valkey", "redis-py"]
    assert min(len(names) for names in _NAMES.values()) > 350


@pytest.mark.parametrize("origin", sorted(_NAMES))
def test_the_table_contains_all_stored_names_and_agrees_with_their_flags(script, origin):
    assert script.problems(_NAMES[origin]) == []


def test_the_table_contains_every_command_that_the_installed_redis_py_sends(script):
    names = script.names_of_redis_py()
    assert {"GET", "CONFIG GET", "XADD", "BITFIELD", "FT.SEARCH", "HIMPORT SET"} <= set(names)
    assert script.problems(dict.fromkeys(names, "")) == []


def test_the_check_finds_a_missing_command_and_a_wrong_effect(script):
    assert script.problems({"FROB": ""}) == ["FROB: not in the table"]
    assert script.problems({"GET": "write"}) == ["GET: a write for the server, a read in the table"]
    assert len(script.problems({"DEL": "readonly"})) == 1
    assert len(script.problems({"LPOP": "blocking"})) == 1


def test_no_command_is_in_two_rows():
    listed = [name for row in ROWS for name in row.names.split()]
    assert len(listed) == len(set(listed))


# The server calls them writes, but some arguments make them reads: SORT and GEORADIUS without STORE
# have _RO variants with the same reply, and BITFIELD with GET only is BITFIELD_RO.
_READ_BY_OPTION = {"SORT", "GEORADIUS", "GEORADIUSBYMEMBER", "BITFIELD"}


def test_only_explained_writes_can_be_reads():
    samples = (
        (_HERE.parents[2] / "live" / "redis" / "test_commands_twice.txt").read_text().splitlines()
    )
    reads = {
        lookup(command.split()).name
        for effect, command, *_ in (line.split(" | ") for line in samples if line[0] != "#")
        if effect == "READ"
    }
    writes = {
        name for names in _NAMES.values() for name, flags in names.items() if "write" in flags
    }
    assert reads & writes == _READ_BY_OPTION


def test_every_surprising_row_has_a_reason():
    surprising = [
        spec.name
        for spec in map(lookup, zip(known_names(), strict=True))
        if spec.effect is Effect.DANGEROUS or spec.resolve is not None
    ]
    assert [name for name in surprising if not lookup((name,)).reason] == []
