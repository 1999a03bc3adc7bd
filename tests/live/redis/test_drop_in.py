"""The same script on redis-py's client and on ResilientRedis gives the same results."""

import datetime as dt
import itertools

import pytest
import redis.asyncio as driver
from redis.exceptions import RedisError

from resilient_io.redis import ResilientRedis

KINDS = [
    dict(zip(("decode_responses", "protocol", "legacy_responses"), kind, strict=True))
    for kind in itertools.product((False, True), (2, 3), (True, False))
]

SCRIPT = [
    # Strings and keys.
    lambda r: r.set("s", "värt"),
    lambda r: r.get("s"),
    lambda r: r.get("missing"),
    lambda r: r.set("s", "x", nx=True),
    lambda r: r.set("s", "x", xx=True, get=True),
    lambda r: r.set("t", 1, ex=100),
    lambda r: r.set("t", 1, px=dt.timedelta(seconds=100)),
    lambda r: r.setex("u", dt.timedelta(seconds=9), b"b"),
    lambda r: r.psetex("u", 9000, "c"),
    lambda r: r.setnx("u", "d"),
    lambda r: r.getset("u", "e"),
    lambda r: r.getdel("u"),
    lambda r: r.getex("t", ex=50),
    lambda r: r.ttl("t"),
    lambda r: r.mset({"a": 1, "b": 2.5, b"c": b"\xc3\xa5"}),
    lambda r: r.mget("a", "b", "c", "missing"),
    lambda r: r.mget([]),
    lambda r: r.msetnx({"a": 1, "z": 1}),
    lambda r: r.incr("n"),
    lambda r: r.incrby("n", 10),
    lambda r: r.decr("n", 3),
    lambda r: r.incrbyfloat("f", 1.5),
    lambda r: r.append("s", "more"),
    lambda r: r.strlen("s"),
    lambda r: r.getrange("s", 0, 2),
    lambda r: r.setrange("s", 2, "!!"),
    lambda r: r.setbit("bits", 7, 1),
    lambda r: r.getbit("bits", 7),
    lambda r: r.bitcount("bits"),
    lambda r: r.bitpos("bits", 1),
    lambda r: r.bitop("XOR", "dest", "bits", "bits"),
    lambda r: r.bitfield("bits").set("u8", 0, 200).get("u8", 0).execute(),
    lambda r: r.lcs("a", "b"),
    lambda r: r.exists("a", "b", "missing"),
    lambda r: r.delete("z", "dest"),
    lambda r: r.unlink("z"),
    lambda r: r.expire("a", 100),
    lambda r: r.expire("missing", 100),
    lambda r: r.persist("a"),
    lambda r: r.pexpireat("a", dt.datetime(2100, 1, 1, tzinfo=dt.UTC)),
    lambda r: r.expiretime("a"),
    lambda r: r.type("a"),
    lambda r: r.rename("a", "a2"),
    lambda r: r.renamenx("a2", "b"),
    lambda r: r.copy("a2", "a3"),
    lambda r: r.touch("a2", "a3"),
    lambda r: r.object("encoding", "a2"),
    lambda r: r.dump("a2"),
    lambda r: r.keys("a*"),
    lambda r: r.dbsize(),
    lambda r: r.ping(),
    # Hashes.
    lambda r: r.hset("h", "f", "v"),
    lambda r: r.hset("h", mapping={"g": 1, "i": 2.5}),
    lambda r: r.hget("h", "f"),
    lambda r: r.hgetall("h"),
    lambda r: r.hgetall("missing"),
    lambda r: r.hmget("h", ["f", "missing"]),
    lambda r: r.hmget("h", "f", "g"),
    lambda r: r.hincrby("h", "g", 5),
    lambda r: r.hincrbyfloat("h", "i", 0.25),
    lambda r: r.hkeys("h"),
    lambda r: r.hvals("h"),
    lambda r: r.hlen("h"),
    lambda r: r.hexists("h", "f"),
    lambda r: r.hsetnx("h", "f", "w"),
    lambda r: r.hstrlen("h", "f"),
    lambda r: r.hdel("h", "f", "missing"),
    lambda r: r.hscan("h"),
    # Lists.
    lambda r: r.rpush("l", "a", "b", 3, 4.5),
    lambda r: r.lpush("l", b"z"),
    lambda r: r.lrange("l", 0, -1),
    lambda r: r.lindex("l", 0),
    lambda r: r.llen("l"),
    lambda r: r.lset("l", 0, "y"),
    lambda r: r.linsert("l", "BEFORE", "b", "ab"),
    lambda r: r.lpos("l", "b"),
    lambda r: r.lpos("l", "b", count=2),
    lambda r: r.lrem("l", 1, "ab"),
    lambda r: r.ltrim("l", 0, 10),
    lambda r: r.lmove("l", "l2", "LEFT", "RIGHT"),
    lambda r: r.rpoplpush("l", "l2"),
    lambda r: r.lpop("l"),
    lambda r: r.lpop("l", 2),
    lambda r: r.rpop("missing"),
    lambda r: r.blpop("l2", timeout=1),
    lambda r: r.brpop(["l2"], timeout=1),
    lambda r: r.blpop(["nothing"], timeout=0.01),
    lambda r: r.rpush("l3", 1, 2, 3),
    lambda r: r.blmove("l3", "l4", 1, "LEFT", "RIGHT"),
    lambda r: r.brpoplpush("l3", "l4", timeout=1),
    lambda r: r.lmpop(1, "l4", direction="LEFT", count=2),
    lambda r: r.blmpop(0.01, 1, "l4", direction="LEFT"),
    lambda r: r.sort("l3", desc=True),
    lambda r: r.sort("l3", get=["#", "a*"], groups=True),
    # Sets.
    lambda r: r.sadd("set", "a", "b", 3),
    lambda r: r.smembers("set"),
    lambda r: r.smembers("missing"),
    lambda r: r.sismember("set", "a"),
    lambda r: r.smismember("set", ["a", "q"]),
    lambda r: r.scard("set"),
    lambda r: r.sadd("set2", "b"),
    lambda r: r.sinter("set", "set2"),
    lambda r: r.sinterstore("set3", "set", "set2"),
    lambda r: r.sintercard(2, ["set", "set2"]),
    lambda r: r.sunion(["set", "set2"]),
    lambda r: r.sdiff("set", "set2"),
    lambda r: r.smove("set", "set2", "a"),
    lambda r: r.srandmember("set3"),
    lambda r: r.srandmember("set3", 2),
    lambda r: r.srem("set", "q"),
    lambda r: r.spop("set3"),
    lambda r: r.spop("set3", 1),
    # Sorted sets.
    lambda r: r.zadd("z", {"a": 1, "b": 2.5, "c": "+inf"}),
    lambda r: r.zadd("z", {"a": 1}, incr=True),
    lambda r: r.zadd("z", {"a": 1}, nx=True, ch=True),
    lambda r: r.zscore("z", "b"),
    lambda r: r.zscore("z", "missing"),
    lambda r: r.zmscore("z", ["a", "missing"]),
    lambda r: r.zincrby("z", 0.5, "a"),
    lambda r: r.zrange("z", 0, -1),
    lambda r: r.zrange("z", 0, -1, withscores=True),
    lambda r: r.zrange("z", 0, -1, withscores=True, score_cast_func=str),
    lambda r: r.zrevrange("z", 0, -1, withscores=True),
    lambda r: r.zrangebyscore("z", 0, 5, withscores=True),
    lambda r: r.zrangebylex("z", "-", "+"),
    lambda r: r.zrank("z", "b"),
    lambda r: r.zrank("z", "b", withscore=True),
    lambda r: r.zrevrank("z", "b"),
    lambda r: r.zcard("z"),
    lambda r: r.zcount("z", "-inf", "+inf"),
    lambda r: r.zadd("z2", {"a": 5}),
    lambda r: r.zunion(["z", "z2"], withscores=True),
    lambda r: r.zinter(["z", "z2"], withscores=True),
    lambda r: r.zdiff(["z", "z2"], withscores=True),
    lambda r: r.zunionstore("z3", {"z": 1, "z2": 2}),
    lambda r: r.zrandmember("z2", 1, withscores=True),
    lambda r: r.zpopmin("z3"),
    lambda r: r.zpopmax("z3", 2),
    lambda r: r.zmpop(1, ["z"], min=True),
    lambda r: r.bzpopmin("z", timeout=1),
    lambda r: r.bzpopmax(["nothing"], timeout=0.01),
    lambda r: r.bzmpop(0.01, 1, ["z"], max=True),
    lambda r: r.zscan("z2"),
    lambda r: r.zrem("z2", "a", "q"),
    # Streams.
    lambda r: r.xadd("x", {"f": "v"}, id="1-1"),
    lambda r: r.xadd("x", {"f": 2, "g": b"w"}, id="1-2", maxlen=100),
    lambda r: r.xlen("x"),
    lambda r: r.xrange("x"),
    lambda r: r.xrevrange("x", count=1),
    lambda r: r.xread({"x": "0"}),
    lambda r: r.xread({"x": "$"}, block=5),
    lambda r: r.xgroup_create("x", "g", id="0"),
    lambda r: r.xgroup_create("x", "g", id="0"),
    lambda r: r.xgroup_createconsumer("x", "g", "c"),
    lambda r: r.xreadgroup("g", "c", {"x": ">"}, count=1),
    lambda r: r.xreadgroup("g", "c", {"x": ">"}, block=5),
    lambda r: r.xpending("x", "g"),
    lambda r: r.xack("x", "g", "1-1"),
    lambda r: r.xclaim("x", "g", "d", 0, ["1-2"], justid=True),
    lambda r: r.xautoclaim("x", "g", "e", 0),
    lambda r: r.xinfo_stream("x"),
    lambda r: r.xinfo_groups("x"),
    lambda r: r.xtrim("x", maxlen=1, approximate=False),
    lambda r: r.xdel("x", "1-2"),
    # Other commands.
    lambda r: r.pfadd("p", "a", "b"),
    lambda r: r.pfcount("p"),
    lambda r: r.geoadd("geo", (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania")),
    lambda r: r.geodist("geo", "Palermo", "Catania", unit="km"),
    lambda r: r.geopos("geo", "Palermo", "missing"),
    lambda r: r.geohash("geo", "Palermo"),
    lambda r: r.geosearch("geo", member="Palermo", radius=200, unit="km", withdist=True),
    lambda r: r.geosearch("geo", member="Palermo", radius=200, unit="km", withcoord=True),
    lambda r: r.eval("return {1, 'a', redis.status_reply('OK'), false}", 0),
    lambda r: r.eval("return redis.error_reply('MINE it is')", 0),
    lambda r: r.eval_ro("return redis.call('GET', KEYS[1])", 1, "s"),
    lambda r: r.script_load("return 1"),
    lambda r: r.evalsha("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", 0),
    lambda r: r.script_exists("e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "0" * 40),
    lambda r: r.evalsha("0" * 40, 0),
    lambda r: r.function_load(
        "#!lua name=l\nredis.register_function('f', function() return 7 end)"
    ),
    lambda r: r.fcall("f", 0),
    lambda r: r.function_list(),
    lambda r: r.publish("no-channel", "hello"),
    lambda r: r.pubsub_numsub("no-channel"),
    lambda r: r.config_get("maxmemory*"),
    lambda r: r.config_set("maxmemory-samples", 5),
    lambda r: r.command_count(),
    lambda r: r.command_getkeys("GET", "a"),
    lambda r: r.acl_whoami(),
    lambda r: r.acl_getuser("default"),
    lambda r: r.acl_cat("hash"),
    lambda r: r.slowlog_len(),
    lambda r: r.memory_usage("s"),
    lambda r: r.role(),
    lambda r: r.echo("é"),
    lambda r: r.module_list(),
    # Permanent refusals.
    lambda r: r.lpush("s", 1),
    lambda r: r.incr("s"),
    lambda r: r.execute_command("NOSUCHCOMMAND", 1),
    lambda r: r.execute_command("GET"),
    lambda r: r.set("k", None),
    lambda r: r.set("k", True),
    lambda r: r.set("k", {"a": 1}),
    lambda r: r.set("k", "v", ex=1, px=1),
    lambda r: r.set("k", memoryview(b"view")),
    lambda r: r.get("k"),
    lambda r: r.set("k", bytearray(b"array")),
    lambda r: r.get(bytearray(b"k")),
    lambda r: r.set("k", -1.5e300),
    lambda r: r.get(memoryview(b"k")),
    lambda r: r.set("k", 2**80),
    lambda r: r.get("k"),
    lambda r: r.set("k", ""),
    lambda r: r.get("k"),
    lambda r: r.set("", "empty"),
    lambda r: r.get(""),
    lambda r: r.set("k", "\x00\r\n$5"),
    lambda r: r.get("k"),
    # Commands as raw words.
    lambda r: r.execute_command("get", "k"),
    lambda r: r.execute_command("Get", "k"),
    lambda r: r.execute_command(b"get", "k"),
    lambda r: r.execute_command(b"GET", "k"),
    lambda r: r.execute_command("GET k"),
    lambda r: r.execute_command("hgetall", "h"),
    lambda r: r.execute_command("HGETALL h"),
    lambda r: r.execute_command(b"HGETALL", "h"),
    lambda r: r.execute_command("CONFIG", "GET", "maxmemory"),
    lambda r: r.execute_command("CONFIG GET", "maxmemory"),
    lambda r: r.execute_command("config get", "maxmemory"),
    lambda r: r.execute_command("blpop", "nothing", 0.01),
    lambda r: r.execute_command("BLPOP", "nothing", "0.01"),
    lambda r: r.execute_command("zscore", "geo", "Palermo"),
    lambda r: r.execute_command("ping"),
    lambda r: r.execute_command("PING", "hello"),
    lambda r: r.ping(message="hello"),
    lambda r: r.execute_command("set", "k", "v"),
    # Iterators.
    lambda r: everything(r.scan_iter("a*", count=2)),
    lambda r: everything(r.hscan_iter("h")),
    lambda r: everything(r.sscan_iter("set2")),
    lambda r: everything(r.zscan_iter("geo")),
    # Pipelines.
    lambda r: r.pipeline().execute(),
    lambda r: r.pipeline().set("p1", 1).incr("p1").get("p1").hgetall("h").execute(),
    lambda r: r.pipeline(transaction=False).set("p1", 1).incr("p1").zscore("geo", "x").execute(),
    lambda r: r.pipeline().incr("p1").lpush("p1", 1).get("p1").execute(raise_on_error=False),
    lambda r: r.pipeline().incr("p1").lpush("p1", 1).get("p1").execute(),
    lambda r: r.pipeline(transaction=False).incr("p1").lpush("p1", 1).execute(raise_on_error=False),
    lambda r: r.pipeline(transaction=False).incr("p1").lpush("p1", 1).execute(),
    lambda r: r.pipeline().incr("p1").execute_command("NOSUCH").execute(),
    lambda r: r.pipeline().incr("p1").execute_command("GET").execute(raise_on_error=False),
    lambda r: r.pipeline(transaction=False).execute_command("NOSUCH").execute(),
    lambda r: r.pipeline().set("p1", None).execute(),
    lambda r: r.pipeline().mget([]).get("p1").execute(),
    lambda r: r.pipeline(transaction=False).mget([]).get("p1").execute(),
    lambda r: r.pipeline().dump("s").config_get("maxmemory").xadd("x", {"a": 1}, "9-9").execute(),
    lambda r: r.pipeline(transaction=False).dump("s").config_get("maxmemory").execute(),
    lambda r: r.pipeline(transaction=False).blpop("nothing", 0.01).get("s").execute(),
    lambda r: r.pipeline().blpop("nothing", 1).get("s").execute(),
    lambda r: r.transaction(lambda pipe: pipe.multi() or pipe.incr("p1"), "p1"),
    lambda r: r.transaction(move, "p1", value_from_callable=True),
    lambda r: r.get("p2"),
]


async def move(pipe):
    value = await pipe.get("p1")
    pipe.multi()
    pipe.set("p2", value)
    return value


async def everything(iterator):
    return sorted([item async for item in iterator])


async def transcript(client):
    """Run the script, and return the result of each line."""
    lines = []
    for step in SCRIPT:
        try:
            outcome = await step(client)
        except (RedisError, TypeError, ValueError, LookupError) as error:
            outcome = (type(error), str(error))
        lines.append(outcome)
    return lines


def described(value):
    """Return value and type, recursively."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return kind, [(described(key), described(of)) for key, of in value.items()]
    if isinstance(value, (list, tuple)):
        return kind, [described(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(repr, value))
    if isinstance(value, Exception):
        return kind, str(value)
    return kind, repr(value)


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
async def test_every_command_returns_what_redis_py_returns(redis_server, kind):
    await redis_server.query("CONFIG", "SET", "hz", 500)  # how often the server checks timeouts
    async with driver.Redis(port=redis_server.port, **kind) as theirs:
        expected = await transcript(theirs)
    for command in ("FLUSHALL", "SCRIPT FLUSH", "FUNCTION FLUSH"):
        await redis_server.query(*command.split())
    async with ResilientRedis(port=redis_server.port, **kind) as ours:
        got = await transcript(ours)
    different = {
        number: (described(one), described(other))
        for number, (one, other) in enumerate(zip(expected, got, strict=True))
        if described(one) != described(other)
    }
    lines = {number: SCRIPT[number].__code__.co_firstlineno for number in different}
    assert different == {}, lines
