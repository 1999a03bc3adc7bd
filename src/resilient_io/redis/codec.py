"""Packing commands and converting replies just as redis-py does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hiredis

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

_pack: Callable[[Any], bytes] = hiredis.pack_command

_NOT_FOR_CALLBACKS = ("keys", "NEVER_DECODE", "EMPTY_RESPONSE")
"""Options of redis-py 8.1 that its `parse_response` takes out before it calls a callback."""


class Packer:
    """Packs commands as redis-py's encoder would, through hiredis where both agree."""

    def __init__(self, encoder: Any) -> None:
        """Use the encoder of the client's pool."""
        self._encoder = encoder
        self.direct = encoder.encoding.lower().replace("_", "-") in ("utf-8", "utf8") and (
            encoder.encoding_errors == "strict"
        )

    def pack(self, words: Sequence[bytes], args: Sequence[object]) -> bytes:
        """Pack a command.

        Args:
            words: The command's name as it goes over the wire.
            args: The arguments as given to `execute_command`, the name included.

        Raises:
            redis.exceptions.DataError: An argument is neither bytes, str, int nor float.
        """
        if self.direct:
            try:
                # One word stands as it was given.
                return _pack((*words, *args[1:]) if len(words) > 1 else args)
            except TypeError:
                pass  # a bytearray, say, or what the encoder refuses with a better message
        encode = self._encoder.encode
        return _pack((*words, *(bytes(encode(argument)) for argument in args[1:])))


def apply_callback(
    callbacks: MutableMapping[str | bytes, Callable[..., Any]],
    name: Any,
    reply: Any,
    options: Mapping[str, Any],
) -> Any:
    """Apply redis-py's response callback, found by the command's name as it was given.

    Returns the converted reply, or an awaitable of it where the callback is asynchronous.
    """
    callback = callbacks.get(name) if isinstance(name, str | bytes) else None
    if callback is None:
        return reply
    plain = {key: value for key, value in options.items() if key not in _NOT_FOR_CALLBACKS}
    return callback(reply, **plain)
