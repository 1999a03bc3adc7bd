"""The race of several addresses, and the turns of attempts to connect."""

import asyncio

import pytest

from resilient_io.redis.addresses import STAGGER, ConfiguredAddress, Place, Places, Race
from resilient_io.redis.turns import MOST_CONNECTING, ConnectTurn
from resilient_io.testing import cancel_everywhere

PLACES = [Place("name", 1, f"10.0.0.{n}") for n in range(3)]


def race(results, avoided, discarded=None):
    """Return a race in which each address has a delay and a result."""

    async def open_at(place):
        delay, result = results[place.address]
        await asyncio.sleep(delay)
        if isinstance(result, Exception):
            raise result
        return result

    return Race(
        open_at,
        discard=(discarded if discarded is not None else []).append,
        avoid=lambda place: avoided.append(place.address),
        final=lambda error: isinstance(error, PermissionError),
    )


async def test_quick_first_address_is_used_alone():
    avoided = []
    results = {"10.0.0.0": (STAGGER / 2, "first")}
    assert await race(results, avoided).run(PLACES) == "first"
    assert avoided == []


async def test_silent_address_is_overtaken_after_the_stagger():
    began, avoided = asyncio.get_running_loop().time(), []
    results = {"10.0.0.0": (99, None), "10.0.0.1": (0.01, "second")}
    assert await race(results, avoided).run(PLACES) == "second"
    assert asyncio.get_running_loop().time() - began == pytest.approx(STAGGER + 0.01)
    assert avoided == ["10.0.0.0"]


async def test_failed_address_costs_no_time():
    began = asyncio.get_running_loop().time()
    results = {"10.0.0.0": (0, ConnectionRefusedError()), "10.0.0.1": (0, "second")}
    assert await race(results, []).run(PLACES) == "second"
    assert asyncio.get_running_loop().time() == began


async def test_final_failure_ends_the_race():
    results = {"10.0.0.0": (0, PermissionError("no")), "10.0.0.1": (0, "second")}
    with pytest.raises(PermissionError):
        await race(results, []).run(PLACES)


async def test_error_of_a_reachable_address_is_raised():
    unreachable = OSError(101, "Network is unreachable")
    results = dict.fromkeys(("10.0.0.0", "10.0.0.2"), (0, unreachable))
    with pytest.raises(ConnectionRefusedError):
        await race(results | {"10.0.0.1": (0, ConnectionRefusedError())}, []).run(PLACES)


async def test_two_answers_at_the_same_moment_leave_one():
    discarded = []
    results = {"10.0.0.0": (STAGGER + 0.5, "first"), "10.0.0.1": (0.5, "second")}
    assert await race(results, [], discarded).run(PLACES[:2]) == "first"
    assert discarded == ["second"]


async def test_cancelled_race_ends_its_attempts():
    results = {"10.0.0.0": (99, None), "10.0.0.1": (99, None), "10.0.0.2": (99, None)}
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await race(results, []).run(PLACES)
    assert asyncio.all_tasks() == before


async def test_failed_addresses_come_last(monkeypatch):
    async def look_up(_host, port, **_options):
        return [(2, 1, 6, "", (f"10.0.0.{n}", port)) for n in range(3)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    places = Places(ConfiguredAddress("name", 1))
    places.avoid("10.0.0.0", 1)
    places.avoid("10.0.0.1", 1)
    assert [place.address[-1] for place in await places.find()] == ["2", "0", "1"]
    places.avoid("10.0.0.0", 1)
    assert [place.address[-1] for place in await places.find()] == ["2", "1", "0"]


async def test_families_alternate(monkeypatch):
    async def look_up(_host, port, **_options):
        six = [(10, 1, 6, "", (f"fd00::{n}", port, 0, 0)) for n in range(2)]
        return [*six, (2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    places = Places(ConfiguredAddress("name", 1))
    assert [place.address for place in await places.find()] == ["fd00::0", "10.0.0.1", "fd00::1"]


async def test_turns_are_given_in_order_and_standby_comes_last():
    held = [ConnectTurn() for _ in range(MOST_CONNECTING)]
    for turn in held:
        await turn.begin()
    order = []

    async def connect(name, **options):
        async with ConnectTurn(**options):
            order.append(name)

    tasks = [asyncio.create_task(connect("standby", standby=True))]
    tasks += [asyncio.create_task(connect(n)) for n in range(3)]
    await asyncio.sleep(1)
    assert order == []
    tasks[2].cancel()
    for turn in held:
        turn.end()
        turn.end()
    await asyncio.wait(tasks)
    assert order == [0, 2, "standby"]


async def test_cancelled_attempts_give_their_turn_back():
    async def connect():
        async with ConnectTurn():
            await asyncio.sleep(0.1)

    async def scenario():
        await asyncio.gather(*[connect() for _ in range(MOST_CONNECTING + 1)])

    (await cancel_everywhere(scenario, within=0.2)).assert_clean()
    async with asyncio.timeout(1):
        await scenario()
