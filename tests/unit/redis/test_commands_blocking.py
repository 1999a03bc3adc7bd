"""How long a command permits the server to be silent."""

import pytest

from resilient_io.redis.commands import lookup


@pytest.mark.parametrize(
    ("args", "seconds"),
    [
        (("BLPOP", "a", "b", 5), 5.0),
        (("BRPOP", "a", "0.25"), 0.25),
        (("BRPOP", "a", b"0"), None),
        (("BLMOVE", "a", "b", "LEFT", "RIGHT", 2.5), 2.5),
        (("BRPOPLPUSH", "a", "b", 0), None),
        (("BLMOVEM", "a", "b", "LEFT", "RIGHT", 1, "COUNT", 3, "BULK"), 1.0),
        (("BLMPOP", 3, 1, "a", "LEFT"), 3.0),
        (("BZMPOP", 0, 1, "a", "MIN"), None),
        (("BZPOPMIN", "z", 1), 1.0),
        (("BZPOPMAX", "z", "1.5"), 1.5),
        (("XREAD", "BLOCK", 1500, "STREAMS", "s", "$"), 1.5),
        (("XREAD", "COUNT", 1, b"BLOCK", b"0", b"STREAMS", "s", "$"), None),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", "20", "STREAMS", "s", ">"), 0.02),
        (("XREADGROUP", "GROUP", "g", "block", "BLOCK", "20", "STREAMS", "s", ">"), 0.02),
        (("TS.READ", "block", "$", "BLOCK", 250, 1), 0.25),
        (("WAIT", 1, 500), 0.5),
        (("WAIT", 1, 0), None),
        (("WAITAOF", 1, 0, 100), 0.1),
        (("DEBUG", "SLEEP", "0.5"), 0.5),
        (("DEBUG SLEEP", 0), 0.0),
        (("SAVE",), None),
        (("SHUTDOWN", "NOSAVE"), None),
        (("MIGRATE", "h", 1, "k", 0, 1000), None),
        # The server refuses these immediately.
        (("BLPOP", "a", -1), 0.0),
        (("BLPOP", "a", "soon"), 0.0),
        (("BLPOP", "a", "nan"), 0.0),
        (("BLPOP", "a", float("inf")), 0.0),
        (("BLPOP",), 0.0),
        (("BLMPOP",), 0.0),
        (("BLMOVEM", "a"), 0.0),
        (("XREAD", "BLOCK"), 0.0),
        (("XREAD", "BLOCK", "x", "STREAMS", "s", "$"), 0.0),
        (("WAIT",), 0.0),
    ],
)
def test_the_block_time_is_read_from_the_arguments(args, seconds):
    block = lookup(args).block
    assert block is not None
    assert block(args) == seconds


@pytest.mark.parametrize(
    "args", [("GET", "k"), ("XREAD", "STREAMS", "s", "0"), ("DEBUG", "OBJECT", "k"), ("MULTI",)]
)
def test_a_command_that_does_not_block_has_no_block_time(args):
    assert lookup(args).block is None
