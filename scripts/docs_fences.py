"""Blocks of the docs site that are written by code: mkdocs.yml names the functions."""

from __future__ import annotations

import html
from typing import Any

from resilient_io.redis.commands import known_names, lookup

_HEADINGS = ("Command", "Effect", "Route", "Why, or what to use")


def command_table(*_: Any, **__: Any) -> str:
    """Return the command table as HTML, for a ```` ```command-table ```` block."""
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    body = "".join(f"<tr>{_row(name)}</tr>" for name in known_names())
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(name: str) -> str:
    spec = lookup((name,))
    effect = spec.effect.name.lower().replace("_", "-")
    route = spec.route.value
    # XREAD and XREADGROUP block only with the option that asks for it.
    blocking = lookup((name, "GROUP", "group", "consumer", "BLOCK", "0", "STREAMS", "key", ">"))
    cells = (
        name,
        f"up to {effect}" if spec.resolve else effect,
        route if blocking.route is spec.route else f"{route} or {blocking.route.value}",
        " ".join(text for text in (spec.reason, spec.advice) if text),
    )
    return "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
