"""What a Redis server's account of itself means."""

import ssl

import pytest
from redis import exceptions as driver

from resilient_io.doctor import Status
from resilient_io.doctor.looking import blind
from resilient_io.doctor.redis.account import Unanswered, read_info
from resilient_io.doctor.redis.load import look_at_load, look_at_slow_log
from resilient_io.doctor.redis.login import judge_login
from resilient_io.doctor.redis.saving import look_at_persistence
from resilient_io.doctor.redis.standing import (
    look_at_clients,
    look_at_memory,
    look_at_role,
    look_at_server,
)

MIB = 1 << 20


class Server:
    """Answers as an `Account` does: INFO, settings, and other commands by their words."""

    def __init__(self, info=None, settings=None, **answers):
        self._info = info
        self._settings = settings
        self._answers = {name.replace("_", " "): answer for name, answer in answers.items()}

    async def info(self):
        if self._info is None:
            raise Unanswered(blind("no permission for INFO"))
        return {name: str(value) for name, value in self._info.items()}

    async def config(self, name):
        return None if self._settings is None else self._settings.get(name)

    async def ask(self, *command):
        answer = self._answers.get(" ".join(map(str, command[:2])), self._answers.get(command[0]))
        if answer is None:
            raise Unanswered(blind(f"no permission for {command[0]}"))
        return answer


def test_info_is_read_line_by_line():
    text = "# Server\r\nredis_version:7.0.15\r\nos:Linux 6: x\r\n\r\n# Clients\r\nmaxclients:10\r\n"
    assert read_info(text) == {"redis_version": "7.0.15", "os": "Linux 6: x", "maxclients": "10"}


async def test_a_server_says_what_it_is():
    found = await look_at_server(
        Server({"redis_version": "7.0.15", "redis_mode": "standalone", "uptime_in_seconds": 7300})
    )
    assert (found.status, found.found) == (Status.OK, "Redis 7.0.15, standalone, up for 2 h")
    found = await look_at_server(
        Server(
            {
                "redis_version": "7.2.4",
                "valkey_version": "9.1.0",
                "redis_mode": "standalone",
                "uptime_in_seconds": 864000,
            }
        )
    )
    assert found.found == "Valkey 9.1.0, standalone, up for 10 d"


async def test_a_server_that_has_just_been_restarted_is_noted():
    found = await look_at_server(Server({"redis_version": "7.0.15", "uptime_in_seconds": 40}))
    assert found.status is Status.NOTE
    assert "started 40 s ago" in found.found


async def test_a_sentinel_is_no_server_with_data():
    masters = [[b"name", b"main", b"ip", b"10.0.0.7", b"port", b"6379", b"flags", b"master"]]
    found = await look_at_server(
        Server({"redis_version": "7.0.15", "redis_mode": "sentinel"}, SENTINEL_MASTERS=masters)
    )
    assert found.status is Status.PROBLEM
    assert "it watches main at 10.0.0.7:6379" in found.found
    assert "master_for" in found.advice


@pytest.mark.parametrize(
    ("said", "status", "word"),
    [
        ("cluster_state:fail\r\ncluster_slots_ok:100\r\n", Status.PROBLEM, "100 of 16384"),
        ("cluster_state:ok\r\ncluster_known_nodes:6\r\n", Status.PROBLEM, "one of the 6 nodes"),
        ("cluster_state:ok\r\ncluster_known_nodes:1\r\n", Status.OK, "a cluster of one node"),
    ],
)
async def test_a_node_of_a_cluster(said, status, word):
    info = {"redis_version": "7.0.15", "redis_mode": "cluster", "uptime_in_seconds": 9999}
    found = await look_at_server(Server(info, CLUSTER_INFO=said.encode()))
    assert found.status is status
    assert word in found.found


REPLICA = {"role": "slave", "master_host": "10.0.0.1", "master_port": 6379}


@pytest.mark.parametrize(
    ("info", "status", "word"),
    [
        ({"role": "master"}, Status.OK, "without replicas"),
        (
            {"role": "master", "slave0": "ip=10.0.0.2,port=1,state=online,offset=1,lag=1"},
            Status.OK,
            "1 replica up to date",
        ),
        (
            {
                "role": "master",
                "slave_repl_offset": 1,
                "slave0": "ip=10.0.0.2,port=1,state=online,offset=1,lag=40",
                "slave1": "ip=10.0.0.3,port=1,state=online,offset=1,lag=0",
            },
            Status.NOTE,
            "1 of 2 replicas",
        ),
        (
            {"role": "master", "slave0": "ip=10.0.0.2,port=1,state=wait_bgsave,offset=1,lag=0"},
            Status.NOTE,
            "1 of 1 replicas",
        ),
        (REPLICA | {"master_link_status": "up"}, Status.PROBLEM, "READONLY"),
        (
            REPLICA | {"master_link_status": "up", "slave_read_only": 0},
            Status.PROBLEM,
            "takes writes",
        ),
        (
            REPLICA | {"master_link_status": "down", "master_link_down_since_seconds": 300},
            Status.PROBLEM,
            "lost its master 10.0.0.1:6379 for 5 min",
        ),
    ],
)
async def test_the_role_of_a_server(info, status, word):
    found = await look_at_role(Server(info))
    assert found.status is status
    assert word in found.found
    if info["role"] == "slave" and status is Status.PROBLEM and "lost" not in word:
        assert "10.0.0.1:6379" in found.advice


