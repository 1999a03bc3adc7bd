"""What a client costs before it is used."""

import importlib.metadata
import random
import warnings

import pytest
from redis.driver_info import DriverInfo

from resilient_io.redis import ResilientRedis
from resilient_io.redis.connect import RedisTarget, driver_info


def refuse(*_):
    raise AssertionError("read the metadata of a package")


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResilientRedis(host="127.0.0.1"),
        lambda: ResilientRedis.from_url("redis://127.0.0.1"),
    ],
    ids=["constructor", "URL"],
)
def test_only_the_first_client_reads_package_metadata(monkeypatch, make):
    expected = make()
    monkeypatch.setattr(importlib.metadata, "version", refuse)
    client = make()
    settings = [RedisTarget(each.connection_pool)._settings for each in (client, expected)]
    assert settings[0]["driver_info"] == settings[1]["driver_info"] == driver_info()


def test_driver_info_is_that_of_redis_py():
    assert driver_info() == DriverInfo()
    assert driver_info() is not driver_info()  # redis-py lets its users add to it
    assert driver_info(name="mine") == DriverInfo(name="mine")
    assert driver_info(name=None) == DriverInfo(name=None)
    assert driver_info(version="1.2") == DriverInfo(lib_version="1.2")
    assert driver_info(name=None, version=None) is None
    assert driver_info(None) is None
    given = DriverInfo().add_upstream_driver("mine", "1.0")
    assert driver_info(given) is given


def test_driver_options_still_reach_the_connections():
    with warnings.catch_warnings(action="ignore"):
        client = ResilientRedis(lib_name="mine", lib_version="1.2")
    assert client.connection_pool.connection_kwargs["driver_info"] == DriverInfo("mine", "1.2")


def test_clients_share_their_source_of_randomness_unless_it_is_seeded():
    first, second = ResilientRedis(), ResilientRedis()
    assert first._rng is second._rng
    assert isinstance(first._rng, random.SystemRandom)
    seeded = random.Random(1)
    assert ResilientRedis(rng=seeded)._rng is seeded
