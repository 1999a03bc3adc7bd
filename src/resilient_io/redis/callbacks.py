"""Response callbacks: one table for all clients of single servers, until one of them changes it."""

from __future__ import annotations

import asyncio
import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any

import redis.asyncio.client as driver
import redis.utils as driver_utils
from redis._parsers import helpers
from redis.client import CaseInsensitiveDict
from redis.event import AfterPooledConnectionsInstantiationEvent, ClientType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from redis.asyncio.connection import ConnectionPool

    from .attempt import Callbacks

_tables: dict[tuple[str, bool], tuple[Callbacks, Callbacks]] = {}
"""redis-py's tables, by the protocol and by whether it returns the types of RESP2.

The second one of each is for the replies to commands without options.
"""

FOR_OPTIONS = (
    "hrandfield_resp3_to_resp2_legacy",
    "sort_return_tuples",
    "zset_score_pairs",
    "zset_score_pairs_resp3_to_resp2_legacy",
    "zset_score_pairs_resp3_to_resp2_legacy_flat",
)
"""redis-py 8.1's callbacks that return the reply as it is if the command has no options."""


def shorten_for_ok(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return redis-py's callback for SET, which returns True for a plain OK without decoding it."""

    def read(reply: Any, **options: Any) -> Any:
        if type(reply) is bytes and reply == b"OK" and not options:
            return True
        return callback(reply, **options)

    return read


class SharedCallbacks:
    """A base of clients that gives each its own table only when it asks for it.

    redis-py gives each client a table of its own, of 13 KB. To fill it takes longer than all else
    that redis-py does for a client with a pool.
    """

    callback_table: Callbacks
    """The response callbacks, which may be those of all clients: read only."""
    plain_callbacks: Callbacks
    """The callbacks that change the replies to commands without options."""
    _callbacks_shared: bool = False

    if not TYPE_CHECKING:  # type checkers see redis-py's own attribute

        @property
        def response_callbacks(self) -> Callbacks:
            """This client's own table of response callbacks, which may be changed."""
            return self.own_callbacks()

        @response_callbacks.setter
        def response_callbacks(self, table: Callbacks) -> None:
            self.callback_table = self.plain_callbacks = table
            self._callbacks_shared = False

    def init_with_pool(
        self,
        init: Callable[..., None],
        pool: ConnectionPool,
        *,
        single_connection_client: bool = False,
        **options: Any,
    ) -> None:
        """Do what redis-py's `init` does with a pool, without a table if there is a shared one."""
        dispatcher = options.get("event_dispatcher")
        known = len(options) == 1 and _kind_of(pool.connection_kwargs) in _tables
        if dispatcher is None or not known or not _is_original(init):
            init(connection_pool=pool, single_connection_client=single_connection_client, **options)
            return
        # redis-py 8.1 `Redis.__init__`.
        created = AfterPooledConnectionsInstantiationEvent([pool], ClientType.ASYNC, None)
        dispatcher.dispatch(created)
        vars(self).update(
            _event_dispatcher=dispatcher,
            auto_close_connection_pool=False,
            connection_pool=pool,
            single_connection_client=single_connection_client,
            connection=None,
            _single_conn_lock=asyncio.Lock(),
            _usage_counter=0,
            _usage_lock=asyncio.Lock(),
        )

    def share_callbacks(self, settings: Mapping[str, Any], changes: Callbacks) -> None:
        """Use the table of all clients with the same settings: redis-py's, with `changes`."""
        kind = _kind_of(settings)
        tables = _tables.get(kind)
        if tables is None:
            table = self.callback_table
            table.update(changes)
            table["SET"] = shorten_for_ok(table["SET"])
            tables = _tables[kind] = table, _without_options(table)
        self.callback_table, self.plain_callbacks = tables
        self._callbacks_shared = True

    def own_callbacks(self) -> Callbacks:
        """Return a table that only this client and copies of it use."""
        if self._callbacks_shared:
            # redis-py 8.1 `CaseInsensitiveDict` copies item by item, which takes ten times as long.
            own: Callbacks = CaseInsensitiveDict({})
            dict.update(own, self.callback_table)
            self.callback_table = self.plain_callbacks = own
            self._callbacks_shared = False
        return self.callback_table


def _without_options(table: Callbacks) -> Callbacks:
    """Return a table without the callbacks that change nothing if a command has no options."""
    unnecessary = {getattr(helpers, name, None) for name in FOR_OPTIONS}
    return {name: callback for name, callback in table.items() if callback not in unnecessary}


def _kind_of(settings: Mapping[str, Any]) -> tuple[str, bool]:
    return str(settings.get("protocol")), bool(settings.get("legacy_responses", True))


def _is_original(init: Callable[..., None]) -> bool:
    """Return whether this is redis-py's own method, which no tracer or subclass has replaced."""
    function = getattr(init, "__func__", None)
    if type(function) is not FunctionType:
        return False
    if not any(function.__globals__ is vars(module) for module in (driver, driver_utils)):
        return False
    return inspect.unwrap(function).__globals__ is vars(driver)
