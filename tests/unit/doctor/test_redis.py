"""What the replies and the errors of a Redis server mean."""

import asyncio
import ssl
from dataclasses import replace

import pytest
from redis import exceptions as driver

from resilient_io.doctor import Status
from resilient_io.doctor.link import judge_link
from resilient_io.doctor.login import judge_login
from resilient_io.doctor.redis import check_reply
from resilient_io.link import LinkState

REDIS = {b"server": b"redis", b"version": b"7.0.15", b"mode": b"standalone", b"role": b"master"}


def server(hello=None, *, ping=b"PONG", takes=0.0):
    """Return a function that answers as a server does; an exception is raised."""

    async def ask(command, *_):
        masters = [[b"name", b"orders"]]
        answer = {"PING": ping, "HELLO": hello, "SENTINEL": masters}[command]
        await asyncio.sleep(takes)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


async def test_reply_names_the_server_and_its_latency():
    found = await check_reply(server(REDIS, takes=0.002))
    assert (found.status, found.found) == (
        Status.OK,
        "redis 7.0.15 replies in 2.0 ms",
    )
    assert found.data["ping"] == pytest.approx(0.002)


async def test_reply_of_resp2_is_read_like_one_of_resp3():
    pairs = [word for pair in REDIS.items() for word in pair]
    assert (await check_reply(server(pairs))).data["version"] == "7.0.15"


async def test_server_without_hello_is_checked_by_its_reply():
    found = await check_reply(server(driver.ResponseError("unknown command 'HELLO'")))
    assert (found.status, found.found) == (
        Status.OK,
        "the server replies in 0.0 ms",
    )


@pytest.mark.parametrize(
    ("fields", "status", "found", "advice"),
    [
        ({b"mode": b"sentinel"}, Status.PROBLEM, "this is a Sentinel", "host:port/orders"),
        ({b"mode": b"cluster"}, Status.OK, "a node of a cluster: use ResilientRedisCluster", ""),
        ({b"mode": b"cluster", b"role": b"slave"}, Status.OK, "a node of a cluster", ""),
        ({b"role": b"replica"}, Status.PROBLEM, "READONLY", "master"),
        ({b"role": b"slave"}, Status.PROBLEM, "READONLY", "master"),
    ],
)
async def test_server_that_does_not_serve_all_keys_or_writes(fields, status, found, advice):
    judged = await check_reply(server(REDIS | fields))
    assert judged.status is status
    assert found in judged.found
    assert advice in judged.advice


@pytest.mark.parametrize(
    ("error", "found", "advice"),
    [
        (driver.BusyLoadingError("LOADING data"), "refuses commands: LOADING", "wait"),
        (driver.MasterDownError("MASTERDOWN link"), "refuses commands: MASTERDOWN", "master back"),
        (driver.ResponseError("ERR odd"), "refuses commands: ERR odd", "log"),
        (driver.ConnectionError("closed"), "the connection was lost: closed", "log"),
        (ConnectionResetError("reset"), "the connection was lost: reset", "log"),
    ],
)
async def test_server_that_refuses_ping_or_closes_the_connection(error, found, advice):
    judged = await check_reply(server(REDIS, ping=error))
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


@pytest.mark.parametrize(
    ("error", "gave", "found", "advice"),
    [
        (driver.AuthenticationError("Authentication required."), False, "has none", "password@"),
        (driver.AuthenticationError("WRONGPASS invalid"), True, "failed: WRONGPASS", "rotated"),
        (
            driver.AuthenticationError(
                "AUTH <password> called without any password configured for the default user."
            ),
            True,
            "without any password",
            "Check user and password",
        ),
        (
            driver.NoPermissionError("NOPERM no permissions"),
            True,
            "no permissions",
            "+hello",
        ),
        (driver.ResponseError("DB index is out of range"), True, "DB index", "/0"),
        (driver.ConnectionError("max number of clients reached"), True, "max number", "maxclients"),
        (driver.BusyLoadingError("Redis is loading"), True, "loading", "wait"),
        (TimeoutError(), True, "no answer", "frozen"),
        (driver.ConnectionError("Connection closed by server."), True, "closed", "rediss://"),
        (
            driver.ConnectionError("DENIED Redis is running in protected mode because …"),
            False,
            "protected mode",
            "Check the server's log",
        ),
        (driver.InvalidResponse("Protocol Error: b'H'"), True, "Protocol", "not Redis"),
    ],
)
def test_failed_login_says_what_to_do(error, gave, found, advice):
    judged = judge_login(error, uses_tls=False, gave_password=gave)
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


@pytest.mark.parametrize(
    "error",
    [
        driver.ResponseError(
            "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'user' 'hunter2'"
        ),
        driver.ResponseError(
            "unknown command `AUTH`, with args beginning with: `hunter2`, \n`hunter2`"
        ),
    ],
)
def test_arguments_that_the_server_quotes_are_cut(error):
    judged = judge_login(error, uses_tls=False, gave_password=True)
    assert "unknown command" in judged.found
    assert "hunter2" not in repr(judged)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ssl.SSLError(1, "tlsv13 alert certificate required"), "requires a client certificate"),
        (ConnectionResetError(104, "Connection reset by peer"), "reset by peer"),
    ],
)
def test_server_that_closes_after_the_handshake_may_require_a_certificate(error, found):
    judged = judge_login(error, uses_tls=True, gave_password=True)
    assert found in judged.found
    assert "ssl_certfile=" in judged.advice


def test_a_link_that_loses_packets_is_named():
    link = LinkState(
        rtt=0.0004,
        rttvar=0.0001,
        retransmits=0,
        retransmitted=4,
        segments=205,
        unacked=0,
        unacked_bytes=0,
        ack_age=0.0,
        sent_age=0.0,
        received_age=0.0,
    )
    lossy = judge_link(link)
    assert lossy.status is Status.NOTE
    assert lossy.found == "this link loses packets: 4 of 205 segments lost"
    assert "network" in lossy.advice
    assert lossy.data["retransmitted"] == 4
    good = judge_link(replace(link, retransmitted=0))
    assert (good.status, good.found) == (
        Status.OK,
        "the round trip takes 0.40 ms; none of 205 segments lost",
    )
    assert judge_link(None).status is Status.UNKNOWN
