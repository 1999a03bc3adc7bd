"""Filter for the log records of aiokafka, which writes up to 77 a second during an outage.

An application may use aiokafka clients beside ours, so a context variable, which tasks and
callbacks inherit, marks the code that runs for ours. Its records are counted and dropped, or kept
as DEBUG records without secrets if the logger's level is DEBUG.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING

from resilient_io.text import clean_text, describe_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_ROOT = "aiokafka"

# Maximum length of a kept record's message, in characters. A cluster's metadata is long.
_DEBUG_LIMIT = 2000

_SASL = "SaslAuthenticate"
"""Prefix of the classes `SaslAuthenticateRequest_v1`, `SaslAuthenticateResponse_v0` and so on of
`aiokafka.protocol.admin`. They contain the password, the token or a proof in the encoding of the
SASL mechanism, so replacing the known secrets in their text is not enough."""

_NO_REASON = "Sending username and password in the clear"
"""A warning that is not the reason for any failure."""

_current: contextvars.ContextVar[DriverLog | None] = contextvars.ContextVar(
    "resilient_io_kafka_driver_log", default=None
)


class DriverLog:
    """The log records that aiokafka writes for one client."""

    __slots__ = ("_secrets", "last_message", "log_records_dropped")

    def __init__(self, secrets: Callable[[], Iterable[str]] = tuple) -> None:
        self._secrets = secrets
        self.log_records_dropped = 0
        self.last_message = ""

    def context(self) -> contextvars.Context:
        """Return a new context for tasks whose driver records belong to this log.

        The context is empty otherwise: the tasks outlive the call that happens to start them, so
        they must not inherit its deadline or keep its trace alive.
        """
        _install()
        context = contextvars.Context()
        context.run(_current.set, self)
        return context

    @contextlib.contextmanager
    def filtering(self) -> Iterator[None]:
        """Filter the records written inside the block, including tasks created there."""
        _install()
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep a record, which is then a DEBUG record without secrets."""
        if record.levelno > logging.DEBUG:
            self.log_records_dropped += 1
            if record.levelno >= logging.WARNING and record.msg != _NO_REASON:
                self.last_message = clean_text(record.getMessage(), secrets=self._secrets())
            if not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
                return False
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        if any(type(argument).__name__.startswith(_SASL) for argument in arguments):
            return False
        # The message and the traceback may quote a secret.
        secrets = self._secrets()
        text = clean_text(record.getMessage(), limit=_DEBUG_LIMIT, secrets=secrets)
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            text += f" ({type(error).__name__}: {describe_error(error, secrets=secrets)})"
        record.msg, record.args = text, ()
        record.exc_info = record.exc_text = None
        return True


class _Filter(logging.Filter):
    """Passes the records of marked code to their `DriverLog`.

    It is installed on each logger of aiokafka: a parent's filters do not apply to its children.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        log = _current.get()
        return log is None or log.filter(record)


_filter = _Filter()


def _install() -> None:
    """Install the filter on every logger of aiokafka that exists. Idempotent."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        matches = name == _ROOT or name.startswith(f"{_ROOT}.")
        if matches and isinstance(logger, logging.Logger) and _filter not in logger.filters:
            logger.addFilter(_filter)
