"""What a client costs before it is used."""

import functools
import importlib.metadata
import random
import warnings

import pytest
import redis.asyncio as driver
from redis.asyncio.client import Redis
from redis.client import CaseInsensitiveDict
from redis.driver_info import DriverInfo
from redis.event import (
    AfterPooledConnectionsInstantiationEvent,
    ClientType,
    EventDispatcher,
    EventListenerInterface,
)

from resilient_io.errors import ConfigurationError
from resilient_io.redis import ResilientRedis
from resilient_io.redis.connect import RedisTarget, driver_info
from resilient_io.redis.options import LateEventDispatcher

URL = "redis://127.0.0.1"


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


def test_client_with_a_pool_has_the_attributes_of_redis_py():
    ResilientRedis.from_url(URL)  # with the first one, the table of callbacks is made
    ours = ResilientRedis.from_url(URL)
    expected = vars(Redis(connection_pool=ours.connection_pool, event_dispatcher=EventDispatcher()))
    for name, value in expected.items():
        if name == "response_callbacks":
            assert ours.response_callbacks.keys() == value.keys() | {"CLIENT GETNAME"}
        elif name != "_event_dispatcher":
            assert type(getattr(ours, name)) is type(value), name
    assert ours.connection_pool is expected["connection_pool"]


def test_replaced_constructors_of_redis_py_are_called(monkeypatch):
    ResilientRedis.from_url(URL)
    seen, original = [], Redis.__init__

    @functools.wraps(original)
    def traced(self, *args, **options):
        seen.append(options["connection_pool"])
        original(self, *args, **options)

    class Mixin(driver.Redis):
        def __init__(self, **options):
            seen.append("mixin")
            super().__init__(**options)

    class Mixed(ResilientRedis, Mixin):
        pass

    Mixed.from_url(URL)
    assert seen == ["mixin"]
    monkeypatch.setattr(Redis, "__init__", traced)
    client = ResilientRedis.from_url(URL)
    assert seen == ["mixin", client.connection_pool]


def test_unknown_options_beside_a_pool_are_still_rejected():
    pool = ResilientRedis.from_url(URL).connection_pool
    with pytest.raises(ConfigurationError, match="hots"):
        ResilientRedis(connection_pool=pool, hots="x")


def test_clients_from_a_url_have_event_dispatchers_of_their_own_when_they_need_them():
    seen = []

    class Listener(EventListenerInterface):
        def listen(self, event):
            seen.append(event)

    first, second = ResilientRedis.from_url(URL), ResilientRedis.from_url(URL)
    dispatcher = first._event_dispatcher
    assert dispatcher is first.connection_pool._event_dispatcher
    assert "event_dispatcher" not in first.connection_pool.connection_kwargs
    dispatcher.register_listeners({str: [Listener()]})
    event = "an event of the application"
    for each in (first, second):
        each._event_dispatcher.dispatch(event)
    assert seen == [event]
    given = EventDispatcher()
    assert ResilientRedis.from_url(URL, event_dispatcher=given)._event_dispatcher is given


def test_event_of_a_pool_reaches_the_listeners_that_were_registered_for_it():
    seen = []

    class Listener(EventListenerInterface):
        def listen(self, event):
            seen.append(event)

    dispatcher = LateEventDispatcher()
    event = AfterPooledConnectionsInstantiationEvent([], ClientType.ASYNC, None)
    dispatcher.dispatch(event)
    dispatcher.register_listeners({AfterPooledConnectionsInstantiationEvent: [Listener()]})
    dispatcher.dispatch(event)
    assert seen == [event]


def test_only_the_first_client_of_a_url_makes_a_table_of_callbacks(monkeypatch):
    def refuse(*_):
        raise AssertionError("made what most clients do not need")

    ResilientRedis.from_url(URL)
    monkeypatch.setattr(CaseInsensitiveDict, "__init__", refuse)
    monkeypatch.setattr(EventDispatcher, "__init__", refuse)
    ResilientRedis.from_url(URL)
