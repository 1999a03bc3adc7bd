"""Framing of the Kafka protocol, for the proxy: where requests and replies begin and end."""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..faults import Effect

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..faults import Fault, ProxiedRequest

APIS: Final = {
    **dict(enumerate(("Produce", "Fetch", "ListOffsets", "Metadata"))),
    **dict(
        enumerate(
            (
                *("OffsetCommit", "OffsetFetch", "FindCoordinator", "JoinGroup", "Heartbeat"),
                *("LeaveGroup", "SyncGroup", "DescribeGroups", "ListGroups", "SaslHandshake"),
                *("ApiVersions", "CreateTopics", "DeleteTopics", "DeleteRecords"),
                *("InitProducerId", "OffsetForLeaderEpoch", "AddPartitionsToTxn"),
                *("AddOffsetsToTxn", "EndTxn", "WriteTxnMarkers", "TxnOffsetCommit"),
                *("DescribeAcls", "CreateAcls", "DeleteAcls", "DescribeConfigs", "AlterConfigs"),
                *("AlterReplicaLogDirs", "DescribeLogDirs", "SaslAuthenticate"),
                "CreatePartitions",
            ),
            start=8,
        )
    ),
    42: "DeleteGroups",
    43: "ElectLeaders",
    44: "IncrementalAlterConfigs",
    47: "OffsetDelete",
    60: "DescribeCluster",
    61: "DescribeProducers",
    65: "DescribeTransactions",
    66: "ListTransactions",
    68: "ConsumerGroupHeartbeat",
    69: "ConsumerGroupDescribe",
    71: "GetTelemetrySubscriptions",
    72: "PushTelemetry",
    75: "DescribeTopicPartitions",
}
"""Names of the requests that clients send, by their keys."""

_KNOWN: Final = {name.upper() for name in APIS.values()}
_LENGTH: Final = 4
_HEAD: Final = 8  # the length and the correlation id
_REQUEST_HEAD: Final = 14  # the length, key, version, correlation id and the client id's length
_LONGEST: Final = 1 << 28  # a larger length means that it is not a frame, but TLS for example


@dataclass(frozen=True, slots=True)
class KafkaRequest:
    """A request as a client sent it to a broker.

    Attributes:
        connection: Number of the connection through the proxy, counted from 1.
        name: The kind of request, such as "Produce" or "JoinGroup".
        version: Version of the request.
        correlation: Correlation id.
        client_id: Client id; None if the client has none.
        raw: All bytes of the request.
    """

    connection: int
    name: str
    version: int
    correlation: int
    client_id: str | None
    raw: bytes = field(repr=False)  # may contain a password

    def starts_with(self, words: tuple[bytes, ...]) -> bool:
        """Return whether the request has this name, in upper case."""
        return words == (self.name.upper().encode(),)


def check_name(name: str) -> None:
    """Raise ValueError for an unknown kind of request."""
    if name.upper() not in _KNOWN:
        raise ValueError(f"unknown Kafka request {name!r}: use Produce, Fetch, JoinGroup ...")


