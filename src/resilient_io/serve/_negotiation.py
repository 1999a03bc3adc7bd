"""Which of several forms a client likes best: the `Accept` of its request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["prefer"]


def prefer(accept: str, offered: Sequence[str]) -> str:
    """Return the media type that a client likes best.

    A type that it names goes before one that it only takes as well (`*/*`); what it likes alike
    goes by our order. The first one is for those who say nothing, or like none.

    Args:
        accept: The value of the header; may be empty.
        offered: Media types, our favourite first.
    """
    ranges = [_range(each) for each in accept.split(",") if each.strip()]
    best, liked = offered[0], (0.0, -1)
    for each in offered:
        fits = [(near, quality) for name, quality in ranges if (near := _nearness(name, each)) >= 0]
        if not fits:
            continue
        near, quality = max(fits)  # the range that names it most exactly decides
        if quality > 0 and (quality, near) > liked:
            best, liked = each, (quality, near)
    return best


def _range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0


def _nearness(name: str, offered: str) -> int:
    if name == offered:
        return 2
    if name == f"{offered.partition('/')[0]}/*":
        return 1
    return 0 if name == "*/*" else -1
