"""The driver's floods, told by whose they are: ours are counted, other people's are left alone.

aiokafka 0.14 writes up to 77 records a second while its broker is away. A service may use plain
aiokafka clients beside ours, so nothing is silenced by the logger's name: a context variable, which
tasks and callbacks inherit, tells whether a record comes from an instance of ours. With the
logger's level at DEBUG ours are kept, as DEBUG records.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING

from resilient_io.deadlines import context_without_deadline

if TYPE_CHECKING:
    from collections.abc import Iterator


_LOGGERS = "aiokafka"


class Tally:
    """Counts the records that were dropped.

    Attributes:
        dropped: How many, since it was made.
        newest: The newest of them in words; "" before the first.
    """

    __slots__ = ("dropped", "newest")

    def __init__(self) -> None:
        self.dropped = 0
        self.newest = ""

    def add(self, record: logging.LogRecord) -> None:
        """Count a record of the driver's."""
        self.dropped += 1
        if record.levelno >= logging.WARNING:
            self.newest = record.getMessage()


_ours: contextvars.ContextVar[Tally | None] = contextvars.ContextVar(
    "resilient_io_kafka_driver", default=None
)


class _Filter(logging.Filter):
    """Sits on each logger of aiokafka's that writes: a parent's filters are not asked."""

    def filter(self, record: logging.LogRecord) -> bool:
        tally = _ours.get()
        if tally is None or record.levelno <= logging.DEBUG:
            return True
        tally.add(record)
        if not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
            return False
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return True


_filter = _Filter()


def _install() -> None:
    """Put the filter on every logger of aiokafka's that exists; more than once does no harm."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        whose = name == _LOGGERS or name.startswith(f"{_LOGGERS}.")
        if whose and isinstance(logger, logging.Logger) and _filter not in logger.filters:
            logger.addFilter(_filter)


def context_of_driver(tally: Tally) -> contextvars.Context:
    """Return a new context for tasks in which the driver's records are ours.

    No deadline is in force in it: what runs there outlives the call that happens to start it.

    Args:
        tally: Counts what is dropped.
    """
    _install()
    context = context_without_deadline()
    context.run(_ours.set, tally)
    return context


@contextlib.contextmanager
def quietly(tally: Tally) -> Iterator[None]:
    """Count what the driver writes inside the block, awaits and tasks made there included."""
    _install()
    token = _ours.set(tally)
    try:
        yield
    finally:
        _ours.reset(token)