class KafkaRequestScanner:
    """Splits what a client sends into requests.

    Bytes that are not the protocol are returned as requests without a name, so that they can be
    forwarded.
    """

    def __init__(self, connection: int) -> None:
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = _LENGTH
        self._opaque = False

    def feed(self, data: bytes) -> list[KafkaRequest]:
        """Add received bytes, and return the requests that are now complete."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._needed and not self._opaque:
            return []
        buffer = data if len(self._pieces) == 1 else b"".join(self._pieces)
        requests: list[KafkaRequest] = []
        at = 0
        self._needed = _LENGTH
        while at < len(buffer):
            end = self._end(buffer, at)
            if end > len(buffer):
                self._needed = end - at
                break
            requests.append(self._parse(buffer[at:end]))
            at = end
        self._pieces = [buffer[at:]] if at < len(buffer) else []
        self._size = len(buffer) - at
        return requests

    def _end(self, buffer: bytes, at: int) -> int:
        """Return the end of the request at this position."""
        if self._opaque:
            return len(buffer)
        if len(buffer) - at < _LENGTH:
            return at + _LENGTH
        length: int = struct.unpack_from(">i", buffer, at)[0]
        if not _REQUEST_HEAD - _LENGTH <= length <= _LONGEST:
            self._opaque = True
            return len(buffer)
        return at + _LENGTH + length

    def _parse(self, raw: bytes) -> KafkaRequest:
        if self._opaque:
            return KafkaRequest(self._connection, "", 0, 0, None, raw)
        key, version, correlation, length = struct.unpack_from(">hhih", raw, _LENGTH)
        name = APIS.get(key, f"Api{key}")
        client_id = None
        if length >= 0:
            client_id = raw[_REQUEST_HEAD : _REQUEST_HEAD + length].decode(errors="replace")
        if name == "SaslHandshake" and version == 0:
            self._opaque = True  # the credentials that follow have no header
        return KafkaRequest(self._connection, name, version, correlation, client_id, raw)


class KafkaReplyStream:
    """Forwards what a broker sends, and applies faults to the replies in it.

    Args:
        deliver: Takes the bytes for the client.
        strike: Takes a fault, the complete reply that it hits (empty if there is none), and the
            reply to deliver instead.
    """

    def __init__(
        self,
        deliver: Callable[[bytes], None],
        strike: Callable[[Fault, bytes, bytes], None],
    ) -> None:
        self._deliver = deliver
        self._strike = strike
        self._unanswered: deque[tuple[KafkaRequest, Fault | None]] = deque()
        self._head = bytearray()  # the received part of a reply's header
        self._left = 0  # remaining bytes of the reply
        self._struck: tuple[KafkaRequest, Fault] | None = None  # the fault that hits it
        self._kept = bytearray()  # the received part of that reply
        self._opaque = False

    def expect(self, request: ProxiedRequest, fault: Fault | None) -> None:
        """Expect the reply to a request, and apply the fault to it."""
        if isinstance(request, KafkaRequest):
            self._unanswered.append((request, fault))
            self._send_due_answers()

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        at = plain = 0  # the bytes from `plain` to `at` are forwarded unchanged
        while at < len(data) and not self._opaque:
            if not self._left:
                step = _HEAD - len(self._head)
                self._deliver(data[plain:at])
                self._head += data[at : at + step]
                plain = at = min(at + step, len(data))
                if len(self._head) == _HEAD:
                    self._begin()
            else:
                step = min(self._left, len(data) - at)
                self._left -= step
                if self._struck is not None:
                    self._kept += data[at : at + step]
                    plain = at + step
                at += step
            if not self._left and not self._head:
                self._deliver(data[plain:at])
                plain = at
                self._finish()
        self._deliver(data[plain:])

    def _begin(self) -> None:
        """Take the header of a reply."""
        head = bytes(self._head)
        self._head.clear()
        length, correlation = struct.unpack(">ii", head)
        self._left = length - (_HEAD - _LENGTH)
        if not 0 <= self._left <= _LONGEST:
            self._opaque = True
        fault = self._fault_of(correlation)
        if fault is None or self._opaque:
            self._deliver(head)
        else:
            self._struck = fault
            self._kept += head

    def _fault_of(self, correlation: int) -> tuple[KafkaRequest, Fault] | None:
        """Remove the answered request and those before it; return the fault that hits it."""
        place = next(
            (
                place
                for place, (request, _) in enumerate(self._unanswered)
                if request.correlation == correlation
            ),
            None,
        )
        if place is None:
            return None
        for _ in range(place):
            self._unanswered.popleft()  # Produce with acks=0 has no reply
        request, fault = self._unanswered.popleft()
        return (request, fault) if fault is not None else None

    def _finish(self) -> None:
        """Handle the end of a reply."""
        if self._struck is not None:
            request, fault = self._struck
            reply = bytes(self._kept)
            self._struck = None
            self._kept.clear()
            self._strike(fault, reply, _made_up(request, fault))
        self._send_due_answers()

    def _send_due_answers(self) -> None:
        """Send made-up answers whose request is the next to be answered."""
        while self._unanswered and not self._left and not self._head:
            request, fault = self._unanswered[0]
            if fault is None or fault.effect is not Effect.ANSWER:
                break
            self._unanswered.popleft()
            self._strike(fault, b"", _made_up(request, fault))


def _made_up(request: KafkaRequest, fault: Fault) -> bytes:
    body = fault.reply_to(request)
    return struct.pack(">ii", len(body) + _HEAD - _LENGTH, request.correlation) + body
