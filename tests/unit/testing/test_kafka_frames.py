"""Kafka requests and replies are found however the bytes are split."""

import random
import struct

import pytest

from resilient_io.testing import KafkaRequest, produce_error
from resilient_io.testing.faults import Effect, Fault
from resilient_io.testing.kafka.frames import KafkaReplyStream, KafkaRequestScanner


def request(key, correlation, *, version=1, body=b"", client=b"me"):
    payload = struct.pack(">hhih", key, version, correlation, len(client)) + client + body
    return struct.pack(">i", len(payload)) + payload


def reply(correlation, body=b""):
    return struct.pack(">ii", len(body) + 4, correlation) + body


def pieces(data, rng):
    at = 0
    while at < len(data):
        step = rng.choice((1, 2, 5, 40, 1000))
        yield data[at : at + step]
        at += step


@pytest.mark.parametrize("seed", range(10))
def test_requests_are_found_however_the_bytes_are_split(seed):
    sent = [
        request(0, 1, body=b"x" * 500),
        request(3, 2),
        request(999, 3, client=b""),
        request(11, 4),
    ]
    scanner = KafkaRequestScanner(7)
    got = [
        each
        for piece in pieces(b"".join(sent), random.Random(seed))
        for each in scanner.feed(piece)
    ]
    assert [each.name for each in got] == ["Produce", "Metadata", "Api999", "JoinGroup"]
    assert [each.raw for each in got] == sent
    assert [each.correlation for each in got] == [1, 2, 3, 4]
    assert [each.client_id for each in got] == ["me", "me", "", "me"]
    assert {each.connection for each in got} == {7}
    assert got[0].starts_with((b"PRODUCE",))
    assert not got[0].starts_with((b"FETCH",))


@pytest.mark.parametrize(
    "opening", [b"\x16\x03\x01\x02\x00\x01\x00", b"\x00\x00\x00\x02ab", b"\xff" * 9]
)
def test_bytes_that_are_not_kafka_are_forwarded(opening):
    scanner = KafkaRequestScanner(1)
    got = scanner.feed(opening) + scanner.feed(b"more")
    assert b"".join(each.raw for each in got) == opening + b"more"
    assert {each.name for each in got} == {""}


def test_credentials_after_the_oldest_handshake_are_forwarded_and_not_in_a_repr():
    scanner = KafkaRequestScanner(1)
    token = b"\x00\x00\x00\x0d\x00alice\x00secret"
    [first] = scanner.feed(request(17, 1, version=0))
    [second] = scanner.feed(token)
    assert (first.name, second.name, second.raw) == ("SaslHandshake", "", token)
    assert "secret" not in repr(second)


class Conversation:
    """A reply stream, the bytes that it delivers, and the faults that it applies."""

    def __init__(self):
        self.delivered = b""
        self.struck = []
        self.stream = KafkaReplyStream(self.deliver, self.strike)

    def deliver(self, data):
        self.delivered += data

    def strike(self, fault, whole, made_up):
        self.struck.append((fault.effect, whole))
        if fault.effect in (Effect.ANSWER, Effect.REPLACE_REPLY):
            self.delivered += made_up

    def ask(self, correlation, effect=None, data=b""):
        asked = KafkaRequest(1, "Produce", 1, correlation, None, b"")
        self.stream.expect(asked, effect and Fault(effect, None, data=data))


@pytest.mark.parametrize("seed", range(20))
def test_faults_hit_complete_replies_however_the_bytes_are_split(seed):
    talk = Conversation()
    talk.ask(1)
    talk.ask(2, Effect.DROP_REPLY)
    talk.ask(3)
    talk.ask(4, Effect.ANSWER, b"made up")
    talk.ask(5, Effect.REPLACE_REPLY, lambda asked: b"for %d" % asked.correlation)
    talk.ask(6)
    bodies = {1: b"a" * 300, 2: b"b" * 50, 3: b"", 5: b"e", 6: b"f" * 9}
    for piece in pieces(b"".join(reply(*each) for each in bodies.items()), random.Random(seed)):
        talk.stream.feed(piece)
    assert talk.delivered == b"".join(
        [
            reply(1, bodies[1]),
            reply(3),
            reply(4, b"made up"),
            reply(5, b"for 5"),
            reply(6, bodies[6]),
        ]
    )
    assert talk.struck == [
        (Effect.DROP_REPLY, reply(2, bodies[2])),
        (Effect.ANSWER, b""),
        (Effect.REPLACE_REPLY, reply(5, b"e")),
    ]


def test_made_up_answer_waits_for_the_reply_before_it():
    talk = Conversation()
    talk.ask(1)
    before = reply(1, b"abcdef")
    talk.stream.feed(before[:10])
    talk.ask(2, Effect.ANSWER, b"made up")
    assert talk.delivered == before[:10]
    talk.stream.feed(before[10:])
    assert talk.delivered == before + reply(2, b"made up")


def test_requests_without_a_reply_are_skipped():
    talk = Conversation()
    talk.ask(1, Effect.DROP_REPLY)  # Produce with acks=0 has no reply
    talk.ask(2)
    talk.ask(3, Effect.DROP_REPLY)
    talk.stream.feed(reply(2, b"x") + reply(3, b"y") + reply(77, b"unasked"))
    assert talk.delivered == reply(2, b"x") + reply(77, b"unasked")
    assert talk.struck == [(Effect.DROP_REPLY, reply(3, b"y"))]


def test_bytes_that_are_not_a_reply_are_forwarded():
    talk = Conversation()
    talk.ask(1, Effect.DROP_REPLY)
    garbage = b"\xff\xff\xff\xff\x00\x00\x00\x01HTTP/1.1 400"
    talk.stream.feed(garbage)
    talk.stream.feed(b" Bad Request")
    assert talk.delivered == garbage + b" Bad Request"


def test_produce_is_answered_only_in_versions_before_the_flexible_ones():
    with pytest.raises(ValueError, match="must be 3 to 8, not 9"):
        produce_error(45)(KafkaRequest(1, "Produce", 9, 1, None, b""))