async def test_the_role_is_asked_in_another_way_where_info_is_forbidden():
    found = await look_at_role(Server(ROLE=[b"slave", b"10.0.0.1", 6379, b"connected", 5]))
    assert (found.status, found.data["link"]) == (Status.PROBLEM, "up")
    found = await look_at_role(Server(ROLE=[b"master", 5, []]))
    assert found.status is Status.OK
    with pytest.raises(Unanswered):
        await look_at_role(Server())


@pytest.mark.parametrize(
    ("used", "limit", "policy", "status", "word"),
    [
        (10, 0, "noeviction", Status.NOTE, "without a limit"),
        (10, 100, "noeviction", Status.OK, "10%"),
        (80, 100, "noeviction", Status.NOTE, "80%"),
        (95, 100, "noeviction", Status.PROBLEM, "soon it will refuse"),
        (101, 100, "noeviction", Status.PROBLEM, "refuses writes now (OOM)"),
        (101, 100, "allkeys-lru", Status.OK, "allkeys-lru"),
    ],
)
async def test_memory_is_judged_by_limit_and_policy(used, limit, policy, status, word):
    info = {"used_memory": used * MIB, "maxmemory": limit * MIB, "maxmemory_policy": policy}
    found = await look_at_memory(Server(info))
    assert found.status is status
    assert word in found.found


async def test_evictions_and_fragmentation_are_noted():
    info = {"used_memory": MIB, "maxmemory": 100 * MIB, "maxmemory_policy": "allkeys-lru"}
    found = await look_at_memory(Server(info | {"evicted_keys": 12}))
    assert found.status is Status.NOTE
    assert "12 keys were evicted" in found.found
    big = {"mem_fragmentation_ratio": 2.5, "used_memory_rss": 800 * MIB}
    assert "2.5 times" in (await look_at_memory(Server(info | big))).found
    small = {"mem_fragmentation_ratio": 9.5, "used_memory_rss": 8 * MIB}
    assert (await look_at_memory(Server(info | small))).status is Status.OK


@pytest.mark.parametrize(
    ("info", "settings", "status", "word"),
    [
        ({"aof_enabled": 1}, {"save": ""}, Status.OK, "AOF is on"),
        ({}, {"save": ""}, Status.NOTE, "loses everything"),
        ({"rdb_changes_since_last_save": 7}, {"save": "3600 1"}, Status.OK, "7 changes"),
        ({}, None, Status.OK, "unknown"),
        (
            {"rdb_last_bgsave_status": "err"},
            {"stop-writes-on-bgsave-error": "yes"},
            Status.PROBLEM,
            "it refuses writes (MISCONF)",
        ),
        (
            {"rdb_last_bgsave_status": "err"},
            {"stop-writes-on-bgsave-error": "no"},
            Status.NOTE,
            "failed",
        ),
        ({"rdb_last_bgsave_status": "err"}, None, Status.PROBLEM, "may refuse writes"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, {}, Status.PROBLEM, "MISCONF"),
        (
            {"loading": 1, "loading_eta_seconds": 90, "loading_loaded_perc": 40.2},
            {},
            Status.PROBLEM,
            "(40%, 90 s to go)",
        ),
    ],
)
async def test_persistence(info, settings, status, word):
    found = await look_at_persistence(Server(info, settings))
    assert found.status is status
    assert word in found.found


@pytest.mark.parametrize(
    ("info", "settings", "status", "word"),
    [
        ({"connected_clients": 5, "maxclients": 100}, None, Status.OK, "5 of 100"),
        ({"connected_clients": 95, "maxclients": 100}, None, Status.PROBLEM, "95 of 100"),
        ({"connected_clients": 95}, {"maxclients": "100"}, Status.PROBLEM, "95 of 100"),
        ({"connected_clients": 5}, None, Status.OK, "5 of ?"),
        (
            {"connected_clients": 5, "maxclients": 100, "rejected_connections": 3},
            None,
            Status.NOTE,
            "turned 3 away",
        ),
        ({"x": 1}, None, Status.BLIND, "does not say"),
    ],
)
async def test_connections_are_counted_against_their_limit(info, settings, status, word):
    found = await look_at_clients(Server(info, settings))
    assert found.status is status
    assert word in found.found


