"""What becomes of each message that aiokafka logs and that our filter suppresses.

aiokafka's records from INFO on are counted and dropped (`resilient_io.kafka.log_filter`). `ALL`
lists them, with the way in which the fact behind each message reaches the application. A test fails
when a version of aiokafka has a message that is not in the list: read its code, and decide.
"""

import ast
import importlib.util
import pkgutil
import re
from pathlib import Path

import aiokafka
import pytest

ROOT = Path(__file__).parents[3]

# How a fact reaches the application. A fact about records that are not read, or read from another
# offset, needs a test, which is named behind the arrow.

RECORDS_LOST = (
    "log record records_lost, health, counters, on_gap -> "
    "tests/live/kafka/consumer/test_positions.py::"
    "test_records_that_remain_after_a_deletion_are_read_and_the_gap_is_reported"
)
_UNREADABLE = (
    "tests/live/kafka/consumer/test_unreadable_topics.py::"
    "test_topics_that_cannot_be_read_are_reported"
)
HIDDEN = f"raised to the reader, and health is DEGRADED (auth) -> {_UNREADABLE}"
MISSING = f"log record topic_missing; a producer raises UnknownTopicOrPartition -> {_UNREADABLE}"
STALLED = (
    "health is DEGRADED (stalled, with this message) if it lasts for stalled_after -> "
    "tests/unit/kafka/consumer/test_stalled_partitions.py::"
    "test_a_partition_whose_fetches_fail_is_reported_with_aiokafkas_reason"
)
LISTENER = (
    "the instance is replaced, with a log record driver_closed -> "
    "tests/unit/kafka/consumer/test_rebalance_listener.py::"
    "test_failure_of_a_rebalance_is_reported_and_raised"
)
INSTANCE = (
    "the instance is replaced, with a log record driver_closed -> "
    "tests/unit/kafka/test_supervisor.py::"
    "test_driver_whose_background_task_died_is_replaced"
)
COMMIT = (
    "the counter commits_failed; log record commit_refused if it is permanent -> "
    "tests/unit/kafka/consumer/test_commits.py::"
    "test_a_commit_that_crashes_in_the_driver_is_logged_once_and_not_raised"
)

# Facts that end a call or an outage, and cost no record.
PROBE = "the probe finds the outage itself; health is DOWN or DEGRADED"
RAISED = "the call, the iteration or `run` ends with the error"
DELIVERY = "sent again within the delivery timeout, then the record fails with its error"
MEMBERSHIP = "events: membership in doubt, partitions lost or revoked, partitions assigned"
CLOSING = "while closing; the group removes the member when its session expires"
BALANCE = "the assignor continues; at worst the assignment is less even"

# Nothing is wrong, or the code does not run.
PROGRESS = "nothing is wrong"
CONFIGURED = "follows from the options that the application has passed"
EXCLUDED = "not reached: excluded by the options and the methods that this package uses"

