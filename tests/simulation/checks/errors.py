"""Rules about errors: callers see only documented ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Outcome

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Index

_INTERNAL = frozenset((
    "InvalidResponse", "Closed", "ConnectionLost", "Undeliverable", "Promoted",
    "NotMultiplexable", "AssertionError", "KeyError", "AttributeError", "InvalidStateError",
    "IndexError", "TypeError", "RuntimeError",
))  # fmt: skip
"""Names of errors that callers never get as such; subclasses that are documented may."""

_DOCUMENTED = frozenset({"RedisError", "DataError", "ConfigurationError"})

_PROMISES = frozenset({"DependencyUnavailable", "DeadlineExceeded", "Overloaded"})
"""Errors of which the documentation says that the call was a read, or nothing was applied."""


def every_error_is_a_documented_one(index: Index) -> Iterator[Broken]:
    """A call raises an error of redis-py's hierarchy, never an internal or unexpected one."""
    for operation in index.history.operations:
        bases = operation.error_bases
        if bases[:1] == ("BusyLoadingError",):
            continue  # an error reply, also one that a script made up
        if operation.outcome is Outcome.OTHER:
            why = "is not a public error"
        elif not bases or operation.outcome in (Outcome.OK, Outcome.CANCELLED, None):
            continue
        elif bases[0] in _INTERNAL:
            why = "is internal"
        elif not _DOCUMENTED.intersection(bases):
            why = "is not a RedisError"
        else:
            continue
        yield Broken(
            f"call {operation.number} ({operation.kind}) raised an error that {why}: "
            f"{operation.error}",
            (operation.number,),
            operation.ended_at,
        )


def an_error_that_promises_nothing_was_applied_fits_its_progress(index: Index) -> Iterator[Broken]:
    """What may have been applied is reported as an unknown outcome, or because of closing."""
    for operation in index.history.operations:
        if operation.facts.get("progress") == "maybe applied" and _PROMISES.intersection(
            operation.error_bases
        ):
            yield Broken(
                f"call {operation.number} ({operation.kind}) may have been applied, but raised: "
                f"{operation.error}",
                (operation.number,),
                operation.ended_at,
            )


_MISUSES = {
    "batch": "RouteRefused",
    "lock": "ConfigurationError",
    "plain lock": "TypeError",
    "not held": "LockError",
    "not fenced": "LockError",
    "release": "LockError",
    "with": "TypeError",
    "health": "TypeError",
    "select": "RouteRefused",
}


def a_misuse_raises_its_error(index: Index) -> Iterator[Broken]:
    """What the client cannot do raises the error that the documentation names."""
    for operation in index.history.operations:
        if operation.kind != "misuse" or operation.outcome is not Outcome.OK:
            continue
        expected = _MISUSES[operation.facts["what"]]
        if operation.reply not in (expected, "RedisClosed", "RedisUnavailable"):
            yield Broken(
                f"{operation.facts['what']} raised {operation.reply} instead of {expected}",
                (operation.number,),
                operation.ended_at,
            )
