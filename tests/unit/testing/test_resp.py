"""Redis requests and replies are found however the bytes are split."""

import pytest

from resilient_io.testing import ServerError
from resilient_io.testing.resp import InvalidReplyError, ReplyScanner, RequestScanner, encode

REQUESTS = [
    encode("SET", "k", "a\r\n*1\r\n$4\r\nPING\r\n"),
    b"PING\r\n",
    b"\r\n",
    b"*0\r\n",
    encode("client", "setinfo", "x", ""),
    encode("MSET", *range(20)),
    b"get  k\n",
    encode("SET", "big", b"x" * 70_000),
]
NAMES = ["SET", "PING", "", "", "CLIENT", "MSET", "GET", "SET"]
REPLIES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":-5\r\n",
    b"$5\r\na\r\n+b\r\n",
    b"$0\r\n\r\n",
    b"$-1\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n*2\r\n$1\r\na\r\n:1\r\n*1\r\n_\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*2\r\n#t\r\n,1.5\r\n",
    b"~1\r\n(123456\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"!5\r\nERR x\r\n",
    b"|1\r\n+ttl\r\n:5\r\n$1\r\nv\r\n",
    b"|0\r\n+v\r\n",
    b"%0\r\n",
    b">2\r\n+message\r\n*2\r\n:1\r\n:2\r\n",
    b"*2\r\n|1\r\n+x\r\n+y\r\n:1\r\n:2\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1_000_000])
def test_requests_are_found_however_the_bytes_are_split(size):
    stream = b"".join(REQUESTS)
    scanner = RequestScanner(7)
    found = [
        request
        for at in range(0, len(stream), size)
        for request in scanner.feed(stream[at : at + size])
    ]
    assert [request.raw for request in found] == REQUESTS
    assert [request.name for request in found] == NAMES
    assert found[4].starts_with((b"CLIENT", b"SETINFO"))
    assert not found[4].starts_with((b"CLIENT", b"SETNAME"))
    assert len(found[5].arguments) == 8
    assert len(found[7].arguments[2]) == 256
    assert found[0].connection == 7


def test_large_value_is_joined_once():
    request = encode("SET", "k", b"x" * 1000)
    scanner = RequestScanner(1)
    for at in range(0, 900, 100):
        assert scanner.feed(request[at : at + 100]) == []
    assert len(scanner._pieces) == 9
    assert scanner.feed(request[900:])[0].raw == request


def test_bytes_that_are_not_a_request_are_forwarded():
    scanner = RequestScanner(1)
    garbage = b"*1\r\n$x\r\nmore"
    assert [request.raw for request in scanner.feed(b"PING\r\n" + garbage)] == [
        b"PING\r\n",
        garbage,
    ]
    assert [request.raw for request in scanner.feed(b"\x00")] == [b"\x00"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000_000])
def test_ends_of_replies_are_found_however_the_bytes_are_split(size):
    stream = b"".join(REPLIES)
    scanner = ReplyScanner()
    ends = [
        (at + end, push)
        for at in range(0, len(stream), size)
        for end, push in scanner.feed(stream[at : at + size])
    ]
    expected = [sum(map(len, REPLIES[: count + 1])) for count in range(len(REPLIES))]
    assert [end for end, _ in ends] == expected
    assert [push for _, push in ends] == [reply.startswith(b">") for reply in REPLIES]
    assert not scanner.lost


@pytest.mark.parametrize("garbage", [b"?\r\n", b"$x\r\n", b"\r\n", b"*2\r\n@1\r\n"])
def test_invalid_replies_are_detected(garbage):
    scanner = ReplyScanner()
    assert scanner.feed(b"+OK\r\n" + garbage) == [(5, False)]
    assert scanner.lost


def test_errors_of_server_and_protocol_are_unrelated_classes():
    assert not issubclass(ServerError, InvalidReplyError)
    assert (
        encode("SET", 1, b"\xff", 0.5)
        == b"*4\r\n$3\r\nSET\r\n$1\r\n1\r\n$1\r\n\xff\r\n$3\r\n0.5\r\n"
    )