def slow(seconds, ago, *command):
    return [
        1,
        1_000_000 - ago,
        int(seconds * 1e6),
        [c.encode() for c in command],
        b"1.2.3.4:5",
        b"n",
    ]


NOW = [b"1000000", b"0"]


async def test_the_slow_log_names_commands_and_never_their_arguments():
    entries = [
        slow(1.5, 30, "KEYS", "secret:*"),
        slow(0.3, 60, "eval", "return 'secret'", "0"),
        slow(9.0, 7200, "FLUSHALL"),
        slow(0.02, 10, "GET", "secret"),
    ]
    found = await look_at_slow_log(Server(SLOWLOG_GET=entries, TIME=NOW))
    assert found.status is Status.PROBLEM
    assert "KEYS 1.5 s (30 s ago), EVAL 0.3 s (60 s ago)" in found.found
    assert "SCAN instead of KEYS" in found.advice
    assert "FLUSHALL" not in found.found
    assert "secret" not in repr(found)
    assert found.data["last_hour"][0] == {"command": "KEYS", "seconds": 1.5, "ago": 30}


async def test_what_is_no_name_of_a_command_is_not_shown():
    entries = [slow(0.2, 1, "p4ss word\n"), slow(0.3, 1, "hunter2" * 9)]
    found = await look_at_slow_log(Server(SLOWLOG_GET=entries, TIME=NOW))
    assert found.status is Status.NOTE
    assert "p4ss" not in repr(found)
    assert "hunter2" not in repr(found)


async def test_a_quiet_hour_is_well():
    found = await look_at_slow_log(Server(SLOWLOG_GET=[slow(9.0, 9999, "KEYS", "*")], TIME=NOW))
    assert (found.status, found.found) == (Status.OK, "nothing over 100 ms in the last hour")
    found = await look_at_slow_log(Server(SLOWLOG_GET=[], TIME=NOW))
    assert found.found == "nothing in the last hour"


async def test_a_thread_that_only_works_is_a_problem():
    class Busy(Server):
        seconds = 100.0

        async def ask(self, *command):
            if command == ("INFO", "cpu"):
                self.seconds += 0.49
                return f"used_cpu_user:1.0\r\nused_cpu_sys:{self.seconds}\r\n"
            return await super().ask(*command)

    found = await look_at_load(Busy({}, PING=b"PONG"))
    assert found.status is Status.PROBLEM
    assert "busy 98% of its time" in found.found


async def test_a_load_without_permission_for_info_is_the_answering_time_alone():
    found = await look_at_load(Server({}, PING=b"PONG"))
    assert (found.status, found.found) == (Status.OK, "answers in 0.0 ms (at most 0.0 ms)")
    found = await look_at_load(Server({"latest_fork_usec": 900_000}, PING=b"PONG"))
    assert found.status is Status.NOTE
    assert "stopped it for 0.9 s" in found.found


class Plain:
    uses_tls = False


@pytest.mark.parametrize(
    ("error", "gave", "found", "advice"),
    [
        (driver.AuthenticationError("Authentication required."), False, "has none", "password@"),
        (driver.AuthenticationError("WRONGPASS invalid"), True, "does not take", "rotated"),
        (
            driver.AuthenticationError(
                "AUTH <password> called without any password configured for the default user."
            ),
            True,
            "the server has none",
            "Take the password out",
        ),
        (driver.NoPermissionError("NOPERM no permissions to run"), True, "may not", "+hello"),
        (driver.ResponseError("DB index is out of range"), True, "DB index", "/0"),
        (driver.ConnectionError("max number of clients reached"), True, "max number", "maxclients"),
        (driver.BusyLoadingError("Redis is loading"), True, "loading", "wait"),
        (TimeoutError(), True, "no answer", "frozen"),
        (driver.ConnectionError("Connection closed by server."), True, "closed", "rediss://"),
        (
            driver.ConnectionError("DENIED Redis is running in protected mode because …"),
            False,
            "protected mode",
            "requirepass",
        ),
        (driver.InvalidResponse("Protocol Error: b'H'"), True, "Protocol", "is not Redis"),
    ],
)
def test_a_refused_login_says_what_to_do(error, gave, found, advice):
    judged = judge_login(error, Plain(), gave_password=gave)
    assert judged.status is Status.PROBLEM
    assert found in judged.found
    assert advice in judged.advice


class Encrypted:
    uses_tls = True


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ssl.SSLError(1, "tlsv13 alert certificate required"), "wants a certificate of ours"),
        (ConnectionResetError(104, "Connection reset by peer"), "reset by peer"),
    ],
)
def test_a_server_that_hangs_up_after_the_handshake_may_want_a_certificate(error, found):
    judged = judge_login(error, Encrypted(), gave_password=True)
    assert found in judged.found
    assert "ssl_certfile=" in judged.advice
