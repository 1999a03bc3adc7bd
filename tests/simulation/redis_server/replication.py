"""Asynchronous replication from one server to another: full copies, then changed values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .database import SetValue, Value, copy_value
from .node import Node

if TYPE_CHECKING:
    from random import Random

    from tests.simulation.history import History

    from .node import Timers
    from .resp import Reply

MASTERDOWN = "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
STATE_CHANGED = (
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
)

Change = tuple[int, bytes, Value, int | None]  # database, key, value or None, expiry


class Link:
    """The connection of a replica to its master.

    Attributes:
        queue: What was sent and has not arrived: due time, offset and changes. None instead of
            changes is a full copy.
        acknowledged: The offset that the replica has applied.
        synchronized: Whether the full copy has arrived.
    """

    __slots__ = (
        "acknowledged",
        "closed",
        "held_until",
        "master",
        "queue",
        "replica",
        "synchronized",
    )

    def __init__(self, master: ReplicatedNode, replica: ReplicatedNode) -> None:
        self.master = master
        self.replica = replica
        self.queue: list[tuple[float, int, list[Change] | None, list[Change]]] = []
        self.acknowledged = 0
        self.synchronized = False
        self.closed = False
        self.held_until = 0.0

    def send(self, offset: int, changes: list[Change], *, full: bool = False) -> None:
        """Send changes, or a full copy."""
        replica = self.replica
        due = max(self.held_until, replica.timers.time() + replica.lag)
        self.queue.append((due, offset, None if full else changes, changes))
        replica.timers.at(due, self.deliver)

    def deliver(self) -> None:
        """Apply what has arrived."""
        replica = self.replica
        if self.closed or not self.queue:
            return
        if replica.stopped:
            replica.overdue.append(self.deliver)
            return
        now = replica.timers.time()
        while self.queue and self.queue[0][0] <= now and not self.closed:
            due, offset, changes, full = self.queue[0]
            if due < self.held_until:
                replica.timers.at(self.held_until, self.deliver)
                return
            del self.queue[0]
            if changes is None:
                replica.load_copy(full)
                self.synchronized = True
            else:
                replica.apply(changes)
            replica.offset = self.acknowledged = offset
        replica.propagate()
        replica.serve_ready()
        replica.finish()
        self.master.acknowledged()

    def lost_keys(self) -> list[str]:
        """Return the keys whose last changes have not arrived."""
        keys = {
            key.decode(errors="replace"): None
            for _, _, changes, _ in self.queue
            if changes is not None
            for _, key, _, _ in changes
        }
        return list(keys)


class ReplicatedNode(Node):
    """A server that can be a master and a replica.

    Attributes:
        master: The master that it was configured to follow, or None.
        link: The connection to it, or None while it cannot be reached.
        links: The connections of its replicas.
        offset: The replication offset.
        lag: Seconds until a change of the master arrives here.
        reconnect: Seconds between attempts to reach the master.
        directory: Servers by address, for REPLICAOF.
    """

    def __init__(
        self, name: str, timers: Timers, history: History, random: Random, databases: int
    ) -> None:
        super().__init__(name, timers, history, random, databases)
        self.master: ReplicatedNode | None = None
        self.link: Link | None = None
        self.links: list[Link] = []
        self.offset = 0
        self.lag = 0.001
        self.reconnect = 1.0
        self.directory: dict[str, ReplicatedNode] = {}
        self._diverged = False

    def replicate(self, master: ReplicatedNode | None) -> None:
        """Follow a master, or become one."""
        if self.link is not None:
            if master is None:
                lost = self.link.lost_keys()
                self.history.event(self.name, "promoted", lost=lost)
            self._unlink(self.link)
        elif master is None and self.master is not None:
            self.history.event(self.name, "promoted", lost=[])
        was_master = self.master is None
        self.master = master
        self.update_checks()
        if master is None:
            return
        self.history.event(self.name, "follows", master=master.name)
        if was_master:
            self._diverged = True
            self.unblock_all(STATE_CHANGED)
            self.finish()
        self._connect(master)

    def replicate_address(self, address: str | None) -> None:
        """Follow the master at an address of the directory, or become a master."""
        self.replicate(None if address is None else self.directory.get(address, self))

    def hold_replication(self, seconds: float) -> None:
        """Delay what the master sends for a time."""
        if self.link is not None:
            self.link.held_until = self.timers.time() + seconds

    def propagate(self) -> None:
        """Send the changes since the last call to the replicas."""
        journal = self.journal
        touched = journal.touched
        if not touched:
            return
        journal.touched = {}
        changes = []
        size = 0
        for index, key in touched:
            changes.append(self._change(index, key))
            size += 30 + len(key)
        if self.master is None:
            self.offset += size
        for link in self.links:
            link.send(self.offset, changes)

    def apply(self, changes: list[Change]) -> None:
        """Set keys to the values that the master sent."""
        for index, key, value, expires in changes:
            database = self.databases[index]
            if value is None:
                database.values.pop(key, None)
                database.expires.pop(key, None)
            else:
                database.values[key] = copy_value(value)
                if expires is None:
                    database.expires.pop(key, None)
                else:
                    database.expires[key] = expires
            database.touch(key)

    def load_copy(self, copy: list[Change]) -> None:
        """Replace all data by a full copy of the master's."""
        lost: dict[str, Any] = {}
        new = {(index, key): value for index, key, value, _ in copy}
        removed: list[Change] = []
        for database in self.databases:
            for key, value in database.values.items():
                if self._diverged:
                    missing = _missing(value, new.get((database.index, key)))
                    if missing:
                        lost[key.decode(errors="replace")] = missing
                if (database.index, key) not in new:
                    removed.append((database.index, key, None, None))
        self._diverged = False
        if lost:
            self.history.event(self.name, "writes lost", lost=lost)
        self.apply(removed + copy)

    def acknowledged(self) -> None:
        """Retry WAIT, because a replica has applied an offset."""
        if not self.running:
            return
        if self.stopped:
            self.overdue.append(self.acknowledged)
            return
        waits = [session.waiting for session in self.sessions.values() if session.waiting]
        if waits:
            for waiting in waits:
                if waiting.session.waiting is waiting and waiting.command.name == "WAIT":
                    self.retry(waiting)
            self.finish()

    def count_acknowledged(self, offset: int) -> int:
        """Return how many replicas have applied this offset."""
        return sum([one.synchronized and one.acknowledged >= offset for one in self.links])

    def role(self) -> Reply:
        """Return the reply to ROLE."""
        if self.master is None:
            replicas = []
            for link in self.links:
                host, _, port = link.replica.address.rpartition(":")
                replicas.append([host.encode(), port.encode(), b"%d" % link.acknowledged])
            return [b"master", self.offset, replicas]
        host, _, port = self.master.address.rpartition(":")
        return [b"slave", host.encode(), int(port), self._link_state(), self._seen_offset()]

    def replication_info(self) -> dict[str, object]:
        """Return the lines of INFO replication after the role."""
        facts: dict[str, object] = {}
        if self.master is not None:
            host, _, port = self.master.address.rpartition(":")
            state = self._link_state()
            facts |= {
                "master_host": host,
                "master_port": port,
                "master_link_status": "up" if state == b"connected" else "down",
                "master_sync_in_progress": int(state == b"sync"),
                "slave_repl_offset": self._seen_offset(),
                "slave_read_only": 1,
            }
        facts["connected_slaves"] = len(self.links)
        for number, link in enumerate(self.links):
            host, _, port = link.replica.address.rpartition(":")
            state = "online" if link.synchronized else "wait_bgsave"
            facts[f"slave{number}"] = (
                f"ip={host},port={port},state={state},offset={link.acknowledged},lag=0"
            )
        facts["master_replid"] = self.run_id
        facts["master_repl_offset"] = self.offset
        return facts

    def update_checks(self) -> None:
        """Note what may refuse commands."""

    def end_replication(self) -> None:
        """Close all links, because the process ends."""
        for link in list(self.links):
            lost = link.lost_keys()
            if lost:
                self.history.event(
                    self.name, "not replicated", replica=link.replica.name, keys=lost
                )
            self._unlink(link)
            link.replica.try_again(self)
        if self.link is not None:
            self._unlink(self.link)

    def try_again(self, master: ReplicatedNode) -> None:
        """Try to reach the master later."""
        generation = self.generation

        def again() -> None:
            if generation == self.generation and self.master is master and self.link is None:
                self._connect(master)

        self.timers.at(self.timers.time() + self.reconnect, again)

    def _connect(self, master: ReplicatedNode) -> None:
        if self.stopped or not master.running or master.stopped or master is self:
            self.try_again(master)
            return
        link = self.link = Link(master, self)
        master.propagate()
        master.links.append(link)
        master.journal.recording = True
        copy = [
            master._change(database.index, key)
            for database in master.databases
            for key in database.values
        ]
        link.send(master.offset, copy, full=True)

    def _unlink(self, link: Link) -> None:
        link.closed = True
        link.replica.link = None
        master = link.master
        if link in master.links:
            master.links.remove(link)
        if not master.links:
            master.journal.recording = False
            master.journal.touched = {}

    def _change(self, index: int, key: bytes) -> Change:
        database = self.databases[index]
        value = database.values.get(key)
        copied = None if value is None else copy_value(value)
        return index, key, copied, database.expires.get(key)

    def _link_state(self) -> bytes:
        if self.link is None:
            return b"connect"
        return b"connected" if self.link.synchronized else b"sync"

    def _seen_offset(self) -> int:
        return -1 if self.link is None else self.offset


def _missing(old: Value, new: Value) -> list[str]:
    """Return the elements of a value that its replacement does not have."""
    if isinstance(old, bytes):
        found = [old] if old != new else []
    elif isinstance(old, (list, SetValue)):
        found = [one for one in old if one not in (new or ())]
    elif isinstance(old, dict):
        kept = new if isinstance(new, dict) else {}
        found = [key for key, value in old.items() if kept.get(key) != value]
    else:
        kept = new.entries if new is not None and hasattr(new, "entries") else {}
        found = [part for key, part in old.entries.items() if key not in kept for part in part]
    return [str(one, errors="replace") for one in found]
