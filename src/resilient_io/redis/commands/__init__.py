"""The command table: what the gate knows of every Redis command.

Two columns: the effect (what a second execution would do) and the route (the connection it may
travel). Commands that the table does not know are accumulating; `register` tells it more.
"""

from __future__ import annotations

from resilient_io.redis.commands._lookup import SPECS, known_names, lookup, register
from resilient_io.redis.commands._spec import CommandSpec, Effect, Route, effect_of

__all__ = [
    "SPECS",
    "CommandSpec",
    "Effect",
    "Route",
    "effect_of",
    "known_names",
    "lookup",
    "register",
]
