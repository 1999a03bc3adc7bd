"""Lines of a server's configuration file."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from resilient_io.testing.certificates import Certificates

_PORTS: Final = range(10_000, 32_000)

Option: TypeAlias = str | int | Sequence[str]
"""A value as it is written in the file, or several for a line that is repeated."""


def quoted(value: str | Path) -> str:
    """Write a value so that blanks, quotes and backslashes in it are its own."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def tls_lines(port: int, files: Certificates) -> dict[str, Option]:
    """Listen for TLS, and ask no certificate of clients."""
    return {
        "tls-port": port,
        "tls-ca-cert-file": quoted(files.authority),
        "tls-cert-file": quoted(files.certificate),
        "tls-key-file": quoted(files.key),
        "tls-auth-clients": "no",
    }


def written(options: Mapping[str, Option]) -> str:
    """Write the file."""
    return "".join(
        f"{name} {value}\n"
        for name, given in options.items()
        for value in ([given] if isinstance(given, str | int) else given)
    )


def free_port() -> int:
    """Give a port of the loopback interface that nobody listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Give so many different ones."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            sock = stack.enter_context(socket.socket())
            # Below those that Linux gives to outgoing connections: one of these would be taken by
            # some client while its server is down, at times by a client that connects to itself.
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", secrets.choice(_PORTS)))
                ports.append(sock.getsockname()[1])
    return ports
