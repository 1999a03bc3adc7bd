"""Names: what a failed or slow look-up means. Ports are tried on real sockets, in tests/live."""

import asyncio
import socket

import pytest_asyncio

from resilient_io.doctor import Status
from resilient_io.doctor.looking import Looking
from resilient_io.doctor.network import Place, advice_for, look_at_names, silent_names


@pytest_asyncio.fixture
async def names(monkeypatch):
    """Names as a made-up resolver knows them: addresses, or an error; and how long it takes."""
    known = {"takes": 0.0}

    async def getaddrinfo(host, port, **_):
        await asyncio.sleep(known["takes"])
        answer = known.get(host, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answer]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(
        "resilient_io.doctor.network.text_of",
        lambda _: "search a.svc b\nnameserver 10.0.0.10\nnameserver 10.0.0.11\n",
    )
    return known


async def test_all_addresses_of_a_name_are_told(names):
    names["cache"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    place = Place("cache", 6379)
    found = await look_at_names([place])
    assert (found.status, found.found) == (Status.OK, "cache is 10.0.0.1, 10.0.0.2")
    assert place.addresses == found.data["addresses"]["cache:6379"] == ["10.0.0.1", "10.0.0.2"]


async def test_a_name_that_is_not_there_tells_where_it_was_searched_for(names):
    found = await look_at_names([Place("cach", 6379)])
    assert found.status is Status.PROBLEM
    assert found.found == "there is no name cach (searched in a.svc, b)"
    assert "name.namespace" in found.advice


async def test_a_full_name_that_is_not_there_tells_who_was_asked(names):
    found = await look_at_names([Place("cache.example.com", 6379)])
    assert found.found == "there is no name cache.example.com"
    assert "10.0.0.10, 10.0.0.11" in found.advice


async def test_name_servers_that_fail_are_another_matter_than_a_wrong_name(names):
    names["cache"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    found = await look_at_names([Place("cache", 6379)])
    assert found.status is Status.PROBLEM
    assert "could not say" in found.found
    assert "port 53" in found.advice
    assert "10.0.0.10" in found.advice


async def test_a_name_that_cannot_be_one_is_told(names):
    names["x" * 70] = UnicodeError("label too long")
    found = await look_at_names([Place("x" * 70, 6379)])
    assert found.status is Status.PROBLEM
    assert "cannot be a name" in found.found


async def test_a_slow_look_up_is_noted_with_its_time(names):
    names |= {"cache": ["10.0.0.1"], "takes": 2.5}
    found = await look_at_names([Place("cache", 6379)])
    assert found.status is Status.NOTE
    assert "took 2.5 s" in found.found


async def test_name_servers_that_are_silent_are_a_problem_when_the_time_is_used_up(names):
    names |= {"cache": ["10.0.0.1"], "takes": 1000}
    places = [Place("cache", 6379)]
    step = await Looking(5.0).take(
        "name", lambda: look_at_names(places), silence=silent_names(places)
    )
    assert (step.status, step.seconds) == (Status.PROBLEM, 5.0)
    assert "no answer for cache" in step.found


async def test_one_of_several_names_may_be_missing(names):
    names["one"] = ["10.0.0.1"]
    found = await look_at_names([Place("one", 1), Place("two", 2)])
    assert found.status is Status.NOTE
    assert "no name two" in found.found
    assert "one is 10.0.0.1" in found.found
    assert found.advice.endswith("Meanwhile the others do.")


async def test_addresses_are_not_looked_up(names):
    names |= {"10.0.0.1": ["10.0.0.1"], "takes": 3.0}
    found = await look_at_names([Place("10.0.0.1", 1)])
    assert (found.status, found.found) == (Status.OK, "an address needs no look-up")


def test_a_refused_loopback_reminds_of_containers():
    assert "container" in advice_for(Place("localhost", 1), "refused")
    assert "container" in advice_for(Place("h", 1, addresses=["127.0.0.1", "::1"]), "refused")
    assert "container" not in advice_for(Place("h", 1, addresses=["10.0.0.1"]), "refused")
    assert "firewall" in advice_for(Place("h", 1), "no answer")
    assert "route" in advice_for(Place("h", 1), "no route")
