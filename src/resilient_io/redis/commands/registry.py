"""Finding the row of a call in the command table, and registering commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from . import arguments
from .arguments import flat, token
from .keys import rule_of
from .spec import CommandSpec, Effect, Route
from .table import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .table import Condition, Row

T = TypeVar("T")

SPECS: dict[object, CommandSpec] = {}
"""Rows by the first argument as redis-py writes it, if that alone decides the route."""

# Rows whose route depends on the operands: the condition, the row if it is true, the row otherwise.
_CONDITIONAL: dict[str, tuple[Condition, CommandSpec, CommandSpec]] = {}
# Commands with subcommands, and the row of the command without one, if there is one.
_CONTAINERS: dict[str, CommandSpec | None] = {}

_MOST_WORDS = 2

_DEFAULT_ADVICE = {
    Route.BOUND: "Use `client()` to get a separate connection.",
    Route.REFUSED: "The application registered the command as refused.",
}


def lookup(args: Sequence[object]) -> CommandSpec:
    """Return the row of a call.

    A command that is not in the table is non-idempotent and multiplexed, with `known` False.
    Invalid arguments never fail: the server will refuse them.

    Args:
        args: As passed to `execute_command`: `("CONFIG GET", "x")` or `("CONFIG", "GET", "x")`, in
            upper or lower case, str or bytes.

    Raises:
        ValueError: The command name is missing.
    """
    words = _words(args[0]) if args else []
    if not words:
        raise ValueError('A command needs a name: use execute_command("GET", "key").')
    name = token(words[0])
    if name in _CONTAINERS:
        spec = _subcommand(name, args, words)
    elif name in _CONDITIONAL:
        condition, if_true, otherwise = _CONDITIONAL[name]
        spec = if_true if condition(flat(args)[1:]) else otherwise
    else:
        spec = SPECS.get(name) or _unknown(name)
    sent = tuple(words)
    return spec if spec.words == sent else replace(spec, words=sent)


def known_names() -> list[str]:
    """Return every command of the table, in capitals, with subcommands after a space."""
    names = {str(name) for name in SPECS} | set(_CONDITIONAL)
    names.update(name for name, spec in _CONTAINERS.items() if spec is not None)
    return sorted(names)


def register(
    name: str,
    *,
    effect: Effect,
    route: Route = Route.MULTIPLEXED,
    block: Callable[[Sequence[object]], float | None] | None = None,
    advice: str = "",
    keys: Callable[[Sequence[object]], Sequence[object]] | None = None,
) -> None:
    """Add a command to the table, or override its row for this process.

    Register at import time, before clients make calls. The new row does not depend on the
    arguments: `register("SET", effect=Effect.IDEMPOTENT)` also applies to SET NX.

    Args:
        name: The command, with its subcommand if it has one: `"MY.ADD"`, `"MYMOD STATS"`.
        effect: What executing it twice does.
        route: The kind of connection that may carry it. With `Route.EXCLUSIVE` and without `block`,
            the reply may take as long as the call's deadline.
        block: Takes the arguments as passed to `execute_command` and returns how many seconds the
            server may delay the reply; None for no limit.
        advice: What to use instead, where a shared client refuses it.
        keys: Takes the arguments after the name and returns the keys among them, for a cluster; by
            default the first one, or the keys of the row that is overridden.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The name is not the name of a command.
    """
    _check_types(name, effect, route, block=block, keys=keys)
    words = name.upper().split()
    if not 1 <= len(words) <= _MOST_WORDS or not name.isascii():
        raise ValueError(f'name must be "COMMAND" or "COMMAND SUBCOMMAND", not {name!r}')
    if len(words) == 1 and words[0] in _CONTAINERS:
        raise ValueError(f'{words[0]} has subcommands: register "{words[0]} SUBCOMMAND" instead')
    if len(words) == _MOST_WORDS and (words[0] in SPECS or words[0] in _CONDITIONAL):
        raise ValueError(f'{words[0]} has no subcommands: register "{words[0]}" instead')
    if block is None and route is Route.EXCLUSIVE:
        block = arguments.unlimited
    elif route is Route.MULTIPLEXED and block is not None:
        raise ValueError("a blocking command cannot share a connection: use route=Route.EXCLUSIVE")
    _CONDITIONAL.pop(words[0], None)
    _enter(
        CommandSpec(
            name=" ".join(words),
            words=tuple(word.encode() for word in words),
            route=route,
            effect=effect,
            block=block,
            advice=advice or _DEFAULT_ADVICE.get(route, ""),
            reason="registered by the application",
            keys=keys or rule_of(" ".join(words)),
        )
    )


def _check_types(name: object, effect: object, route: object, **functions: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f'name must be a str such as "MY.ADD", not {type(name).__name__}')
    if not isinstance(effect, Effect):
        raise TypeError(f"effect must be one of Effect, such as Effect.READ, not {effect!r}")
    if not isinstance(route, Route):
        raise TypeError(f"route must be one of Route, such as Route.MULTIPLEXED, not {route!r}")
    for parameter, function in functions.items():
        if function is not None and not callable(function):
            what = f"{parameter} must be a function of the call's arguments"
            raise TypeError(f"{what}, not {function!r}")


def _words(head: object) -> list[bytes]:
    # As redis-py 8.1 does in connection.PythonRespSerializer.pack.
    if isinstance(head, str):
        return head.encode("utf-8", "surrogatepass").split()
    if isinstance(head, (bytes, bytearray, memoryview)):
        return bytes(head).split()
    return str(head).encode("utf-8", "surrogatepass").split()


def _subcommand(name: str, args: Sequence[object], words: list[bytes]) -> CommandSpec:
    container = _CONTAINERS[name]
    if len(words) == 1 and len(args) == 1:
        return container or _unknown(name)
    subcommand = token(words[1] if len(words) > 1 else args[1])
    spec = SPECS.get(f"{name} {subcommand}")
    if spec is not None:
        return spec
    unknown = _unknown(name)
    if container is None:
        return unknown
    effect = max(unknown.effect, container.effect)
    return replace(unknown, effect=effect, route=container.route, advice=container.advice)


def _unknown(name: str) -> CommandSpec:
    return CommandSpec(
        name=name,
        words=(),
        route=Route.MULTIPLEXED,
        effect=Effect.NON_IDEMPOTENT,
        reason="not in the command table: see `resilient_io.redis.commands.register`",
        keys=rule_of(name),
        known=False,
    )


def _enter(spec: CommandSpec) -> None:
    container, _, subcommand = spec.name.partition(" ")
    if subcommand:
        _CONTAINERS.setdefault(container, None)
    SPECS[spec.name] = spec


def _enter_row(row: Row) -> None:
    route = row.route or (Route.MULTIPLEXED if row.block is None else Route.EXCLUSIVE)
    for listed in row.names.split():
        name = listed.replace("|", " ")
        size = len(name.split())
        spec = CommandSpec(
            name=name,
            words=tuple(word.encode() for word in name.split()),
            route=route,
            effect=row.effect if isinstance(row.effect, Effect) else row.worst,
            resolve=None if isinstance(row.effect, Effect) else _of_args(row.effect, size),
            block=_of_args(row.block, size),
            advice=row.advice or _DEFAULT_ADVICE.get(route, ""),
            reason=row.reason,
            keys=rule_of(name),
        )
        if row.blocks_if is None:
            _enter(spec)
        else:
            otherwise = replace(spec, route=Route.MULTIPLEXED, block=None)
            _CONDITIONAL[name] = (row.blocks_if, spec, otherwise)


def _of_args(
    of_operands: Callable[[Sequence[object]], T] | None, size: int
) -> Callable[[Sequence[object]], T] | None:
    if of_operands is None:
        return None

    def of_args(args: Sequence[object]) -> T:
        return of_operands(flat(args)[size:])

    return of_args


def _load() -> None:
    for row in ROWS:
        _enter_row(row)
    for name in _CONTAINERS:
        _CONTAINERS[name] = SPECS.pop(name, None)


_load()
