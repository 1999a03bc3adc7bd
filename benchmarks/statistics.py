"""Medians, spreads and ratios of rounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and how far they lie apart."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Sum up the values of several rounds.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("there is no round to sum up")
    return Spread(median(values), min(values), max(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Compare round by round: what slows the machine for a while then slows both sides.

    Raises:
        ValueError: The sides have no, or not as many rounds.
    """
    return spread([our / their for our, their in zip(ours, theirs, strict=True)])


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of `values` that at least `share` (0 to 1) of them do not exceed.

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("there is no value to choose from")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def turn(clients: Sequence[str], number: int) -> list[str]:
    """Return the order of a round, so that each client begins as often as the others."""
    first = number % len(clients)
    return [*clients[first:], *clients[:first]]
