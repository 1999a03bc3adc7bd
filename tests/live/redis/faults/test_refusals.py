"""The meaning of each error reply: the caller's exception, attempts, state and cause.

The replies are a real server's own, except where a server gives them only by chance.
"""

import asyncio
import shutil

import pytest
from redis import exceptions as driver

from resilient_io import DeadlineExceeded, OutcomeUnknown, Progress, State
from resilient_io.errors import refused_by
from resilient_io.health import Cause
from resilient_io.testing import FaultProxy, RedisServer, ServerError

ATTEMPTS = 3  # of the policy

ENDLESS_SCRIPT = "while true do end"


@pytest.fixture
def refused(connect, quick, watch):
    """Return a function that makes a refused write through a proxy and checks the facts."""

    async def check(proxy, redis, *, error, cause, command="SET"):
        seen = watch(redis)
        before = proxy.requests[command]
        with pytest.raises(error) as caught:
            await (redis.set("key", "value") if command == "SET" else redis.get("key"))
        assert proxy.requests[command] - before == ATTEMPTS
        assert "3 attempts" in caught.value.__notes__[0]
        assert "nothing was applied" in caught.value.__notes__[0]
        assert (
            refused_by(caught.value) == redis.health.name
        )  # by this, `run` does not count the attempt of a record
        assert redis.health.state is State.DEGRADED
        assert redis.health.cause is cause
        await asyncio.sleep(0)
        assert seen.states == [State.DEGRADED]
        assert redis.health.available

    return check


async def until(server: RedisServer, section: str, fact: bytes) -> None:
    """Wait until the server's INFO contains a fact."""
    async with asyncio.timeout(5):
        while fact not in await server.query("INFO", section):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)


async def down(redis) -> None:
    """Wait until its health is down."""
    async with asyncio.timeout(5):
        async for change in redis.health.watch():
            if change.state is State.DOWN:
                return


async def busy(server: RedisServer) -> bool:
    """Return whether the server is too busy for a query."""
    try:
        await server.query("PING")
    except ServerError as error:
        return str(error).startswith("BUSY")
    return False


async def test_readonly(redis_server, connect, quick, refused):
    async with (
        RedisServer(replica_of=redis_server) as replica,
        FaultProxy(replica.port) as proxy,
    ):
        redis = await connect(proxy, policy=quick)

        await refused(proxy, redis, error=driver.ReadOnlyError, cause=Cause.READ_ONLY)

        assert await redis.get("key") is None  # reads continue
        await replica.query("REPLICAOF", "NO", "ONE")
        assert await redis.set("key", "value") is True
        assert redis.health.state is State.UP
        await redis.aclose()


async def test_masterdown(connect, quick, refused):
    async with RedisServer() as master:
        replica = RedisServer(replica_of=master, options={"replica-serve-stale-data": "no"})
        async with replica, FaultProxy(replica.port) as proxy:
            redis = await connect(proxy, policy=quick)
            assert await redis.get("key") is None
            master.kill()
            await until(replica, "replication", b"master_link_status:down")

            before = proxy.requests["GET"]
            with pytest.raises(driver.MasterDownError):
                await redis.get("key")

            assert proxy.requests["GET"] - before == ATTEMPTS
            assert redis.health.state is State.DEGRADED
            assert redis.health.cause is Cause.MASTER_DOWN
            await redis.aclose()


async def test_oom(redis_server, fault_proxy, connect, quick, refused):
    redis = await connect(fault_proxy, policy=quick)
    await redis_server.query("CONFIG", "SET", "maxmemory", "100kb")

    await refused(fault_proxy, redis, error=driver.OutOfMemoryError, cause=Cause.OUT_OF_MEMORY)

    assert await redis.get("key") is None
    await redis_server.query("CONFIG", "SET", "maxmemory", "0")
    assert await redis.set("key", "value") is True
    assert redis.health.state is State.UP


async def test_misconf(tmp_path, connect, quick, refused):
    data = tmp_path / "data"
    data.mkdir()
    options = {"dir": f'"{data}"', "save": "3600 1", "stop-writes-on-bgsave-error": "yes"}
    async with RedisServer(options=options) as server, FaultProxy(server.port) as proxy:
        redis = await connect(proxy, policy=quick)
        shutil.rmtree(data)
        await server.query("BGSAVE")
        await until(server, "persistence", b"rdb_last_bgsave_status:err")

        await refused(proxy, redis, error=driver.ResponseError, cause=Cause.DISK_ERROR)

        assert await redis.get("key") is None
        await server.query("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        assert await redis.set("key", "value") is True
        assert redis.health.state is State.UP
        await redis.aclose()


async def test_noreplicas(redis_server, fault_proxy, connect, quick, refused):
    redis = await connect(fault_proxy, policy=quick)
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "1")

    await refused(fault_proxy, redis, error=driver.ResponseError, cause=Cause.NO_REPLICAS)

    assert await redis.get("key") is None
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "0")
    assert await redis.set("key", "value") is True
    assert redis.health.state is State.UP


