"""Clean text before it leaves the process: credentials, control characters, length."""

from __future__ import annotations

import re
from typing import Final

_CREDENTIALS: Final = re.compile(r"(?<=://)(?:\\.|[^\s\"\\])*@")
"""A password may have any character but white space; a quotation mark ends the text in JSON, if
there is no backslash before it."""

_OPEN_CREDENTIALS: Final = re.compile(r"://[^\s\"/?#]*\Z")
"""What may be the beginning of credentials whose end was cut off."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

LIMIT: Final = 300
"""Longest text, in characters, that is taken over from outside."""


def redact_credentials(text: str) -> str:
    """Return a text, plain or JSON, without what stands between `://` and `@`.

    Health cleans its details itself; but a dependency's name is chosen by the application, and may
    be the address that it was made with.
    """
    return _CREDENTIALS.sub("…@", text)


def clean_text(text: str, *, limit: int = LIMIT) -> str:
    """Return a text from outside in a form that can be shown: one bounded line without credentials.

    Control characters, which could drive a terminal, are replaced by spaces.

    Args:
        text: What a server, a certificate, a file or an exception says.
        limit: Longest result, in characters.
    """
    # Bounded before anything else, with room for credentials that reach beyond the limit.
    bounded = text[: 2 * limit]
    cleaned = redact_credentials(bounded)
    if len(bounded) < len(text):
        cleaned = _OPEN_CREDENTIALS.sub("://…", cleaned)
    cleaned = _CONTROL.sub(" ", cleaned)
    return cleaned if len(cleaned) <= limit else f"{cleaned[: limit - 1]}…"
