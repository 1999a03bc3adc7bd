"""What the kernel's data about a connection means, and what is done where there is none."""

import asyncio
import dataclasses
import socket
import struct
import sys
import time
from types import SimpleNamespace

import pytest

from resilient_io.link import (
    INTERVAL,
    SERVER_SILENT,
    LinkState,
    PathMonitor,
    combine,
    describe_silence,
    read_link,
)

LINK = LinkState(
    rtt=0.001,
    rttvar=0.0005,
    retransmits=0,
    retransmitted=1,
    segments=100,
    unacked=0,
    unacked_bytes=0,
    ack_age=0.5,
    sent_age=0.5,
    received_age=0.5,
)
LOST = dataclasses.replace(
    LINK, retransmits=2, retransmitted=4, unacked=1, unacked_bytes=20, ack_age=0.9, received_age=0.9
)
linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is read on Linux")


def tcp_info(*, state=1, retransmits=0, size=192, **words):
    places = {"unacked": 4, "sent": 9, "received": 11, "acked": 12, "rtt": 15, "total": 23}
    fields = [0] * 24
    for name, value in words.items():
        fields[places[name]] = value
    head = struct.pack("=8B24I", state, 0, retransmits, 0, 0, 0, 0, 0, *fields)
    return head.ljust(size, b"\0")[:size]


class FakeSocket:
    """A socket whose kernel says what the test wants."""

    family = socket.AF_INET

    def __init__(self, info=None, peer=("127.0.0.1", 1)):
        self.info = info
        self.peer = peer

    def getsockopt(self, level, option, size):
        if isinstance(self.info, Exception):
            raise self.info
        return self.info

    def fileno(self):
        return -1

    def getpeername(self):
        return self.peer


@linux
def test_an_open_connection_is_described(listener):
    with socket.create_connection(listener.getsockname()) as sock:
        peer, _ = listener.accept()
        with peer:
            time.sleep(0.05)
            sock.sendall(b"hello")
            assert peer.recv(5) == b"hello"
            time.sleep(0.05)
            link = read_link(sock)
            assert 0 < link.rtt < 1
            assert link.retransmits == link.unacked == link.unacked_bytes == 0
            assert link.segments == 1
            assert link.loss == 0.0
            assert link.ack_age < 1
            assert link.silent_server
    assert read_link(sock) is None


@linux
def test_a_server_that_has_sent_nothing_since_the_connection_was_opened_is_silent(listener):
    for _ in range(10):
        with socket.create_connection(listener.getsockname()) as sock:
            sock.sendall(b"hello")  # usually in the same tick of the kernel
            peer, _ = listener.accept()
            with peer:
                assert peer.recv(5) == b"hello"
                assert read_link(sock).silent_server
                peer.sendall(b"reply")
                assert sock.recv(5) == b"reply"
                assert not read_link(sock).silent_server


@pytest.mark.parametrize(
    "info",
    [
        OSError("not supported"),
        AttributeError("getsockopt"),
        TypeError("a pseudo socket"),
        b"",
        tcp_info(size=103),
        7,
        tcp_info(state=7),
    ],
)
def test_a_socket_of_which_the_kernel_says_nothing_is_not_known(info):
    assert read_link(FakeSocket(info)) is None


def test_an_object_that_is_not_a_socket_is_not_known():
    assert read_link(None) is None
    assert read_link(SimpleNamespace(fileno=lambda: 3)) is None


@linux
def test_an_older_kernel_does_not_tell_the_number_of_segments():
    link = read_link(FakeSocket(tcp_info(size=104, rtt=1500, total=3, acked=250)))
    assert link.rtt == 0.0015
    assert link.retransmitted == 3
    assert link.ack_age == 0.25
    assert link.segments is None
    assert link.loss is None


@linux
def test_a_unix_socket_is_not_known():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert read_link(ours) is None


