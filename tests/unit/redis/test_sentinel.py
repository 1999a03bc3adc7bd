"""Which of the Sentinels' answers counts."""

import asyncio
import random

import pytest
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as ConnectionLostError

from resilient_io.redis.errors import connection_failure
from resilient_io.redis.sentinel import SentinelAddress


def says(address, *, after=0.0, others=2):
    async def ask(*commands):
        await asyncio.sleep(after)
        replies = []
        for command in commands:
            if command[1] == "GET-MASTER-ADDR-BY-NAME":
                host, _, port = (address or "").partition(":")
                replies.append([host.encode(), port.encode()] if address else None)
            elif command[1] == "MASTERS":
                replies.append([{"name": "cache"}])
            elif command[1] == "MASTER":
                replies.append([b"num-other-sentinels", b"%d" % others])
            else:
                replies.append(
                    [
                        {"ip": "10.0.0.9", "port": "1", "flags": "slave,s_down"},
                        {"ip": "10.0.0.2", "port": "2", "flags": "slave"},
                        {"ip": "10.0.0.3", "port": "3", "flags": "slave"},
                    ]
                )
        return replies

    return ask


async def hangs(*_commands):
    await asyncio.sleep(0.5)
    raise ConnectionLostError("10.0.0.8:1: no answer")


def found_by(*asks, **options):
    return SentinelAddress("mymaster", asks, rng=random.Random(1), **options).find()


async def test_frozen_sentinel_is_not_waited_for():
    began = asyncio.get_running_loop().time()
    answers = hangs, says("10.0.0.1:6379", after=0.1), says("10.0.0.1:6379", after=0.14)
    assert list(await found_by(*answers)) == [("10.0.0.1", 6379)]
    assert asyncio.get_running_loop().time() - began == pytest.approx(0.15)


async def test_stale_minority_does_not_mislead():
    answers = says("10.0.0.7:1"), says("10.0.0.1:2", after=0.01), says("10.0.0.1:2", after=0.02)
    assert list(await found_by(*answers)) == [("10.0.0.1", 2)]


async def test_only_answer_counts_soon():
    began = asyncio.get_running_loop().time()
    assert list(await found_by(hangs, hangs, says("10.0.0.1:2"))) == [("10.0.0.1", 2)]
    assert asyncio.get_running_loop().time() - began < 0.1


async def test_sentinel_that_knows_too_few_others_does_not_count():
    answers = says("10.0.0.7:1", others=0), says("10.0.0.1:2", others=2)
    assert list(await found_by(*answers, least_others=1)) == [("10.0.0.1", 2)]


async def test_forced_host_replaces_that_of_the_master():
    assert list(await found_by(says("10.0.0.1:2"), forced_host="proxy")) == [("proxy", 2)]


async def test_living_replicas_come_in_turn_and_then_the_master():
    address = SentinelAddress("m", [says("10.0.0.1:1")], replica=True, rng=random.Random(1))
    first, second = list(await address.find()), list(await address.find())
    assert sorted(first) == [("10.0.0.2", 2), ("10.0.0.3", 3)]
    assert second == first[::-1]


async def test_unknown_name_says_what_each_sentinel_said():
    wanted = r"no Sentinel knows a master 'mymaster': use 'cache'; 10\.0\.0\.8:1: no answer"
    with pytest.raises(MasterNotFoundError, match=wanted):
        await found_by(says(None), hangs)


async def test_unknown_name_is_a_wrong_setting_if_all_sentinels_say_so():
    with pytest.raises(
        MasterNotFoundError, match="no Sentinel knows a master 'mymaster': use"
    ) as e:
        await found_by(says(None), says(None))
    assert connection_failure(e.value).permanent
    with pytest.raises(
        MasterNotFoundError, match=r"no Sentinel answers: 10\.0\.0\.8:1: no answer"
    ) as e:
        await found_by(hangs, hangs)
    assert not connection_failure(e.value).permanent


async def test_mapped_addresses_of_sentinels_count_as_equal():
    address_map = {("10.0.0.7", 1): ("10.0.0.1", 2)}
    answers = says("10.0.0.7:1"), says("10.0.0.1:2"), says("10.0.0.9:9")
    assert list(await found_by(*answers, address_map=address_map)) == [("10.0.0.1", 2)]


async def test_callers_share_one_lookup_and_cancelling_one_leaves_it():
    asked = []

    async def ask(*commands):
        asked.append(commands)
        return await says("10.0.0.1:2", after=1.0)(*commands)

    address = SentinelAddress("mymaster", [ask])
    first, second = (asyncio.create_task(address.find()) for _ in range(2))
    await asyncio.sleep(0.5)
    first.cancel()
    assert list(await second) == [("10.0.0.1", 2)]
    assert len(asked) == 1