MESSAGES = {
    ("admin.client", "INFO", "AIOKafkaAdminClient already closed."): EXCLUDED,
    ("client", "ERROR", 'Unable connect to "%s:%s": %s'): PROBE,
    ("client", "WARNING", 'Unable to request metadata from "%s:%s": %s'): PROBE,
    ("client", "WARNING", "Unable to request metadata from node with id %s: %r"): PROBE,
    ("client", "ERROR", "Unable to update metadata from %s"): PROBE,
    ("client", "ERROR", "Unable connect to node with id %s: %s"): PROBE,
    ("cluster", "WARNING", "No broker metadata found in MetadataResponse -- ignoring."): PROBE,
    ("cluster", "WARNING", "Topic %s is not available during auto-create initialization"): MISSING,
    ("cluster", "ERROR", "Topic %s not found in cluster metadata"): MISSING,
    ("cluster", "ERROR", "Topic %s is not authorized for this client"): HIDDEN,
    # The names of a consumer's topics are checked when it is created.
    ("cluster", "ERROR", "'%s' is not a valid topic name"): RAISED,
    ("cluster", "ERROR", "Error fetching metadata for topic %s: %s"): MISSING,
    ("conn", "WARNING", "Sending username and password in the clear"): CONFIGURED,
    ("conn", "INFO", "Authenticated as %s via GSSAPI"): PROGRESS,
    ("conn", "INFO", "Authenticated via OAUTHBEARER"): PROGRESS,
    ("conn", "INFO", "Authenticated as %s via %s"): PROGRESS,
    ("conn", "ERROR", "Unexpected exception in AIOKafkaConnection"): PROBE,
    ("conn", "WARNING", "Kafka 0.8.2 quirk -- …"): EXCLUDED,
    ("conn", "WARNING", "socket.inet_pton not available on this platform. …"): EXCLUDED,
    ("consumer.consumer", "INFO", "Subscribed to topic pattern: %s"): PROGRESS,
    ("consumer.consumer", "INFO", "Subscribed to topic(s): %s"): PROGRESS,
    ("consumer.consumer", "INFO", "Unsubscribed all topics or patterns and …"): EXCLUDED,
    ("consumer.consumer", "ERROR", "error in consumer iterator: %s"): EXCLUDED,
    ("consumer.fetcher", "WARNING", "Unrecognized ``auto_offset_reset`` config, …"): EXCLUDED,
    ("consumer.fetcher", "ERROR", "Unexpected error in fetcher routine"): INSTANCE,
    ("consumer.fetcher", "ERROR", "Failed fetch messages from %s: %s"): STALLED,
    # Records are fetched from the leader instead.
    (
        "consumer.fetcher",
        "WARNING",
        "client_rack is set to %r but broker …",
    ): PROGRESS,
    (
        "consumer.fetcher",
        "INFO",
        "Fetch offset %s is out of range for …",
    ): RECORDS_LOST,
    ("consumer.fetcher", "WARNING", "Not authorized to read from topic %s."): HIDDEN,
    ("consumer.fetcher", "WARNING", "Unexpected error while fetching data: %s"): STALLED,
    ("consumer.fetcher", "ERROR", "Failed fetch offsets from %s: %s"): STALLED,
    ("consumer.fetcher", "WARNING", "Received unknown topic or partition error in …"): STALLED,
    ("consumer.fetcher", "WARNING", "Attempt to fetch offsets for partition %s failed …"): STALLED,
}
GROUP_MESSAGES = {
    ("INFO", "Metadata for topic has changed from %s to %s. "): PROGRESS,
    ("ERROR", "Error sending %s to node %s [%s] -- marking coordinator dead"): PROBE,
    ("ERROR", "LeaveGroup request failed: %s"): CLOSING,
    ("INFO", "LeaveGroup request succeeded"): PROGRESS,
    ("ERROR", "OffsetCommit failed before join, ignoring: %s"): EXCLUDED,
    ("INFO", "Revoking previously assigned partitions %s for group %s"): PROGRESS,
    ("ERROR", "User provided subscription listener %s for group %s failed …"): LISTENER,
    ("INFO", "Setting newly assigned partitions %s for group %s"): PROGRESS,
    ("ERROR", "User provided listener %s for group %s failed on partition …"): LISTENER,
    ("WARNING", "Marking the coordinator dead (node %s)for group %s."): PROBE,
    ("ERROR", "Group Coordinator Request failed: %s"): RAISED,
    ("INFO", "Discovered coordinator %s for group %s"): PROGRESS,
    ("ERROR", "Unexpected error in coordinator routine"): INSTANCE,
    ("ERROR", "Failed to commit on finallization: %s"): EXCLUDED,
    ("ERROR", "Heartbeat session expired - marking coordinator dead"): MEMBERSHIP,
    ("ERROR", "Heartbeat send request failed: %s. Will retry."): MEMBERSHIP,
    ("WARNING", "Heartbeat failed for group %s: coordinator (node %s) is …"): MEMBERSHIP,
    ("WARNING", "Heartbeat failed for group %s because it is rebalancing"): MEMBERSHIP,
    ("WARNING", "Heartbeat failed for group %s: generation id is not  current."): MEMBERSHIP,
    ("WARNING", "Heartbeat failed: local member_id was not recognized; …"): MEMBERSHIP,
    ("ERROR", "Heartbeat failed: %r"): RAISED,
    ("WARNING", "Auto offset commit failed: %s"): EXCLUDED,
    ("ERROR", "OffsetCommit failed for group %s - %s"): COMMIT,
    ("INFO", "OffsetCommit failed for group %s on partition %s due to %s, will …"): COMMIT,
    ("INFO", "OffsetCommit failed for group %s because group is initializing …"): COMMIT,
    ("INFO", "OffsetCommit failed for group %s due to a coordinator error …"): COMMIT,
    ("ERROR", "OffsetCommit failed for group %s due to group error (%s), will …"): COMMIT,
    ("ERROR", "OffsetCommit failed for group %s on partition %s with offset …"): COMMIT,
    ("ERROR", "OffsetCommit failed for unauthorized topics %s"): COMMIT,
    # Brokers answer so only if offsets are stored in ZooKeeper.
    ("WARNING", "OffsetFetchRequest -- unknown topic %s"): EXCLUDED,
    ("ERROR", "Unknown error fetching offsets for %s: %s"): RAISED,
    ("INFO", "(Re-)joining group %s"): PROGRESS,
    ("INFO", "Joined group '%s' (generation %s) with member_id %s"): PROGRESS,
    ("INFO", "Elected group leader -- performing partition assignments …"): PROGRESS,
    ("ERROR", "Attempt to join group failed due to fatal error: %s"): RAISED,
    ("ERROR", "Unexpected error in join group '%s' response: %s"): RAISED,
    ("INFO", "Successfully synced group %s with generation %s"): PROGRESS,
    ("ERROR", "Unexpected error from SyncGroup: %s"): RAISED,
}
STICKY = "coordinator.assignors.sticky.sticky_assignor"
ASSIGNOR_MESSAGES = {
    # The leader of the group may not see the topic, or it does not exist.
    ("coordinator.assignors.range", "WARNING", "No partition metadata for topic %s"): HIDDEN,
    ("coordinator.assignors.roundrobin", "WARNING", "No partition metadata for topic %s"): HIDDEN,
    (STICKY, "WARNING", "No partition metadata for topic %s"): HIDDEN,
    (STICKY, "WARNING", "No partition metadata for topic %r"): HIDDEN,
    (STICKY, "WARNING", "Partition %r is assigned to multiple consumers following …"): BALANCE,
    (STICKY, "ERROR", "Partition %r is assigned to more than one consumer"): BALANCE,
    (STICKY, "ERROR", "The consumer %r is assigned more partitions than the …"): BALANCE,
    (STICKY, "ERROR", "Expected more than one potential consumer for partition %r"): BALANCE,
    (STICKY, "ERROR", "Expected partition %r to be assigned to a consumer"): BALANCE,
    (STICKY, "ERROR", "Could not parse member data: %r"): BALANCE,
}
OTHER_MESSAGES = {
    ("consumer.subscription_state", "INFO", "Updating subscribed topics to: %s"): PROGRESS,
    # Called by the application, whose log records are not filtered.
    ("helpers", "INFO", "Loading SSL CA from %s"): EXCLUDED,
    ("helpers", "INFO", "Loading SSL CA from data provided in `cadata`"): EXCLUDED,
    ("helpers", "INFO", "Loading SSL Cert from %s"): EXCLUDED,
    ("helpers", "INFO", "Loading SSL Key from %s with password"): EXCLUDED,
    ("helpers", "INFO", "Loading SSL Key from %s without password"): EXCLUDED,
    ("producer.sender", "ERROR", "Unexpected error in sender routine"): INSTANCE,
    ("producer.sender", "ERROR", "FindCoordinator Request failed: %s"): INSTANCE,
    ("producer.sender", "INFO", "Discovered coordinator %s for group id %s"): PROGRESS,
    ("producer.sender", "INFO", "Discovered coordinator %s for transactional id %s"): PROGRESS,
    ("producer.sender", "WARNING", "Cannot send %r to %s: %r"): DELIVERY,
    ("producer.sender", "WARNING", "Could not send %r: %r"): DELIVERY,
    ("producer.sender", "ERROR", "Unexpected error during InitProducerIdRequest: %s"): INSTANCE,
    ("producer.sender", "ERROR", "Could not add partition %s due to unexpected …"): INSTANCE,
    ("producer.sender", "ERROR", "Could not add consumer group due to unexpected …"): INSTANCE,
    ("producer.sender", "ERROR", "Could not commit offset for partition %s due to …"): INSTANCE,
    ("producer.sender", "ERROR", "Could not end transaction due to unexpected error: %s"): INSTANCE,
    ("producer.sender", "WARNING", "Got error produce response: %s"): DELIVERY,
    ("producer.sender", "WARNING", "Got error produce response on topic-partition …"): DELIVERY,
}
MOVEMENTS = "coordinator.assignors.sticky.partition_movements"
ALL = {
    **MESSAGES,
    **{("consumer.group_coordinator", *key): way for key, way in GROUP_MESSAGES.items()},
    **ASSIGNOR_MESSAGES,
    (MOVEMENTS, "ERROR", "Stickiness is violated for topic %r\nPartition …"): BALANCE,
    (MOVEMENTS, "ERROR", "A cycle of length %d was found: %r"): BALANCE,
    **OTHER_MESSAGES,
}

