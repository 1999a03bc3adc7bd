"""The slot table of a cluster: replies of all servers, redirections, ranges, stale answers."""

import asyncio
import gc
import time

import pytest
from redis.exceptions import InvalidResponse

from resilient_io.redis.cluster.slots import (
    SLOTS,
    AddressRules,
    Node,
    SlotTable,
    epoch_of,
    newest,
    read_table,
    starts,
)

_LONGEST_SLICE = 0.005


def _node(port, endpoint="10.0.0.1", **metadata):
    return [endpoint, port, f"{port:040x}", metadata]


def _shards(*shards):
    """Return a reply to CLUSTER SLOTS, for shards of a first slot, a last one, and nodes."""
    return [list(shard) for shard in shards]


def _two_shards(**metadata):
    return _shards(
        (0, 8191, _node(7001, **metadata), _node(7003, **metadata)),
        (8192, 16383, _node(7002, **metadata)),
    )


def _resp2(value):
    if isinstance(value, dict):
        return [_resp2(each) for pair in value.items() for each in pair]
    return [_resp2(each) for each in value] if isinstance(value, list) else value


def _as_bytes(value):
    if isinstance(value, dict):
        return {_as_bytes(key): _as_bytes(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_bytes(each) for each in value]
    return value.encode() if isinstance(value, str) else value


def _same(value):
    return value


def _read(reply, asked="seed", **options):
    return asyncio.run(read_table(reply, asked=asked, **options))


@pytest.mark.parametrize("text", [_same, _as_bytes], ids=["str", "bytes"])
@pytest.mark.parametrize("protocol", [_resp2, _same], ids=["resp2", "resp3"])
def test_a_reply_of_each_form_gives_the_same_table(protocol, text):
    zone = {"availability-zone": "eu-1"}
    table = _read(text(protocol(_two_shards(**zone))))
    first, second = table.slots[0], table.slots[SLOTS - 1]
    assert first.master == Node("10.0.0.1", 7001, f"{7001:040x}", "eu-1")
    assert [node.name for node in first.replicas] == ["10.0.0.1:7003"]
    assert second.master.port == 7002
    assert second.replicas == ()
    assert table.slots == [first] * 8192 + [second] * 8192
    assert table.owned == SLOTS
    assert [node.port for node in table.masters] == [7001, 7002]
    assert [node.port for node in table.replicas] == [7003]
    assert table.slots_of(("10.0.0.1", 7002)) == list(range(8192, SLOTS))


@pytest.mark.parametrize(
    ("endpoint", "address", "expected"),
    [
        ("node1.local", "10.0.0.1", "node1.local"),
        ("?", "10.0.0.1", "10.0.0.1"),  # it prefers names, and this node has none
        ("?", "", "seed"),
        ("", "10.0.0.1", "seed"),  # cluster-preferred-endpoint-type unknown-endpoint
        (None, "10.0.0.1", "seed"),
    ],
)
def test_the_preferred_endpoint_or_the_host_that_was_asked(endpoint, address, expected):
    reply = _shards((0, 1, _node(7001, endpoint, ip=address)))
    assert _read(reply).slots[1].master.address == (expected, 7001)


def test_nodes_without_a_port_for_this_client_are_left_out():
    """A client with TLS gets the port 0 of a node that has none with TLS."""
    table = _read(_shards((0, 8, _node(0)), (9, 16383, _node(7001), _node(0))))
    assert table.owned == SLOTS - 9
    assert list(table.nodes) == [("10.0.0.1", 7001)]


@pytest.mark.parametrize("kind", ["dict", "callable"])
def test_an_address_map_applies_to_nodes_and_redirections(kind):
    known = {("10.0.0.1", 7001): ("localhost", 17001)}
    mapping = known if kind == "dict" else lambda address: known.get(address, address)
    rules = AddressRules(address_map=mapping)
    table = _read(_two_shards(), rules=rules)
    assert table.slots[0].master.address == ("localhost", 17001)
    assert table.slots[0].replicas[0].address == ("10.0.0.1", 7003)
    assert rules.resolve("10.0.0.1", 7001, "seed") == ("localhost", 17001)
    assert rules.resolve("", 7001, "seed") == ("seed", 7001)


def test_a_function_names_the_zone_of_nodes_that_report_none():
    rules = AddressRules(zone_of=lambda node: f"zone of {node.port}")
    reply = _shards((0, 1, _node(7001, **{"availability-zone": "a"}), _node(7002)))
    assert [node.zone for node in _read(reply, rules=rules).nodes.values()] == ["a", "zone of 7002"]


def test_an_entry_without_nodes_leaves_slots_unowned():
    assert _read([[0, 8], [9, 9, ["h", 7001, "id", []]]]).owned == 1


@pytest.mark.parametrize(
    "reply", [["OK"], [[0]], [{"slots": 0, "id": 1}], 7, [[0, 99999, ["h", 1]]]]
)
def test_a_reply_of_another_form_is_an_error(reply):
    with pytest.raises(InvalidResponse, match="not a reply to CLUSTER SLOTS"):
        _read(reply)


def test_moved_changes_one_slot():
    table = _read(_two_shards())
    first, second = table.slots[0], table.slots[SLOTS - 1]
    assert table.move(3, second.master.address) is second
    assert table.slots[3] is second
    assert table.slots[:3] + table.slots[4:8192] == [first] * 8191


def test_moved_to_a_replica_makes_it_the_master_of_its_shard():
    table = _read(_two_shards())
    shard = table.move(0, ("10.0.0.1", 7003))
    assert [node.port for node in shard.nodes] == [7003, 7001]
    assert table.move(1, ("10.0.0.1", 7003)) is shard
    assert [node.port for node in table.masters] == [7002, 7003]
    back = table.move(0, ("10.0.0.1", 7001))
    assert [node.port for node in back.nodes] == [7001, 7003]


def test_moved_to_an_unknown_node_adds_it():
    table = _read(_two_shards())
    shard = table.move(0, ("new", 7009))
    assert shard.nodes == (Node("new", 7009),)
    assert table.nodes["new", 7009] is shard.master
    assert table.move(9000, ("new", 7009)) is shard


def test_ranges_start_where_the_shard_changes():
    table = _read(_two_shards())
    assert starts(table.slots) == [0, 8192]
    table.move(0, ("new", 7009))
    table.move(9000, ("new", 7009))
    assert starts(table.slots) == [0, 1, 8192, 9000, 9001]
    assert starts(SlotTable().slots) == [0]


def test_shards_that_have_not_changed_are_the_same_objects():
    known = _read(_two_shards())
    reply = _shards((0, 8191, _node(7001)), (8192, 16383, _node(7002)))
    table = _read(reply, known=known)
    assert table.slots[0] is not known.slots[0]
    assert table.slots[9000] is known.slots[9000]


def _owning(count, epoch=None):
    return _read(_shards((0, count - 1, _node(7001))), epoch=epoch) if count else SlotTable()


def test_an_older_answer_is_ignored():
    known = _owning(SLOTS, 5)
    assert newest([_owning(SLOTS, 4)], known) is None
    newer, older = _owning(SLOTS, 6), _owning(SLOTS, 5)
    assert newest([older, newer], known) is newer
    unknown = _owning(SLOTS)
    assert newest([unknown], known) is unknown


def test_an_answer_that_knows_far_fewer_slots_needs_a_second_one():
    known = _owning(SLOTS)
    assert newest([_owning(0)], known) is None
    assert newest([_owning(5000)], known) is None
    full = _owning(SLOTS)
    assert newest([_owning(10), full, _owning(SLOTS)], known) is full
    lost = _owning(6000)
    assert newest([lost, _owning(6000), full], known) is full
    assert newest([lost, _owning(6000)], known) is lost
    assert newest([_owning(0)]).owned == 0
    assert newest([], known) is None


def test_the_epoch_is_in_cluster_info():
    assert epoch_of(b"cluster_state:ok\r\ncluster_current_epoch:12\r\n") == 12
    assert epoch_of("cluster_state:ok") is None


def _large(nodes):
    count = nodes // 3
    bounds = [SLOTS * number // count for number in range(count + 1)]
    return _as_bytes(
        _shards(
            *(
                (bounds[at], bounds[at + 1] - 1, *map(_node, range(at * 3 + 1, at * 3 + 4)))
                for at in range(count)
            )
        )
    )


def _slices(reply):
    """Return the table, and the CPU seconds of each step of the best of three readings."""
    gc.disable()
    try:
        runs = [asyncio.run(_slices_in_real_time(reply)) for _ in range(3)]
    finally:
        gc.enable()
    return min(runs, key=lambda run: max(run[1]))


async def _slices_in_real_time(reply):
    reading = read_table(reply, asked="seed")
    steps = []
    while True:
        began = time.thread_time()
        try:
            reading.send(None)
        except StopIteration as stop:
            steps.append(time.thread_time() - began)
            return stop.value, steps
        steps.append(time.thread_time() - began)
        await asyncio.sleep(0)


def test_a_reply_of_a_thousand_nodes_is_read_in_slices():
    table, steps = _slices(_large(1000))
    assert len(table.nodes) == 999
    assert table.owned == SLOTS
    assert len(steps) > 1
    assert max(steps) <= _LONGEST_SLICE
    assert sum(steps) <= 0.05


def test_each_slot_alone_is_read_in_slices():
    reply = [
        [slot, slot, *nodes]
        for first, last, *nodes in _large(100)
        for slot in range(first, last + 1)
    ]
    table, steps = _slices(reply)
    assert table.owned == SLOTS
    assert max(steps) <= _LONGEST_SLICE


def test_other_tasks_run_and_cancelling_ends_the_reading():
    async def cancel():
        task = asyncio.create_task(read_table(_large(3000), asked="seed"))
        await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
