import asyncio
import contextlib
import errno
import socket
from random import Random

import pytest

from tests.simulation.environment import NORMAL, simulated
from tests.simulation.loop import SimulationEscape
from tests.simulation.network import Network
from tests.simulation.plan import NetworkSettings

ADDRESS, PORT = "10.0.0.1", 6379
CALM = NetworkSettings(stall=0.0)


class Recorder:
    """A server that records what it receives."""

    name = "recorder"

    def __init__(self, *, refuse=False, echo=False):
        self.refuse, self.echo = refuse, echo
        self.sessions = []

    def accept(self, peer):
        if self.refuse:
            return None
        session = RecorderSession(peer, echo=self.echo)
        self.sessions.append(session)
        return session


class RecorderSession:
    def __init__(self, peer, *, echo):
        self.peer, self.echo, self.data, self.gone = peer, echo, b"", False

    def receive(self, data):
        assert not self.gone
        self.data += data
        if self.echo:
            self.peer.send(data)

    def lost(self, *, reset=False):
        assert not self.gone
        self.gone = True


class Client(asyncio.Protocol):
    def __init__(self):
        self.received, self.calls, self.paused = b"", 0, []
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.received += data
        self.calls += 1

    def pause_writing(self):
        self.paused.append(True)

    def resume_writing(self):
        self.paused.append(False)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class World:
    def __init__(self, simulation, settings, server):
        self.simulation, self.loop, self.server = simulation, simulation.loop, server
        self.history = simulation.history
        self.network = Network(self.loop, simulation.loop._random, simulation.history, settings)
        self.network.listen(ADDRESS, PORT, server)
        self.network.names["redis.test"] = [ADDRESS]

    async def connect(self, host=ADDRESS):
        return await self.loop.create_connection(Client, host, PORT)

    def kinds(self):
        return [event.kind for event in self.history.events]


def play(scenario, *, seed=1, settings=CALM, **server):
    with simulated(seed, settings) as simulation:
        world = World(simulation, settings, Recorder(**server))
        result = simulation.loop.run_until_complete(scenario(world))
        assert simulation.loop.errors == []
    return result


class BufferedClient(asyncio.BufferedProtocol):
    def __init__(self, size):
        self.received, self.buffer = b"", bytearray(size)

    def get_buffer(self, sizehint):
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes):
        self.received += self.buffer[:nbytes]


def test_protocol_with_its_own_buffer_receives_what_fits_into_it():
    async def scenario(world):
        transport, client = await world.connect()
        buffered = BufferedClient(10)
        transport.write(b"first,")
        await asyncio.sleep(1.0)
        transport.set_protocol(buffered)
        transport.write(b"0123456789" * 3 + b"rest,")
        await asyncio.sleep(1.0)
        transport.set_protocol(client)
        transport.write(b"last")
        await asyncio.sleep(1.0)
        assert buffered.received == b"0123456789" * 3 + b"rest,"
        assert client.received == b"first,last"

    for seed in range(5):
        play(scenario, seed=seed, echo=True)


def test_bytes_arrive_in_order_in_pieces():
    async def scenario(world):
        transport, client = await world.connect()
        sent = b""
        for number in range(200):
            data = b"%d," % number
            sent += data
            transport.write(data)
            if number % 7 == 0:
                await asyncio.sleep(0.0003)
        await asyncio.sleep(1.0)
        assert world.server.sessions[0].data == sent
        assert client.received == sent
        assert client.calls > 1
        assert b"".join(each.data for each in world.history.written) == sent
        return client.calls

    assert len({play(scenario, seed=seed, echo=True, settings=NORMAL) for seed in range(5)}) > 1


def test_close_delivers_what_was_written_and_ends_the_session():
    async def scenario(world):
        transport, client = await world.connect()
        transport.write(b"last words")
        transport.close()
        assert transport.is_closing()
        assert await client.lost is None
        assert world.network.connections == []
        await asyncio.sleep(1.0)
        session = world.server.sessions[0]
        assert session.data == b"last words"
        assert session.gone

    play(scenario)


def test_abort_delivers_what_the_kernel_has():
    async def scenario(world):
        transport, client = await world.connect()
        transport.write(b"x" * 500_000)
        buffered = transport.get_write_buffer_size()
        assert buffered > 300_000
        transport.abort()
        assert await client.lost is None
        await asyncio.sleep(1.0)
        session = world.server.sessions[0]
        assert len(session.data) == 500_000 - buffered
        assert session.gone

    play(scenario)


