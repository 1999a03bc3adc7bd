"""Finding the row of a call, and registering commands."""

import pytest
import redis.asyncio

from resilient_io.redis.commands import (
    SPECS,
    Effect,
    Route,
    effect_of,
    keys_of,
    known_names,
    lookup,
    register,
)
from resilient_io.redis.commands import registry as table


@pytest.fixture
def _restored():
    """Undo what a test registers: the process has one table."""
    kept = [(each, dict(each)) for each in (SPECS, table._CONDITIONAL, table._CONTAINERS)]
    yield
    for each, copy in kept:
        each.clear()
        each.update(copy)


@pytest.mark.parametrize(
    ("args", "name", "words"),
    [
        (("GET", "k"), "GET", (b"GET",)),
        (("get", "k"), "GET", (b"get",)),
        ((b"GET", "k"), "GET", (b"GET",)),
        ((bytearray(b"GET"), "k"), "GET", (b"GET",)),
        ((memoryview(b"GET"), "k"), "GET", (b"GET",)),
        ((" GET ", "k"), "GET", (b"GET",)),
        (("GET k",), "GET", (b"GET", b"k")),
        (("CONFIG GET", "x"), "CONFIG GET", (b"CONFIG", b"GET")),
        ((b"config get", "x"), "CONFIG GET", (b"config", b"get")),
        (("CONFIG", "GET", "x"), "CONFIG GET", (b"CONFIG",)),
        (("CONFIG", b"get", "x"), "CONFIG GET", (b"CONFIG",)),
        (("CONFIG GET x",), "CONFIG GET", (b"CONFIG", b"GET", b"x")),
        (("COMMAND",), "COMMAND", (b"COMMAND",)),
        (("LOLWUT VERSION", 5), "LOLWUT", (b"LOLWUT", b"VERSION")),
        (("DEBUG OBJECT", "k"), "DEBUG OBJECT", (b"DEBUG", b"OBJECT")),
        (("JSON.SET", "k", "$", "1"), "JSON.SET", (b"JSON.SET",)),
        (("OBJECT", "ENCODING", "k"), "OBJECT ENCODING", (b"OBJECT",)),
    ],
)
def test_lookup_finds_a_call_in_any_notation(args, name, words):
    spec = lookup(args)
    assert (spec.name, spec.words, spec.known) == (name, words, True)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("NEW.ADD", "k"), "NEW.ADD"),
        (("CONFIG", "FROB"), "CONFIG"),
        (("CONFIG",), "CONFIG"),
        (("CONFIG", None), "CONFIG"),
        (("COMMAND", "FROB"), "COMMAND"),
        ((5, "k"), "5"),
        ((None,), "NONE"),
        (("\udcff",), "\udcff".upper()),
        (("ß",), "SS"),
    ],
)
def test_an_unknown_command_is_non_idempotent_and_multiplexed(args, name):
    spec = lookup(args)
    assert not spec.known
    assert (spec.route, effect_of(spec, args)) == (Route.MULTIPLEXED, Effect.NON_IDEMPOTENT)
    if args[0] != "\udcff":
        assert spec.name == name


def test_an_unknown_subcommand_of_client_cannot_share_a_connection():
    spec = lookup(("CLIENT", "FROB", "ON"))
    assert (spec.known, spec.route) == (False, Route.BOUND)


def test_an_unknown_subcommand_of_debug_is_as_dangerous_as_debug():
    spec = lookup(("DEBUG", "FROB"))
    assert (spec.known, spec.effect, spec.route) == (False, Effect.DANGEROUS, Route.MULTIPLEXED)


@pytest.mark.parametrize("args", [(), ("",), ("  ",), (b"",)])
def test_a_call_without_a_name_raises_an_error_that_shows_a_correct_call(args):
    with pytest.raises(ValueError, match="A command needs a name"):
        lookup(args)


def test_specs_contains_every_row_whose_route_the_first_argument_decides():
    assert SPECS["GET"] is lookup(("GET", "k"))
    assert SPECS["CONFIG GET"] is lookup(("CONFIG GET", "x"))
    for undecided in ("CONFIG", "CLIENT", "COMMAND", "DEBUG", "XREAD", "XREADGROUP", "TS.READ"):
        assert undecided not in SPECS


