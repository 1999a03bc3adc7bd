"""The calls that cannot be sent yet, in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .ticket import Handover, Ticket

if TYPE_CHECKING:
    from .lane import Lane
    from .ticket import Entry


class Backlog:
    """A line of tickets. Its length is bounded by the callers who wait: each has one place."""

    def __init__(self) -> None:
        """Start empty."""
        self._tickets: deque[Ticket] = deque()
        self._abandoned = 0

    def __len__(self) -> int:
        """Count the places, abandoned ones included."""
        return len(self._tickets)

    @property
    def waiting(self) -> int:
        """How many callers wait."""
        return sum(not ticket.done() for ticket in self._tickets)

    def append(self, ticket: Ticket) -> None:
        """Put a new call at the end."""
        self._tickets.append(ticket)

    def put_back(self, unsent: list[tuple[Entry, bytes]]) -> None:
        """Put calls that a lane did not write to the front, in their order.

        Those without a ticket get one: they wait longer than usual.
        """
        for entry, data in reversed(unsent):
            if not isinstance(entry, Ticket):
                ticket = Ticket(data)
                entry.set_result(Handover(ticket))
            elif data:
                ticket = entry
            else:
                continue  # a further place of a ticket that is moved by its first
            ticket.lane = None
            self._tickets.appendleft(ticket)

    def note_abandoned(self) -> None:
        """Note that somebody went away; places are cleared when half of them are abandoned."""
        self._abandoned += 1
        if self._abandoned * 2 > len(self._tickets):
            self._tickets = deque(ticket for ticket in self._tickets if not ticket.done())
            self._abandoned = 0

    def send_next(self, lane: Lane) -> None:
        """Send the first call on `lane`, unless its caller went away."""
        ticket = self._tickets.popleft()
        if not ticket.done():
            lane.send_ticket(ticket)

    def give_up(self, why: Exception) -> None:
        """Tell everyone that waiting is of no use."""
        waiting, self._tickets, self._abandoned = self._tickets, deque(), 0
        for ticket in waiting:
            ticket.interrupt(why)
