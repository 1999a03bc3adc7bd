"""The command table: the effect and the route of every Redis command.

The effect is what a second execution would do; the route is the kind of connection that may carry
the command. Commands that are not in the table are non-idempotent; `register` adds a command.
"""

from __future__ import annotations

from .keys import no_keys
from .registry import SPECS, known_names, lookup, register
from .spec import (
    CommandSpec,
    Effect,
    Route,
    changes_data,
    effect_of,
    effect_of_batch,
    keys_of,
)

__all__ = [
    "SPECS",
    "CommandSpec",
    "Effect",
    "Route",
    "changes_data",
    "effect_of",
    "effect_of_batch",
    "keys_of",
    "known_names",
    "lookup",
    "no_keys",
    "register",
]
