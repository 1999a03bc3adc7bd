"""Name lookups that fail or are slow. Ports are tried on real sockets, in tests/live."""

import asyncio
import socket

import pytest
import pytest_asyncio

from resilient_io.doctor import Status
from resilient_io.doctor.network import Endpoint, advice_for, check_names, check_path
from resilient_io.doctor.steps import Checks


@pytest_asyncio.fixture
async def names(monkeypatch):
    """A made-up resolver: the addresses of each name, or an error, and how long it takes."""
    known = {"takes": 0.0}

    async def getaddrinfo(host, port, **_):
        await asyncio.sleep(known["takes"])
        answer = known.get(host, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in answer]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    return known


async def test_name_step_lists_all_addresses(names):
    names["cache"] = ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    endpoint = Endpoint("cache", 6379)
    found = await check_names([endpoint])
    assert (found.status, found.found) == (Status.OK, "cache is 10.0.0.1, 10.0.0.2")
    assert endpoint.addresses == found.data["addresses"]["cache:6379"] == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.usefixtures("names")
async def test_name_that_does_not_exist_is_a_problem():
    found = await check_names([Endpoint("cach", 6379)])
    assert found.status is Status.PROBLEM
    assert found.found == "the name cach does not exist"
    assert "name.namespace" in found.advice


async def test_failing_name_servers_are_not_reported_as_a_wrong_name(names):
    names["cache"] = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    found = await check_names([Endpoint("cache", 6379)])
    assert found.status is Status.PROBLEM
    assert "could not resolve cache" in found.found
    assert "port 53" in found.advice


async def test_invalid_name_is_a_problem(names):
    names["x" * 70] = UnicodeError("label too long")
    found = await check_names([Endpoint("x" * 70, 6379)])
    assert found.status is Status.PROBLEM
    assert "does not exist" in found.found


async def test_slow_lookup_is_a_note_with_its_time(names):
    names |= {"cache": ["10.0.0.1"], "takes": 2.5}
    found = await check_names([Endpoint("cache", 6379)])
    assert found.status is Status.NOTE
    assert "took 2.5 s" in found.found


async def test_lookup_that_exceeds_the_time_limit_is_unknown_and_blames_no_name_server(names):
    names |= {"cache": ["10.0.0.1"], "takes": 1000}
    [step] = [step async for step in check_path(Checks(5.0), [Endpoint("cache", 6379)])]
    assert (step.name, step.status, step.seconds) == ("name", Status.UNKNOWN, 2.5)
    assert step.found == "the lookup did not finish within 2.5 s"
    assert step.advice.startswith("Use a longer timeout.")


async def test_names_that_were_found_are_tried_when_the_lookup_of_another_times_out(
    names, monkeypatch
):
    lookup = Endpoint.look_up

    async def some_hang(self):
        return await (lookup(self) if self.host == "one" else asyncio.Event().wait())

    async def connect(self, timeout):
        self.reached = dict.fromkeys(self.addresses, 0.001)

    monkeypatch.setattr(Endpoint, "look_up", some_hang)
    monkeypatch.setattr(Endpoint, "connect", connect)
    names["one"] = ["10.0.0.1"]
    endpoints = [Endpoint("one", 1), Endpoint("two", 2)]
    steps = [step async for step in check_path(Checks(5.0), endpoints)]
    assert [(step.name, str(step.status)) for step in steps] == [("name", "unknown"), ("TCP", "ok")]


async def test_one_of_several_names_may_be_missing(names):
    names["one"] = ["10.0.0.1"]
    found = await check_names([Endpoint("one", 1), Endpoint("two", 2)])
    assert found.status is Status.NOTE
    assert "the name two does not exist" in found.found
    assert "one is 10.0.0.1" in found.found
    assert found.advice.endswith("Other servers of the list work.")


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "fe80::1%eth0"])
async def test_ip_addresses_are_not_looked_up(names, host):
    names["takes"] = 1000
    endpoint = Endpoint(host, 1)
    found = await check_names([endpoint])
    assert (found.status, found.found) == (Status.OK, "an IP address needs no lookup")
    assert endpoint.addresses == [host]


def test_refused_loopback_connection_mentions_containers():
    refused = "connection refused"
    assert "container" in advice_for(Endpoint("localhost", 1), refused)
    assert "container" in advice_for(Endpoint("h", 1, addresses=["127.0.0.1", "::1"]), refused)
    assert "container" not in advice_for(Endpoint("h", 1, addresses=["10.0.0.1"]), refused)
    assert "firewall" in advice_for(Endpoint("h", 1), "no answer")
    assert "routes" in advice_for(Endpoint("h", 1), "no route to host")