def test_full_kernel_pauses_the_protocol():
    async def scenario(world):
        transport, client = await world.connect()
        transport.write(b"x" * 1_000_000)
        assert client.paused == [True]
        await asyncio.sleep(1.0)
        assert client.paused == [True, False]
        assert len(world.server.sessions[0].data) == 1_000_000
        transport.write(b"y" * 300_000)
        transport.close()
        await client.lost
        await asyncio.sleep(1.0)
        assert len(world.server.sessions[0].data) == 1_300_000

    play(scenario)


def test_stream_reads_until_the_server_closes():
    async def scenario(world):
        reader, writer = await asyncio.open_connection("redis.test", PORT)
        writer.write(b"hello")
        await writer.drain()
        assert await reader.readexactly(5) == b"hello"
        world.server.sessions[0].peer.send(b"bye")
        world.server.sessions[0].peer.close()
        assert await reader.read() == b"bye"
        writer.write(b"into the void")  # answered with a reset, which the next write notices
        await asyncio.sleep(0.1)
        writer.write(b"again")
        with pytest.raises(BrokenPipeError):
            await writer.wait_closed()

    play(scenario, echo=True)


def test_reset_of_the_server_loses_the_connection():
    async def scenario(world):
        _, client = await world.connect()
        world.server.sessions[0].peer.reset()
        error = await client.lost
        assert type(error) is ConnectionResetError
        assert error.errno == errno.ECONNRESET

    play(scenario)


def test_write_to_a_closed_session_is_answered_with_a_reset():
    async def scenario(world):
        transport, client = await world.connect()
        session = world.server.sessions[0]
        world.network.drop_replies(ADDRESS, 0.5)
        session.peer.reset()  # the packet is lost
        await asyncio.sleep(1.0)
        assert not client.lost.done()
        transport.write(b"late")
        assert isinstance(await client.lost, ConnectionResetError)
        assert session.data == b""

    play(scenario)


def test_reply_to_a_closed_socket_resets_the_session():
    async def scenario(world):
        transport, _ = await world.connect()
        world.network.hold(ADDRESS, 1.0, "requests")
        transport.write(b"held")
        transport.abort()
        world.server.sessions[0].peer.send(b"reply")
        await asyncio.sleep(0.5)
        assert not world.server.sessions[0].gone
        await asyncio.sleep(2.0)
        # The held bytes arrive before the reset, which is behind them.
        assert world.server.sessions[0].data == b"held"
        assert world.server.sessions[0].gone

    play(scenario)


def test_held_requests_arrive_after_the_client_lost_its_connection():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.hold(ADDRESS, 1.0, "requests")
        transport.write(b"late write")
        await asyncio.sleep(0.1)
        world.network.lose_at_client(world.network.connections[0])
        assert isinstance(await client.lost, ConnectionResetError)
        session = world.server.sessions[0]
        await asyncio.sleep(0.5)
        assert session.data == b""
        await asyncio.sleep(1.0)
        assert session.data == b"late write"
        assert not session.gone
        session.peer.send(b"reply")
        await asyncio.sleep(0.1)
        assert session.gone

    play(scenario)


def test_held_replies_arrive_late():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.hold(ADDRESS, 1.0, "replies")
        transport.write(b"x")
        await asyncio.sleep(0.9)
        assert world.server.sessions[0].data == b"x"
        assert client.received == b""
        await asyncio.sleep(0.5)
        assert client.received == b"x"

    play(scenario, echo=True)


def test_short_cut_delays_bytes():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.cut(ADDRESS, 1.0)
        transport.write(b"x")
        await asyncio.sleep(0.9)
        assert world.server.sessions[0].data == b""
        await asyncio.sleep(1.0)
        assert client.received == b"x"
        assert not client.lost.done()

    play(scenario, echo=True)


def test_long_cut_ends_the_connection_at_the_client():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.cut(ADDRESS, 30.0)
        transport.write(b"x")
        error = await client.lost
        assert isinstance(error, OSError)
        assert error.errno == errno.ETIMEDOUT
        assert not world.server.sessions[0].gone
        await asyncio.sleep(40.0)
        return world.server.sessions[0].data

    assert {play(scenario, seed=seed) for seed in range(10)} == {b"", b"x"}


