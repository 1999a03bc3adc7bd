"""Nothing that a server or redis-py knows is missing from the table, or against their own flags."""

import importlib.util
import json
from pathlib import Path

import pytest

from resilient_io.redis.commands import Effect, known_names, lookup
from resilient_io.redis.commands._data_rows import ROWS as DATA
from resilient_io.redis.commands._module_rows import ROWS as MODULES
from resilient_io.redis.commands._server_rows import ROWS as SERVER

_HERE = Path(__file__)
_SCRIPT = _HERE.parents[3] / "scripts" / "command_table.py"
_NAMES = json.loads(_HERE.with_name("test_commands_names.json").read_text())


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(_SCRIPT.stem, _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_kept_names_cover_both_kinds_of_server_and_redis_py():
    assert [origin.split()[0] for origin in sorted(_NAMES)] == ["Redis", "Valkey", "redis-py"]
    assert min(len(names) for names in _NAMES.values()) > 350


@pytest.mark.parametrize("origin", sorted(_NAMES))
def test_the_table_knows_all_kept_names_and_agrees_with_their_flags(script, origin):
    assert script.problems(_NAMES[origin]) == []


def test_the_table_knows_every_command_that_the_installed_redis_py_sends(script):
    names = script.names_of_redis_py()
    assert {"GET", "CONFIG GET", "XADD", "BITFIELD", "FT.SEARCH", "HIMPORT SET"} <= set(names)
    assert script.problems(dict.fromkeys(names, "")) == []


def test_a_missing_command_and_a_wrong_effect_are_found(script):
    assert script.problems({"FROB": ""}) == ["FROB: not in the table"]
    assert script.problems({"GET": "write"}) == ["GET: a write for the server, a read in the table"]
    assert len(script.problems({"DEL": "readonly"})) == 1
    assert len(script.problems({"LPOP": "blocking"})) == 1


def test_no_command_stands_in_two_rows():
    listed = [name for row in (*DATA, *SERVER, *MODULES) for name in row.names.split()]
    assert len(listed) == len(set(listed))


# Writes for the server, which some arguments turn into reads: SORT and GEORADIUS without STORE
# have _RO twins that answer the same, and BITFIELD with GET only is BITFIELD_RO.
_READ_BY_OPTION = {"SORT", "GEORADIUS", "GEORADIUSBYMEMBER", "BITFIELD"}


def test_only_explained_writes_can_be_judged_to_be_reads():
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


def test_every_row_that_surprises_says_why():
    surprising = [
        spec.name
        for spec in map(lookup, zip(known_names(), strict=True))
        if spec.effect is Effect.DANGEROUS or spec.judge is not None
    ]
    assert [name for name in surprising if not lookup((name,)).reason] == []
