"""Replies as Python values, and their encoding in RESP2 and RESP3.

A handler returns bytes (bulk string), int, None (null), list or tuple (array), dict (map), float
(double), bool, an `ErrorReply`, or one of the types below.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.history import ErrorReply


class Status(bytes):
    """A simple string, such as OK."""

    __slots__ = ()


class Text(bytes):
    """A verbatim string in RESP3, a bulk string in RESP2."""

    __slots__ = ()


class Members(list[Any]):
    """A set in RESP3, an array in RESP2."""

    __slots__ = ()


class Push(list[Any]):
    """A push in RESP3, an array in RESP2."""

    __slots__ = ()


class Several(list[Any]):
    """The replies of one command that has several, such as SUBSCRIBE with two channels."""

    __slots__ = ()


class NullArray:
    """A null, which RESP2 writes as an array."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL_ARRAY"


class Pending:
    """What a handler returns if the reply comes later, or was sent already."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PENDING"


class Refused(Exception):
    """A handler's error reply."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.reply = ErrorReply(text)


NULL_ARRAY = NullArray()
PENDING = Pending()
OK = Status(b"OK")
QUEUED = Status(b"QUEUED")
PONG = Status(b"PONG")

Reply = Any


def format_double(number: float) -> bytes:
    """Return the shortest text of a number, without a fraction if it is whole."""
    if number != number:  # noqa: PLR0124
        return b"nan"
    if number in (float("inf"), float("-inf")):
        return b"inf" if number > 0 else b"-inf"
    if number == int(number) and abs(number) < 1e17:
        return b"%d" % int(number)
    return repr(number).encode()


def encode(reply: Reply, protocol: int) -> bytes:  # noqa: PLR0911
    """Return the bytes of a reply."""
    if reply is OK:
        return b"+OK\r\n"
    kind = type(reply)
    if kind is Status:
        return b"+%b\r\n" % reply
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int:
        return b":%d\r\n" % reply
    if reply is None:
        return b"_\r\n" if protocol == 3 else b"$-1\r\n"
    if kind is ErrorReply:
        return b"-%b\r\n" % reply.text.encode()
    if kind is list or kind is tuple:
        return b"*%d\r\n%b" % (len(reply), b"".join([encode(one, protocol) for one in reply]))
    return _encode_rare(reply, protocol)


def _encode_rare(reply: Reply, protocol: int) -> bytes:  # noqa: PLR0911
    new = protocol == 3
    if reply is NULL_ARRAY:
        return b"_\r\n" if new else b"*-1\r\n"
    if isinstance(reply, bool):
        if new:
            return b"#t\r\n" if reply else b"#f\r\n"
        return b":1\r\n" if reply else b":0\r\n"
    if isinstance(reply, float):
        text = format_double(reply)
        return b",%b\r\n" % text if new else b"$%d\r\n%b\r\n" % (len(text), text)
    if isinstance(reply, dict):
        body = b"".join([encode(one, protocol) for pair in reply.items() for one in pair])
        return b"%%%d\r\n%b" % (len(reply), body) if new else b"*%d\r\n%b" % (2 * len(reply), body)
    if isinstance(reply, Text):
        if new:
            return b"=%d\r\ntxt:%b\r\n" % (len(reply) + 4, reply)
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, list):
        sign = b"*"
        if new:
            sign = b"~" if isinstance(reply, Members) else b">"
        body = b"".join([encode(one, protocol) for one in reply])
        if isinstance(reply, Several):
            return body
        return b"%b%d\r\n%b" % (sign, len(reply), body)
    raise TypeError(f"a reply of type {type(reply).__name__}")


def plain(reply: Reply) -> Reply:
    """Return the reply as the history records it: bytes, int, float, list, dict, None, error."""
    kind = type(reply)
    if kind is bytes or kind is int or reply is None or kind is ErrorReply:
        return reply
    if kind is Status or kind is Text:
        return b"OK" if reply is OK else bytes(reply)
    if reply is NULL_ARRAY:
        return None
    if isinstance(reply, (list, tuple)):
        return [plain(one) for one in reply]
    if isinstance(reply, dict):
        return {key: plain(one) for key, one in reply.items()}
    return reply
