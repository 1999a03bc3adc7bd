"""Locks that are lost while they are held, renewed, fenced, waited for and released late."""

import asyncio
import contextlib
import time

import pytest
import redis.asyncio as driver
from redis.exceptions import LockError, LockNotOwnedError

from resilient_io import (
    ConfigurationError,
    DeadlineExceeded,
    ResilientIOError,
    RetryPolicy,
    deadline,
)
from resilient_io.redis import LockLost, ResilientRedis
from resilient_io.testing import RedisServer, cancel_everywhere

QUICK = RetryPolicy(response_timeout=0.5, connect_timeout=0.5, deadline=5.0, backoff=0.01)


@pytest.fixture(params=["resp3", "resp2"])
async def client(redis_server, request):
    """Open a client to which the server reports changed keys, or one that has to ask."""
    protocol = 3 if request.param == "resp3" else 2
    async with ResilientRedis(port=redis_server.port, policy=QUICK, protocol=protocol) as client:
        await client.ping()
        yield client


@pytest.fixture
async def tracking(redis_server):
    """Open a client to which the server reports changed keys."""
    async with ResilientRedis(port=redis_server.port, policy=QUICK) as client:
        await client.ping()
        yield client


@pytest.fixture
async def slow(fault_proxy):
    """Open a client whose requests and replies take 2 ms each."""
    fault_proxy.latency(requests=0.002, replies=0.002)
    async with ResilientRedis(port=fault_proxy.port, policy=QUICK) as client:
        await client.ping()
        yield client


async def until_gone(server, *keys, within=2.0):
    async with asyncio.timeout(within):
        while await server.query("EXISTS", *keys):  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


# -- loss ----------------------------------------------------------------------------------


async def test_deleted_lock_cancels_the_body_at_once(tracking, redis_server, slack):
    lock = tracking.lock("lock", timeout=30)
    ended = None
    with pytest.raises(LockLost, match="lock 'lock' was lost: its key was deleted") as caught:
        async with lock:
            await asyncio.sleep(0.05)  # until it is watched
            started = time.monotonic()
            await redis_server.query("DEL", "lock")
            try:
                await asyncio.sleep(10)
            finally:
                ended = time.monotonic() - started
    assert ended < slack(0.1)
    assert isinstance(caught.value, LockNotOwnedError)
    assert isinstance(caught.value, LockError)
    assert asyncio.current_task().cancelling() == 0
    async with lock:  # it can be used again
        pass


async def test_deleted_lock_is_noticed_by_asking(client, redis_server, slack):
    started = time.monotonic()
    with pytest.raises(LockLost):
        async with client.lock("lock"):
            await redis_server.query("DEL", "lock")  # before it is watched
            await asyncio.sleep(10)
    assert time.monotonic() - started < slack(1.5)


async def test_lock_of_another_owner_is_not_released_after_a_loss(client, redis_server):
    with pytest.raises(LockLost):
        async with client.lock("lock", timeout=30):
            await redis_server.query("SET", "lock", "another")
            await asyncio.sleep(10)
    assert await redis_server.query("GET", "lock") == b"another"


async def test_expired_lock_is_lost_at_its_timeout_even_without_a_server(client, redis_server):
    started = time.monotonic()
    with pytest.raises(LockLost, match=r"its timeout has passed|has expired"):
        async with client.lock("lock", timeout=0.4):
            redis_server.freeze()
            await asyncio.sleep(10)
    assert 0.35 < time.monotonic() - started < 1.0
    redis_server.thaw()


async def test_lock_is_lost_with_the_server_that_knew_it(client, redis_server):
    with pytest.raises(LockLost):
        async with client.lock("lock"), asyncio.timeout(10):
            await asyncio.sleep(0.05)
            redis_server.kill()
            await redis_server.start()
            await asyncio.sleep(10)


