"""The slot of a command, and the nodes for a command without keys.

The nodes, and how their replies become one, are redis-py's: `COMMAND_FLAGS` and `RESULT_CALLBACKS`
of its cluster client, and its policies for search commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.cluster import SLOT_ID, RedisCluster
from redis.commands.policies import STATIC_POLICIES
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from ..commands import Effect, keys_of, no_keys
from ..errors import CrossSlotKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..commands import CommandSpec

_MOST_CACHED = 16_384
"""How many slots of keys are remembered: looking one up takes a tenth of calculating it."""

_LONGEST_CACHED = 256  # characters of such a key
_MOST_NAMED = 3  # keys in an error
_LONGEST_NAMED = 60  # characters of such a key

_SPLIT = {
    "MGET": "mget_nonatomic()",
    "MSET": "mset_nonatomic()",
    "DEL": "delete()",
    "EXISTS": "exists()",
    "TOUCH": "touch()",
    "UNLINK": "unlink()",
}
"""What redis-py has for the keys of several slots."""

_CHANNEL_DECIDES = ("PUBLISH",)
"""Commands for any node. One node for each channel keeps their order."""


class KeySlots(dict[Any, int]):
    """The slots of keys: `slots[key]`, from a bounded cache of the keys that were used lately.

    Args:
        encode: Returns a key as it is sent, as redis-py's `Encoder.encode` does.
    """

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, key: Any) -> int:
        """Calculate a slot, and remember it."""
        slot = key_slot(bytes(self._encode(key)))
        # Others may be equal and yet sent as other bytes: 1 and 1.0.
        if type(key) in (str, bytes) and len(key) <= _LONGEST_CACHED:
            if len(self) >= _MOST_CACHED:
                self.clear()
            self[key] = slot
        return slot

    def of_key(self, key: Any) -> int:
        """Return the slot of any key that redis-py can encode.

        Raises:
            redis.exceptions.DataError: The key has another type.
        """
        try:
            return self[key]
        except TypeError:  # a bytearray, for example, cannot be looked up
            return key_slot(bytes(self._encode(key)))

    def of_call(self, spec: CommandSpec, args: Sequence[object]) -> int | None:
        """Return the slot of a command, or None if it has no keys.

        Args:
            spec: The command's row in the command table.
            args: The arguments as passed to `execute_command`, including the name.

        Raises:
            CrossSlotKeys: The keys belong to several slots. Nothing was sent.
            redis.exceptions.DataError: A key cannot be encoded.
        """
        at = spec.key_at
        if 0 < at < len(args):
            return self.of_key(args[at])
        keys = keys_of(spec, args)
        if not keys:
            if spec.name in _CHANNEL_DECIDES and len(args) > spec.operands_at:
                return self.of_key(args[spec.operands_at])
            return None
        slot = self.of_key(keys[0])
        if len(keys) > 1 and any(self.of_key(key) != slot for key in keys):
            raise self.cross_slot(repr(spec.name), keys, _SPLIT.get(spec.name))
        return slot

    def cross_slot(self, what: str, keys: Sequence[object], instead: str | None) -> CrossSlotKeys:
        """Return the error about keys of several slots.

        Args:
            what: The subject of the sentence.
            keys: The keys, of which one of each slot is named.
            instead: The method to use instead, if there is one.
        """
        one_of_each: dict[int, object] = {}
        for key in keys:
            one_of_each.setdefault(self.of_key(key), key)
        named = [f"{_shown(key)} ({slot})" for slot, key in one_of_each.items()]
        listed = ", ".join(named[:_MOST_NAMED])
        if len(named) > _MOST_NAMED:
            listed += f" and {len(named) - _MOST_NAMED} more"
        advice = f"use {instead} or" if instead else "use"
        return CrossSlotKeys(
            f"{what} has keys of several slots: {listed}: {advice} a hash tag such as {{user1}}:a"
        )


_WITH_CURSOR = ("HSCAN", "SSCAN", "ZSCAN")
"""Reads whose cursor means something only to the server that returned it."""


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= _LONGEST_NAMED else f"{text[: _LONGEST_NAMED - 1]}…"


def replica_may_answer(spec: CommandSpec) -> bool:
    """Return whether any node of a shard may answer a command with keys: it only reads them."""
    reads = spec.effect is Effect.READ and spec.resolve is None and spec.known
    return reads and spec.name not in _WITH_CURSOR


def node_flag(
    spec: CommandSpec,
    args: Sequence[Any],
    flags: Mapping[str, str] = RedisCluster.COMMAND_FLAGS,
) -> str | int:
    """Return the nodes for a command without keys, as one of redis-py's node flags, or a slot.

    Args:
        spec: The command's row in the command table.
        args: The arguments as passed to `execute_command`, including the name.
        flags: The client's flags by command.

    Raises:
        redis.exceptions.RedisClusterException: The command needs `target_nodes=`.
    """
    flag = flags.get(spec.name)
    if flag == SLOT_ID:
        return int(args[spec.operands_at])
    if flag is not None:
        return flag
    if spec.name in _ANY_MASTER or spec.keys is not no_keys:
        # A script without keys, for example, or operands that the server will refuse.
        return RedisCluster.RANDOM
    if spec.effect is Effect.READ:
        return RedisCluster.DEFAULT_NODE
    raise RedisClusterException(
        f"{spec.name} has no key that says which node is meant: pass target_nodes=, for example "
        f"target_nodes=RedisCluster.PRIMARIES"
    )


_ANY_MASTER = {f"FT.{name.upper()}" for name in STATIC_POLICIES["ft"]}


def merge_replies(
    args: Sequence[Any],
    replies: Mapping[str, Any],
    callbacks: Mapping[str, Callable[..., Any]],
    options: Mapping[str, Any],
) -> Any:
    """Return one result from the replies of the nodes, as redis-py's cluster client does.

    Args:
        args: The arguments as passed to `execute_command`, including the name.
        replies: The replies by the name of the node.
        callbacks: The client's result callbacks by command.
        options: The options of the call.
    """
    callback = callbacks.get(args[0])
    if callback is not None:
        return callback(args[0], replies, **options)
    return dict(replies) if len(replies) > 1 else next(iter(replies.values()))
