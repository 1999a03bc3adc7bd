"""The error codes of Kafka 4.3 that aiokafka 0.14 does not know.

aiokafka raises `UnknownError` for them, which says neither what happened nor whether the request
was applied. Importing this module adds them to aiokafka's table (`aiokafka.errors.kafka_errors`).
"""

from __future__ import annotations

from typing import Any

from aiokafka import errors as driver
from aiokafka.errors import BrokerResponseError

_CODES = """
73 TOPIC_DELETION_DISABLED
74 FENCED_LEADER_EPOCH retriable
75 UNKNOWN_LEADER_EPOCH retriable
76 UNSUPPORTED_COMPRESSION_TYPE
77 STALE_BROKER_EPOCH
78 OFFSET_NOT_AVAILABLE retriable
80 PREFERRED_LEADER_NOT_AVAILABLE retriable
81 GROUP_MAX_SIZE_REACHED
83 ELIGIBLE_LEADERS_NOT_AVAILABLE retriable
84 ELECTION_NOT_NEEDED retriable
85 NO_REASSIGNMENT_IN_PROGRESS
86 GROUP_SUBSCRIBED_TO_TOPIC
88 UNSTABLE_OFFSET_COMMIT retriable
89 THROTTLING_QUOTA_EXCEEDED retriable
91 RESOURCE_NOT_FOUND
92 DUPLICATE_RESOURCE
93 UNACCEPTABLE_CREDENTIAL
94 INCONSISTENT_VOTER_SET
95 INVALID_UPDATE_VERSION
96 FEATURE_UPDATE_FAILED
97 PRINCIPAL_DESERIALIZATION_FAILURE
98 SNAPSHOT_NOT_FOUND
99 POSITION_OUT_OF_RANGE
100 UNKNOWN_TOPIC_ID retriable
101 DUPLICATE_BROKER_REGISTRATION
102 BROKER_ID_NOT_REGISTERED
103 INCONSISTENT_TOPIC_ID retriable
104 INCONSISTENT_CLUSTER_ID
105 TRANSACTIONAL_ID_NOT_FOUND
106 FETCH_SESSION_TOPIC_ID_ERROR retriable
107 INELIGIBLE_REPLICA
108 NEW_LEADER_ELECTED
109 OFFSET_MOVED_TO_TIERED_STORAGE
110 FENCED_MEMBER_EPOCH
111 UNRELEASED_INSTANCE_ID
112 UNSUPPORTED_ASSIGNOR
113 STALE_MEMBER_EPOCH
114 MISMATCHED_ENDPOINT_TYPE
115 UNSUPPORTED_ENDPOINT_TYPE
116 UNKNOWN_CONTROLLER_ID
117 UNKNOWN_SUBSCRIPTION_ID
118 TELEMETRY_TOO_LARGE
119 INVALID_REGISTRATION
120 TRANSACTION_ABORTABLE
121 INVALID_RECORD_STATE
122 SHARE_SESSION_NOT_FOUND retriable
123 INVALID_SHARE_SESSION_EPOCH retriable
124 FENCED_STATE_EPOCH
125 INVALID_VOTER_KEY
126 DUPLICATE_VOTER
127 VOTER_NOT_FOUND
128 INVALID_REGULAR_EXPRESSION
129 REBOOTSTRAP_REQUIRED
130 STREAMS_INVALID_TOPOLOGY
131 STREAMS_INVALID_TOPOLOGY_EPOCH
132 STREAMS_TOPOLOGY_FENCED
133 SHARE_SESSION_LIMIT_REACHED retriable
"""


class FencedInstanceIdError(BrokerResponseError):
    """Another member of the group has the same `group_instance_id` (82)."""

    errno = 82
    message = "FENCED_INSTANCE_ID"
    description = "another member of the group has the same group_instance_id"


class InvalidRecordError(BrokerResponseError):
    """The broker rejects a record, for example one without a key in a compacted topic (87)."""

    errno = 87
    message = "INVALID_RECORD"
    description = "the broker rejects this record, and with it the batch that contains it"


def _error_class(code: int, message: str, *, retriable: bool) -> type[BrokerResponseError]:
    name = "".join(word.capitalize() for word in message.split("_")) + "Error"
    attributes = {
        "__module__": __name__,
        "__doc__": f"Kafka's error {code}, {message}.",
        "errno": code,
        "message": message,
        "description": message.replace("_", " ").lower(),
        "retriable": retriable,
    }
    kind: type[BrokerResponseError] = type(name, (BrokerResponseError,), attributes)
    globals()[name] = kind  # so that its instances can be pickled
    return kind


def _add_to_driver() -> dict[int, type[BrokerResponseError]]:
    known: Any = driver.kafka_errors
    added: dict[int, type[BrokerResponseError]] = {
        82: FencedInstanceIdError,
        87: InvalidRecordError,
    }
    for line in _CODES.strip().splitlines():
        code, message, *retriable = line.split()
        added[int(code)] = _error_class(int(code), message, retriable=bool(retriable))
    for errno, kind in added.items():
        known.setdefault(errno, kind)  # a newer aiokafka may know the code
    # Sent instead of INVALID_PRODUCER_EPOCH since Kafka 2.7. aiokafka's class has no code.
    known.setdefault(90, driver.ProducerFenced)
    return added


ADDED = _add_to_driver()
"""The classes by code. They are raised, and can be caught, like aiokafka's own."""
