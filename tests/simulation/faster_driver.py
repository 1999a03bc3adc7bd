"""Makes redis-py faster: it computes once what it would compute for each client.

No client can tell the difference. The changes last as long as the process, because Python forgets
what it has cached about a class whenever the class changes.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import inspect
from typing import TYPE_CHECKING, Any

import hiredis
import redis.asyncio.connection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.client import CaseInsensitiveDict
from redis.event import EventDispatcher

if TYPE_CHECKING:
    from collections.abc import Callable

_DEPRECATED = frozenset({"lib_name", "lib_version"})
_PLAIN = frozenset({str, bytes, int})
_CONSTANT = frozenset({NoBackoff, ExponentialWithJitterBackoff})
_CHUNK = 6000  # bytes, as `AbstractConnection._buffer_cutoff`


@functools.cache
def make_driver_faster() -> None:
    """Replace parts of redis-py 8.1 by something equivalent."""
    importlib.metadata.version = functools.cache(importlib.metadata.version)  # it reads files
    setattr(Retry, "__deepcopy__", _copy_retry)  # noqa: B010 (it has no such attribute)
    CaseInsensitiveDict.__init__ = _fill
    connection = redis.asyncio.connection
    options = connection.get_default_socket_keepalive_options()
    connection.get_default_socket_keepalive_options = options.copy
    AbstractConnection.__init__ = _constructor(AbstractConnection.__init__)
    AbstractConnection.pack_command = _packer(AbstractConnection.pack_command)


def _copy_retry(retry: Retry, memo: dict[int, Any]) -> Retry:
    """Return a deep copy. Only backoffs that never change are shared."""
    new = object.__new__(type(retry))
    vars(new).update(vars(retry))
    if type(retry._backoff) not in _CONSTANT:
        new._backoff = copy.deepcopy(retry._backoff, memo)
    return new


def _fill(self: CaseInsensitiveDict, data: dict[str, Any]) -> None:
    """Do what the constructor does, without a call for each of the 170 items."""
    dict.update(self, zip(map(str.upper, data), data.values(), strict=True))


def _constructor(checked: Callable[..., None]) -> Callable[..., None]:
    unchecked = inspect.unwrap(checked)
    dispatcher = EventDispatcher()  # a connection keeps one, and never uses it

    @functools.wraps(checked)
    def construct(self: AbstractConnection, **options: Any) -> None:
        if options.get("event_dispatcher") is None:
            options["event_dispatcher"] = dispatcher
        if _DEPRECATED.isdisjoint(options):
            unchecked(self, **options)
        else:
            checked(self, **options)  # which warns

    return construct


def _packer(pack: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
    """Return `pack_command` with hiredis for commands of the usual types."""

    @functools.wraps(pack)
    def pack_command(self: AbstractConnection, *args: Any) -> list[bytes]:
        for arg in args:
            if type(arg) not in _PLAIN:
                return pack(self, *args)
        name, encoder = args[0], self.encoder
        if type(name) is str and " " not in name and encoder.encoding == "utf-8":
            packed: bytes = hiredis.pack_command(args)
            if len(packed) < _CHUNK:
                return [packed]
        return pack(self, *args)

    return pack_command
