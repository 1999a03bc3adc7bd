"""Make text safe to publish: bounded, without credentials and without control characters."""

from __future__ import annotations

import re
from typing import Final

_WORD: Final = re.compile(r"(?:\\.|[^\s\"\\])+")
"""A run without white space. A quotation mark without a backslash ends a string in JSON."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0 and C1 control characters, line separators, and characters that change the direction."""

_REPLACEMENTS: Final = {"\t": " ", "\n": " ", "\r": " "}


def redact_credentials(text: str) -> str:
    """Return a text, plain or JSON, with the credentials of every URL replaced.

    Everything between `://` and the last `@` of the same word is replaced. The time needed is
    linear in the length of the text.
    """
    return _WORD.sub(_redact_word, text) if "://" in text else text


def clean_text(text: str, *, limit: int = 300) -> str:
    """Return a text from outside the process, safe to log and to publish.

    It is bounded first, then credentials in URLs are redacted, then control characters are
    replaced.

    Args:
        text: Text from a server, a driver, a certificate or a handler's exception.
        limit: Longest result, in characters.
    """
    if len(text) > limit:
        text = text[: limit - 1]
        start = text.rfind("://")
        if start >= 0 and "@" not in text[start:] and not re.search(r"\s", text[start:]):
            text = text[: start + 3]  # the limit may have cut a password before its @
        text += "…"
    return _CONTROL.sub(_replace_control, redact_credentials(text))[:limit]


def _redact_word(match: re.Match[str]) -> str:
    word = match.group()
    start, end = word.find("://"), word.rfind("@")
    if start < 0 or end < start + 3:
        return word
    return f"{word[: start + 3]}…{word[end:]}"


def _replace_control(match: re.Match[str]) -> str:
    return _REPLACEMENTS.get(match.group(), "\N{REPLACEMENT CHARACTER}")
