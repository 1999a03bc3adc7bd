"""Effects that depend on the arguments: administration of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilient_io.redis.commands._arguments import text, token
from resilient_io.redis.commands._judges import (
    CONDITIONAL,
    DANGEROUS,
    IDEMPOTENT,
    NON_IDEMPOTENT,
    READ,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilient_io.redis.commands._spec import Effect


def function_load(operands: Sequence[object]) -> Effect:
    """FUNCTION LOAD [REPLACE] code."""
    replaces = len(operands) > 1 and token(operands[0]) == "REPLACE"
    return IDEMPOTENT if replaces else CONDITIONAL


def function_restore(operands: Sequence[object]) -> Effect:
    """FUNCTION RESTORE payload [APPEND | REPLACE | FLUSH]."""
    policy = token(operands[1]) if len(operands) > 1 else "APPEND"
    if policy == "REPLACE":
        return IDEMPOTENT
    return CONDITIONAL if policy == "APPEND" else DANGEROUS


def acl_setuser(operands: Sequence[object]) -> Effect:
    """ACL SETUSER name rule [...]: a rule in parentheses adds one more selector."""
    adds = any(text(rule).startswith("(") for rule in operands[1:])
    return NON_IDEMPOTENT if adds else CONDITIONAL


def acl_log(operands: Sequence[object]) -> Effect:
    """ACL LOG [count | RESET]."""
    return IDEMPOTENT if operands and token(operands[0]) == "RESET" else READ


def sentinel_config(operands: Sequence[object]) -> Effect:
    """SENTINEL CONFIG GET | SET."""
    operation = token(operands[0]) if operands else ""
    if operation == "SET":
        return IDEMPOTENT
    return READ if operation == "GET" else NON_IDEMPOTENT


def sentinel_is_down(operands: Sequence[object]) -> Effect:
    """SENTINEL IS-MASTER-DOWN-BY-ADDR ip port epoch id: with an id it asks for a vote."""
    return READ if operands and text(operands[-1]) == "*" else NON_IDEMPOTENT