_LEVELS = {"exception": "ERROR", "warn": "WARNING"}
_METHODS = ("info", "warning", "warn", "error", "exception", "critical", "log")


def messages_of(source):
    """Return level and message of each call of a logger from INFO on."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, method = ast.unparse(node.func.value), node.func.attr
            if method in _METHODS and re.fullmatch(r"(.*\.)?_?log(ger)?", owner):
                message = node.args[0]
                assert isinstance(message, ast.Constant), ast.unparse(node)
                found.append((_LEVELS.get(method, method.upper()), message.value))
    return found


def messages_of_aiokafka():
    found = []
    for module in pkgutil.walk_packages(aiokafka.__path__, "aiokafka."):
        origin = importlib.util.find_spec(module.name).origin
        if origin.endswith(".py"):
            name = module.name.removeprefix("aiokafka.")
            found += [(name, *each) for each in messages_of(Path(origin).read_text())]
    return found


def matches(key, found):
    """Compare a key of the table, whose message may end with "…", with a message."""
    begin = key[2].removesuffix("…")
    return key[:2] == found[:2] and (
        found[2].startswith(begin) if begin != key[2] else found[2] == begin
    )


FOUND = messages_of_aiokafka()


def test_each_message_of_aiokafka_is_in_the_table_once():
    assert len(FOUND) > 90
    unknown = [each for each in FOUND if sum(matches(key, each) for key in ALL) != 1]
    assert unknown == [], "what tells the application of this, now that it is not logged?"


def test_the_table_has_no_message_that_aiokafka_does_not_have():
    assert [key for key in ALL if not any(matches(key, each) for each in FOUND)] == []


def test_messages_are_found_in_each_form():
    source = """
log.info("a %s", 1)
class A:
    def f(self):
        self._log.exception("b" " c")
        log.debug("d")
        self.logger.warn("e")
        math.log("f")
"""
    assert messages_of(source) == [("INFO", "a %s"), ("ERROR", "b c"), ("WARNING", "e")]


@pytest.mark.parametrize("way", sorted({way for way in ALL.values() if " -> " in way}))
def test_the_test_that_proves_a_way_exists(way):
    page, _, name = way.rpartition(" -> ")[2].partition("::")
    assert re.search(rf"^async def {name}\(|^def {name}\(", (ROOT / page).read_text(), re.MULTILINE)