@pytest.mark.parametrize(
    ("args", "route"),
    [
        (("XREAD", "COUNT", 5, "STREAMS", "s", "0"), Route.MULTIPLEXED),
        (("XREAD", "BLOCK", 5, "STREAMS", "s", "$"), Route.EXCLUSIVE),
        (("XREAD", b"count", 5, b"block", 5, b"streams", "s", "$"), Route.EXCLUSIVE),
        (("XREAD", "STREAMS", "BLOCK", "0"), Route.MULTIPLEXED),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"), Route.MULTIPLEXED),
        (("XREADGROUP", "GROUP", "BLOCK", "STREAMS", "STREAMS", "s", ">"), Route.MULTIPLEXED),
        (("XREADGROUP", "GROUP", "g", "c", "BLOCK", 5, "STREAMS", "s", ">"), Route.EXCLUSIVE),
        (("TS.READ", "BLOCK", "0"), Route.MULTIPLEXED),
        (("TS.READ", "t", "$", "BLOCK", 5, 1), Route.EXCLUSIVE),
        (("DEBUG", "SLEEP", "1"), Route.EXCLUSIVE),
        (("DEBUG SLEEP", "1"), Route.EXCLUSIVE),
        (("DEBUG", "OBJECT", "k"), Route.MULTIPLEXED),
        (("BLPOP", "l", 0), Route.EXCLUSIVE),
        (("HIMPORT SET", "k", "set", "v"), Route.EXCLUSIVE),
        (("SAVE",), Route.EXCLUSIVE),
        (("KEYS", "*"), Route.MULTIPLEXED),
        (("CLIENT ID",), Route.MULTIPLEXED),
        (("CLIENT", "SETNAME", "x"), Route.BOUND),
        (("WAIT", 1, 0), Route.BOUND),
        (("WATCH", "k"), Route.BOUND),
        (("SELECT", 1), Route.BOUND),
        (("SUBSCRIBE", "c"), Route.REFUSED),
        (("MONITOR",), Route.REFUSED),
        (("CLIENT REPLY", "OFF"), Route.REFUSED),
        (("PSYNC", "?", -1), Route.REFUSED),
    ],
)
def test_the_route_depends_on_the_command_and_on_some_options(args, route):
    assert lookup(args).route is route


def test_a_refused_command_names_what_to_use_instead():
    for name in known_names():
        spec = lookup((name,))
        if spec.route in {Route.BOUND, Route.REFUSED}:
            assert "`" in spec.advice or "replication" in spec.advice, name
            assert spec.advice.endswith("."), name
        else:
            assert not spec.advice, name


def test_invalid_arguments_never_raise_and_never_exceed_the_worst_case_of_the_row():
    odd = [None, "", b"\xff", "BLOCK", "STREAMS", "FIELDS", -1, 1.5, object(), "STORE", "*", "0"]
    for name in known_names():
        for size in range(len(odd) + 1):
            for args in ((name, *odd[:size]), (name, *odd[size:]), (*name.split(), *odd[-size:])):
                spec = lookup(args)
                assert effect_of(spec, args) <= spec.effect, args
                if spec.block is not None:
                    assert (spec.block(args) or 0.0) >= 0.0, args


@pytest.mark.parametrize("protocol", [2, 3])
def test_every_response_callback_of_redis_py_is_found_under_the_name_of_the_row(protocol):
    driver = redis.asyncio.Redis(protocol=protocol)
    names = [*driver.response_callbacks, *driver.json()._MODULE_CALLBACKS]
    assert len(names) > 100
    assert [name for name in names if lookup((name,)).name != name] == []


def test_effects_are_ordered_so_that_the_worst_of_a_batch_applies():
    assert max(Effect.READ, Effect.CONDITIONAL, Effect.IDEMPOTENT) is Effect.CONDITIONAL
    assert list(Effect) == sorted(Effect)


