"""Topics that a consumer is to read and cannot: hidden from its user, or missing.

aiokafka writes such topics to its log, joins the group without them, and waits for them forever.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from aiokafka.errors import TopicAuthorizationFailedError

from resilient_io.health import Cause, State

from ..driver import unknown_topics
from . import internals

if TYPE_CHECKING:
    from resilient_io.health import Dependency

    from ..driver import ConsumerDriver

_log = logging.getLogger("resilient_io.kafka")

_CONFIRMATIONS = 2
"""Number of metadata responses that must hide a topic: a new permission reaches brokers in turn."""

_MISSING_AFTER = 5.0
"""Seconds after which a missing topic is logged. A broker may be about to create it."""


class TopicDetector:
    """Reports topics that Kafka hides from this user, and topics that do not exist.

    A hidden topic makes health DEGRADED, and is an error for the caller who wants to read it. The
    leader of a group also looks up the topics that only other members read, to assign their
    partitions. A missing topic may be created later, so it is only logged.
    """

    def __init__(self, health: Dependency) -> None:
        self._health = health
        self._reporter = health.reporter()
        self._metadata: object = None  # the latest metadata that was checked
        self._hidden: dict[str, int] = {}  # how many responses hid a topic
        self._reported: list[str] = []
        self._failed: list[str] = []
        self._missing: dict[str, float] = {}  # since when
        self._logged: list[str] = []

    def check(self, instance: ConsumerDriver | None, now: float) -> bool:
        """Compare the metadata with the topics to read; return whether reading fails now."""
        if self._health.state is State.DOWN:
            self._reported = []  # DOWN forgets what was reported
        if instance is None or not self._health.state.answering:
            return False
        hidden = internals.hidden_topics(instance)
        missing = unknown_topics(instance)
        if not (missing or hidden or self._hidden or self._missing):
            return False
        self._check_missing([topic for topic in missing if topic not in hidden], now)
        if hidden is not self._metadata:
            self._metadata = hidden
            self._hidden = {topic: self._hidden.get(topic, 0) + 1 for topic in sorted(hidden)}
        confirmed = [topic for topic, times in self._hidden.items() if times >= _CONFIRMATIONS]
        before, wanted = self._failed, internals.topics_of(instance)
        self._failed = [topic for topic in confirmed if topic in wanted]
        self._report(confirmed)
        return any(topic not in before for topic in self._failed)

    def failure(self) -> Exception | None:
        """Return why a topic cannot be read, if its user must get a permission first."""
        if not self._failed:
            return None
        error = TopicAuthorizationFailedError(", ".join(self._failed))
        error.add_note("the user may not see the topic: allow it to read and describe the topic")
        return error

    def close(self) -> None:
        """Withdraw all reports."""
        self._reporter.close()
        self._reported = []

    def _report(self, confirmed: list[str]) -> None:
        for topic in self._reported:
            if topic not in confirmed:
                self._reporter.part_back(f"topic {topic}")
        for topic in confirmed:
            if topic not in self._reported:
                detail = "the user may not see it, and needs the permissions Read and Describe"
                if topic not in self._failed:
                    detail += " (other members of the group read it, which this member leads)"
                self._reporter.part_lost(f"topic {topic}", Cause.AUTH, detail)
        self._reported = confirmed

    def _check_missing(self, missing: list[str], now: float) -> None:
        self._missing = {topic: self._missing.get(topic, now) for topic in missing}
        self._logged = [topic for topic in self._logged if topic in self._missing]
        for topic, since in self._missing.items():
            if now - since >= _MISSING_AFTER and topic not in self._logged:
                self._logged.append(topic)
                name = self._health.name
                _log.warning(
                    "%s: the topic %r does not exist; its records are read once it does",
                    name,
                    topic,
                    extra={"event": "topic_missing", "dependency": name, "topic": topic},
                )
                self._health.note("topic missing", topic=topic)
