"""Which member of a group gets which partitions: balanced, few moves, none with two readers."""

import itertools
import random
from types import SimpleNamespace

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberMetadata
from aiokafka.protocol.struct import Struct
from aiokafka.protocol.types import Array, Bytes, Int16, Int32, Schema, String

from resilient_io.kafka.consumer.assignor import (
    NO_GENERATION,
    CooperativeStickyAssignor,
    Member,
    assign_partitions,
    withhold_owned,
)


def partitions(topic, *numbers):
    return [TopicPartition(topic, number) for number in numbers]


def member(topics, owned=(), generation=1):
    return Member(tuple(topics), frozenset(owned), generation if owned else NO_GENERATION)


def sizes(assigned):
    return sorted(len(found) for found in assigned.values())


def test_new_members_share_the_partitions_equally():
    found = assign_partitions({"a": member("t"), "b": member("t")}, partitions("t", *range(5)))
    assert sizes(found) == [2, 3]
    assert sorted(found["a"] + found["b"]) == partitions("t", *range(5))


def test_a_member_that_joins_takes_as_few_partitions_as_possible():
    owned = {f"m{at}": partitions("t", *range(at, 40, 4)) for at in range(4)}
    members = {name: member("t", each) for name, each in owned.items()}
    found = assign_partitions(members | {"new": member("t")}, partitions("t", *range(40)))
    assert sizes(found) == [8] * 5
    for name, each in owned.items():
        assert set(found[name]) < set(each), "no member gets one of another old member"


def test_the_partitions_of_a_member_that_leaves_go_to_the_others():
    owned = {f"m{at}": partitions("t", *range(at, 40, 5)) for at in range(4)}
    members = {name: member("t", each) for name, each in owned.items()}
    found = assign_partitions(members, partitions("t", *range(40)))
    assert sizes(found) == [10] * 4
    for name, each in owned.items():
        assert set(found[name]) > set(each), "no member loses one"


def test_partitions_are_assigned_to_readers_of_their_topic_only():
    members = {
        "a": member(["t"], partitions("t", 0, 1, 2, 3)),
        "b": member(["t", "u"], partitions("u", 0)),
        "c": member(["u"], partitions("t", 4)),  # it has read this topic before
        "d": member(["gone"]),
    }
    everything = partitions("t", *range(5)) + partitions("u", 0, 1)
    found = assign_partitions(members, everything)
    assert sorted(itertools.chain(*found.values())) == everything
    for name, each in found.items():
        assert {topic for topic, _ in each} <= set(members[name].topics)
    assert sizes(found) == [0, 2, 2, 3]


def test_an_earlier_owner_does_not_count():
    contested = partitions("t", 0)
    members = {"a": member("t", contested, 7), "b": member("t", contested, 5)}
    assert assign_partitions(members, contested) == {"a": contested, "b": []}
    members = {"a": member("t", contested, 5), "b": member("t", contested, 7)}
    assert assign_partitions(members, contested) == {"a": [], "b": contested}


def test_a_partition_is_withheld_until_its_owner_has_given_it_up():
    moved, kept = partitions("t", 0), partitions("t", 1)
    members = {"old": member("t", moved + kept), "new": member("t")}
    plan = {"old": kept, "new": moved}
    assert withhold_owned(plan, members) == {"old": kept, "new": []}
    members["old"] = member("t", kept)
    assert withhold_owned(plan, members) == plan


@pytest.mark.parametrize("seed", range(30))
def test_no_partition_ever_has_two_readers_and_the_group_settles(seed):
    """Members join, leave and miss assignments at random; each gives up what it is not assigned."""
    rng = random.Random(seed)
    topics = {topic: rng.randint(1, 12) for topic in "tuv"}
    everything = [each for topic in topics for each in partitions(topic, *range(topics[topic]))]
    reading = {}  # what each member reads now
    known = {}  # its topics and the generation of its assignment
    for generation in range(1, 40):
        changing = generation < 25
        if changing and rng.random() < 0.4:
            name = f"m{generation}"
            reading[name] = set()
            known[name] = (tuple(rng.sample("tuv", rng.randint(1, 3))), NO_GENERATION)
        if changing and reading and rng.random() < 0.3:
            gone = rng.choice(sorted(reading))
            del reading[gone], known[gone]
        members = {
            name: Member(known[name][0], frozenset(each), known[name][1])
            for name, each in reading.items()
        }
        allowed = withhold_owned(assign_partitions(members, everything), members)
        for name in reading:
            if not changing or rng.random() < 0.8:  # otherwise the answer is lost
                reading[name] = set(allowed[name])
                known[name] = (known[name][0], generation)
        held = [each for found in reading.values() for each in found]
        assert len(held) == len(set(held)), "a partition has two readers"
    read = {topic for found, _ in known.values() for topic in found}
    assert set(held) == {each for each in everything if each.topic in read}
    again = {name: Member(known[name][0], frozenset(f), 40) for name, f in reading.items()}
    settled = assign_partitions(again, everything)
    assert {name: set(each) for name, each in settled.items()} == reading


def encoded(kind, *fields):
    names = [
        ("version", Int16),
        ("topics", Array(String("utf-8"))),
        ("user_data", Bytes),
        ("owned", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("generation", Int32),
        ("rack", String("utf-8")),
    ]
    made = type("Made", (Struct,), {"SCHEMA": Schema(*names[: len(fields) + 1])})
    return made(kind, *fields).encode()


def test_members_of_all_versions_are_understood():
    owned = [("t", [1, 0])]
    both = frozenset(partitions("t", 0, 1))
    assert Member.decode(encoded(0, ["t"], None)) == Member(("t",))
    assert Member.decode(encoded(1, ["t"], b"", owned)) == Member(("t",), both)
    generation = (6).to_bytes(4)
    assert Member.decode(encoded(1, ["t"], generation, owned)).generation == 6
    assert Member.decode(encoded(2, ["t"], b"", owned, 7)) == Member(("t",), both, 7)
    assert Member.decode(encoded(3, ["t"], b"", owned, 7, None)) == Member(("t",), both, 7)


def test_metadata_can_be_read_by_all_clients():
    sent = Member(("t", "u"), frozenset(partitions("u", 3, 2)), 5, b"more")
    assert Member.decode(sent.encode()) == sent
    basic = ConsumerProtocolMemberMetadata.decode(sent.encode())
    assert (basic.version, basic.subscription, basic.user_data) == (2, ["t", "u"], b"more")
    assert sent.encode() == encoded(2, ["t", "u"], b"more", [("u", [2, 3])], 5)


def test_the_leader_assigns_by_the_metadata_of_the_cluster():
    cluster = SimpleNamespace(partitions_for_topic={"t": {1, 0}}.get)
    assignor = CooperativeStickyAssignor()
    sent = {"a": member(["t"], partitions("t", 1)), "b": member(["t", "unknown"])}
    metadata = {
        name: ConsumerProtocol.METADATA.decode(each.encode()) for name, each in sent.items()
    }
    assignor.joined(sent)
    found = {name: each.partitions() for name, each in assignor.assign(cluster, metadata).items()}
    assert found == {"a": partitions("t", 1), "b": partitions("t", 0)}
    assert Member.decode(assignor.metadata({"u", "t"})) == Member(("t", "u"), user_data=b"")