async def test_lock_is_lost_when_its_server_becomes_a_replica_without_it(tracking, redis_server):
    async with RedisServer() as other:
        with pytest.raises(LockLost):
            async with tracking.lock("lock"), asyncio.timeout(10):
                await asyncio.sleep(0.05)
                await redis_server.query("REPLICAOF", "127.0.0.1", str(other.port))
                await asyncio.sleep(20)


async def test_lock_of_a_bound_client_is_lost_at_its_timeout(client, redis_server):
    async with client.client() as bound:
        lock = bound.lock("lock", timeout=0.3)
        with pytest.raises(LockLost):
            async with lock:
                await bound.execute_command("MULTI")
                await asyncio.sleep(0.1)
                assert await bound.execute_command("EXEC") == []  # nothing was sent in between
                await asyncio.sleep(10)
        await redis_server.query("SET", "lock", "another", "PX", 200)
        assert await lock.acquire()


async def test_lock_that_survives_a_lost_connection_is_kept(client, redis_server):
    async with client.lock("lock", timeout=30) as lock:
        await asyncio.sleep(0.05)
        for _ in range(3):
            await redis_server.query("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.1)
        assert await lock.owned()
    assert not await redis_server.query("EXISTS", "lock")


async def test_loss_can_be_awaited_without_a_cancellation(client, redis_server):
    lock = client.lock("lock", timeout=30, cancel_on_loss=False)
    with pytest.raises(LockError):
        _ = lock.lost
    with pytest.raises(LockLost):
        async with lock:
            first, second = lock.lost, lock.lost
            first.cancel()
            await redis_server.query("DEL", "lock")
            error = await asyncio.wait_for(second, 5)
            assert isinstance(error, LockLost)
            assert (await lock.lost) is error
    assert await lock.acquire()
    waiting = lock.lost
    await lock.release()
    await asyncio.sleep(0.05)
    assert not waiting.done()


async def test_loss_is_only_logged_without_raise_on_release_error(client, redis_server, caplog):
    options = {"raise_on_release_error": False, "cancel_on_loss": False}
    async with client.lock("lock", timeout=30, **options) as lock:
        await redis_server.query("DEL", "lock")
        await lock.lost
    assert "was lost" in caplog.text


async def test_exception_of_the_body_goes_before_the_loss(client, redis_server):
    with pytest.raises(ZeroDivisionError):
        async with client.lock("lock", timeout=30) as lock:
            await redis_server.query("DEL", "lock")
            try:
                await lock.lost
                await asyncio.sleep(10)
            finally:
                _ = 1 / 0
    assert asyncio.current_task().cancelling() == 0


async def test_cancellation_from_outside_goes_before_the_loss(client, redis_server):
    async def hold():
        async with client.lock("lock", timeout=30):
            entered.set()
            await asyncio.sleep(10)

    entered = asyncio.Event()
    task = asyncio.create_task(hold())
    await entered.wait()
    await redis_server.query("DEL", "lock")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_two_tasks_with_one_lock_object_release_their_own_lock(client, redis_server):
    lock = client.lock("lock", timeout=0.2, cancel_on_loss=False)

    async def overdue():
        async with lock:
            await asyncio.sleep(0.5)

    first = asyncio.create_task(overdue())
    await asyncio.sleep(0.05)
    second = client.lock("lock", timeout=30)
    lock.timeout = 30
    async with lock:
        with pytest.raises(LockLost):
            await first
        assert await lock.owned()
        assert not await second.acquire(blocking=False)


async def test_extended_lock_is_not_lost(client):
    async with client.lock("lock", timeout=0.3) as lock:
        await lock.extend(10)
        await asyncio.sleep(0.6)
        await lock.reacquire()
        await asyncio.sleep(0.1)
        await lock.extend(5, replace_ttl=True)
        await asyncio.sleep(0.4)
        assert await lock.owned()


@pytest.mark.parametrize("held_for", [0.0, 0.1])
async def test_closing_the_client_cancels_the_body_and_releases_the_lock(
    client, redis_server, held_for
):
    began, ended = asyncio.Event(), []

    async def hold(timeout):
        try:
            async with client.lock("lock", timeout=timeout):
                await asyncio.sleep(held_for)
                began.set()
                await asyncio.sleep(60)
        finally:
            ended.append(asyncio.get_running_loop().time())

    task = asyncio.create_task(hold(None))
    await began.wait()
    await client.aclose()
    closed = asyncio.get_running_loop().time()
    with pytest.raises(LockLost, match="cannot be determined: the client was closed"):
        await task
    assert ended[0] <= closed
    assert not await redis_server.query("EXISTS", "lock")
    assert not client._runtime.running, "the release has not opened the client again"


async def test_closing_the_client_ends_the_waits_for_the_loss_and_keeps_the_key(
    client, redis_server
):
    lock = client.lock("lock", timeout=30)
    await lock.acquire()
    lost = lock.lost
    await client.aclose()
    assert "the client was closed" in str(lost.result())
    assert await redis_server.query("EXISTS", "lock"), "redis-py keeps it, too"
    await lock.release()  # opens the client again
    assert not await redis_server.query("EXISTS", "lock")


async def test_body_that_closes_its_client_itself_is_not_cancelled(client, redis_server):
    async with client.lock("lock", timeout=30):
        await asyncio.sleep(0.05)
        await client.aclose()
    assert not await redis_server.query("EXISTS", "lock")


async def test_body_that_may_go_on_releases_its_lock_after_the_close(client, redis_server):
    began, closed = asyncio.Event(), asyncio.Event()
    lock = client.lock("lock", timeout=30, cancel_on_loss=False)

    async def hold():
        async with lock:
            lost = lock.lost
            began.set()
            assert "the client was closed" in str(await lost)
            await closed.wait()

    task = asyncio.create_task(hold())
    await began.wait()
    await client.aclose()
    closed.set()
    await task
    assert not await redis_server.query("EXISTS", "lock")


async def test_exception_of_a_body_that_a_close_has_cancelled_goes_first(client, redis_server):
    began = asyncio.Event()

    async def hold():
        async with client.lock("lock"):
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                raise ZeroDivisionError

    task = asyncio.create_task(hold())
    await began.wait()
    async with asyncio.timeout(0.9):  # the close does not wait for its whole second
        await client.aclose()
    with pytest.raises(ZeroDivisionError):
        await task
    assert not await redis_server.query("EXISTS", "lock")


async def test_body_that_does_not_end_delays_the_close_by_a_second(client, caplog, slack):
    began, end = asyncio.Event(), asyncio.Event()

    async def hold():
        async with client.lock("lock", timeout=1.5):
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                await end.wait()

    task = asyncio.create_task(hold())
    await began.wait()
    start = time.monotonic()
    await client.aclose()
    assert 0.9 < time.monotonic() - start < 1.2 + slack()
    end.set()
    with pytest.raises(LockLost):
        await task
    assert "could not be released" in caplog.text


async def test_closing_a_client_can_be_cancelled_everywhere_while_a_lock_is_held(redis_server):
    async def close(opened):
        client, _ = opened
        await client.aclose()

    @contextlib.asynccontextmanager
    async def held():
        client = ResilientRedis(port=redis_server.port, policy=QUICK)
        began = asyncio.Event()

        async def hold():
            async with client.lock("lock"):
                began.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await began.wait()
        yield client, task
        with pytest.raises(LockLost):
            await task
        await client.aclose()
        await until_gone(redis_server, "lock")

    report = await cancel_everywhere(close, setup=held)
    report.assert_clean()


# -- renewal -------------------------------------------------------------------------------


async def test_renewed_lock_outlives_its_timeout_until_it_is_released(client, redis_server):
    lock = client.lock("lock", timeout=0.3, renew=True)
    await lock.acquire()
    lowest = 300
    for _ in range(20):
        await asyncio.sleep(0.05)
        lowest = min(lowest, await redis_server.query("PTTL", "lock"))
    assert lowest > 100
    await lock.release()
    assert not await redis_server.query("EXISTS", "lock")
    await redis_server.query("SET", "lock", "another")
    await asyncio.sleep(0.3)
    assert await redis_server.query("PTTL", "lock") == -1  # nothing is renewed any more


async def test_lock_that_cannot_be_renewed_is_lost(client, redis_server):
    started = time.monotonic()
    with pytest.raises(LockLost):
        async with client.lock("lock", timeout=0.6, renew=True):
            await asyncio.sleep(0.25)
            redis_server.freeze()
            await asyncio.sleep(10)
    assert time.monotonic() - started < 1.5
    redis_server.thaw()


async def test_renewal_survives_a_restart_of_the_connection(client, redis_server):
    async with client.lock("lock", timeout=0.6, renew=True) as lock:
        for _ in range(4):
            await asyncio.sleep(0.25)
            await redis_server.query("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await lock.owned()


async def test_renewal_notices_the_loss_without_async_with(client, redis_server):
    lock = client.lock("lock", timeout=0.3, renew=True)
    await lock.acquire()
    await redis_server.query("SET", "lock", "another")
    assert isinstance(await asyncio.wait_for(lock.lost, 5), LockLost)
    with pytest.raises(LockNotOwnedError):
        await lock.release()


def test_renewal_needs_a_timeout():
    with pytest.raises(ConfigurationError, match="renew=True needs a timeout"):
        ResilientRedis().lock("lock", renew=True)


async def test_rounds_under_latency_leave_no_key(slow, redis_server):
    async def rounds(name):
        for number in range(100):
            lock = slow.lock(name, timeout=0.1, renew=True)
            with contextlib.suppress(LockLost):  # on a busy machine, 0.1 s may be too short
                async with lock:
                    await asyncio.sleep(0.05 if number % 10 == 0 else 0)

    async with asyncio.timeout(60):
        await asyncio.gather(*(rounds(f"lock:{number}") for number in range(100)))
    await asyncio.sleep(0.1)
    assert await redis_server.query("DBSIZE") == 0


# -- fencing -------------------------------------------------------------------------------


async def test_fencing_token_increases_with_each_holder(client, redis_server):
    tokens = []
    for number in range(5):
        lock = client.lock("lock", timeout=5 if number % 2 else None, fencing=True)
        async with lock:
            tokens.append(lock.fencing_token)
            other = client.lock("lock", fencing=True, blocking=False)
            assert not await other.acquire()
        with pytest.raises(LockError):
            _ = lock.fencing_token
    assert tokens == [1, 2, 3, 4, 5]
    assert await redis_server.query("GET", "{lock}:fencing") == b"5"
    assert await redis_server.query("TTL", "{lock}:fencing") == -1
    async with client.lock("lock") as lock:
        with pytest.raises(LockError, match="needs fencing=True"):
            _ = lock.fencing_token
    async with client.lock("{a}lock", fencing=True):
        assert await redis_server.query("GET", "{a}lock:fencing") == b"1"


async def test_fencing_token_is_known_although_the_reply_was_lost(fault_proxy, redis_server):
    policy = QUICK.replace(response_timeout=0.2)
    async with ResilientRedis(port=fault_proxy.port, policy=policy) as client:
        async with client.lock("lock", timeout=5, fencing=True):
            pass
        fault_proxy.drop_reply("EVALSHA")
        async with client.lock("lock", timeout=5, fencing=True) as lock:
            assert lock.fencing_token == 2
        fault_proxy.assert_faults_used()
    assert not await redis_server.query("EXISTS", "lock")


# -- waiting -------------------------------------------------------------------------------


async def test_waiter_is_woken_when_the_lock_is_released(tracking, redis_server, slack):
    plain = driver.Redis(port=redis_server.port)
    for holder in (plain, tracking):
        held = holder.lock("lock", timeout=30)
        await held.acquire()
        lock = tracking.lock("lock", timeout=30, sleep=10)
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        started = time.monotonic()
        await held.release()
        assert await waiting
        assert time.monotonic() - started < slack(0.1)
        await lock.release()
    await plain.aclose()


async def test_waiter_is_woken_when_the_lock_expires(tracking, redis_server, slack):
    await redis_server.query("SET", "lock", "crashed holder", "PX", 300)
    started = time.monotonic()
    lock = tracking.lock("lock", timeout=30, sleep=10)
    assert await lock.acquire()
    assert 0.25 < time.monotonic() - started < slack(0.45)


async def test_waiter_polls_where_the_server_reports_nothing(redis_server, slack):
    await redis_server.query("ACL", "SETUSER", "default", "-client|tracking")
    await redis_server.query("SET", "lock", "another")
    async with ResilientRedis(port=redis_server.port, policy=QUICK) as client:
        lock = client.lock("lock", timeout=30, sleep=0.05)
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.2)
        await redis_server.query("DEL", "lock")
        async with asyncio.timeout(slack(0.3)):
            assert await waiting
        with pytest.raises(LockLost):
            async with client.lock("other", timeout=30), asyncio.timeout(slack(3)):
                await redis_server.query("DEL", "other")
                await asyncio.sleep(10)


async def test_waiters_get_the_lock_in_turn(client, redis_server):
    order, started = [], []

    async def hold(number):
        started.append(number)
        async with client.lock("lock", timeout=30, sleep=0.02):
            order.append(number)
            await asyncio.sleep(0)

    await redis_server.query("SET", "lock", "another", "PX", 200)
    async with asyncio.timeout(20):
        await asyncio.gather(*(hold(number) for number in range(50)))
    assert sorted(order) == started
    assert client._runtime.locks._keys == {}


async def test_waiting_with_a_timeout_ends_in_time(client, redis_server):
    await redis_server.query("SET", "lock", "another")
    for limit, sleep in ((0.2, 0.05), (0.2, 10), (0.05, 0.1)):
        started = time.monotonic()
        assert not await client.lock("lock", blocking_timeout=limit, sleep=sleep).acquire()
        assert limit - sleep < time.monotonic() - started < limit + 0.1
    assert client._runtime.locks._keys == {}


async def test_wait_ends_with_the_deadline(client, redis_server, slack):
    await redis_server.query("SET", "lock", "another")
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded), deadline(0.3):
        await client.lock("lock", sleep=0.01).acquire()
    assert 0.25 < time.monotonic() - started < slack(0.5)