def test_other_systems_are_not_known(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert read_link(FakeSocket(tcp_info())) is None


def test_several_connections_are_combined_to_the_worst():
    assert combine([]) is None
    assert combine([None]) is None
    combined = combine([LINK, None, LOST])
    assert combined.retransmits == 2
    assert combined.retransmitted == 5
    assert combined.segments == 200
    assert combined.loss == 0.025
    assert combined.unacked == 1
    assert combined.ack_age == 0.9
    assert combine([LINK, dataclasses.replace(LINK, ack_age=0.1)]).ack_age == 0.1


def test_a_silence_is_described_as_far_as_it_is_known():
    acked = dataclasses.replace(LINK, received_age=2.0)
    assert describe_silence([]) == describe_silence([None, LINK]) == ""
    assert describe_silence([LINK, acked]) == SERVER_SILENT
    text = "no acknowledgement from the host for 0.9 s, 2 retransmissions"
    assert describe_silence([acked, LOST]) == text
    once = dataclasses.replace(LOST, retransmits=1)
    assert describe_silence([once]).endswith("0.9 s, 1 retransmission")


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


class Path:
    """A monitor, and what it reports."""

    def __init__(self):
        self.gone = []
        self.monitor = PathMonitor(lambda *reason: self.gone.append(reason))

    async def look(self, sock, *, waited, times=60):
        for _ in range(times):
            await asyncio.sleep(self.monitor.look(sock, waited))
            if self.gone:
                return


@pytest.fixture
async def path():
    path = Path()
    yield path
    await path.monitor.aclose()


@pytest.fixture
def deaf():
    """Return the address of a listener whose queue is full, so that it answers no SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address
        for filler in fillers:
            filler.close()


@linux
async def test_a_path_is_gone_if_new_connections_are_not_answered_either(path, deaf):
    sock = FakeSocket(tcp_info(retransmits=2, unacked=1, acked=900), deaf)
    began = asyncio.get_running_loop().time()
    await path.look(sock, waited=0.9)
    [(detail, since)] = path.gone
    assert detail == "no acknowledgement from the host for 0.9 s, 2 retransmissions"
    assert since == pytest.approx(began - 0.9, abs=0.5)
    await path.look(sock, waited=1.5, times=1)
    assert len(path.gone) == 1


@linux
async def test_a_path_is_not_gone_if_a_new_connection_is_answered(path, listener):
    sock = FakeSocket(tcp_info(retransmits=3, unacked=1, acked=1900), listener.getsockname())
    await path.look(sock, waited=1.9, times=20)
    assert not path.gone


@linux
async def test_a_refused_connection_is_an_answer_of_the_host(path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    sock = FakeSocket(tcp_info(retransmits=3, unacked=1, acked=1900), address)
    await path.look(sock, waited=1.9, times=20)
    assert not path.gone


@linux
@pytest.mark.parametrize(
    ("info", "waited"),
    [
        (tcp_info(retransmits=1, unacked=1, acked=900), 0.9),  # one may be a lost packet
        (tcp_info(retransmits=2, unacked=1, acked=700), 0.9),  # acknowledged meanwhile
        (tcp_info(retransmits=2, unacked=1, acked=5000), 0.6),  # idle before
        (tcp_info(retransmits=0, unacked=1, acked=900), 0.9),  # still being sent
        (tcp_info(retransmits=0, unacked=0, acked=900), 0.9),  # a frozen server
    ],
)
async def test_less_than_two_retransmissions_and_0_8_seconds_prove_nothing(
    info, waited, path, deaf
):
    await path.look(FakeSocket(info, deaf), waited=waited, times=12)
    assert not path.gone


async def test_a_connection_of_which_nothing_is_known_is_looked_at_rarely(path):
    assert path.monitor.look(FakeSocket(OSError()), 5.0) == INTERVAL
    assert not path.gone


@linux
async def test_a_closed_monitor_starts_no_attempt(path, deaf):
    sock = FakeSocket(tcp_info(retransmits=2, unacked=1, acked=900), deaf)
    path.monitor.look(sock, 0.9)
    await path.monitor.aclose()
    path.monitor.look(sock, 0.9)
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert "resilient-io link check" not in names
