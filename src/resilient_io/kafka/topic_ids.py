"""Topic IDs, by which a topic differs from an earlier one of the same name.

aiokafka 0.14 knows the metadata request up to version 5; topic IDs came with version 10.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from aiokafka.errors import (
    IncompatibleBrokerVersion,
    NoError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from .driver import client_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import BytesIO

    from .driver import ConsumerDriver

_ID_SIZE = 16
_NO_ID = bytes(_ID_SIZE)


class _TopicId(AbstractType[bytes]):
    """The type of a topic ID in requests and responses."""

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        """Read an ID."""
        return data.read(_ID_SIZE)

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        """Return an ID as it is sent."""
        return value

    @classmethod
    def repr(cls, value: bytes) -> str:
        """Return an ID for log messages."""
        return value.hex()


_Name = CompactString("utf-8")


class _MetadataResponse(Response):
    # aiokafka declares them as abstract properties and overrides them in the same way.
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    API_VERSION = 10  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", _Name),
                ("port", Int32),
                ("rack", _Name),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", _Name),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", _Name),
                ("topic_id", _TopicId),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestStruct(RequestStruct):
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _TopicId), ("topic", _Name), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):
    API_KEY = 3

    def __init__(self, topics: Iterable[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        """Return the request; it never creates a topic."""
        no_tags: dict[int, bytes] = {}
        topics = [(_NO_ID, topic, no_tags) for topic in self._topics]
        return request_struct_class(topics, False, False, False, no_tags)


async def request_topic_ids(instance: ConsumerDriver, topics: Iterable[str]) -> dict[str, str]:
    """Return the IDs of the topics that exist; nothing if the broker does not know topic IDs.

    The caller must limit the time.
    """
    return {
        topic: base64.urlsafe_b64encode(topic_id).decode().rstrip("=")
        for error, topic, topic_id, *_ in await _request_metadata(instance, topics)
        if for_code(error) is NoError and topic_id != _NO_ID
    }


async def missing_topics(instance: ConsumerDriver, topics: Iterable[str]) -> list[str]:
    """Return the topics that do not exist; none if the broker does not know topic IDs.

    The caller must limit the time.
    """
    return sorted(
        topic
        for error, topic, *_ in await _request_metadata(instance, topics)
        if for_code(error) is UnknownTopicOrPartitionError
    )


async def _request_metadata(instance: ConsumerDriver, topics: Iterable[str]) -> list[Any]:
    client: Any = client_of(instance)
    try:
        response: Any = await client.send(client.get_random_node(), _MetadataRequest(topics))
    except (IncompatibleBrokerVersion, NotImplementedError):  # a broker before Kafka 2.8
        return []
    found: list[Any] = response.topics
    return found
