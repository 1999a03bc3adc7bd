"""Validation of arguments, with messages that name the valid values."""

from __future__ import annotations

import math
from typing import TypeVar

from resilient_io.errors import ConfigurationError

T = TypeVar("T")


def check_number(
    name: str, value: object, *, least: float = 0.0, above: bool = False, finite: bool = True
) -> float:
    """Return `value` as a float.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        least: The lower bound.
        above: Whether the bound itself is invalid.
        finite: Whether infinity is invalid. NaN always is.

    Raises:
        ConfigurationError: The value is not a number, or is out of range.
    """
    wanted = (
        f"a {'finite ' if finite else ''}number {'above' if above else 'of at least'} {least:g}"
    )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(
            f"{name}={value!r} is not a number: use {wanted}, for example {name}=1.0"
        )
    if math.isnan(value) or value < least or (above and value == least):
        raise ConfigurationError(f"{name}={value!r} is out of range: use {wanted}")
    if finite and math.isinf(value):
        raise ConfigurationError(f"{name}={value!r} is not finite: use {wanted}")
    return float(value)


def check_seconds(name: str, value: object) -> float:
    """Return `value` as a duration in seconds.

    Raises:
        ConfigurationError: The value is not a finite number above 0.
    """
    return check_number(name, value, above=True)


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return `value` as an integer of at least `least`.

    Raises:
        ConfigurationError: The value is not an integer, or is too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name}={value!r} must be an integer of at least {least}")
    return value


def check_name(name: str, value: object, *, example: str = "redis") -> str:
    """Return `value` as a non-empty string.

    Raises:
        ConfigurationError: The value is not a string, or is empty.
    """
    if not isinstance(value, str) or not value:
        raise ConfigurationError(
            f'{name}={value!r} must be a non-empty string, for example {name}="{example}"'
        )
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of several strings.

    Raises:
        ConfigurationError: The value is not among `choices`.
    """
    if value not in choices:
        wanted = " or ".join(f'{name}="{choice}"' for choice in choices)
        raise ConfigurationError(f"{name}={value!r} is unknown: use {wanted}")


def check_type(name: str, value: object, kind: type[T], *, use: str = "") -> T:
    """Return `value` as an instance of `kind`.

    Args:
        name: Name of the argument, for the message.
        value: The value to check.
        kind: The required class.
        use: What to pass instead, for the message.

    Raises:
        TypeError: The value has another type.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        hint = f": use {use}" if use else ""
        raise TypeError(
            f"{name} must be {article} {kind.__name__}, not {type(value).__name__}{hint}"
        )
    return value