async def test_busy(redis_server, fault_proxy, connect, stranger, quick, refused):
    await redis_server.query("CONFIG", "SET", "lua-time-limit", "100")
    redis = await connect(fault_proxy, policy=quick)
    reader, writer = await stranger(redis_server.port)
    writer.write(b"EVAL '%b' 0\r\n" % ENDLESS_SCRIPT.encode())
    async with asyncio.timeout(5):
        while not await busy(redis_server):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)

    await refused(fault_proxy, redis, error=driver.ResponseError, cause=Cause.OVERLOADED)

    await redis_server.query("SCRIPT", "KILL")
    assert b"killed" in await reader.readline()
    assert await redis.set("key", "value") is True
    assert redis.health.state is State.UP


async def test_loading(redis_server, fault_proxy, connect, quick, watch):
    """A server that reloads its data for about 0.5 s replies -LOADING to every command."""
    redis = await connect(fault_proxy, policy=quick)
    seen = watch(redis)
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    faults = [fault_proxy.answer(name, loading, times=None) for name in ("INCRBY", "GET", "PING")]

    with pytest.raises((driver.BusyLoadingError, driver.ConnectionError, DeadlineExceeded)):
        await redis.incr("counter")
    await down(redis)
    assert redis.health.cause is Cause.LOADING
    assert fault_proxy.requests["INCRBY"] == 0  # none reached the server

    for fault in faults:
        fault.remove()
    await redis.health.until_up(2)
    assert await redis.incr("counter") == 1
    await seen.until_recovered(within=5)


async def test_a_call_admitted_before_a_short_loading_succeeds(
    redis_server, fault_proxy, connect, quick
):
    redis = await connect(fault_proxy, policy=quick.replace(deadline=5.0))
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    faults = [fault_proxy.answer(name, loading, times=None) for name in ("INCRBY", "PING")]

    calls = [asyncio.create_task(redis.incr("counter")) for _ in range(20)]
    await asyncio.sleep(0.3)
    for fault in faults:
        fault.remove()
    results = await asyncio.gather(*calls)

    assert sorted(results) == list(range(1, 21))


async def test_a_real_server_that_loads_its_data_is_down_for_loading(connect, quick, watch):
    options = {"enable-debug-command": "yes", "key-load-delay": 500}  # 10 s in all
    async with RedisServer(options=options) as server:
        await server.query("DEBUG", "POPULATE", 20_000)
        redis = await connect(server, policy=quick)
        seen = watch(redis)
        await server.query("CONFIG", "SET", "loading-process-events-interval-bytes", "1024")
        reload = asyncio.create_task(server.query("DEBUG", "RELOAD"))
        await down(redis)
        with pytest.raises((driver.BusyLoadingError, driver.ConnectionError, DeadlineExceeded)):
            await redis.with_policy(deadline=0.5).incr("counter")
        assert redis.health.state is State.DOWN
        assert redis.health.cause is Cause.LOADING

        await server.query("CONFIG", "SET", "key-load-delay", "0")
        await reload
        await redis.health.until_up(5)
        assert await redis.incr("counter") == 1
        await seen.until_recovered(within=5)


async def delete_and_set(redis):
    await redis.delete("other")
    await redis.set("key", "value")


async def delete_and_set_in_a_pipeline(redis):
    await redis.pipeline(transaction=False).delete("other").set("key", "value").execute()


@pytest.mark.parametrize("call", [delete_and_set, delete_and_set_in_a_pipeline])
async def test_refused_writes_between_accepted_ones_do_not_change_the_state_each_time(
    call, redis_server, connect, quick, watch
):
    """A server without memory accepts DEL."""
    redis = await connect(redis_server, policy=quick.replace(attempts=1))
    seen = watch(redis)
    await redis_server.query("CONFIG", "SET", "maxmemory", "1")

    for _ in range(20):
        with pytest.raises(driver.OutOfMemoryError):
            await call(redis)

    assert redis.health.state is State.DEGRADED
    assert redis.health.cause is Cause.OUT_OF_MEMORY
    assert len(seen.states) <= 4


