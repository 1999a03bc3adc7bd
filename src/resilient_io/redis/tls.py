"""What is wrong with TLS: its files, or one side that speaks it and another that does not."""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resilient_io.text import describe_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio.connection import AbstractConnection

PORT_CHECK_TIMEOUT = 0.25  # seconds that a port may take to show whether it speaks TLS

PLAIN_PORT = "TLS was not answered, but the port speaks plain Redis"
TLS_PORT = "the port speaks TLS, but this client does not: use rediss:// or ssl=True"
_FILES = ("certfile", "keyfile", "ca_certs", "ca_path")
"""The files of a connection, as redis-py 8.1 `RedisSSLContext` names them."""

_SETTINGS = (
    *_FILES,
    *("cert_reqs", "include_verify_flags", "exclude_verify_flags", "ca_data", "check_hostname"),
    *("min_version", "ciphers", "password"),
)
"""All settings of a connection's context."""

_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # no fault of the file

_EMPTY_GREETING = b"\x16\x03\x01\x00\x04\x01\x00\x00\x00"
"""A TLS greeting without contents: TLS answers with an alert. Plain Redis ignores it."""

_HANDSHAKE_RECORDS = (b"\x15", b"\x16")  # the first byte of a TLS alert, and of a handshake


class TLSConfigurationError(ssl.SSLError):
    """The TLS settings cannot be used. The message names the file."""

    def __str__(self) -> str:
        """Return the message only."""
        return str(self.args[-1])


_MOST_CONTEXTS = 32

_contexts: dict[object, ssl.SSLContext] = {}
"""The contexts that were used last, by their settings and the state of their files.

Creating one reads all authorities that the system trusts, which blocks the event loop for 15 ms or
more. All connections with the same settings share one, until a file is replaced.
"""


def load_files(connection: AbstractConnection) -> None:
    """Read the certificates and keys of a connection that uses TLS, before it is opened.

    Raises `TLSConfigurationError` if one cannot be used.
    """
    context: Any = getattr(connection, "ssl_context", None)  # redis-py 8.1 `RedisSSLContext`
    if context is None:
        return
    if context.keyfile and not context.password and _is_encrypted(context.keyfile):
        # OpenSSL would ask for the password on the terminal, and block the event loop.
        raise TLSConfigurationError(
            1, f"ssl_keyfile {_quoted(context.keyfile)} is encrypted: pass ssl_password"
        )
    try:
        _use_shared(context)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in _THIS_PROCESS:
            raise
        problem = _describe(context, error)
    else:
        return
    raise TLSConfigurationError(1, problem)


def _use_shared(context: Any) -> None:
    """Create the SSL context of a connection, unless another connection has created it."""
    key = _identity_of(context)
    known = _contexts.pop(key, None)
    if known is not None:
        context.context = known
    _contexts[key] = context.get()
    if len(_contexts) > _MOST_CONTEXTS:
        del _contexts[next(iter(_contexts))]


def _identity_of(context: Any) -> object:
    """Return a value that is equal for contexts with the same settings and the same files."""
    system = ssl.get_default_verify_paths()
    files = [*(getattr(context, name) for name in _FILES), system.cafile, system.capath]
    settings = [getattr(context, name) for name in _SETTINGS]
    return (
        type(context),
        *(tuple(each) if isinstance(each, list) else each for each in settings),
        *(_state_of(path) for path in files),
    )


def _state_of(path: str | None) -> object:
    """Return what changes when a file is replaced, or when files in a folder are."""
    if not path:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _describe(context: Any, error: Exception) -> str:
    """Return which file cannot be used, and why."""
    for name in _FILES:
        path = getattr(context, name)
        problem = _problem_with(path, directory=name == "ca_path") if path else None
        if problem is not None:
            return f"ssl_{name} {_quoted(path)} {problem}"
    certfile, keyfile = context.certfile, context.keyfile
    if "KEY_VALUES_MISMATCH" in str(getattr(error, "reason", None)):
        key = f"ssl_keyfile {_quoted(keyfile)}" if keyfile else "its key"
        return f"{key} does not belong to ssl_certfile {_quoted(certfile)}"
    if (certfile or keyfile) and not _can_load(context):
        key = f" or ssl_keyfile {_quoted(keyfile)}" if keyfile else ""
        return f"ssl_certfile {_quoted(certfile)}{key} cannot be used: {_words(error)}"
    if context.ca_certs and isinstance(error, ssl.SSLError):
        return f"ssl_ca_certs {_quoted(context.ca_certs)} cannot be used: {_words(error)}"
    if context.ca_data:
        return f"ssl_ca_data cannot be used: {_words(error)}"
    return f"the TLS settings cannot be used: {_words(error)}"


def _can_load(context: Any) -> bool:
    """Return whether the client's certificate and key can be loaded."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
            context.certfile, context.keyfile, context.password
        )
    except (OSError, ValueError, TypeError):
        return False
    return True


def _problem_with(path: str, *, directory: bool) -> str | None:
    """Return why a file cannot be read, or None."""
    try:
        if directory:
            next(Path(path).iterdir(), None)
        else:
            Path(path).open("rb").close()
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return None


def _is_encrypted(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            return b"ENCRYPTED" in file.read(65536)
    except OSError:
        return False


def _quoted(path: object) -> str:
    return repr(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else "None"


def _words(error: Exception) -> str:
    return describe_error(error) or type(error).__name__


async def answers_without_tls(host: str, port: int) -> bool:
    """Return whether a port that ignored a TLS handshake answers plain Redis."""
    return await _first_byte(host, port, b"PING\r\n") in (b"+", b"-")


async def answers_tls(host: str, port: int) -> bool:
    """Return whether a port that closed a plain connection answers a TLS handshake."""
    return await _first_byte(host, port, _EMPTY_GREETING) in _HANDSHAKE_RECORDS


async def find_alert(arguments: Mapping[str, Any]) -> ssl.SSLError | None:
    """Return the alert with which a server ends a connection after the TLS handshake, or None.

    It is certain to arrive only if nothing is sent: the server would reset the connection, and the
    alert would be discarded.

    Args:
        arguments: Those of `asyncio.open_connection`.
    """
    try:
        async with asyncio.timeout(PORT_CHECK_TIMEOUT):
            reader, writer = await asyncio.open_connection(**arguments)
            try:
                await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as alert:
        return alert
    except OSError:  # also a timeout
        pass
    return None


async def _first_byte(host: str, port: int, greeting: bytes) -> bytes:
    """Return the first byte of a port's answer, or none if it does not answer promptly."""
    try:
        async with asyncio.timeout(PORT_CHECK_TIMEOUT):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(greeting)
                return await reader.read(1)
            finally:
                writer.transport.abort()
    except OSError:  # also a timeout
        return b""
