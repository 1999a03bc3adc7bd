"""Redis goes away in every way, and comes back."""

import time

import pytest
from container_stage.account import Account

pytestmark = pytest.mark.containers

NOTICED = 20.0
"""Seconds in which readiness must follow, on a loaded machine; the table has what it took."""


def unready(place, *, because):
    """Wait until readiness says no, and why."""
    began = time.time()
    place.until(
        f"our service is not ready because of {because}",
        lambda readings: (
            readings.is_ready("ours") is False
            and any(because in each for each in readings.reasons("ours", since=began))
        ),
        NOTICED,
    )


def ready_again(place):
    place.until("our service is ready", lambda readings: readings.is_ready("ours"), 30)


def test_the_network_of_redis_is_cut_and_healed(place, keep):
    place.open()
    account = Account(place, place.cut(place.redis))
    unready(place, because="redis")
    time.sleep(6)  # nothing can be waited for: the outage itself takes this long
    account.heal(place.heal(place.redis))
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_redis_is_paused(place, keep):
    place.open()
    place.redis.docker.pause()
    account = Account(place, time.time())
    unready(place, because="no answer")
    time.sleep(5)  # as above
    place.redis.docker.unpause()
    account.heal(time.time())
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_redis_is_killed_and_comes_back_at_another_address(place, keep):
    place.open()
    place.redis.docker.kill()
    account = Account(place, time.time())
    unready(place, because="redis")
    place.cut(place.redis)
    time.sleep(3)  # as above
    place.heal(place.redis, host=110)
    place.redis.docker.start()
    account.heal(time.time())
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_redis_has_no_memory_left(place, keep):
    place.open()
    place.redis.run("redis-cli", "config", "set", "maxmemory", "1")
    account = Account(place, time.time())
    time.sleep(6)  # as above
    place.readings.read()
    stuck_at = place.readings.booked("ours")
    place.redis.run("redis-cli", "config", "set", "maxmemory", "0")
    account.heal(time.time())
    place.until("orders are booked", lambda readings: readings.booked("ours") > stuck_at, 30)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)


def test_the_name_of_redis_is_gone_and_comes_back(place, keep):
    place.open()
    place.redis.docker.kill()
    account = Account(place, time.time())
    place.cut(place.redis)
    place.heal(place.redis, host=110, named=False)
    place.redis.docker.start()
    unready(place, because="redis")
    time.sleep(4)  # as above
    place.cut(place.redis)
    account.heal(place.heal(place.redis, host=110))
    ready_again(place)
    account.settle()
    outcome = account.outcome()
    keep(outcome)
    account.check(outcome)
