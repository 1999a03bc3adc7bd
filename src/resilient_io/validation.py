"""Checks of given numbers, with messages that say what to write instead."""

from __future__ import annotations

import math

from resilient_io.errors import ConfigurationError

__all__ = ["check_count", "check_name", "check_number", "check_seconds"]


def check_number(
    name: str, value: object, *, least: float = 0.0, above: bool = False, finite: bool = True
) -> float:
    """Return `value` as a float, or refuse it by its `name`.

    Args:
        name: How the caller wrote it, for the message.
        value: What was given.
        least: The lower bound.
        above: Whether the bound itself is refused.
        finite: Whether infinity is refused; NaN always is.

    Raises:
        ConfigurationError: It is no number, or out of range.
    """
    wanted = (
        f"a {'finite ' if finite else ''}number {'above' if above else 'of at least'} {least:g}"
    )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        message = f"{name}={value!r} is not a number: write {wanted}, for example {name}=1.0"
        raise ConfigurationError(message)
    if math.isnan(value) or value < least or (above and value == least):
        message = f"{name}={value!r} is out of range: write {wanted}"
        raise ConfigurationError(message)
    if finite and math.isinf(value):
        message = f"{name}={value!r} is not finite: write {wanted}"
        raise ConfigurationError(message)
    return float(value)


def check_seconds(name: str, value: object) -> float:
    """Return a span of time above zero, or refuse it by its `name`.

    Raises:
        ConfigurationError: It is no finite number above 0.
    """
    return check_number(name, value, above=True)


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number of at least `least`, or refuse it by its `name`.

    Raises:
        ConfigurationError: It is no whole number, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        message = f"{name}={value!r} must be a whole number of at least {least}"
        raise ConfigurationError(message)
    return value


def check_name(name: str, value: object) -> str:
    """Return a string that is not empty, or refuse it by its `name`.

    Raises:
        ConfigurationError: It is no string, or empty.
    """
    if not isinstance(value, str) or not value:
        message = f'{name}={value!r} must be a string that is not empty: write {name}="redis"'
        raise ConfigurationError(message)
    return value