@pytest.mark.usefixtures("_restored")
def test_a_registered_command_is_known():
    register("MY.CMD", effect=Effect.READ)
    assert SPECS["MY.CMD"] is lookup(("MY.CMD", "k"))
    spec = lookup(("my.cmd", "k"))
    assert (spec.known, spec.effect, spec.route) == (True, Effect.READ, Route.MULTIPLEXED)
    assert "MY.CMD" in known_names()


@pytest.mark.usefixtures("_restored")
def test_registering_names_the_keys_of_a_command():
    register("MY.COPY", effect=Effect.IDEMPOTENT, keys=lambda operands: operands[:2])
    register("MY.LEN", effect=Effect.READ)
    register("MGET", effect=Effect.READ)
    for call, keys in (("MY.COPY a b 1", "a b"), ("MY.LEN a b", "a"), ("MGET a b", "a b")):
        args = call.split()
        assert keys_of(lookup(args), args) == keys.split()
    with pytest.raises(TypeError, match="keys must be a function"):
        register("MY.COPY", effect=Effect.READ, keys=1)


def test_registering_a_subcommand_makes_its_first_word_a_container():
    register("mymod stats", effect=Effect.READ)
    assert lookup(("MYMOD", "STATS")).known
    assert not lookup(("MYMOD", "RESET")).known


@pytest.mark.usefixtures("_restored")
def test_registering_overrides_a_row_for_all_options():
    register("SET", effect=Effect.CONDITIONAL)
    assert effect_of(lookup(("SET", "k", "v")), ("SET", "k", "v")) is Effect.CONDITIONAL
    register("XREAD", effect=Effect.READ)
    assert lookup(("XREAD", "BLOCK", 0, "STREAMS", "s", "$")).route is Route.MULTIPLEXED


@pytest.mark.usefixtures("_restored")
def test_a_command_registered_as_refused_names_what_to_use_instead():
    register("MY.SESSION", effect=Effect.READ, route=Route.BOUND)
    register("MY.FEED", effect=Effect.READ, route=Route.REFUSED, advice="Use `feed()`.")
    assert "`client()`" in SPECS["MY.SESSION"].advice
    assert SPECS["MY.FEED"].advice == "Use `feed()`."


@pytest.mark.usefixtures("_restored")
def test_a_registered_blocking_command_blocks_as_long_as_its_function_returns():
    register("MY.POP", effect=Effect.NON_IDEMPOTENT, route=Route.EXCLUSIVE)
    register("MY.WAIT", effect=Effect.READ, route=Route.EXCLUSIVE, block=lambda _args: 3.0)
    forever, bounded = SPECS["MY.POP"].block, SPECS["MY.WAIT"].block
    assert forever is not None
    assert bounded is not None
    assert (forever(("MY.POP",)), bounded(("MY.WAIT",))) == (None, 3.0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"name": b"X", "effect": Effect.READ}, TypeError, "must be a str"),
        ({"name": "X", "effect": "read"}, TypeError, "one of Effect"),
        ({"name": "X", "effect": 0}, TypeError, "one of Effect"),
        ({"name": "X", "effect": Effect.READ, "route": "lane"}, TypeError, "one of Route"),
        ({"name": "X", "effect": Effect.READ, "block": 3}, TypeError, "function"),
        ({"name": "", "effect": Effect.READ}, ValueError, "COMMAND SUBCOMMAND"),
        ({"name": "A B C", "effect": Effect.READ}, ValueError, "COMMAND SUBCOMMAND"),
        ({"name": "É", "effect": Effect.READ}, ValueError, "COMMAND SUBCOMMAND"),
        ({"name": "CONFIG", "effect": Effect.READ}, ValueError, "has subcommands"),
        ({"name": "GET IT", "effect": Effect.READ}, ValueError, "has no subcommands"),
        ({"name": "XREAD IT", "effect": Effect.READ}, ValueError, "has no subcommands"),
        ({"name": "X", "effect": Effect.READ, "block": len}, ValueError, "EXCLUSIVE"),
    ],
)
@pytest.mark.usefixtures("_restored")
def test_an_invalid_registration_names_what_to_use_instead(kwargs, error, message):
    before = dict(SPECS)
    with pytest.raises(error, match=message):
        register(**kwargs)
    assert before == SPECS