async def test_waiter_learns_that_the_server_is_down(client, redis_server):
    client = client.with_policy(deadline=1)
    await redis_server.query("SET", "lock", "another")
    waiting = [asyncio.create_task(client.lock("lock").acquire()) for _ in range(3)]
    await asyncio.sleep(0.1)
    redis_server.kill()
    done, _ = await asyncio.wait(waiting, timeout=5)
    assert all(isinstance(task.exception(), ResilientIOError) for task in done)
    assert len(done) == 3


async def test_cancelled_waiter_passes_its_turn_on(client, redis_server):
    await redis_server.query("SET", "lock", "another")
    waiting = [asyncio.create_task(client.lock("lock", sleep=10).acquire()) for _ in range(5)]
    await asyncio.sleep(0.1)
    await redis_server.query("DEL", "lock")
    waiting[0].cancel()
    async with asyncio.timeout(15):
        assert (await asyncio.gather(*waiting[:1], return_exceptions=True))[0] is not True
        await asyncio.wait(waiting[1:], return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


# -- cancellation --------------------------------------------------------------------------


async def test_cancelled_acquire_leaves_no_key(slow, redis_server):
    for number in range(40):
        lock = slow.lock(f"lock:{number}")
        acquiring = asyncio.create_task(lock.acquire())
        await asyncio.sleep(number * 0.0002)
        acquiring.cancel()
        started = time.monotonic()
        await asyncio.wait([acquiring])
        assert time.monotonic() - started < 0.1
        if not acquiring.cancelled():
            await lock.release()
    await until_gone(redis_server, *(f"lock:{number}" for number in range(40)))


async def test_cancelled_acquire_leaves_no_key_if_the_client_is_closed_next(
    fault_proxy, redis_server
):
    fault_proxy.latency(requests=0.02, replies=0.02)
    for number in range(5):
        async with ResilientRedis(port=fault_proxy.port, policy=QUICK) as client:
            await client.ping()
            acquiring = asyncio.create_task(client.lock("lock").acquire())
            await asyncio.sleep(number * 0.01)
            acquiring.cancel()
        await asyncio.wait([acquiring])
        assert not await redis_server.query("EXISTS", "lock")


async def test_cancelled_acquire_leaves_no_key_after_an_outage(fault_proxy, redis_server):
    async with ResilientRedis(port=fault_proxy.port, policy=QUICK) as client:
        await client.ping()
        fault_proxy.drop_reply("SET")
        acquiring = asyncio.create_task(client.lock("lock").acquire())
        await asyncio.sleep(0.1)
        assert await redis_server.query("EXISTS", "lock")
        fault_proxy.refuse()
        fault_proxy.reset()
        acquiring.cancel()
        await asyncio.sleep(0.3)
        fault_proxy.accept()
        await until_gone(redis_server, "lock", within=5)


async def test_cancelled_acquire_leaves_a_lock_that_another_caller_holds(slow, redis_server):
    await redis_server.query("SET", "lock", "another")
    acquiring = asyncio.create_task(slow.lock("lock").acquire())
    await asyncio.sleep(0.003)
    acquiring.cancel()
    await asyncio.sleep(0.1)
    assert await redis_server.query("GET", "lock") == b"another"


async def test_cancelled_release_continues_in_the_background(slow, redis_server):
    lock = slow.lock("lock")
    for pause in (0, 0.001, 0.003, 0.005):
        await lock.acquire()
        releasing = asyncio.create_task(lock.release())
        await asyncio.sleep(pause)
        releasing.cancel()
        await asyncio.wait([releasing])
        if lock.local.token is not None:
            await lock.release()  # waits for the release in the background
        assert not await redis_server.query("EXISTS", "lock")


async def test_lock_can_be_cancelled_everywhere(slow, redis_server):
    async def use():
        async with slow.lock("lock", timeout=None, fencing=True) as lock:
            await lock.owned()

    report = await cancel_everywhere(use)
    report.assert_clean()
    await until_gone(redis_server, "lock")


async def test_waiting_can_be_cancelled_everywhere(tracking, redis_server):
    await redis_server.query("SET", "lock", "another")

    async def use():
        lock = tracking.lock("lock", timeout=5, blocking_timeout=0.05, sleep=0.02)
        assert not await lock.acquire()

    report = await cancel_everywhere(use)
    report.assert_clean()
    assert await redis_server.query("GET", "lock") == b"another"


async def test_release_that_is_not_possible_is_logged(fault_proxy, redis_server, caplog):
    client = ResilientRedis(port=fault_proxy.port, policy=QUICK)
    await client.ping()
    fault_proxy.drop_reply("SET")
    acquiring = asyncio.create_task(client.lock("lock").acquire())
    await asyncio.sleep(0.1)
    acquiring.cancel()
    await asyncio.wait([acquiring])
    fault_proxy.refuse()
    fault_proxy.reset()
    await client.aclose()
    assert "could not be released" in caplog.text


# -- interface -----------------------------------------------------------------------------


def test_plain_lock_has_no_new_options():
    client = ResilientRedis()
    with pytest.raises(ConfigurationError, match="derive it from"):
        client.lock("lock", lock_class=driver.lock.Lock, fencing=True)
    with pytest.raises(TypeError, match="needs a ResilientRedis"):
        type(client.lock("lock"))(driver.Redis(), "lock")


async def test_repeating_policy_does_not_mislead_a_lock(fault_proxy):
    policy = QUICK.replace(repeat="any", response_timeout=0.2)
    async with ResilientRedis(port=fault_proxy.port, policy=policy) as client:
        await client.ping()
        for command in ("SET", "EVALSHA"):
            fault_proxy.drop_reply(command)
            async with client.lock("lock", timeout=5) as lock:
                assert await lock.owned()
