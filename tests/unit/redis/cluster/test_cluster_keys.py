"""The slot of a command, the error about several slots, and the nodes of commands without keys."""

import pickle

import pytest
import redis
from redis._parsers import Encoder
from redis.cluster import RedisCluster, key_slot

from resilient_io.redis.cluster.keys import (
    KeySlots,
    merge_replies,
    node_flag,
    replica_may_answer,
)
from resilient_io.redis.commands import keys_of, lookup
from resilient_io.redis.errors import CrossSlotKeys


@pytest.fixture
def slots():
    return KeySlots(Encoder("utf-8", "strict", decode_responses=False).encode)


def _of(slots, *args):
    return slots.of_call(lookup(args), args)


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("a", b"a"),
        (b"a", b"a"),
        ("é", "é".encode()),
        ("{user1}:a", b"user1"),
        ("x{}y", b"x{}y"),
        ("{{a}", b"{a"),
        ("a{b}{c}", b"b"),
        (1, b"1"),
        (1.0, b"1.0"),
        (memoryview(b"a"), b"a"),
        (bytearray(b"a"), b"a"),
        ("", b""),
    ],
)
def test_the_slot_of_a_key_is_that_of_its_bytes_or_hash_tag(slots, key, hashed):
    for _ in range(2):
        assert slots.of_key(key) == key_slot(hashed)


def test_equal_keys_of_different_bytes_have_their_own_slots(slots):
    assert slots.of_key(1) == key_slot(b"1")
    assert slots.of_key(1.0) == key_slot(b"1.0")
    with pytest.raises(redis.DataError):
        slots.of_key(True)
    with pytest.raises(redis.DataError):
        slots.of_key(None)


def test_the_cache_of_slots_is_bounded(slots):
    for number in range(40_000):
        assert slots.of_key(f"key:{number}") == key_slot(b"key:%d" % number)
    assert len(slots) <= 16_384
    slots.of_key("x" * 1000)
    assert "x" * 1000 not in slots


@pytest.mark.parametrize(
    ("call", "keys"),
    [
        ("GET a", "a"),
        ("get a", "a"),
        ("MGET {a}1 {a}2", "{a}1 {a}2"),
        ("OBJECT ENCODING a", "a"),
        ("XREAD COUNT 1 STREAMS {a}1 {a}2 0 0", "{a}1 {a}2"),
        ("JSON.MSET {a}1 $ 1 {a}2 $ 2", "{a}1 {a}2"),
        ("JSON.MGET {a}1 {a}2 $", "{a}1 {a}2"),
        ("TS.MADD {a}1 1 1 {a}2 1 1", "{a}1 {a}2"),
        ("CMS.MERGE {a}1 1 {a}2 WEIGHTS 1", "{a}1 {a}2"),
        ("FT.SUGADD a b 1", "a"),
        ("BF.ADD a b", "a"),
        ("MY.COMMAND a b", "a"),
        ("EVAL script 0 a", ""),
        ("FCALL f 2 {a}1 {a}2 b", "{a}1 {a}2"),
        ("FT.SEARCH index query", ""),
        ("PING", ""),
        ("GET", ""),
        ("MGET", ""),
        ("EVAL script", ""),
        ("ZUNION x a", ""),
        ("ZUNION 3 a", ""),
        ("SORT a BY b GET c STORE {a}2", "a {a}2"),
    ],
)
def test_the_keys_and_the_slot_of_a_call(slots, call, keys):
    args = call.split()
    assert list(keys_of(lookup(args), args)) == keys.split()
    first = keys.split()[:1]
    assert slots.of_call(lookup(args), args) == (key_slot(first[0].encode()) if first else None)


def test_a_name_of_two_words_may_be_one_argument_or_two(slots):
    for args in (("XINFO STREAM", "a"), ("XINFO", "STREAM", "a"), ("xinfo", "stream", "a")):
        assert _of(slots, *args) == key_slot(b"a")
    assert lookup(("XINFO STREAM", "a")).key_at == 1
    assert lookup(("XINFO", "STREAM", "a")).key_at == 2
    assert lookup(("MGET", "a")).key_at == 0


def test_publish_goes_to_the_node_of_its_channel(slots):
    assert _of(slots, "PUBLISH", "news", "x") == key_slot(b"news")
    assert _of(slots, "SPUBLISH", "news", "x") == key_slot(b"news")


def test_keys_of_several_slots_are_named_before_anything_is_sent(slots):
    with pytest.raises(CrossSlotKeys) as caught:
        _of(slots, "MSET", "a", 1, "b", 2, "{a}x", 3)
    assert str(caught.value) == (
        "'MSET' has keys of several slots: 'a' (15495), 'b' (3300): use mset_nonatomic() or a hash "
        "tag such as {user1}:a"
    )
    assert isinstance(caught.value, redis.RedisError)
    assert isinstance(caught.value, redis.exceptions.RedisClusterException)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 (made here)
    assert str(again) == str(caught.value)
    with pytest.raises(CrossSlotKeys, match=r"'b' \(3300\): use a hash tag such as"):
        _of(slots, "SUNION", "a", "b")


def test_many_and_long_keys_do_not_make_a_long_error(slots):
    with pytest.raises(CrossSlotKeys) as caught:
        _of(slots, "SUNION", *(f"{number}" * 500 for number in range(10)))
    assert len(str(caught.value)) < 400
    assert "and 7 more: use a hash tag" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        ("PING", "default-node"),
        ("FLUSHALL", "primaries"),
        ("SCRIPT LOAD", "primaries"),
        ("FUNCTION DUMP", "random"),
        ("EVAL script 0", "random"),
        ("FCALL_RO f 0", "random"),
        ("FT.SEARCH i q", "random"),
        ("ECHO x", "default-node"),
        ("CLUSTER GETKEYSINSLOT 7 10", 7),
        ("GET", "random"),  # the server refuses it
    ],
)
def test_the_nodes_of_commands_without_keys_are_those_of_redis_py(call, flag):
    args = call.split()
    assert node_flag(lookup(args), args) == flag
    if isinstance(flag, str) and lookup(args).name in RedisCluster.COMMAND_FLAGS:
        assert RedisCluster.COMMAND_FLAGS[lookup(args).name] == flag


def test_a_write_that_names_no_node_is_refused():
    with pytest.raises(redis.exceptions.RedisClusterException, match=r"SWAPDB .* target_nodes="):
        node_flag(lookup(("SWAPDB", 0, 1)), ("SWAPDB", 0, 1))


def test_replies_of_several_nodes_become_one():
    def merge(*args, **replies):
        return merge_replies(args, replies, RedisCluster.RESULT_CALLBACKS, {})

    assert merge("DBSIZE", a=1, b=2) == 3
    assert merge("PING", a=True, b=True) is True
    assert merge("TIME", a=1, b=2) == {"a": 1, "b": 2}
    assert merge("TIME", a=1) == 1


@pytest.mark.parametrize(
    ("command", "may"), [("GET", True), ("GETEX", False), ("SET", False), ("HSCAN", False)]
)
def test_only_reads_may_go_to_replicas(command, may):
    assert replica_may_answer(lookup((command, "a"))) is may
