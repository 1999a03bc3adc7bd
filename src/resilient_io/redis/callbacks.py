"""Response callbacks: one table for all clients, until one of them changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.client import CaseInsensitiveDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .attempt import Callbacks

_tables: dict[tuple[str, bool], Callbacks] = {}
"""redis-py's tables, by the protocol and by whether it returns the types of RESP2."""


def shorten_for_ok(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return redis-py's callback for SET, which returns True for a plain OK without decoding it."""

    def read(reply: Any, **options: Any) -> Any:
        if type(reply) is bytes and reply == b"OK" and not options:
            return True
        return callback(reply, **options)

    return read


class SharedCallbacks:
    """A base of clients that gives each its own table only when it asks for it.

    redis-py gives each client a table of its own, of 13 KB.
    """

    callback_table: Callbacks
    """The response callbacks, which may be those of all clients: read only."""
    _callbacks_shared: bool = False

    if not TYPE_CHECKING:  # type checkers see redis-py's own attribute

        @property
        def response_callbacks(self) -> Callbacks:
            """This client's own table of response callbacks, which may be changed."""
            return self.own_callbacks()

        @response_callbacks.setter
        def response_callbacks(self, table: Callbacks) -> None:
            self.callback_table, self._callbacks_shared = table, False

    def share_callbacks(self, settings: Mapping[str, Any], changes: Callbacks) -> None:
        """Use the table of all clients with the same settings: redis-py's, with `changes`."""
        kind = (str(settings.get("protocol")), bool(settings.get("legacy_responses", True)))
        table = _tables.get(kind)
        if table is None:
            table = _tables[kind] = self.callback_table
            table.update(changes)
            table["SET"] = shorten_for_ok(table["SET"])
        self.callback_table, self._callbacks_shared = table, True

    def own_callbacks(self) -> Callbacks:
        """Return a table that only this client and copies of it use."""
        if self._callbacks_shared:
            # redis-py 8.1 `CaseInsensitiveDict` copies item by item, which takes ten times as long.
            own: Callbacks = CaseInsensitiveDict({})
            dict.update(own, self.callback_table)
            self.callback_table, self._callbacks_shared = own, False
        return self.callback_table
