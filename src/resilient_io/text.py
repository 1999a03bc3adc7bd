"""Text from outside: bounded, without credentials and without control characters.

Servers, drivers, certificates and the handlers of an application produce text that reaches logs,
errors, terminals and unauthenticated HTTP pages. `clean_text` makes it safe for all of them. Every
step takes time linear in the length of the text, so a hostile server cannot stall the event loop.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TEXT_LIMIT: Final = 300
"""Default maximum length, in characters, of a text from outside."""

_REDACTED: Final = "…"

_URL_REST: Final = re.compile(r"://((?:\\.|[^\s\"\\])*)")
"""The rest of a URL. A password may contain any character except white space; a quotation mark ends
the text in JSON unless a backslash precedes it. The pattern consumes the whole rest even if it has
no `@`: trying again at each `://` within it would take quadratic time."""

_QUOTED_ARGUMENTS: Final = re.compile(
    r",?\s*with args beginning with.*|[\s,:]*['\"`]AUTH2?['\"`][\s,]+['\"`].*", re.DOTALL
)
"""Arguments that a server quotes in an error. Those of HELLO and AUTH include the password."""

_SCHEMES: Final = frozenset({
    "redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis-sentinel", "sentinel",
    "valkey", "valkeys", "kafka", "kafkas", "http", "https", "tcp", "tls",
})  # fmt: skip
"""Schemes that an error may quote: an unknown one may be a part of a password."""

_HOST: Final = r"(?:[\w.-]+|\[[0-9A-Fa-f:.%]+\])(?::\d{1,5}(?!\d))?"
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*", re.ASCII)
_PATH: Final = re.compile(r"(?:/[\w./-]{0,80})?", re.ASCII)

_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Control and formatting characters: terminal escapes, line breaks, text direction, surrogates."""

_SHORT_SECRET: Final = 4

_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")

_ERRNO_OF: Final[dict[type[OSError], int]] = {
    ConnectionResetError: errno.ECONNRESET,
    ConnectionAbortedError: errno.ECONNABORTED,
    BrokenPipeError: errno.EPIPE,
}

_SSL_NOISE: Final = re.compile(r"^\[[A-Z]+(?::\s*[A-Z0-9_]+)?\]\s*|\s*\(_ssl\.c:\d+\)$")


def clean_text(text: str, *, limit: int = TEXT_LIMIT, secrets: Iterable[str] = ()) -> str:
    """Return a text from outside in a form that is safe to log, display and publish.

    The result is one line of at most `limit` characters. It contains no arguments that a server
    quoted, none of the `secrets`, no credentials of a URL and no control characters. A secret of
    fewer than four characters is replaced only where it is a whole word.
    """
    known = [variant for secret in secrets if secret for variant in _variants(secret)]
    # More than `limit`, so that removing credentials still leaves enough text.
    bound = 4 * limit + max(map(len, known), default=0)
    cut = len(text) > bound
    text = _QUOTED_ARGUMENTS.sub("", text[:bound])
    for secret in known:
        text = _without(text, secret, ends_inside=cut)
    text = redact_credentials(text)
    if cut:
        text = re.sub(r"://[^\s\"@]*$", f"://{_REDACTED}", text)
    text = " ".join(_CONTROL.sub(_replace_control, text).split())
    return text if len(text) <= limit and not cut else f"{text[: limit - 1]}…"


def redact_credentials(text: str) -> str:
    """Return a text, plain or JSON, without the credentials between `://` and `@`."""
    return _URL_REST.sub(_redact_url, text)


def quote_url(url: str) -> str:
    """Return a URL in quotation marks, for an error, without what may belong to a password.

    Of a wrong URL it is uncertain which part is the password. What is shown is a known scheme, the
    hosts with their ports, and the path; the rest is replaced by "…".
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    if separator and scheme.lower() not in _SCHEMES:
        scheme = _REDACTED
    address, question_mark, query = rest.partition("?")
    login, at, address = address.rpartition("@")
    hosts = _HOSTS.match(address)
    end = hosts.end() if hosts is not None else 0
    if "@" in query:  # the question mark may belong to the password
        shown = _REDACTED
    elif _PATH.fullmatch(address, end):
        shown = address
    else:
        shown = f"{address[:end]}{':' if address[end : end + 1] == ':' else ''}{_REDACTED}"
    if login or at:
        shown = f"{_REDACTED}@{shown}"
    return repr(f"{scheme}{separator}{shown}{f'?{_REDACTED}' if question_mark else ''}")


def _replace_control(found: re.Match[str]) -> str:
    return " " if found[0].isspace() else "\N{REPLACEMENT CHARACTER}"


def _redact_url(found: re.Match[str]) -> str:
    credentials, at, rest = found[1].rpartition("@")
    return f"://{_REDACTED}@{rest}" if at and credentials else found[0]


def _variants(secret: str) -> Iterator[str]:
    """Yield a secret in the forms in which a message may contain it, the longest first."""
    forms = {secret, quote(secret), quote(secret, safe=""), repr(secret)[1:-1]}
    yield from sorted(forms, key=lambda form: (-len(form), form))


def _without(text: str, secret: str, *, ends_inside: bool) -> str:
    if len(secret) < _SHORT_SECRET:
        return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _REDACTED, text)
    text = text.replace(secret, _REDACTED)
    if ends_inside:
        for length in range(min(len(secret), len(text)), _SHORT_SECRET - 1, -1):
            if text.endswith(secret[:length]):
                return text[:-length] + _REDACTED
    return text


def describe_error(error: BaseException, *, secrets: Iterable[str] = ()) -> str:
    """Return the message of an exception in one clean line.

    An error of the operating system is described once, in words ("connection refused"), without
    its number and without the address, which the caller names. Drivers wrap such errors, so the
    causes of `error` are searched, too.
    """
    for link in error_chain(error):
        words = _os_words(link)
        if words:
            return clean_text(words, secrets=secrets)
    if isinstance(error, TimeoutError) and not str(error):
        return "timed out"
    return clean_text(str(error), secrets=secrets) or type(error).__name__


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes, the outermost first.

    A context that `raise ... from None` suppresses is not a cause: it may be the exception that the
    caller was handling.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _os_words(error: BaseException) -> str:
    if not isinstance(error, OSError) or (isinstance(error, TimeoutError) and error.errno is None):
        return ""
    import ssl  # noqa: PLC0415 - `resilient-io probe` must not pay for it

    if isinstance(error, ssl.SSLError):
        return _SSL_NOISE.sub("", str(error.args[-1])) if error.args else ""
    if error.errno is None and not error.args:  # as asyncio raises them
        number = _ERRNO_OF.get(type(error))
        return _lower(os.strerror(number)) if number is not None else ""
    if error.errno is None:
        # asyncio joins the errors of several addresses in one message.
        numbers = dict.fromkeys(_ERRNO.findall(str(error)))
        return ", ".join(_lower(os.strerror(int(number))) for number in numbers)
    if error.errno < 0 or type(error).__module__ == "socket":  # a failed name lookup
        return _lower(error.strerror or str(error))
    return _lower(os.strerror(error.errno))


def _lower(words: str) -> str:
    return words[:1].lower() + words[1:] if words[1:2].islower() else words


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
