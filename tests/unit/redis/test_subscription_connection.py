"""A subscriber's connection: pings and silence, and how replies and messages are matched."""

import asyncio
from types import SimpleNamespace

import pytest
from redis.exceptions import ResponseError

from resilient_io.health import Cause
from resilient_io.redis.subscription_connection import (
    PING_TIMEOUT,
    Request,
    SubscriptionConnection,
)

PING = b"*2\r\n$4\r\nPING\r\n$12\r\nresilient-io\r\n"
PONG = b"$12\r\nresilient-io\r\n"
INTERVAL = 1.0


class Owner:
    """Records what a connection reports. It is also the transport, whose server may answer."""

    def __init__(self, *, reply=PONG, after=0.0):
        self.reply = reply
        self.after = after
        self.events = []
        self.written = []
        self.aborted = False
        lag = SimpleNamespace(stalled=0.0, stalled_at=lambda _now: 0.0)
        parser = SimpleNamespace(parse_error=ResponseError)
        driver = SimpleNamespace(_parser=parser, _writer=SimpleNamespace(transport=self))
        self.connection = SubscriptionConnection(driver, owner=self, lag=lag, interval=INTERVAL)

    # The transport.

    def write(self, data):
        self.written.append((asyncio.get_running_loop().time(), data))
        if data == PING and self.reply is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.after, self.connection.data_received, self.reply)

    def get_protocol(self):
        return SimpleNamespace(connection_lost=lambda _error: None)

    def set_protocol(self, _protocol): ...

    def get_extra_info(self, _name): ...

    def abort(self):
        self.aborted = True

    # The owner.

    def message_received(self, message, size):
        self.events.append(("message", message, size))

    def confirmed(self, request, reply):
        self.events.append(("confirmed", request and request.name, reply))

    def replied(self, request, reply):
        self.events.append(("replied", request.name, reply))

    def connection_lost(self, _connection, failure):
        self.events.append(("lost", failure))

    def connection_silent(self, _connection):
        self.events.append(("silent", asyncio.get_running_loop().time()))

    def connection_recovered(self, _connection):
        self.events.append(("recovered",))

    @property
    def pings(self):
        return [at for at, data in self.written if data == PING]


async def test_idle_connection_is_pinged_for_ten_minutes_and_nothing_else_happens():
    owner = Owner(after=0.01)
    await asyncio.sleep(600)
    assert owner.events == []
    assert 590 <= len(owner.pings) <= 600
    owner.connection.close()


@pytest.mark.parametrize("after", [0.0, 0.3, 0.99])
async def test_reply_to_ping_may_take_a_second(after):
    owner = Owner(after=after)
    await asyncio.sleep(30)
    assert not [event for event in owner.events if event[0] == "lost"]
    owner.connection.close()


async def test_connection_that_does_not_answer_a_ping_is_lost_after_a_second():
    owner = Owner(reply=None)
    await asyncio.sleep(INTERVAL + PING_TIMEOUT - 0.01)
    assert [event[0] for event in owner.events] == ["silent"]
    await asyncio.sleep(0.03)
    failure = owner.events[-1][1]
    assert failure.cause is Cause.TIMED_OUT
    assert failure.detail == "no reply to PING within 1 s"
    # It stays open: the next byte shows that the server answers again.
    assert not owner.aborted
    owner.connection.data_received(PONG)
    assert owner.events[-1] == ("recovered",)
    owner.connection.close()
    assert owner.aborted


async def test_server_that_answers_elsewhere_shortens_the_wait():
    owner = Owner(reply=None)
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(INTERVAL + 0.25)
    ((_, silent),) = owner.events
    assert silent - began == pytest.approx(INTERVAL + 0.2, abs=0.02)
    owner.connection.note_answer_elsewhere(owner.connection.ping)
    await asyncio.sleep(0.1)
    assert len(owner.events) == 1
    await asyncio.sleep(0.1)
    assert "while the server answers on another connection" in owner.events[-1][1].detail


async def test_slow_arrival_of_a_large_message_is_not_silence():
    owner = Owner(reply=None)
    owner.connection.data_received(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$100\r\n")
    for _ in range(100):
        await asyncio.sleep(0.5)
        owner.connection.data_received(b"x")
    owner.connection.data_received(b"\r\n")
    assert owner.events == [("message", [b"message", b"c", b"x" * 100], 101)]
    owner.connection.close()


async def test_confirmations_replies_and_errors_are_matched_in_order():
    owner = Owner()
    connection = owner.connection
    for request in (
        Request("SUBSCRIBE", [b"a", b"b"]),
        Request("SSUBSCRIBE", [b"s"]),
        Request("CLIENT ID"),
        Request("UNSUBSCRIBE", [b"a"]),
    ):
        connection.send(request, b"")
    for data in (
        b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n",
        b">3\r\n$12\r\nsunsubscribe\r\n$1\r\nz\r\n:0\r\n",  # the server ends it by itself
        b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n",
        b"-NOPERM no\r\n",
        b":7\r\n",
        b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n",
        b">2\r\n$7\r\nunknown\r\n$1\r\na\r\n",
    ):
        connection.data_received(data)
    assert [event[:2] for event in owner.events] == [
        ("confirmed", "SUBSCRIBE"),
        ("confirmed", None),
        ("confirmed", "SUBSCRIBE"),
        ("replied", "SSUBSCRIBE"),
        ("replied", "CLIENT ID"),
        ("confirmed", "UNSUBSCRIBE"),
    ]
    assert connection.unanswered == []
    connection.close()


@pytest.mark.parametrize(
    "data",
    [
        b"?\r\n",
        b"+OK\r\n",
        b"*2\r\n$7\r\nmessage\r\n$1\r\nc\r\n",
        b">3\r\n$8\r\npmessage\r\n$1\r\nc\r\n$1\r\nc\r\n",
        b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n$1\r\nx\r\n",
        b"*1\r\n$4\r\npong\r\n",
    ],
)
async def test_malformed_data_loses_the_connection(data):
    owner = Owner()
    owner.connection.data_received(data)
    ((event, failure),) = owner.events
    assert (event, failure.cause) == ("lost", Cause.PROTOCOL)
    assert owner.aborted


async def test_error_without_a_request_loses_the_connection():
    owner = Owner()
    owner.connection.data_received(b"-ERR limit reached\r\n")
    ((event, failure),) = owner.events
    assert (event, failure.cause) == ("lost", Cause.OTHER)
    assert "limit reached" in failure.detail
