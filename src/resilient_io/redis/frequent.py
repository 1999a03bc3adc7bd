"""Frequent commands, without the work of redis-py's methods for options that are not given.

redis-py checks all options, and names the keys of each read for a client-side cache, which its
asyncio client does not have: that takes up to a fifth of the time of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


class FrequentCommands:
    """A base of clients and pipelines. What its methods send and return is what redis-py's do."""

    if not TYPE_CHECKING:  # type checkers see redis-py's own signatures

        def set(self, name: Any, value: Any, *more: Any, **options: Any) -> Any:
            """Set a key. With options, redis-py checks 14 of them."""
            if more or options:
                return super().set(name, value, *more, **options)
            return self.execute_command("SET", name, value)

        def get(self, name: Any) -> Any:
            """Return the value of a key, or None."""
            return self.execute_command("GET", name)

        def mget(self, keys: Any, *args: Any) -> Any:
            """Return the values of keys."""
            if args or type(keys) is not list or not keys:
                return super().mget(keys, *args)
            return self.execute_command("MGET", *keys)

        def strlen(self, name: Any) -> Any:
            """Return the length of a value."""
            return self.execute_command("STRLEN", name)

        def hset(
            self, name: Any, key: Any = None, value: Any = None, *more: Any, **options: Any
        ) -> Any:
            """Set a field of a hash. redis-py handles several."""
            if more or options or key is None:
                return super().hset(name, key, value, *more, **options)
            return self.execute_command("HSET", name, key, value)

        def hget(self, name: Any, key: Any) -> Any:
            """Return a field of a hash, or None."""
            return self.execute_command("HGET", name, key)

        def hgetall(self, name: Any) -> Any:
            """Return all fields of a hash."""
            return self.execute_command("HGETALL", name)

        def hexists(self, name: Any, key: Any) -> Any:
            """Return whether a hash has a field."""
            return self.execute_command("HEXISTS", name, key)

        def hkeys(self, name: Any) -> Any:
            """Return the names of the fields of a hash."""
            return self.execute_command("HKEYS", name)

        def hvals(self, name: Any) -> Any:
            """Return the values of the fields of a hash."""
            return self.execute_command("HVALS", name)

        def hlen(self, name: Any) -> Any:
            """Return the number of fields of a hash."""
            return self.execute_command("HLEN", name)

        def lrange(self, name: Any, start: Any, end: Any) -> Any:
            """Return a part of a list."""
            return self.execute_command("LRANGE", name, start, end)

        def lindex(self, name: Any, index: Any) -> Any:
            """Return an element of a list, or None."""
            return self.execute_command("LINDEX", name, index)

        def llen(self, name: Any) -> Any:
            """Return the length of a list."""
            return self.execute_command("LLEN", name)

        def smembers(self, name: Any) -> Any:
            """Return the members of a set."""
            return self.execute_command("SMEMBERS", name)

        def sismember(self, name: Any, value: Any) -> Any:
            """Return whether a set has a member."""
            return self.execute_command("SISMEMBER", name, value)

        def scard(self, name: Any) -> Any:
            """Return the number of members of a set."""
            return self.execute_command("SCARD", name)

        def zrange(self, name: Any, start: Any, end: Any, *more: Any, **options: Any) -> Any:
            """Return members of a sorted set by their ranks. redis-py handles all options."""
            if more or options:
                return super().zrange(name, start, end, *more, **options)
            return self.execute_command("ZRANGE", name, start, end)

        def zscore(self, name: Any, value: Any) -> Any:
            """Return the score of a member of a sorted set, or None."""
            return self.execute_command("ZSCORE", name, value)

        def zcard(self, name: Any) -> Any:
            """Return the number of members of a sorted set."""
            return self.execute_command("ZCARD", name)

        def zcount(self, name: Any, min: Any, max: Any) -> Any:  # noqa: A002 (redis-py's names)
            """Return how many members of a sorted set have a score in a range."""
            return self.execute_command("ZCOUNT", name, min, max)
