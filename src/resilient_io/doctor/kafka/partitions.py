"""Brokers and partitions: who leads, and whose copies are behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiokafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError

from resilient_io.doctor.looking import Finding, blind, merged, note, ok, problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .questions import Cluster, Partition

__all__ = ["look_at_brokers", "look_at_partitions"]

_NAMED: Final = 3


def look_at_brokers(cluster: Cluster) -> Finding:
    """Look which brokers the cluster has, and whether one is the controller."""
    nodes = sorted(cluster.brokers)
    data = {"cluster_id": cluster.id, "brokers": nodes, "controller": cluster.controller}
    count = "1 broker" if len(nodes) == 1 else f"{len(nodes)} brokers"
    found = f"{count} ({', '.join(map(str, nodes))})"
    if not nodes:
        return problem(
            "the cluster names no broker",
            "Look whether the controllers are up and have a majority.",
            **data,
        )
    if cluster.controller is None:
        return problem(
            f"{found}, and no controller",
            "Without one no leader is chosen and no topic is made: look whether a majority of the "
            "controllers is up.",
            **data,
        )
    expected = {node for partition in cluster.partitions for node in partition.replicas}
    missing = sorted(expected - set(nodes))
    if missing:
        data["missing"] = missing
        return problem(
            f"{found}; {_brokers(missing)} not there, though partitions have copies on them",
            "Bring them back, or give their partitions to others (kafka-reassign-partitions.sh).",
            **data,
        )
    return ok(f"{found}, controller {cluster.controller}", **data)


def _brokers(nodes: Sequence[int]) -> str:
    if len(nodes) == 1:
        return f"broker {nodes[0]} is"
    return f"brokers {', '.join(map(str, nodes))} are"


def look_at_partitions(cluster: Cluster) -> Finding:
    """Look at the partitions' leaders and copies."""
    partitions = cluster.partitions
    topics = {partition.at.topic for partition in partitions}
    leaderless = [each for each in partitions if each.leader < 0]
    behind = [
        each for each in partitions if each.leader >= 0 and len(each.in_sync) < len(each.replicas)
    ]
    single = sorted(
        {each.at.topic for each in partitions if len(each.replicas) == 1} - cluster.internal
    )
    data: dict[str, Any] = {
        "topics": len(topics),
        "partitions": len(partitions),
        "leaderless": [_written(each) for each in leaderless],
        "under_replicated": [_written(each) for each in behind],
        "single_copy": single,
    }
    findings = [_judge_error(cluster, name) for name in sorted(cluster.errors)]
    if leaderless:
        findings.append(
            problem(
                f"{_count(leaderless)} without a leader: {_some(leaderless)}",
                "Nothing is written to or read from them: bring back a broker that has a copy "
                f"({_nodes(node for each in leaderless for node in each.replicas)}).",
            )
        )
    if behind:
        late = {node for each in behind for node in each.replicas if node not in each.in_sync}
        findings.append(
            problem(
                f"{_count(behind)} with copies that are behind: {_some(behind)}",
                f"Look at {_nodes(late)}: its process, its disk, its network. With fewer copies "
                f"than min.insync.replicas writes with acks=all are refused.",
            )
        )
    if single and len(cluster.brokers) > 1:
        shown = ", ".join(single[:_NAMED]) + (", …" if len(single) > _NAMED else "")
        findings.append(
            note(
                f"topics with one copy only: {shown}",
                "They are away with their broker: give them more copies "
                "(kafka-reassign-partitions.sh).",
            )
        )
    if findings:
        return merged(findings, **data)
    if not partitions:
        return ok("no topics, or none that this user may see", **data)
    of = "1 topic" if len(topics) == 1 else f"{len(topics)} topics"
    return ok(f"{_count(partitions)} of {of}, all led and in sync", **data)


def _judge_error(cluster: Cluster, topic: str) -> Finding:
    error = cluster.errors[topic]
    if error is UnknownTopicOrPartitionError:
        return problem(
            f"there is no topic {topic}",
            "Make it, or look at its spelling; without Describe permission it looks the same.",
        )
    if error is TopicAuthorizationFailedError:
        return blind(
            f"no permission for topic {topic}", "Let the user Describe it: kafka-acls.sh --add."
        )
    return problem(f"topic {topic}: {error.__name__}", "Look at the brokers' log.")


def _written(partition: Partition) -> str:
    return f"{partition.at.topic}[{partition.at.partition}]"


def _count(partitions: Sequence[Partition]) -> str:
    return "1 partition" if len(partitions) == 1 else f"{len(partitions)} partitions"


def _some(partitions: Sequence[Partition]) -> str:
    more = f" and {len(partitions) - _NAMED} more" if len(partitions) > _NAMED else ""
    return ", ".join(map(_written, partitions[:_NAMED])) + more


def _nodes(nodes: Any) -> str:
    known = sorted(set(nodes))
    return f"broker {known[0]}" if len(known) == 1 else f"brokers {', '.join(map(str, known))}"
