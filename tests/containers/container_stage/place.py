"""A place: two networks, Redis, Kafka, both services, and the shop.

The services' network can be cut at a server; the shop has another one with both servers, and so
goes on seeing them. Neither leads outside.
"""

import contextlib
import itertools
import json
import os
import time
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.types import IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from container_stage.readings import Readings, until
from container_stage.service import Service

START = 60.0
"""Seconds in which anything must have started, on a loaded machine, too."""

LABEL = {"resilient_io.scenes": str(os.getpid())}

# 10.213.x.0/24; networks that are in use are skipped.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0)
_SUBNETS = itertools.cycle(range(_WORKER * 60 % 240, _WORKER * 60 % 240 + 60))


def inner_network(stack):
    """Make a network that leads nowhere else."""
    for _ in range(60):
        subnet = f"10.213.{next(_SUBNETS)}"
        pool = IPAMPool(subnet=f"{subnet}.0/24", gateway=f"{subnet}.1")
        options = {"internal": True, "ipam": IPAMConfig(pool_configs=[pool]), "labels": LABEL}
        network = Network(docker_network_kw=options)
        try:
            network.create()
        except APIError as error:
            network._docker.client.close()
            if "overlap" not in str(error):
                raise
            continue
        stack.callback(network._docker.client.close)
        stack.callback(_remove, network)
        return network, subnet
    raise AssertionError("no subnet is free")


def _remove(network):
    # A server that other places share is still in it.
    network._unwrap_network.reload()
    for container in network._unwrap_network.containers:
        network._unwrap_network.disconnect(container, force=True)
    network.remove()


def container(image, command=None, **options):
    """A container of a network of ours; other names cannot be resolved in it."""
    made = DockerContainer(image, command=command)
    made.with_kwargs(
        dns=["127.0.0.1"], dns_opt=["attempts:1", "timeout:1"], labels=LABEL, **options
    )
    return made


def sweep(engine):
    """Remove what runs left behind that were killed."""
    filters = {"label": next(iter(LABEL))}
    for made in engine.containers.list(all=True, filters=filters):
        if not _runs(made.labels):
            made.remove(force=True, v=True)
    for network in engine.networks.list(filters=filters):
        if not _runs(network.attrs["Labels"]):
            network.remove()


def _runs(labels):
    return Path(f"/proc/{labels[next(iter(LABEL))]}").exists()


KAFKA_RUNS = b"Kafka Server started"
"""What a broker says in its log."""


class Server:
    """Redis or Kafka, in as many networks as it is connected to."""

    def __init__(self, name, made):
        self.name = name
        self.made = made
        self.addresses = {}

    @property
    def docker(self):
        return self.made.get_wrapped_container()

    def connect(self, network, subnet, alias, host):
        """Join a network under a name, with an address of its own."""
        self.addresses[network.name] = f"{subnet}.{host}"
        network._unwrap_network.connect(
            self.docker, aliases=[alias] if alias else [], ipv4_address=f"{subnet}.{host}"
        )

    def wait_for(self, said, times=1):
        """Wait until it has said something in its log, so many times."""
        until(
            f"{self.name} said {said!r}",
            lambda: self.docker.logs().count(said) >= times,
            2 * START,
            every=0.3,
        )

    def run(self, *command):
        """Run a command in it; its output."""
        code, output = self.docker.exec_run(list(command))
        assert code == 0, output.decode()
        return output.decode().strip()


