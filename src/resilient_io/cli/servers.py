"""Read server URLs from arguments, environment variables and files, and ask for passwords.

Arguments are visible in the process list and in the shell's history, so a URL with a password
should come from another source.
"""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from resilient_io.doctor.urls import kind_of, name_of
from resilient_io.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence


def read_urls(
    urls: Sequence[str],
    *,
    variables: Sequence[str] = (),
    files: Sequence[str] = (),
    ask_password: bool = False,
) -> dict[str, str]:
    """Return the URLs of all sources by the names of their servers, such as "redis cache:6379/0".

    Args:
        urls: URLs given as arguments.
        variables: Environment variables that contain a URL each.
        files: Files with one URL per line; "-" is the standard input.
        ask_password: Whether to ask for the passwords that the URLs do not contain.

    Raises:
        ConfigurationError: A source cannot be read, a URL is wrong, or a server is named twice. The
            message contains no password.
    """
    found = [
        *urls,
        *map(_from_environment, variables),
        *(url for path in files for url in _from_file(path)),
    ]
    servers: dict[str, str] = {}
    for url in found:
        complete = _with_password(url) if ask_password else url
        name = name_of(complete)
        if name in servers:
            raise ConfigurationError(f"{name} is given twice: remove one of the URLs")
        servers[name] = complete
    return servers


def _from_environment(variable: str) -> str:
    url = os.environ.get(variable, "").strip()
    if not url:
        raise ConfigurationError(f"--url-env {variable}: this environment variable is not set")
    return url


def _from_file(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"--url-file {path}: not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigurationError(f"--url-file {path}: {error.strerror}") from None
    lines = [line.strip() for line in text.splitlines()]
    urls = [line for line in lines if line and not line.startswith("#")]
    if not urls:
        raise ConfigurationError(f"--url-file {path}: the file contains no URL")
    return urls


def _with_password(url: str) -> str:
    """Return the URL with a password that is asked for, unless it has one."""
    kind = kind_of(url)
    scheme, _, rest = url.partition("://")
    end = min((rest.find(sign) for sign in "/?#" if sign in rest), default=len(rest))
    user, separator, host = rest[:end].rpartition("@")
    if ":" in user:
        return url
    if kind == "kafka" and not user:
        raise ConfigurationError(
            "--ask-password needs a user in the URL: use kafka://user@host:9092"
        )
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError(
            "--ask-password needs a terminal: use --url-env NAME or --url-file FILE"
        )
    where = f"{user}{separator}{host}" or rest
    password = getpass.getpass(f"Password for {scheme}://{where}: ")
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{rest[end:]}"
