"""Scenes in containers: real networks that are cut, real limits, real kills.

They take a Docker engine and the images of scripts/container_images.py: `make containers`.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

# testcontainers reads these when it is imported. Nothing here is reached through a port of the
# host, and what is started is removed by us.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TC_HOST", "127.0.0.1")
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def images():
    """Names of the images, made first where they are missing; skips where there is no engine."""
    found = subprocess.run(
        [ROOT / "scripts/docker_engine.sh", "find"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        reason = "no Docker engine answers: start one, or name it in DOCKER_HOST"
        if os.environ.get("RESILIENT_IO_REQUIRE_SERVERS") == "1":
            pytest.fail(f"RESILIENT_IO_REQUIRE_SERVERS=1, but {reason}", pytrace=False)
        pytest.skip(f"NEEDS DOCKER: {reason}")
    os.environ["DOCKER_HOST"] = found.stdout.strip()
    from container_stage.place import sweep

    with contextlib.closing(docker.from_env()) as engine:
        sweep(engine)
    if (names := os.environ.get("RESILIENT_IO_IMAGES")) is not None:
        return json.loads(names)
    made = subprocess.run(
        [sys.executable, ROOT / "scripts/container_images.py"],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.fail("the images cannot be made; see above", pytrace=False)
    return json.loads(made.stdout)


@pytest.fixture(scope="session")
def kafka(images):
    """A broker that several tests share; each affects only its own network."""
    from container_stage.place import KAFKA_RUNS, Server, inner_network, kafka_of

    with contextlib.ExitStack() as stack:
        network, _ = inner_network(stack)
        made = kafka_of(images["kafka"])
        made.with_network(network).with_network_aliases("kafka-control").start()
        stack.callback(made.stop)
        server = Server("kafka", made)
        server.wait_for(KAFKA_RUNS)
        yield server


@pytest.fixture
def place(images, kafka, tmp_path, request):
    """A place for this test, with the shared broker."""
    yield from _place(images, tmp_path, request, kafka)


@pytest.fixture
def place_of_its_own(images, tmp_path, request):
    """A place with a broker for this test."""
    yield from _place(images, tmp_path, request, None)


def _place(images, folder, request, kafka):
    from container_stage.place import Place

    name = request.node.name.removeprefix("test_")[:60]
    with Place(images, folder, name, kafka) as place:
        yield place


@pytest.fixture
def keep(request):
    """Keep what a scene came to, for the table in docs/containers.md."""
    folder = os.environ.get("RESILIENT_IO_SCENES")

    def keep(outcome):
        if folder is not None:
            path = Path(folder) / f"{request.node.name}.json"
            path.write_text(json.dumps(outcome, indent=1))

    return keep
