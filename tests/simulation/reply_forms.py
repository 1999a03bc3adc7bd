"""Raw replies of a Redis server: parsed, shown, and made comparable with those of another."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse(data: bytes) -> tuple[list[Any], bytes]:
    """Return the replies in `data` as trees of (type, value), and the rest without a whole reply.

    Nothing is lost: the type is the first byte, and the value a line, the bytes of a string, or a
    list of trees.
    """
    replies = []
    at = 0
    while at < len(data):
        try:
            reply, at = _parse_one(data, at)
        except _IncompleteError:
            break
        replies.append(reply)
    return replies, data[at:]


class _IncompleteError(Exception):
    """The data ends within a reply."""


def _parse_one(data: bytes, at: int) -> tuple[Any, int]:
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _IncompleteError
    kind, line = chr(data[at]), data[at + 1 : end]
    at = end + 2
    if kind in "$=" and line != b"-1":
        size = int(line)
        if len(data) < at + size + 2:
            raise _IncompleteError
        return (kind, data[at : at + size]), at + size + 2
    if kind in "*~>%|" and line != b"-1":
        items = []
        for _ in range(int(line) * (2 if kind in "%|" else 1)):
            item, at = _parse_one(data, at)
            items.append(item)
        return (kind, items), at
    return (kind, line), at


def show(reply: Any) -> str:
    """Return a parsed reply as text, without the IDs in streams that are made of the time."""
    return _STREAM_ID.sub("<time>", _show(reply))


def _show(reply: Any) -> str:
    kind, value = reply
    if isinstance(value, list):
        return f"{kind}[{', '.join(_show(each) for each in value)}]"
    if kind in "$=":
        return f"{kind}nil" if value == b"-1" else kind + repr(value)[1:]
    return kind + value.decode("utf-8", "backslashreplace")


def encode(words: Sequence[bytes]) -> bytes:
    """Return a command as RESP."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


_STREAM_ID = re.compile(r"\b\d{13}-\d+")
_TIME_REPLIES = (b"PTTL", b"PEXPIRETIME", b"EXPIRETIME", b"LASTSAVE")
_CLIENT_FIELDS = (
    b"id",
    b"addr",
    b"name",
    b"flags",
    b"db",
    b"sub",
    b"psub",
    b"ssub",
    b"user",
    b"cmd",
    b"resp",
    b"lib-name",
    b"lib-ver",
)
_INFO_FIELDS = (b"role", b"loading", b"connected_slaves", b"master_link_status")


_UNORDERED = (
    *(b"SMEMBERS", b"SUNION", b"SDIFF", b"SINTER", b"SPOP", b"SRANDMEMBER"),
    *(b"HGETALL", b"HKEYS", b"HVALS", b"KEYS"),
)


class Normalizer:
    """Replaces what differs between two servers by names.

    Args:
        ids: The client ID of each connection.
        addresses: The address of each connection.
    """

    def __init__(self, ids: dict[str, bytes], addresses: dict[str, bytes]) -> None:
        self._ids = {number: f"ID of {label}".encode() for label, number in ids.items()}
        self._addresses = {
            address: f"address of {label}".encode() for label, address in addresses.items()
        }

    def reply(self, words: list[bytes], reply: Any) -> Any:
        """Return the reply to a command in a comparable form; `words` is empty if unknown."""
        kind, value = reply
        if kind == "-":
            return reply
        name = words[0].upper() if words else b""
        second = words[1].upper() if len(words) > 1 else b""
        if kind == ":":
            return kind, self._number(name, second, value)
        if isinstance(value, list) and kind != ">":
            return self._array(name, reply)
        if name == b"CLIENT" and second in (b"LIST", b"INFO"):
            return kind, self._clients(value)
        if name == b"INFO":
            return kind, _info(value)
        return reply

    def _number(self, name: bytes, second: bytes, value: bytes) -> bytes:
        if name == b"CLIENT" and second == b"ID":
            return self._ids.get(value, value)
        if name in _TIME_REPLIES and int(value) > 0:
            return b"about %d" % (round(int(value) / 10000) * 10000)
        return value

    def _array(self, name: bytes, reply: Any) -> Any:
        kind, values = reply
        if name == b"HELLO":
            return self._hello(reply)
        if name == b"EXEC":
            return kind, [self.reply([], each) for each in values]
        if name == b"TIME":
            return kind, [(each[0], b"time") for each in values]
        if name == b"ROLE":
            return _role(reply)
        if name in _UNORDERED:
            return _sorted(reply, pairs=name == b"HGETALL")
        return reply

    def _hello(self, reply: Any) -> Any:
        kind, values = reply
        items = []
        for name, value in zip(values[::2], values[1::2], strict=True):
            field = name[1]
            if field == b"id":
                items += [name, (value[0], self._ids.get(value[1], b"new"))]
            elif field in (b"server", b"version", b"availability_zone", b"modules"):
                continue
            else:
                items += [name, value]
        return kind, items

    def _clients(self, text: bytes) -> bytes:
        lines = []
        prefix, marked, rest = text.partition(b"txt:")  # of RESP3
        for line in (rest if marked and not prefix else text).splitlines():
            fields = dict(pair.partition(b"=")[::2] for pair in line.split(b" "))
            fields[b"id"] = self._ids.get(fields.get(b"id", b""), b"other")
            fields[b"addr"] = self._addresses.get(fields.get(b"addr", b""), b"other")
            if fields[b"id"] == b"other" or fields[b"id"] == b"ID of values":
                continue  # the connection that controls the real server
            shown = [name + b"=" + fields[name] for name in _CLIENT_FIELDS if name in fields]
            lines.append(b" ".join(shown))
        return b"\n".join(lines)


def _role(reply: Any) -> Any:
    kind, values = reply
    if values[0][1] == b"master":
        return kind, [values[0], (":", b"offset"), *values[2:]]
    return kind, values[:1]  # the port, state and offset of a replica


def _sorted(reply: Any, *, pairs: bool) -> Any:
    kind, values = reply
    if not pairs:
        return kind, sorted(values)
    found = sorted(zip(values[::2], values[1::2], strict=True))
    return kind, [each for pair in found for each in pair]


def _info(text: bytes) -> bytes:
    found = []
    for line in text.splitlines():
        name, _, value = line.partition(b":")
        if name in _INFO_FIELDS:
            found.append(name + b":" + value)
    return b"\n".join(found)