async def give_up_immediately(redis):
    call = asyncio.create_task(redis.incr("counter"))
    await asyncio.sleep(0)  # it is sent
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def give_up_a_pipeline_immediately(redis):
    call = asyncio.create_task(redis.pipeline(transaction=False).incr("counter").execute())
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def run_a_script(redis):
    with pytest.raises(driver.BusyLoadingError):
        await redis.eval("return redis.call('INCR', KEYS[1])", 1, "counter")


async def send_a_pipeline_that_is_refused_in_part(redis):
    pipeline = redis.pipeline(transaction=False).incr("counter").echo("text")
    refused, answered = await pipeline.execute(raise_on_error=False)
    assert (type(refused), answered) == (driver.BusyLoadingError, b"text")


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (give_up_immediately, "INCRBY"),
        (give_up_a_pipeline_immediately, "INCRBY"),
        (run_a_script, "EVAL"),
        (send_a_pipeline_that_is_refused_in_part, "INCRBY"),
    ],
)
async def test_a_loading_server_is_down_although_its_replies_say_nothing_definite(
    call, command, fault_proxy, connect, quick
):
    """Nothing else is called, and there is always a reply within the interval of the probe."""
    redis = await connect(fault_proxy, policy=quick)
    time, interval = asyncio.get_running_loop().time, redis.health.settings.interval
    await asyncio.sleep(0.3 * interval)  # the first probes have ended
    for name in (command, "PING"):
        loading = b"-LOADING Redis is loading the dataset in memory\r\n"
        fault_proxy.answer(name, loading, times=None)
    limit = time() + 3 * interval

    while redis.health.state is State.UP and time() < limit:
        await call(redis)
        await asyncio.sleep(0.2 * interval)

    assert redis.health.state is State.DOWN
    assert redis.health.cause is Cause.LOADING


async def test_max_clients(connect, stranger, quick):
    async with RedisServer(options={"maxclients": 5}) as server:
        others = [await stranger(server.port) for _ in range(5)]
        for reader, writer in others:
            writer.write(b"PING\r\n")
            await reader.readline()
        redis = await connect(server, up=False, policy=quick)

        with pytest.raises(driver.RedisError) as caught:
            await redis.incr("counter")
        assert "max number of clients" in str(caught.value)
        assert redis.health.state is State.DOWN
        assert redis.health.cause is Cause.MAX_CLIENTS

        for _, writer in others:
            writer.close()
        await redis.health.until_up(5)
        assert await redis.incr("counter") == 1


async def test_max_clients_while_connections_are_open_does_not_mark_it_down(
    connect, stranger, quick
):
    async with RedisServer(options={"maxclients": 5}) as server:
        redis = await connect(server, policy=quick)
        for _ in range(6):
            await stranger(server.port)
        await asyncio.sleep(0.05)

        with pytest.raises(driver.RedisError):
            await redis.blpop(["absent"], timeout=0.1)
        assert await redis.incr("counter") == 1
        await asyncio.sleep(1.1)
        assert await redis.incr("counter") == 2
        assert redis.health.available


FINAL = {
    "NOPERM": (b"-NOPERM this user has no permissions\r\n", driver.NoPermissionError),
    "NOAUTH": (b"-NOAUTH Authentication required.\r\n", driver.AuthenticationError),
    "WRONGPASS": (b"-WRONGPASS invalid username-password pair\r\n", driver.AuthenticationError),
    "WRONGTYPE": (b"-WRONGTYPE Operation against a key\r\n", driver.ResponseError),
    "ERR": (b"-ERR value is not an integer or out of range\r\n", driver.ResponseError),
    "MOVED": (b"-MOVED 3999 127.0.0.1:6381\r\n", driver.MovedError),
}


@pytest.mark.parametrize(("reply", "error"), FINAL.values(), ids=FINAL)
async def test_a_permanent_refusal_is_raised_after_one_attempt(
    reply, error, redis_server, fault_proxy, connect, quick, watch
):
    redis = await connect(fault_proxy, policy=quick)
    seen = watch(redis)
    fault = fault_proxy.answer("INCRBY", reply, times=None)

    with pytest.raises(error):
        await redis.incr("counter")

    assert len(fault.struck) == 1
    await asyncio.sleep(0.1)
    assert not seen.changes
    assert redis.stats().retries == 0


