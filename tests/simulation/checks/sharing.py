"""Rules about clients that share a pool, that are opened again by a call, and that are dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.history import Outcome
from tests.simulation.world import KEPT_UNUSED

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.history import Operation

    from .index import Index

_QUIET = 6.0  # seconds without a fault, in which the client has no reason to replace a connection


def unused_connections_of_a_pool_are_closed(index: Index) -> Iterator[Broken]:
    """Some seconds after the last client of a pool was closed or dropped, nothing of it is left."""
    for event in index.events.get("unused", ()):
        since = event.time - KEPT_UNUSED
        if index.stalled(since, event.time) > 1.0:
            continue
        for name in event.facts["tasks"]:
            yield Broken(f"a task of a pool without clients is left: {name}", (), event.at)
        for number in event.facts["connections"]:
            yield Broken(f"connection {number} of a pool without clients is open", (), event.at)


def connections_of_a_pool_are_kept_for_its_next_client(index: Index) -> Iterator[Broken]:
    """A client that comes within 10 s of the last one finds an open connection."""
    left = index.events.get("left", ())
    for event in index.events.get("joined", ()):
        last = max((each for each in left if each.at < event.at), key=_number, default=None)
        if (
            last is None
            or last.facts["users"]
            or last.facts["client"] != event.facts["client"]
            or event.time >= last.time + KEPT_UNUSED - 0.01
            or not last.facts["connections"]
            or index.disturbed(last.time - 1.0, event.time, after=_QUIET)
            or any(
                kind == "closing" and last.time - _QUIET <= time <= event.time
                for changes in index.lifecycle.values()
                for _, time, kind in changes
            )
        ):
            continue
        if not set(last.facts["connections"]).intersection(event.facts["connections"]):
            yield Broken(
                f"no connection of client {event.facts['client']} was kept for "
                f"{event.time - last.time:.3f} s",
                (),
                event.at,
            )


def _number(event: object) -> int:
    return event.at  # type: ignore[attr-defined,no-any-return]


def a_call_finds_its_client_closed_only_if_it_was(index: Index) -> Iterator[Broken]:
    """A call raises RedisClosed only if its client, or its pool, is closed before or meanwhile.

    A client that calls open again is closed only for calls that began before that.
    """
    setups = {} if index.plan is None else {setup.label: setup for setup in index.plan.clients}
    for operation in index.history.operations:
        if operation.error_bases[:1] != ("RedisClosed",):
            continue
        setup = setups.get(operation.client)
        reopens = setup is not None and bool(setup.form.get("reopens"))
        changes = index.lifecycle.get(operation.client, ())
        ended = operation.ended_at or 0
        during = any(
            operation.started_at <= at <= ended and kind in ("closing", "closed")
            for at, _, kind in changes
        )
        if setup is not None and setup.form.get("pooled"):
            if operation.facts.get("visitor"):
                by_itself = operation.facts.get("left_at", ended) < operation.started_at
            else:
                by_itself = _closed_by_itself(index, operation)
            state = index.state_of_client(operation.client, operation.started_at)
            closed = during or state == "closing" or (by_itself and not reopens)
        else:
            closed = during or (
                index.state_of_client(operation.client, operation.started_at) != "opened"
                and not reopens
            )
        if not closed:
            yield Broken(
                f"call {operation.number} ({operation.kind}) of client {operation.client}, which "
                f"is open, raised {operation.error}",
                (operation.number,),
                operation.ended_at,
            )


def _closed_by_itself(index: Index, operation: Operation) -> bool:
    """Return whether the client was closed before or during a call, and its pool was not."""
    return any(
        each.kind == "close"
        and each.client == operation.client
        and each.started_at <= (operation.ended_at or 0)
        for each in index.by_client.get(operation.client, ())
    )


def a_dropped_client_warns_and_is_collected(index: Index) -> Iterator[Broken]:
    """A client that is dropped without a close is collected at once, with a ResourceWarning."""
    for event in index.events.get("dropped", ()):
        facts = event.facts
        if not facts["collected"]:
            yield Broken(f"client {facts['client']} was dropped, but not collected", (), event.at)
        elif facts["warned"] != facts["running"]:
            warned = "did not warn" if facts["running"] else "warned, although it had not started"
            yield Broken(f"client {facts['client']} was dropped, and {warned}", (), event.at)


def a_name_that_was_set_is_that_of_all_connections(index: Index) -> Iterator[Broken]:
    """Calls after CLIENT SETNAME use connections with that name, also those opened later."""
    names = [each for each in index.history.operations if each.kind == "name"]
    if not names or index.forbidden("CLIENT|SETNAME") is not None:
        return
    bound = () if index.plan is None else index.plan.clients
    separate = {each.label for each in bound if each.form.get("bare")}
    for token, sent in index.sent.items():
        command = index.by_command_token.get(token)
        if command is None or command.operation.kind in _OWN_CONNECTION:
            continue
        operation = command.operation
        mine = [each for each in names if each.client == operation.client]
        done = [
            each
            for each in mine
            if each.outcome is Outcome.OK and (each.ended_at or 0) < sent[0].at
        ]
        if not done or operation.client in separate:
            continue
        last = max(done, key=lambda each: each.ended_at or 0)
        allowed = {
            each.facts["name"]
            for each in mine
            if each is last or each.ended_at is None or each.ended_at > last.started_at
        }
        for execution in command.executions:
            prefix = execution.client_name.rpartition(":")[0]
            if execution.client_name and prefix not in allowed:
                yield Broken(
                    f"call {operation.number} ({operation.kind}) used a connection that was named "
                    f"{prefix}, and not {last.facts['name']}",
                    (last.number, operation.number),
                    execution.at,
                )


_OWN_CONNECTION = ("manual", "watch", "peek")
"""Kinds that keep a connection which may have been named before."""
