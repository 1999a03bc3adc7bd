"""What tracing of records is told; who makes spans of it is beyond this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from aiokafka.structs import RecordMetadata

    from .consumer.record import Record

    Written = asyncio.Future[RecordMetadata]

__all__ = ["Sending", "Tracing"]


class Sending(Protocol):
    """The span of a record on its way."""

    headers: list[tuple[str, bytes]]
    """What to add to the record's headers."""

    def ended(self, future: Written) -> None:
        """End it as the record's future ended."""

    def failed(self, error: BaseException) -> None:
        """End it with an error."""


class Tracing(Protocol):
    """What makes the spans of one producer or consumer."""

    def sending(self, topic: str, headers: Sequence[tuple[str, bytes | None]]) -> Sending:
        """Begin the span of a record."""
        raise NotImplementedError

    def processing(self, records: Sequence[Record]) -> AbstractContextManager[object]:
        """Begin the span of a call of the handler; leaving it ends the span."""
        raise NotImplementedError