async def test_a_real_noperm_is_raised_and_the_server_is_up_without_permission_for_ping(
    redis_server, connect, quick
):
    await redis_server.query("ACL", "SETUSER", "app", "on", ">pw", "~a:*", "+get", "+hello")
    redis = await connect(f"redis://app:pw@127.0.0.1:{redis_server.port}/0", policy=quick)

    with pytest.raises(driver.NoPermissionError):
        await redis.incr("a:counter")
    with pytest.raises(driver.NoPermissionError):
        await redis.get("b:key")
    assert await redis.get("a:key") is None
    await asyncio.sleep(1.2)  # a probe: its PING is forbidden, which is a reply
    assert redis.health.state is State.UP


async def test_garbage_instead_of_a_reply_closes_the_connection_and_is_never_a_reply(
    redis_server, fault_proxy, connect, quick, watch
):
    redis = await connect(fault_proxy, policy=quick)
    seen = watch(redis)
    fault_proxy.answer("GET", b"garbage\r\n")
    assert await redis.get("key") is None

    fault_proxy.answer("INCRBY", b"garbage\r\n", forward=True)
    with pytest.raises(driver.ConnectionError) as caught:
        await redis.incr("counter")

    assert "may have been applied" in str(caught.value)
    assert "Protocol error" in str(caught.value)
    assert await redis_server.query("GET", "counter") == b"1"
    assert State.DOWN not in seen.states
    assert await redis.incr("counter") == 2


EXCLUSIVE = {
    "BLPOP": (lambda redis: redis.blpop("list", timeout=1), (b"list", b"second")),
    "BZPOPMIN": (lambda redis: redis.bzpopmin("scores", timeout=1), (b"scores", b"second", 2.0)),
    "BLMOVE": (lambda redis: redis.blmove("list", "other", 1), b"second"),
}


@pytest.mark.parametrize(
    ("garbage", "detail"), [(b"garbage\r\n", "Protocol error"), (b"*-7\r\n", "out of range")]
)
@pytest.mark.parametrize("command", EXCLUSIVE)
async def test_garbage_on_an_exclusive_connection_closes_it_and_loses_one_element_at_most(
    command, garbage, detail, redis_server, fault_proxy, connect, quick, watch
):
    redis = await connect(fault_proxy, policy=quick)
    seen = watch(redis)
    await redis.rpush("list", "first", "second")
    await redis.zadd("scores", {"first": 1, "second": 2})
    call, expected = EXCLUSIVE[command]
    fault_proxy.answer(command, garbage, forward=True)

    with pytest.raises(OutcomeUnknown) as caught:
        await call(redis)

    assert detail in str(caught.value)
    assert caught.value.progress is Progress.MAYBE_APPLIED
    assert await call(redis) == expected
    assert State.DOWN not in seen.states


async def test_garbage_instead_of_the_reply_to_exec_makes_its_outcome_unknown(
    redis_server, fault_proxy, connect, quick
):
    redis = await connect(fault_proxy, policy=quick)
    fault_proxy.answer("EXEC", b"garbage\r\n", forward=True)
    async with redis.pipeline() as pipe:
        await pipe.watch("guard")
        pipe.multi()
        with pytest.raises(OutcomeUnknown, match="Protocol error"):
            await pipe.incr("counter").execute()
    assert await redis_server.query("GET", "counter") == b"1"


async def test_a_reset_before_the_request_arrives_counts_as_maybe_applied(
    redis_server, fault_proxy, connect, quick
):
    """It cannot be distinguished from a reset afterwards: bytes in the network may be applied."""
    redis = await connect(fault_proxy, policy=quick)
    fault_proxy.reset_on("INCRBY")

    with pytest.raises(driver.ConnectionError) as caught:
        await redis.incr("counter")

    assert "maybe applied" in str(caught.value)
    assert await redis_server.query("GET", "counter") is None


@pytest.mark.parametrize("transaction", [True, False], ids=["MULTI", "plain"])
async def test_a_batch_of_which_every_command_was_refused_is_repeated(
    transaction, redis_server, fault_proxy, connect, quick
):
    redis = await connect(fault_proxy, policy=quick)
    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "1")

    with pytest.raises(driver.RedisError):
        await redis.pipeline(transaction=transaction).incr("a").incr("b").execute()
    assert fault_proxy.requests["INCRBY"] == 2 * ATTEMPTS
    assert await redis_server.query("EXISTS", "a", "b") == 0

    await redis_server.query("CONFIG", "SET", "min-replicas-to-write", "0")
    result = await redis.pipeline(transaction=transaction).incr("a").incr("b").execute()
    assert result == [1, 1]
