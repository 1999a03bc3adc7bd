"""Log records with counts: the first at once, the others summed up."""

from __future__ import annotations

import asyncio
import logging

_log = logging.getLogger("resilient_io.kafka")

_INTERVAL = 30.0


class Notices:
    """Says that something happened, at most every 30 seconds, and how often since.

    Args:
        event: The same in a word, for the record's field.
        subject: What happened, in the plural: "records went to the dead-letter topic".
    """

    def __init__(self, event: str, subject: str) -> None:
        self._event = event
        self._subject = subject
        self._said_at: float | None = None
        self._unsaid = 0
        self._latest = ""

    def add(self, detail: str) -> None:
        """Count one; say so if nothing was said for a while."""
        now = asyncio.get_running_loop().time()
        self._unsaid += 1
        self._latest = detail
        if self._said_at is None or now - self._said_at >= _INTERVAL:
            self._said_at = now
            self._say()

    def close(self) -> None:
        """Say what has not been said yet."""
        if self._unsaid:
            self._say()

    def _say(self) -> None:
        _log.warning(
            "%s: %d; the latest: %s",
            self._subject,
            self._unsaid,
            self._latest,
            extra={"event": self._event, "count": self._unsaid, "latest": self._latest},
        )
        self._unsaid = 0
