"""No user and no password in an address leaves the process, whoever put it into a name."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["redact_credentials"]

_CREDENTIALS: Final = re.compile(r"(?<=://)(?:\\.|[^\s\"\\])*@")
"""A password may have any sign but white space; a quotation mark ends the text in JSON, if there is
no backslash before it."""


def redact_credentials(text: str) -> str:
    """Return a text, plain or JSON, without what stands between `://` and `@`.

    Health makes its details clean by itself; but a dependency's name is its user's, and may be
    the address that it was made with.
    """
    return _CREDENTIALS.sub("…@", text)
