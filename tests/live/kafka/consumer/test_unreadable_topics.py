"""Topics that a consumer cannot read are reported; aiokafka waits for them silently."""

import asyncio
import contextlib
import logging

import pytest
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from resilient_io import Cause, State
from resilient_io.kafka import ConsumerSettings, ResilientKafkaConsumer, ResilientKafkaProducer
from resilient_io.kafka.consumer import topics
from resilient_io.testing import KafkaServer
from tests.live.kafka.permissions import allow, revoke
from tests.live.kafka.tokens import login

SOON = 15.0
GROUPS = ("hidden", "led", "missing", "revoked")
USERS = {"admin": "admin-secret", "alice": "alice-secret", "bob": "bob-secret"}


class Scene:
    """A broker where alice and bob may use some groups and read the topic "open"."""

    def __init__(self, server):
        self.server = server

    async def prepare(self):
        for user in ("alice", "bob"):
            for group in GROUPS:
                await allow(self.server, user, "read", "group", group)
            await allow(self.server, user, "read", "topic", "open")
        await self.create("open")

    async def create(self, *names):
        async with ResilientKafkaProducer(self.server.direct_servers) as producer:
            for name in names:
                await self.server.create_topic(name)
                await producer.send_and_wait(name, name.encode())

    def consumer(self, *names, user="alice", group=None, **options):
        return ResilientKafkaConsumer(
            *names,
            bootstrap_servers=self.server.bootstrap_servers,
            group_id=group,
            auto_offset_reset="earliest",
            settings=ConsumerSettings(stalled_after=1.0),
            **login("PLAIN", USERS[user], user),
            **options,
        )


async def read(consumer, wanted):
    """Read until the last record of `wanted` has come."""
    async with asyncio.timeout(SOON):
        async for record in consumer:
            wanted.remove(record.value)
            record.done()
            if not wanted:
                return


@contextlib.asynccontextmanager
async def reading(consumer):
    """Read in the background, while the block runs."""

    async def read_all():
        async for _ in consumer:
            pass

    task = asyncio.create_task(read_all())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition):
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - states can only be polled
            await asyncio.sleep(0.05)


async def hidden_topic_is_an_error_until_it_is_permitted(scene):
    await scene.create("hidden", "described")
    await allow(scene.server, "alice", "describe", "topic", "described")
    for topic in ("described", "hidden"):
        async with scene.consumer(partitions=[(topic, 0)]) as consumer:
            with pytest.raises(TopicAuthorizationFailedError, match=topic):
                await read(consumer, [topic.encode()])
    async with scene.consumer("described", group="hidden") as consumer:
        with pytest.raises(TopicAuthorizationFailedError, match="described"):
            await read(consumer, [b"described"])
    async with scene.consumer("open", "hidden", group="hidden") as consumer:
        await read(consumer, [b"open"])
        with pytest.raises(TopicAuthorizationFailedError, match="hidden") as caught:
            await read(consumer, [b"hidden"])
        assert "allow it to read" in caught.value.__notes__[0]
        await until(lambda: consumer.health.state is State.DEGRADED)
        assert consumer.health.cause is Cause.AUTH
        assert "topic hidden" in consumer.health.detail

        await allow(scene.server, "alice", "read", "topic", "hidden")
        await until(lambda: consumer.health.state is State.UP)
        await read(consumer, [b"hidden"])


async def leader_of_a_group_reports_a_hidden_topic_of_another_member(scene):
    await scene.create("private")
    await allow(scene.server, "bob", "read", "topic", "private")
    async with scene.consumer("open", group="led") as leader, reading(leader):
        await until(leader.assignment)
        async with scene.consumer("private", user="bob", group="led") as other:
            also = asyncio.create_task(read(other, [b"private"]))
            await until(lambda: leader.health.cause is Cause.AUTH)
            assert "other members of the group read it" in leader.health.detail
            await allow(scene.server, "alice", "read", "topic", "private")
            await also
            await until(lambda: leader.health.state is State.UP)


async def group_is_an_error_until_it_is_permitted_again(scene):
    """aiokafka's heartbeat task ends when the permission is missing, and does not start again."""
    await allow(scene.server, "alice", "read", "topic", "again")
    await scene.create("again")
    async with scene.consumer("again", group="revoked", heartbeat_interval_ms=300) as consumer:
        await read(consumer, [b"again"])
        await revoke(scene.server, "alice", "read", "group", "revoked")
        for _ in range(2):
            with pytest.raises(GroupAuthorizationFailedError):
                await read(consumer, [b"never"])
        await until(lambda: consumer.health.state is State.DEGRADED)
        await allow(scene.server, "alice", "read", "group", "revoked")
        async with ResilientKafkaProducer(scene.server.direct_servers) as producer:
            await producer.send_and_wait("again", b"more")
        wanted = [b"more"]
        async with asyncio.timeout(SOON):
            while wanted:
                with contextlib.suppress(GroupAuthorizationFailedError):  # from before
                    await read(consumer, wanted)


async def missing_topic_is_logged_and_read_once_it_exists(scene, caplog):
    await allow(scene.server, "alice", "read", "topic", "later")
    async with scene.consumer("later", group="missing") as consumer:
        later = asyncio.create_task(read(consumer, [b"later"]))
        await until(lambda: any(each.event == "topic_missing" for each in events(caplog)))
        await scene.create("later")
        await later
    assert [each.topic for each in events(caplog) if each.event == "topic_missing"] == ["later"]


def events(caplog):
    return [record for record in caplog.records if hasattr(record, "event")]


async def partition_that_does_not_exist_is_stalled(scene):
    async with scene.consumer(partitions=[("open", 7)]) as consumer, reading(consumer):
        await until(lambda: consumer.health.state is State.DEGRADED)
        assert consumer.health.cause is Cause.STALLED
        assert "open[7]: no fetch has succeeded" in consumer.health.detail


async def test_topics_that_cannot_be_read_are_reported(caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(topics, "_MISSING_AFTER", 1.0)
    options = {"auto.create.topics.enable": False}
    async with KafkaServer(users=USERS, superusers=["admin"], options=options) as server:
        scene = Scene(server)
        await scene.prepare()
        async with asyncio.TaskGroup() as cases:  # they mostly wait
            cases.create_task(partition_that_does_not_exist_is_stalled(scene))
            cases.create_task(hidden_topic_is_an_error_until_it_is_permitted(scene))
            cases.create_task(leader_of_a_group_reports_a_hidden_topic_of_another_member(scene))
            cases.create_task(group_is_an_error_until_it_is_permitted_again(scene))
            cases.create_task(missing_topic_is_logged_and_read_once_it_exists(scene, caplog))
