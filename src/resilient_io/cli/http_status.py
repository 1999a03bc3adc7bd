"""Asks a probe endpoint over HTTP with a bare socket: `http.client` costs 25 ms of import."""

from __future__ import annotations

import socket
import time
from typing import NamedTuple

from resilient_io.cli.heartbeat import Verdict

__all__ = ["Address", "asked", "parsed"]

_LONGEST = 1 << 16
_STATUS_PARTS = 2
_PORTS = 1 << 16
_DIGITS = 5


class Address(NamedTuple):
    """Where a probe endpoint is."""

    host: str
    port: int
    path: str


def parsed(url: str) -> Address | None:
    """Take a URL apart; None if it is none that a probe can ask."""
    scheme, found, rest = url.partition("://")
    if not found or scheme.lower() != "http" or any(c.isspace() or ord(c) < ord("!") for c in url):
        return None
    authority, slash, path = rest.partition("/")
    authority, question, query = authority.partition("?")
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, port = authority, "80"
    host = host.removeprefix("[").removesuffix("]")
    if not host or "@" in host or not (port.isascii() and port.isdigit() and len(port) <= _DIGITS):
        return None
    if not 0 < int(port) < _PORTS or not url.isascii():
        return None
    target = f"/{path}" if slash else f"/{question}{query}"
    return Address(host, int(port), target.partition("#")[0])


def asked(address: Address, timeout: float) -> Verdict:
    """Ask, and take any 2xx for a yes.

    Args:
        address: Where to.
        timeout: Seconds for all of it.
    """
    until = time.monotonic() + timeout
    host, port, _ = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        answer = _fetched(address, where, until)
    except TimeoutError:
        return Verdict(False, f"{where} did not answer within {timeout:g} s", {})
    except socket.gaierror as error:
        return Verdict(False, f"{host} cannot be resolved: {error.strerror}", {})
    except UnicodeError:  # of the encoding for international names
        return Verdict(False, f"{host} cannot be resolved: it can be no host name", {})
    except OSError as error:
        return Verdict(False, f"{where} cannot be asked: {error.strerror or error}", {})
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.partition(b"\r\n")[0].split(None, 2)
    if len(words) < _STATUS_PARTS or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Verdict(None, f"{where} does not speak HTTP", {})
    status = int(words[1])
    first = body.decode("utf-8", "replace").strip().partition("\n")[0].strip()
    told = first if first.isprintable() and not first.startswith(("<", "{")) else ""
    said = told[:200] or words[-1].decode("ascii", "replace")
    return Verdict(200 <= status < 300, f"{status}: {said}", {"status": status})  # noqa: PLR2004


def _fetched(address: Address, where: str, until: float) -> bytes:
    host, port, path = address
    # HTTP/1.0, so that no server answers in chunks or keeps the connection.
    request = (
        f"GET {path} HTTP/1.0\r\nHost: {where}\r\nAccept: text/plain, */*\r\n"
        "User-Agent: resilient-io probe\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection((host, port), timeout=_left(until)) as connection:
        connection.settimeout(_left(until))
        connection.sendall(request.encode("ascii"))
        answer = b""
        while len(answer) < _LONGEST:
            connection.settimeout(_left(until))
            part = connection.recv(_LONGEST)
            if not part:
                break
            answer += part
    return answer


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
