"""The simulated Redis server, driven directly: peers that collect bytes, and timers by hand."""

from __future__ import annotations

import heapq
from random import Random
from typing import Any

import hiredis
import pytest
from redis.asyncio.lock import Lock

from tests.simulation.history import ErrorReply, History
from tests.simulation.redis_server.replication import STATE_CHANGED
from tests.simulation.redis_server.scripts import (
    INCR_THEN_ERROR,
    SLOW,
    SLOW_AFTER_WRITE,
    sha1,
)
from tests.simulation.redis_server.server import OOM, RedisServer

SET_KEY = "set k v"


class Timers:
    """A clock that `run` moves."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._due: list[Any] = []
        self._count = 0

    def time(self) -> float:
        return self._now

    def at(self, when, callback, *args):
        self._count += 1
        entry = [when, self._count, callback, args]
        heapq.heappush(self._due, entry)
        return Handle(entry)

    def run(self, seconds: float) -> None:
        end = self._now + seconds
        while self._due and self._due[0][0] <= end:
            when, _, callback, args = heapq.heappop(self._due)
            if callback is not None:
                self._now = max(self._now, when)
                callback(*args)
        self._now = end


class Handle:
    def __init__(self, entry) -> None:
        self._entry = entry

    def cancel(self) -> None:
        self._entry[2] = None


class Client:
    """A peer that reads the replies."""

    def __init__(self, server: RedisServer, address: str = "10.9.0.1:40001") -> None:
        self.address = address
        self.data = b""
        self.ended = ""
        self._reader = hiredis.Reader(errors="replace")
        self.session = server.accept(self)

    def send(self, data: bytes) -> None:
        self.data += data
        self._reader.feed(data)

    def close(self) -> None:
        self.ended = "closed"

    def reset(self) -> None:
        self.ended = "reset"

    def write(self, *commands: str) -> None:
        self.session.receive(b"".join(pack(*command.split()) for command in commands))

    def replies(self) -> list[Any]:
        found = []
        while True:
            reply = self._reader.gets()
            if reply is False:
                return found
            found.append(f"-{reply}" if isinstance(reply, hiredis.ReplyError) else reply)

    def ask(self, *words: Any) -> Any:
        """Return the only reply to a command, given as one string or as words."""
        if len(words) == 1:
            words = words[0].split()
        self.session.receive(pack(*words))
        replies = self.replies()
        assert len(replies) == 1, replies
        return replies[0]


def pack(*words: Any) -> bytes:
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)
    return b"*%d\r\n%b" % (len(encoded), body)


class Setup:
    def __init__(self) -> None:
        self.timers = Timers()
        self.history = History(self.timers.time)

    def server(self, name: str = "a", **settings: Any) -> RedisServer:
        return RedisServer(name, self.timers, self.history, Random(1), **settings)

    def log(self) -> list[tuple[str, bool, Any, int | None]]:
        return [
            (b" ".join(one.words).decode(), one.applied, one.reply, one.transaction)
            for one in self.history.executions
        ]

    def events(self) -> list[str]:
        return [event.kind for event in self.history.events]


@pytest.fixture
def setup() -> Setup:
    return Setup()


# Input and output.


def test_server_reads_commands_cut_anywhere(setup):
    client = Client(setup.server())
    data = pack("SET", "k", "v") + pack("GET", "k") + pack("GET", "none")
    for at in range(len(data)):
        client.session.receive(data[at : at + 1])
    assert client.data == b"+OK\r\n$1\r\nv\r\n$-1\r\n"


def test_server_reads_inline_commands(setup):
    client = Client(setup.server())
    client.session.receive(b"PING\r\nset k v\r\n" + pack("GET", "k"))
    assert client.data == b"+PONG\r\n+OK\r\n$1\r\nv\r\n"


def test_server_closes_after_bytes_that_are_not_resp(setup):
    client = Client(setup.server())
    client.session.receive(b"*1\r\n$4\r\nPING\r\n*x\r\n")
    assert client.data.startswith(b"+PONG\r\n-ERR Protocol error")
    assert client.ended == "closed"


def test_hello_selects_the_protocol(setup):
    client = Client(setup.server())
    client.write("HELLO 3 SETNAME n", "HSET h a 1", "HGETALL h", "GET none", "SADD s x")
    client.write("SMEMBERS s", "CLIENT GETNAME")
    assert client.data.startswith(b"%7\r\n$6\r\nserver\r\n")
    assert client.data.endswith(
        b"%1\r\n$1\r\na\r\n$1\r\n1\r\n_\r\n:1\r\n~1\r\n$1\r\nx\r\n$1\r\nn\r\n"
    )


def test_server_requires_the_password(setup):
    client = Client(setup.server(requirepass="p", users={"u": "q"}))
    assert client.ask("GET k") == "-NOAUTH Authentication required."
    assert client.ask("AUTH wrong").startswith("-WRONGPASS")
    assert client.ask("HELLO 3").startswith("-NOAUTH HELLO must")
    assert isinstance(client.ask("HELLO 3 AUTH u q"), dict)
    assert b"user=u " in client.ask("CLIENT INFO")


def test_client_list_has_the_fields_that_the_client_reads(setup):
    client = Client(setup.server())
    client.ask("CLIENT SETNAME orders")
    line = client.ask("CLIENT LIST ID 1").decode()
    assert line.startswith("id=1 addr=10.9.0.1:40001 laddr=10.0.0.1:6379 fd=8 name=orders age=0 ")
    assert line.endswith("\n")


# The log.


def test_log_has_applied_and_refused_commands(setup):
    client = Client(setup.server())
    client.write(SET_KEY, "lpush k x", "get k", "nonsense a", "get")
    assert setup.log() == [
        ("SET k v", True, b"OK", None),
        (
            "LPUSH k x",
            False,
            ErrorReply("WRONGTYPE Operation against a key holding the wrong kind of value"),
            None,
        ),
        ("GET k", True, b"v", None),
        (
            "NONSENSE a",
            False,
            ErrorReply("ERR unknown command 'nonsense', with args beginning with: 'a' "),
            None,
        ),
        ("GET", False, ErrorReply("ERR wrong number of arguments for 'get' command"), None),
    ]


def test_transaction_is_logged_at_exec_with_one_number(setup):
    client = Client(setup.server())
    client.write("MULTI", SET_KEY, "incr k", "incr n")
    assert [words for words, *_ in setup.log()] == ["MULTI"]
    client.write("EXEC")
    entries = setup.log()[1:]
    assert [entry[:2] for entry in entries] == [
        ("SET k v", True),
        ("INCR k", False),
        ("INCR n", True),
        ("EXEC", True),
    ]
    assert len({entry[3] for entry in entries}) == 1
    assert entries[0][3] is not None


def test_exec_after_a_watched_key_changed_executes_nothing(setup):
    server = setup.server()
    one, two = Client(server), Client(server)
    one.ask("WATCH k")
    two.ask(SET_KEY)
    one.write("MULTI", "SET k mine", "EXEC")
    assert one.replies() == [b"OK", b"QUEUED", None]
    assert setup.log()[-1] == ("EXEC", False, None, None)
    assert server.data() == {"k": "v"}


def test_exec_fails_after_a_watched_key_expired(setup):
    server = setup.server()
    client = Client(server)
    client.write("SET k v PX 10", "WATCH k")
    setup.timers.run(0.02)
    client.write("MULTI", "PING", "EXEC")
    assert client.replies()[-1] is None


def test_refused_command_aborts_its_transaction(setup):
    server = setup.server()
    client = Client(server)
    client.write("MULTI", "GET", SET_KEY, "EXEC")
    assert client.replies()[-1].startswith("-EXECABORT")
    assert server.data() == {}


# Blocking commands.


def test_blocked_clients_are_served_in_their_order(setup):
    server = setup.server()
    first, second, third = Client(server), Client(server), Client(server)
    first.write("BLPOP l 0", "GET k")
    second.write("BLPOP other l 0")
    third.write("RPUSH l a b c")
    assert first.replies() == [[b"l", b"a"], None]
    assert second.replies() == [[b"l", b"b"]]
    assert third.replies() == [3]
    assert server.data() == {"l": ["c"]}
    assert [words for words, *_ in setup.log()] == [
        "RPUSH l a b c",
        "BLPOP l 0",
        "BLPOP other l 0",
        "GET k",
    ]


def test_blocking_move_wakes_the_next_client(setup):
    server = setup.server()
    mover, popper, pusher = Client(server), Client(server), Client(server)
    popper.write("BLPOP target 0")
    mover.write("BLMOVE source target LEFT RIGHT 0")
    pusher.write("LPUSH source x")
    assert mover.replies() == [b"x"]
    assert popper.replies() == [[b"target", b"x"]]


def test_blocking_command_times_out(setup):
    client = Client(setup.server())
    client.write("BLPOP l 0.5")
    setup.timers.run(0.4)
    assert client.data == b""
    setup.timers.run(0.2)
    assert client.data == b"*-1\r\n"
    assert setup.log() == [("BLPOP l 0.5", False, None, None)]


def test_client_unblock_ends_a_blocking_command(setup):
    server = setup.server()
    blocked, other = Client(server), Client(server)
    blocked.write("BLPOP l 0")
    assert other.ask("CLIENT UNBLOCK 1 ERROR") == 1
    assert blocked.replies() == ["-UNBLOCKED client unblocked via CLIENT UNBLOCK"]
    blocked.write("BLPOP l 0")
    assert server.unblock(1, error=False)
    assert blocked.replies() == [None]
    assert other.ask("CLIENT UNBLOCK 1") == 0


def test_lost_client_takes_nothing(setup):
    server = setup.server()
    blocked, other = Client(server), Client(server)
    blocked.write("BLPOP l 0")
    blocked.session.lost()
    other.ask("RPUSH l a")
    assert server.data() == {"l": ["a"]}


def test_stream_readers_wait_for_new_entries(setup):
    server = setup.server()
    reader, member, writer = Client(server), Client(server), Client(server)
    writer.ask("XGROUP CREATE st g $ MKSTREAM")
    reader.write("XREAD BLOCK 0 STREAMS st $")
    member.write("XREADGROUP GROUP g c BLOCK 0 STREAMS st >")
    writer.ask("XADD st 1-1 a b")
    entries = [[b"st", [[b"1-1", [b"a", b"b"]]]]]
    assert reader.replies() == [entries]
    assert member.replies() == [entries]
    assert writer.ask("XPENDING st g") == [1, b"1-1", b"1-1", [[b"c", b"1"]]]
    member.write("XREADGROUP GROUP g c BLOCK 0 STREAMS st >")
    writer.ask("XGROUP DESTROY st g")
    assert member.replies()[0].startswith("-NOGROUP")


# Scripts.


def test_lock_scripts_of_redis_py_are_known(setup):
    client = Client(setup.server())
    client.ask("SET lock token PX 1000")
    assert client.ask("EVAL", Lock.LUA_EXTEND_SCRIPT, 1, "lock", "token", 1000, "0") == 1
    assert client.ask("PTTL lock") == 2000
    assert client.ask("EVAL", Lock.LUA_REACQUIRE_SCRIPT, 1, "lock", "token", 500) == 1
    assert client.ask("PTTL lock") == 500
    name = client.ask("SCRIPT", "LOAD", Lock.LUA_RELEASE_SCRIPT).decode()
    assert name == sha1(Lock.LUA_RELEASE_SCRIPT.encode())
    assert client.ask("EVALSHA", name, 1, "lock", "other") == 0
    assert client.ask("EVALSHA", name, 1, "lock", "token") == 1
    assert client.ask("EXISTS lock") == 0


def test_error_of_a_script_after_a_write_counts_as_applied(setup):
    server = setup.server()
    client = Client(server)
    assert client.ask("EVAL", INCR_THEN_ERROR, 1, "n", "x") == "-LOADING x"
    assert setup.log()[-1][1:3] == (True, ErrorReply("LOADING x"))
    server.refuse_writes("OOM", 1.0)
    assert client.ask("EVAL", INCR_THEN_ERROR, 1, "n", "x").startswith("-OOM command not allowed")
    assert setup.log()[-1][1] is False
    assert server.data() == {"n": "1"}


def test_unknown_scripts_are_refused(setup):
    client = Client(setup.server())
    assert "not simulated" in client.ask("EVAL", "return 42", 0)
    assert client.ask("EVALSHA abc 0") == "-NOSCRIPT No matching script. Please use EVAL."


def test_slow_script_blocks_the_server_and_then_makes_it_busy(setup):
    server = setup.server()
    caller, other = Client(server), Client(server)
    caller.session.receive(pack("EVAL", SLOW, 0, "2", "done") + pack("PING"))
    other.write("PING")
    setup.timers.run(0.4)
    assert (caller.data, other.data) == (b"", b"")
    setup.timers.run(0.2)
    assert other.replies() == [
        "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
    ]
    assert other.ask("CLIENT SETNAME x").startswith("-BUSY")
    assert caller.data == b""
    setup.timers.run(2.0)
    assert caller.replies() == [b"done", b"PONG"]
    assert other.ask("PING") == b"PONG"


def test_slow_script_in_a_transaction_delays_its_reply(setup):
    server = setup.server()
    client = Client(server)
    client.write("MULTI", "INCR n")
    client.session.receive(pack("EVAL", SLOW_AFTER_WRITE, 1, "l", "2", "x") + pack("EXEC"))
    client.write("GET n")
    assert b"$1\r\nx" not in client.data
    setup.timers.run(1.9)
    assert b"$1\r\nx" not in client.data
    setup.timers.run(0.2)
    assert client.replies()[-2:] == [[1, b"x"], b"1"]


def test_script_kill_ends_a_script_that_only_reads(setup):
    server = setup.server()
    caller, other = Client(server), Client(server)
    caller.session.receive(pack("EVAL", SLOW, 0, "9", "done"))
    setup.timers.run(1.0)
    assert other.ask("SCRIPT KILL") == b"OK"
    assert caller.replies()[0].startswith("-ERR Script killed by user")
    caller.session.receive(pack("EVAL", SLOW_AFTER_WRITE, 1, "l", "9", "x"))
    setup.timers.run(1.0)
    assert other.ask("SCRIPT KILL").startswith("-UNKILLABLE")
    setup.timers.run(9.0)
    assert caller.replies() == [b"x"]
    assert other.ask("SCRIPT KILL").startswith("-NOTBUSY")
    assert server.data() == {"l": ["x"]}


# Faults.


def test_frozen_server_executes_its_input_in_order_when_it_continues(setup):
    server = setup.server()
    one, two, gone, reset = (Client(server) for _ in range(4))
    server.freeze(1.0)
    two.write("RPUSH l two")
    one.write("RPUSH l one")
    gone.write("RPUSH l gone")
    gone.session.lost()
    reset.write("RPUSH l reset")
    reset.session.lost(reset=True)
    late = Client(server)
    late.write("RPUSH l late", "CLIENT ID")
    never = Client(server)
    never.write("RPUSH l never")
    never.session.lost(reset=True)
    setup.timers.run(0.9)
    assert one.data == late.data == b""
    setup.timers.run(0.2)
    assert server.data() == {"l": ["two", "one", "gone", "late"]}
    assert late.replies() == [4, 5]
    assert gone.data == b""
    assert one.replies() == [2]


def test_freezes_that_overlap_end_with_the_last(setup):
    server = setup.server()
    client = Client(server)
    server.freeze(1.0)
    setup.timers.run(0.5)
    server.freeze(1.0)
    client.write("PING")
    setup.timers.run(0.7)
    assert client.data == b""
    setup.timers.run(0.4)
    assert client.data == b"+PONG\r\n"


def test_push_during_a_freeze_reaches_a_client_whose_timeout_passed(setup):
    server = setup.server()
    blocked, other = Client(server), Client(server)
    blocked.write("BLPOP l 0.5")
    server.freeze(1.0)
    other.write("RPUSH l x")
    setup.timers.run(1.1)
    assert blocked.replies() == [[b"l", b"x"]]


def test_killed_server_resets_and_starts_with_its_data(setup):
    server = setup.server()
    client, blocked = Client(server), Client(server)
    client.write(SET_KEY)
    blocked.write("BLPOP l 0.5")
    run_id = server.run_id
    server.kill()
    assert (client.ended, blocked.ended) == ("reset", "reset")
    assert server.accept(client) is None
    server.start(keep_data=True, loading=1.0)
    assert server.run_id != run_id
    again = Client(server)
    assert again.ask("CLIENT ID") == 1
    assert again.ask("GET k") == "-LOADING Redis is loading the dataset in memory"
    setup.timers.run(1.1)
    assert again.ask("GET k") == b"v"
    assert blocked.data == b""


def test_server_killed_silently_resets_old_connections_after_its_start(setup):
    server = setup.server()
    client = Client(server)
    client.ask(SET_KEY)
    server.kill(silently=True)
    client.write("PING")
    assert client.ended == ""
    server.start(keep_data=False)
    client.write("PING")
    assert client.ended == "reset"
    assert server.data() == {}
    assert "data lost" in setup.events()


@pytest.mark.parametrize("kind", ["OOM", "MISCONF", "NOREPLICAS", "READONLY"])
def test_server_refuses_writes_for_a_time(setup, kind):
    server = setup.server()
    client = Client(server)
    server.refuse_writes(kind, 1.0)
    assert client.ask(SET_KEY).startswith(f"-{kind} ")
    assert client.ask("GET k") is None
    assert (client.ask("PING") == b"PONG") is (kind != "MISCONF")
    client.write("MULTI", SET_KEY, "EXEC")
    assert client.replies()[-1].startswith("-EXECABORT")
    setup.timers.run(1.1)
    assert client.ask(SET_KEY) == b"OK"


def test_exec_of_queued_writes_is_refused(setup):
    server = setup.server()
    client = Client(server)
    client.write("MULTI", SET_KEY)
    server.refuse_writes("OOM", 1.0)
    client.write("EXEC", "EXEC")
    assert client.replies()[2:] == [
        f"-EXECABORT Transaction discarded because of: {OOM}",
        "-ERR EXEC without MULTI",
    ]
    assert server.data() == {}


def test_paused_server_executes_postponed_commands_later(setup):
    server = setup.server()
    client, reader = Client(server), Client(server)
    reader.ask("CLIENT PAUSE 1000 WRITE")
    client.write(SET_KEY, "GET k")
    assert reader.ask("GET k") is None
    assert client.data == b""
    setup.timers.run(1.1)
    assert client.replies() == [b"OK", b"v"]
    server.pause(1.0, "ALL")
    reader.write("PING")
    assert reader.data.count(b"PONG") == 0
    server.heal()
    assert reader.replies() == [b"PONG"]


def test_server_refuses_connections_above_its_limit(setup):
    server = setup.server()
    first = Client(server)
    server.limit_clients(1, 1.0)
    second = Client(server)
    assert second.data == b"-ERR max number of clients reached\r\n"
    assert second.ended == "closed"
    assert first.ask("PING") == b"PONG"
    setup.timers.run(1.1)
    assert Client(server).ask("PING") == b"PONG"


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("redis 7.0.15", "-NOPERM this user has no permissions to run the 'client|kill' command"),
        (
            "valkey 9.1.2",
            "-NOPERM User default has no permissions to run the 'client|kill' command",
        ),
    ],
)
def test_denied_commands_are_refused(setup, version, text):
    server = setup.server(version=version)
    client = Client(server)
    server.deny(("CLIENT|KILL",))
    assert client.ask("CLIENT KILL ID 5") == text
    assert client.ask("CLIENT ID") == 1
    server.deny(())
    assert client.ask("CLIENT KILL ID 5") == 0


def test_client_kill_drops_input_that_was_not_executed(setup):
    server = setup.server()
    victim, other = Client(server), Client(server)
    victim.write("BLPOP l 0", SET_KEY)
    assert other.ask("CLIENT KILL ID 1") == 1
    assert victim.ended == "closed"
    other.ask("RPUSH l x")
    assert server.data() == {"l": ["x"]}
    assert other.ask("CLIENT LIST ID 1") == b""


def test_hook_refuses_a_command_before_its_execution(setup):
    server = setup.server()
    client = Client(server)
    server.before = lambda session, command, words: ErrorReply("MOVED 1 10.0.0.2:6379")
    assert client.ask(SET_KEY) == "-MOVED 1 10.0.0.2:6379"
    assert server.data() == {}


# Keys and messages.


def test_expired_keys_are_recorded(setup):
    server = setup.server()
    client = Client(server)
    client.ask("SET k v PX 100")
    assert client.ask("PTTL k") == 100
    setup.timers.run(0.2)
    assert client.ask("GET k") is None
    event = setup.history.events[-1]
    assert (event.kind, event.facts["key"]) == ("expired", "k")
    assert event.facts["due"] == pytest.approx(1000.1)


def test_messages_reach_subscribers_as_pushes(setup):
    server = setup.server()
    new, old, publisher = Client(server), Client(server), Client(server)
    new.write("HELLO 3", "SUBSCRIBE a", "GET k")
    old.write("PSUBSCRIBE *")
    assert publisher.ask("PUBLISH a hello") == 2
    assert new.data.endswith(b"_\r\n>3\r\n$7\r\nmessage\r\n$1\r\na\r\n$5\r\nhello\r\n")
    assert old.data.endswith(b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\na\r\n$5\r\nhello\r\n")
    old.replies()
    assert "only (P|S)SUBSCRIBE" in old.ask("GET k")
    old.session.lost()
    assert publisher.ask("PUBLISH a hello") == 1


def test_scan_visits_every_key_once(setup):
    client = Client(setup.server())
    for number in range(35):
        client.ask(f"SET k{number} v")
    cursor, found = b"0", []
    while True:
        cursor, keys = client.ask(f"SCAN {cursor.decode()} COUNT 10")
        found += keys
        if cursor == b"0":
            break
    assert sorted(found) == sorted(f"k{number}".encode() for number in range(35))


def test_data_is_readable_and_sets_are_sorted(setup):
    server = setup.server()
    client = Client(server)
    client.write("SADD s b a", "HSET h f v", "ZADD z 2 m", "XADD st 1-1 a b", "SELECT 1", SET_KEY)
    assert server.data() == {
        "s": ["a", "b"],
        "h": {"f": "v"},
        "z": {"m": 2.0},
        "st": [("1-1", ["a", "b"])],
        "1/k": "v",
    }


# Replication.


def test_replica_follows_its_master(setup):
    master = setup.server("m")
    replica = setup.server("r", address="10.0.0.2:6379", lag=0.1)
    client, reader = Client(master), Client(replica)
    client.ask("SET before 1")
    replica.replicate(master)
    setup.timers.run(0.2)
    client.ask("RPUSH l a b")
    assert reader.ask("LLEN l") == 0
    setup.timers.run(0.2)
    assert replica.data() == {"before": "1", "l": ["a", "b"]}
    assert reader.ask(SET_KEY) == "-READONLY You can't write against a read only replica."
    assert reader.ask("BLPOP l 0").startswith("-READONLY")
    kind, host, port, state, offset = reader.ask("ROLE")
    assert (kind, host, port, state) == (b"slave", b"10.0.0.1", 6379, b"connected")
    assert client.ask("ROLE") == [b"master", offset, [[b"10.0.0.2", b"6379", b"%d" % offset]]]
    assert "slave0:ip=10.0.0.2,port=6379,state=online" in client.ask("INFO replication").decode()


def test_wait_counts_replicas(setup):
    master = setup.server("m")
    replica = setup.server("r", lag=0.1)
    replica.replicate(master)
    setup.timers.run(0.2)
    client = Client(master)
    client.write(SET_KEY, "WAIT 1 0", "PING")
    assert client.replies() == [b"OK"]
    setup.timers.run(0.2)
    assert client.replies() == [1, b"PONG"]
    client.write("WAIT 2 500")
    setup.timers.run(0.6)
    assert client.replies() == [1]


def test_demoted_master_unblocks_clients_and_loses_writes(setup):
    master = setup.server("m")
    replica = setup.server("r", address="10.0.0.2:6379", lag=0.1)
    replica.replicate(master)
    client, blocked = Client(master), Client(master)
    client.ask("RPUSH l a")
    setup.timers.run(0.3)
    blocked.write("BLPOP none 0")
    client.ask("RPUSH l b")
    replica.replicate(None)
    master.replicate(replica)
    assert blocked.replies() == [f"-{STATE_CHANGED}"]
    setup.timers.run(1.0)
    assert master.data() == replica.data() == {"l": ["a"]}
    lost = [event for event in setup.history.events if event.kind == "writes lost"]
    assert [event.facts["lost"] for event in lost] == [{"l": ["b"]}]
    assert Client(replica).ask(SET_KEY) == b"OK"
    setup.timers.run(0.3)
    assert master.data()["k"] == "v"


def test_replica_returns_to_a_restarted_master(setup):
    master = setup.server("m")
    replica = setup.server("r", serve_stale=False)
    replica.replicate(master)
    Client(master).ask(SET_KEY)
    setup.timers.run(0.1)
    master.kill()
    reader = Client(replica)
    assert reader.ask("GET k").startswith("-MASTERDOWN")
    master.start(keep_data=False)
    setup.timers.run(2.0)
    assert reader.ask("GET k") is None
    assert replica.data() == {}


def test_two_servers_with_the_same_seed_do_the_same():
    def run() -> str:
        setup = Setup()
        server = setup.server()
        client = Client(server)
        client.write("SADD s a b c d e f", "SPOP s", "SPOP s 2", "XADD st * a b", "RANDOMKEY")
        server.freeze(0.5)
        client.write("BLPOP l 1")
        setup.timers.run(3.0)
        setup.history.ending.data["a"] = server.data()
        return setup.history.digest()

    assert run() == run()
