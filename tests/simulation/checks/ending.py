"""Rules about the end of a run: everything recovers, and nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .index import Broken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .index import Index


def every_open_client_is_up_and_answers_at_the_end(index: Index) -> Iterator[Broken]:
    """After the last fault, each open client becomes UP by itself, and its PING is answered."""
    for client in index.history.ending.clients:
        if not client.open:
            continue
        if client.state != "up":
            yield Broken(f"client {client.label} is {client.state.upper()} at the end")
        if client.answers is False:
            yield Broken(f"the last PING of client {client.label} failed")


def every_counter_returns_to_zero(index: Index) -> Iterator[Broken]:
    """After all calls have ended, nothing is in flight, waiting or acquired."""
    for client in index.history.ending.clients:
        for name, value in client.counters.items():
            if value:
                yield Broken(f"client {client.label} has {value:g} {name} at the end")


def an_idle_client_runs_only_its_probe_and_its_connections(index: Index) -> Iterator[Broken]:
    """After everything has settled, a client has no task that recovers, fences or connects."""
    clients = index.history.ending.clients
    if any(client.open and client.state != "up" for client in clients):
        return  # it still reconnects
    # A lock is released in the background for 30 s, also while the server refuses it.
    refusing = bool(index.errors) and index.errors[-1].reply.text.startswith("READONLY")
    lasting = (*_LASTING, "resilient-io redis release locks") if refusing else _LASTING
    for name in index.history.ending.idle_tasks:
        if not name.startswith(lasting):
            yield Broken(f"a task does not end: {name}")


_LASTING = ("resilient-io probe", "resilient-io redis connection", "resilient-io redis name lookup")
"""Tasks of an idle client: a probe over a new connection looks up the name."""


def the_retry_budget_stays_within_its_size(index: Index) -> Iterator[Broken]:
    """The budget is neither negative nor larger than its size."""
    for client in index.history.ending.clients:
        if not 0 <= client.budget <= client.budget_size:
            yield Broken(
                f"client {client.label} has a budget of {client.budget:g} of {client.budget_size:g}"
            )


def closed_clients_leave_nothing_behind(index: Index) -> Iterator[Broken]:
    """After `aclose()`, no task, timer or connection of a client is left."""
    ending = index.history.ending
    for name in ending.tasks:
        yield Broken(f"a task is left: {name}")
    for number in ending.connections:
        yield Broken(f"connection {number} is left open")
    if ending.timers:
        yield Broken(f"{ending.timers} timers are left")


def nothing_is_left_when_the_last_client_has_closed(index: Index) -> Iterator[Broken]:
    """The same, when all clients are closed in the middle of the run."""
    for event in index.events.get("all closed", ()):
        for name in event.facts["tasks"]:
            yield Broken(f"a task is left after all clients were closed: {name}", (), event.at)
        for number in event.facts["connections"]:
            yield Broken(
                f"connection {number} is left open after all clients were closed", (), event.at
            )


def no_unexpected_error_is_logged(index: Index) -> Iterator[Broken]:
    """Nothing reaches the exception handler of the loop, or the log as an error."""
    for text in index.history.ending.loop_errors:
        yield Broken(f"the loop reported: {text}")
    for text in index.history.ending.log_errors:
        yield Broken(f"the log has an error: {text}")


def a_tracer_sees_the_end_of_every_call(index: Index) -> Iterator[Broken]:
    """A tracer that patches redis-py sees calls, and each of them ends."""
    spans = index.history.ending.spans
    if spans and spans.get("begun") != spans.get("ended"):
        yield Broken(f"{spans.get('begun')} calls began, and {spans.get('ended')} ended")