class Place:
    """Everything that one scene needs; `close` removes all of it.

    Args:
        images: Names of images, by what is in them.
        folder: For what the shop tells.
        name: Of the scene; topics and groups are named after it.
        kafka: A broker that others use too, or None for one of its own.
    """

    def __init__(self, images, folder, name, kafka=None):
        self.images = images
        self.name = name
        self.folder = folder
        self.stack = contextlib.ExitStack()
        self._shared_kafka = kafka
        self.readings = Readings(folder / "readings")
        self.ours = self.plain = self.redis = self.kafka = self._shop = None

    def __enter__(self):
        self.data, self.subnet = inner_network(self.stack)
        self.control, self.control_subnet = inner_network(self.stack)
        return self

    def __exit__(self, *exc_info):
        self.stack.close()

    # -- servers ---------------------------------------------------------------------------------

    def start_redis(self):
        """Start Redis, which keeps what it acknowledged."""
        command = (
            "redis-server --bind 0.0.0.0 --protected-mode no --dir /data --save '' "
            "--appendonly yes --appendfsync everysec"
        )
        self.redis = self._started("redis", container(self.images["redis"], command))
        self.redis.connect(self.data, self.subnet, "redis", 100)

    def start_kafka(self):
        """Start Kafka, or take the one there is."""
        if self._shared_kafka is None:
            self.kafka = self._started("kafka", kafka_of(self.images["kafka"]))
        else:
            self.kafka = self._shared_kafka
            self.kafka.connect(self.control, self.control_subnet, "kafka-control", 101)
        self.kafka.connect(self.data, self.subnet, "kafka", 101)

    def _started(self, name, made):
        made.with_network(self.control).with_network_aliases(f"{name}-control").start()
        self.stack.callback(made.stop)
        return Server(name, made)

    def cut(self, server):
        """Cut a server off from the services: no reset, no answer, and no name any more."""
        self.data._unwrap_network.disconnect(server.docker)
        return time.time()

    def heal(self, server, *, host=None, named=True):
        """Connect it again, at its old address or another, under its name or without."""
        old = int(server.addresses[self.data.name].rpartition(".")[2])
        server.connect(
            self.data, self.subnet, server.name if named else None, old if host is None else host
        )
        return time.time()

    # -- services and shop -----------------------------------------------------------------------

    def start_services(self, **limits):
        """Start both services and the shop."""
        names = {}
        for database, name in enumerate(("ours", "plain")):
            topics = {kind: f"{self.name}.{name}.{kind}" for kind in ("orders", "booked", "dead")}
            names[name] = {**topics, "group": f"{self.name}.{name}", "database": database}
        images = {"ours": self.images["order_service"], "plain": self.images["plain"]}
        for name, known in names.items():
            made = container(
                images[name],
                read_only=True,
                mem_limit=limits.get("memory", 256 << 20),
                cpu_period=100_000,
                cpu_quota=100_000,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                restart_policy={"Name": "always"},
            )
            made.tmpfs["/tmp"] = "size=16m"
            made.with_network(self.data).with_network_aliases(name)
            made.with_envs(
                REDIS_URL=f"redis://redis:6379/{known['database']}",
                KAFKA_BOOTSTRAP_SERVERS="kafka:9092",
                ORDERS_TOPIC=known["orders"],
                BOOKED_TOPIC=known["booked"],
                DEAD_LETTER_TOPIC=known["dead"],
                GROUP_ID=known["group"],
            )
            made.start()
            self.stack.callback(made.stop)
            setattr(self, name, Service(name, made))
        # The user of the image may not write into the folder of the user of the tests.
        self._shop = container(self.images["plain"], ["python", "shop.py"], user="0")
        self._shop.with_network(self.control).with_volume_mapping(
            str(self.folder), "/control", "rw"
        )
        self._shop.with_envs(
            SERVICES=json.dumps(names),
            KAFKA_BOOTSTRAP_SERVERS="kafka-control:9094",
            REDIS_HOST="redis-control",
        )
        self._shop.start()
        self.stack.callback(self._shop.stop)
        self.data.connect(self._shop.get_container_id())

    @property
    def services(self):
        return (self.ours, self.plain)

    def tell(self, do, *, wait=START, **arguments):
        """Send the shop a command, and wait until it is done."""
        command = {"do": do, **arguments}
        given = sum("done" in each for each in self.readings.all)
        with (self.folder / "commands").open("a") as file:
            file.write(json.dumps(command) + "\n")

        def obeyed():
            self._look()
            return sum("done" in each for each in self.readings.all) > given

        until(f"the shop did {command}", obeyed, wait)

    def _look(self):
        self.readings.read()
        if self._shop is not None:
            try:
                self._shop.get_wrapped_container().reload()
            except NotFound:
                return
            status = self._shop.get_wrapped_container().status
            assert status == "running", self._shop.get_wrapped_container().logs().decode()[-2000:]

    def until(self, what, condition, seconds=START):
        """Wait for a fact about the readings; the time at which it held."""

        def holds():
            self.readings.read()
            return condition(self.readings)

        try:
            until(what, holds, seconds)
        except AssertionError as error:
            for each in self.services:
                error.add_note(f"-- {each.name}:\n{each.log()[-3000:]}")
            raise
        return time.time()

    def ledger(self):
        """Count, in Kafka and in Redis, what became of every order."""
        self.tell("ledger", wait=2 * START)
        return self.readings.last("ledger")

    def open(self, **limits):
        """Start everything, in the right order, and wait until orders are booked by both."""
        self.start_redis()
        self.start_kafka()
        self.start_services(**limits)
        self.tell("send", rate=40)
        self.until(
            "both services book orders",
            lambda readings: (
                all(readings.booked(each.name) >= 20 for each in self.services)
                and readings.is_ready("ours")
            ),
        )


def kafka_of(image):
    """A container of Kafka with a name for the services, and another for the shop."""
    made = container(image)
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "LISTENERS": "SERVICES://:9092,CONTROL://:9094,CONTROLLER://localhost:9093",
        "ADVERTISED_LISTENERS": "SERVICES://kafka:9092,CONTROL://kafka-control:9094",
        "LISTENER_SECURITY_PROTOCOL_MAP": (
            "SERVICES:PLAINTEXT,CONTROL:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "INTER_BROKER_LISTENER_NAME": "CONTROL",
        "NUM_PARTITIONS": "4",
        "OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
        "GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "BROKER_SESSION_TIMEOUT_MS": "2000",
        "BROKER_HEARTBEAT_INTERVAL_MS": "300",
        "LOG_DIRS": "/var/lib/kafka/data",
        "HEAP_OPTS": "-Xmx384m",
    }
    made.with_envs(**{f"KAFKA_{name}": value for name, value in settings.items()})
    return made
