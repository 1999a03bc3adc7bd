"""Scripts that the client has seen, so that it can load them again into a new server.

A server forgets its scripts when it restarts, and a replica that takes over may not have them. The
reply NOSCRIPT proves that a script did not run, so it is loaded and run once more.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio.connection import AbstractConnection

    from .connection import MultiplexedConnection

_pack: Callable[[Any], bytes] = hiredis.pack_command

_MOST_SCRIPTS = 1000
_MOST_BYTES = 4 * 1024 * 1024

RUNS_BY_HASH = ("EVALSHA", "EVALSHA_RO")
_CONTAINS_SCRIPT = {"EVAL": 1, "EVAL_RO": 1, "SCRIPT LOAD": -1, "SCRIPT FLUSH": 0}
"""Commands that the client takes note of, and the position of the script in their arguments."""


class ScriptBodies:
    """The bodies of scripts by their SHA1 hash, at most 1,000 and 4 MiB: the oldest is dropped."""

    __slots__ = ("_bodies", "_encode", "_hashes", "_size")

    def __init__(self, encode: Callable[[Any], bytes | bytearray | memoryview]) -> None:
        self._encode = encode
        # Oldest first. An empty dict takes 64 bytes, an empty set or OrderedDict far more.
        self._bodies: dict[str, bytes] = {}
        self._hashes: dict[object, str] = {}
        self._size = 0

    def __contains__(self, sha: str) -> bool:
        """Return whether the script with this hash is known."""
        return sha in self._bodies

    def get(self, sha: str) -> bytes | None:
        """Return the script with this hash, or None."""
        return self._bodies.get(sha)

    def remember(self, script: object) -> None:
        """Remember a script. Cheap for one that is known already."""
        if not isinstance(script, str | bytes) or script in self._hashes:
            return
        body = bytes(self._encode(script))
        if len(body) > _MOST_BYTES // 4:
            return
        sha = hashlib.sha1(body).hexdigest()  # noqa: S324 (the name that Redis gives to a script)
        self._hashes[script] = sha
        if sha not in self._bodies:
            self._bodies[sha] = body
            self._size += len(body)
        while len(self._bodies) > _MOST_SCRIPTS or self._size > _MOST_BYTES:
            self._size -= len(self._bodies.pop(next(iter(self._bodies))))
        while len(self._hashes) > _MOST_SCRIPTS:
            del self._hashes[next(iter(self._hashes))]


class KnownScripts:
    """The scripts that the client knows, and those that one server has.

    The servers of a cluster share the `bodies`.
    """

    __slots__ = ("_connection", "_loaded", "bodies")

    def __init__(self, bodies: ScriptBodies) -> None:
        self.bodies = bodies
        self._connection: MultiplexedConnection | None = None
        self._loaded: dict[str, None] = {}
        """The hashes of scripts that the server of `_connection` has, as far as is known."""

    def note(self, name: str, args: Any) -> None:
        """Note a command that contains a script, or removes all of them."""
        position = _CONTAINS_SCRIPT.get(name)
        if position is None:
            return
        if position == 0:
            self._loaded.clear()
        elif len(args) > 1:
            self.remember(args[position])

    def __contains__(self, sha: str) -> bool:
        """Return whether the script with this hash is known."""
        return sha in self.bodies

    def remember(self, script: object) -> None:
        """Remember a script. Cheap for one that is known already."""
        self.bodies.remember(script)

    # -- a script that the server does not have ----------------------------------------------

    def load_for(self, name: str, args: Any, reply: object) -> bytes | None:
        """Return a packed SCRIPT LOAD if a reply says that a script is missing which is known."""
        if not is_missing(reply) or name not in RUNS_BY_HASH or len(args) < 2:  # noqa: PLR2004
            return None
        sha = _hash(args[1])
        self._loaded.pop(sha, None)
        return self._load(sha)

    def _load(self, sha: str) -> bytes | None:
        body = self.bodies.get(sha)
        return None if body is None else _pack(("SCRIPT", "LOAD", body))

    # -- batches, in which a command cannot be repeated alone ---------------------------------

    def missing_on(
        self, connection: MultiplexedConnection | None, hashes: Iterable[object]
    ) -> dict[str, bytes]:
        """Return a packed SCRIPT LOAD for each known script that a server may not have."""
        if connection is None or connection is not self._connection:
            self._connection = None
            self._loaded.clear()
        loads = {}
        for sha in dict.fromkeys(map(_hash, hashes)):
            load = None if sha in self._loaded else self._load(sha)
            if load is not None:
                loads[sha] = load
        return loads

    def loaded(self, connection: MultiplexedConnection | None, hashes: Iterable[str]) -> None:
        """Note that the server of a connection has loaded scripts."""
        if connection is not self._connection:
            self._connection = connection
            self._loaded.clear()
        self._loaded |= dict.fromkeys(hashes)


async def load_over(connection: AbstractConnection, loads: Iterable[bytes]) -> None:
    """Load scripts over an exclusive connection. A refusal shows when the script is to run."""
    packed = list(loads)
    if packed:
        await connection.send_packed_command(packed)
    for _ in packed:
        with contextlib.suppress(ResponseError):
            await connection.read_response()


_ALL_OR_NOTHING: set[str] = set()
"""The hashes of the scripts that change nothing if one of their commands is refused."""


def note_all_or_nothing(script: str) -> None:
    """Note that a script has changed nothing if the server refuses one of its commands."""
    _ALL_OR_NOTHING.add(hashlib.sha1(script.encode()).hexdigest())  # noqa: S324 (its name)


def is_all_or_nothing(name: str, args: Any) -> bool:
    """Return whether a command runs such a script by its hash."""
    return name in RUNS_BY_HASH and len(args) > 1 and _hash(args[1]) in _ALL_OR_NOTHING


def is_missing(reply: object) -> bool:
    """Return whether an error reply proves that a script did not run.

    The text is that of the server. An error with the code NOSCRIPT that a script itself returns
    proves nothing.
    """
    return isinstance(reply, NoScriptError) and str(reply).startswith("No matching script")


def _hash(sha: object) -> str:
    text = sha.decode("ascii", "replace") if isinstance(sha, bytes) else str(sha)
    return text.lower()