def test_user_timeout_limits_the_time_without_acknowledgement():
    async def scenario(world):
        transport, client = await world.connect()
        sock = transport.get_extra_info("socket")
        assert sock.fileno() < 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        world.network.drop_replies(ADDRESS, 30.0)
        before = world.loop.time()
        transport.write(b"x")
        assert isinstance(await client.lost, TimeoutError)
        assert 0.5 < world.loop.time() - before < 0.7
        assert world.server.sessions[0].data == b"x"

    play(scenario)


def test_idle_connection_survives_a_cut():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.cut(ADDRESS, 60.0)
        await asyncio.sleep(61.0)
        transport.write(b"x")
        await asyncio.sleep(1.0)
        assert client.received == b"x"

    play(scenario, echo=True)


def test_forgotten_connection_is_silent_or_reset():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.forget(world.network.connections[0])
        await asyncio.sleep(1.0)
        assert not client.lost.done()
        transport.write(b"x")
        error = await client.lost
        world.network.heal()
        await asyncio.sleep(60.0)
        assert world.server.sessions[0].data == b""
        assert not world.server.sessions[0].gone
        return error.errno

    found = {play(scenario, seed=seed) for seed in range(20)}
    assert found == {errno.ETIMEDOUT, errno.ECONNRESET}


def test_connects_fail_as_in_reality():
    async def scenario(world):
        with pytest.raises(ConnectionRefusedError, match=r"Connect call failed \('10.0.0.1', 1\)"):
            await world.loop.create_connection(Client, ADDRESS, 1)
        world.network.refuse(ADDRESS, 5.0)
        with pytest.raises(ConnectionRefusedError):
            await world.connect()
        await asyncio.sleep(5.0)
        world.network.hang_connects(ADDRESS, 2.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await world.connect()
        before = world.loop.time()
        await world.connect()  # the second packet is answered
        assert 0.9 < world.loop.time() - before < 1.1
        with pytest.raises(TimeoutError) as caught:
            await world.loop.create_connection(Client, "10.9.9.9", 1)
        assert caught.value.errno == errno.ETIMEDOUT
        with pytest.raises(SimulationEscape):
            await world.loop.create_connection(Client, ADDRESS, PORT, ssl=True)

    with pytest.raises(SimulationEscape, match="ssl"):
        play(scenario)


def test_server_refuses_connections():
    async def scenario(world):
        with pytest.raises(ConnectionRefusedError):
            await world.connect()
        assert "connect failed" in world.kinds()

    play(scenario, refuse=True)


def test_names_lead_to_addresses():
    async def scenario(world):
        network = world.network
        infos = await world.loop.getaddrinfo("redis.test", PORT, type=socket.SOCK_STREAM)
        assert [info[4] for info in infos] == [(ADDRESS, PORT)]
        with pytest.raises(socket.gaierror, match="Name or service not known"):
            await world.connect("unknown.test")
        network.lookup("redis.test", "fail", 1.0)
        with pytest.raises(socket.gaierror, match="Temporary failure"):
            await world.connect("redis.test")
        await asyncio.sleep(1.0)
        network.lookup("redis.test", "hang", 60.0)
        before = world.loop.time()
        with pytest.raises(socket.gaierror):
            await world.connect("redis.test")
        assert 10.0 < world.loop.time() - before < 10.1
        network.heal()
        network.listen("10.0.0.2", 1, world.server)  # another port: refused there
        network.names["redis.test"] = ["10.0.0.2", ADDRESS]
        transport, _ = await world.connect("redis.test")
        assert transport.get_extra_info("peername") == (ADDRESS, PORT)

    play(scenario)


def test_cancelled_connects_leave_nothing():
    async def scenario(world):
        task = world.loop.create_task(world.connect("redis.test"))
        delay = world.loop._random.random() * 0.003
        world.loop.at_poll(world.loop.time() + delay, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            transport, _ = await task
            transport.close()
        await asyncio.sleep(5.0)
        assert world.network.connections == []
        assert all(session.gone for session in world.server.sessions)
        return len(world.server.sessions), task.cancelled()

    found = {play(scenario, seed=seed) for seed in range(60)}
    assert found == {(0, True), (1, True), (1, False)}


def test_pause_reading_leaves_data_in_the_kernel():
    async def scenario(world):
        transport, client = await world.connect()
        transport.pause_reading()
        world.server.sessions[0].peer.send(b"data")
        await asyncio.sleep(1.0)
        assert client.received == b""
        transport.resume_reading()
        await asyncio.sleep(0.1)
        assert client.received == b"data"

    play(scenario)


def test_faults_of_single_connections():
    async def scenario(world):
        network = world.network
        _, first = await world.connect()
        _, second = await world.connect()
        _, third = await world.connect()
        one, two, three = network.connections
        assert [each.number for each in network.connections] == [1, 2, 3]
        network.reset_one(one)
        network.close_one(two)
        network.garbage(three)
        await asyncio.sleep(0.1)
        assert isinstance(first.lost.result(), ConnectionResetError)
        assert second.lost.result() is None
        assert third.received
        assert network.connections == [three]
        assert [session.gone for session in world.server.sessions] == [True, True, False]
        network.reset(ADDRESS)
        assert isinstance(await third.lost, ConnectionResetError)

    play(scenario)


def test_slow_link_and_heal():
    async def scenario(world):
        transport, client = await world.connect()
        world.network.slow(ADDRESS, 0.5, 60.0)
        transport.write(b"x")
        await asyncio.sleep(0.9)
        assert client.received == b""
        await asyncio.sleep(0.2)
        assert client.received == b"x"
        world.network.cut(ADDRESS)
        world.network.heal()
        transport.write(b"y")
        await asyncio.sleep(0.5)
        assert client.received == b"xy"
        assert "slow ended" in world.kinds()
        assert "cut ended" in world.kinds()

    play(scenario, echo=True)


def begin_random_fault(world, random):
    network, connections = world.network, world.network.connections
    seconds = random.choice((0.01, 0.3, 3.0, 20.0))
    faults = [
        lambda: network.cut(ADDRESS, seconds),
        lambda: network.drop_replies(ADDRESS, seconds),
        lambda: network.hold(ADDRESS, seconds, "requests"),
        lambda: network.hold(ADDRESS, seconds, "replies"),
        lambda: network.slow(ADDRESS, 0.1, seconds),
        lambda: network.refuse(ADDRESS, seconds),
        lambda: network.hang_connects(ADDRESS, seconds),
        lambda: network.reset(ADDRESS),
        lambda: world.loop.block(random.random()),
    ]
    if connections:
        chosen = random.choice(connections)
        faults += [
            lambda: network.forget(chosen),
            lambda: network.forget(chosen, seconds),
            lambda: network.reset_one(chosen),
            lambda: network.close_one(chosen),
            lambda: network.lose_at_client(chosen),
        ]
    if world.server.sessions:
        peer = random.choice(world.server.sessions).peer
        faults += [peer.close, peer.reset]
    random.choice(faults)()


async def use_connections_under_faults(world):
    random = Random(world.loop._random.random())
    for _ in range(30):
        world.loop.at(world.loop.time() + 60 * random.random(), begin_random_fault, world, random)
    pairs = []

    async def connect_and_write():
        for _ in range(8):
            await asyncio.sleep(5 * random.random())
            try:
                async with asyncio.timeout(3.0):
                    transport, client = await world.connect()
            except OSError:
                continue
            pairs.append((transport, client))
            for number in range(random.randrange(20)):
                transport.write(b"%d;" % number * random.choice((1, 10, 50_000)))
                await asyncio.sleep(0.2 * random.random())
            random.choice((transport.close, transport.abort))()

    await asyncio.gather(*(connect_and_write() for _ in range(3)))
    await asyncio.sleep(60.0)
    world.network.heal()
    await asyncio.sleep(60.0)
    return pairs


@pytest.mark.parametrize("seed", range(20))
def test_streams_are_never_reordered_under_faults(seed):
    async def scenario(world):
        pairs = await use_connections_under_faults(world)
        assert world.network.connections == []
        sessions = {session.peer.address: session for session in world.server.sessions}
        for transport, client in pairs:
            assert client.lost.done()
            written = b"".join(
                each.data for each in world.history.written if each.connection == transport.number
            )
            host, port = transport.get_extra_info("sockname")
            received = sessions[f"{host}:{port}"].data
            assert written.startswith(received)
            assert received.startswith(client.received)
        return world.history.digest()

    play_seeds = [play(scenario, seed=seed, echo=True, settings=NORMAL) for _ in range(2)]
    assert play_seeds[0] == play_seeds[1]
