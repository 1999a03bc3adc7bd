"""Validation of arguments, with messages that name the valid values."""

from __future__ import annotations

import math
from typing import TypeVar

from resilient_io.errors import ConfigurationError

T = TypeVar("T")


def check_number(
    name: str, value: object, *, least: float = 0.0, above: bool = False, finite: bool = True
) -> float:
    """Return `value` as a float, or raise ConfigurationError.

    The value must be at least `least`, or above it, and must not be NaN or, if `finite`, infinite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problem, example = "is not a number", f", for example {name}=1.0"
    elif math.isnan(value) or value < least or (above and value == least):
        problem, example = "is out of range", ""
    elif finite and math.isinf(value):
        problem, example = "is not finite", ""
    else:
        return float(value)
    limit = f"{'above' if above else 'of at least'} {least:g}"
    raise ConfigurationError(
        f"{name}={value!r} {problem}: use a {'finite ' if finite else ''}number {limit}{example}"
    )


def check_seconds(name: str, value: object) -> float:
    """Return `value` as a float; raise ConfigurationError if it is not finite and above 0."""
    return check_number(name, value, above=True)


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return `value`; raise ConfigurationError if it is not an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} must be an integer of at least {least}")
    return value


def check_name(name: str, value: object, *, example: str = "redis") -> str:
    """Return `value`; raise ConfigurationError if it is not a non-empty string."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f'{name}={value!r} must be a non-empty string, for example {name}="{example}"'
        )
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ConfigurationError if `value` is not one of several strings."""
    if value not in choices:
        wanted = " or ".join(f'{name}="{choice}"' for choice in choices)
        raise ConfigurationError(f"{name}={value!r} is unknown: use {wanted}")


def check_type(name: str, value: object, kind: type[T], *, use: str = "") -> T:
    """Return `value`; raise TypeError, with what to `use` instead, if it is not a `kind`."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        hint = f": use {use}" if use else ""
        raise TypeError(
            f"{name} must be {article} {kind.__name__}, not {type(value).__name__}{hint}"
        )
    return value
