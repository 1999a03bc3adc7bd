"""What goes wrong in a run: one function for each kind of fault.

A function `def KIND(world, fault) -> None` lets it begin. Faults of the network and the server end
by themselves after `fault.seconds`. Each fault acts on the server that has the name at that time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .world import ADDRESSES, HOST

if TYPE_CHECKING:
    from collections.abc import Callable

    from .clients import RotatingCredentials
    from .network import Connection
    from .plan import Fault
    from .redis_server.server import RedisServer
    from .world import World


def begin(world: World, fault: Fault) -> None:
    """Begin a fault, and note its beginning and its end in the timeline."""
    name = fault.kind
    world.history.event("workload", "fault", number=fault.number, fault=name, lasts=fault.seconds)
    KINDS[name](world, fault)
    if fault.arguments.get("resets"):  # so that clients connect meanwhile
        world.network.reset(_address(world))
    world.loop.at(world.loop.time() + fault.seconds, _note_end, world, fault)


def _note_end(world: World, fault: Fault) -> None:
    world.history.event("workload", "fault ended", number=fault.number, fault=fault.kind)


def _server(world: World) -> RedisServer:
    """Return the server that the name leads to."""
    return world.servers[ADDRESSES.index(world.network.names[HOST][0])]


def _address(world: World) -> str:
    return world.network.names[HOST][0]


def _connection(world: World, fault: Fault) -> Connection | None:
    """Return one of the open connections: that used last, the newest, or any."""
    connections = world.network.connections
    if not connections:
        return None
    if fault.arguments.get("latest"):
        return max(connections, key=lambda each: each.last_sent)
    if fault.arguments.get("newest"):
        return connections[-1]  # often one for a blocking command or a transaction
    return connections[fault.arguments.get("index", 0) % len(connections)]


# -- network -------------------------------------------------------------------------------


def cut(world: World, fault: Fault) -> None:
    """All packets of the server's host vanish."""
    world.network.cut(_address(world), fault.seconds)


def drop_replies(world: World, fault: Fault) -> None:
    """The replies of the server vanish."""
    world.network.drop_replies(_address(world), fault.seconds)


def hold_requests(world: World, fault: Fault) -> None:
    """Requests are held in the network, and arrive late."""
    world.network.hold(_address(world), fault.seconds, "requests")


def hold_replies(world: World, fault: Fault) -> None:
    """Replies are held in the network, and arrive late."""
    world.network.hold(_address(world), fault.seconds, "replies")


def hold_and_reset(world: World, fault: Fault) -> None:
    """Requests are held; then the client loses its connections, and the requests still arrive."""
    world.network.hold(_address(world), fault.seconds, "requests")
    delay = fault.arguments.get("delay", 0.05)
    world.loop.at(world.loop.time() + delay, _lose_at_client, world)


def _lose_at_client(world: World) -> None:
    for connection in list(world.network.connections):
        world.network.lose_at_client(connection)


def hold_one(world: World, fault: Fault) -> None:
    """What the client sends over one connection is held, and arrives late."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.hold_one(connection, fault.seconds)


def hold_one_and_reset(world: World, fault: Fault) -> None:
    """The same, but the client loses the connection meanwhile."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.hold_one(connection, fault.seconds)
        delay = fault.arguments.get("delay", 0.05)
        world.loop.at(world.loop.time() + delay, lambda: world.network.lose_at_client(connection))


def slow_and_hold_one(world: World, fault: Fault) -> None:
    """The same while the network is slow, so that it takes time to end the lost connection."""
    world.network.slow(_address(world), fault.arguments.get("extra", 0.1), fault.seconds + 0.5)
    hold_one_and_reset(world, fault)


def break_off(world: World, fault: Fault) -> None:
    """A connection is reset in the middle of a request or a reply."""
    connection = _connection(world, fault)
    if connection is not None:
        direction = fault.arguments.get("direction", "replies")
        world.network.break_off(connection, direction, fault.seconds)


def flap(world: World, fault: Fault) -> None:
    """All connections are reset again and again."""
    until = world.loop.time() + fault.seconds
    spacing = fault.arguments.get("delay", 0.1)

    def again() -> None:
        if world.loop.time() < until:
            world.network.reset(_address(world))
            world.loop.at(world.loop.time() + spacing, again)

    again()


def lose_replies(world: World, fault: Fault) -> None:
    """Replies vanish for a moment; then the connections are reset."""
    address = _address(world)
    world.network.drop_replies(address, fault.seconds)
    delay = min(fault.arguments.get("delay", 0.05), fault.seconds)
    world.loop.at(world.loop.time() + delay, world.network.reset, address)


def slow(world: World, fault: Fault) -> None:
    """Packets take longer."""
    world.network.slow(_address(world), fault.arguments.get("extra", 0.1), fault.seconds)


def reset(world: World, _fault: Fault) -> None:
    """All connections are reset."""
    world.network.reset(_address(world))


def reset_one(world: World, fault: Fault) -> None:
    """One connection is reset."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.reset_one(connection)


def lose_one(world: World, fault: Fault) -> None:
    """The client's side of a connection is reset, of which the server does not hear."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.lose_at_client(connection)


def close_one(world: World, fault: Fault) -> None:
    """One connection is closed by the server's side."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.close_one(connection)


def forget(world: World, fault: Fault) -> None:
    """A middlebox forgets a connection: its packets vanish without a sign."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.forget(connection)


def garbage(world: World, fault: Fault) -> None:
    """Bytes that are not RESP reach the client."""
    connection = _connection(world, fault)
    if connection is not None:
        world.network.garbage(connection)


def refuse(world: World, fault: Fault) -> None:
    """New connections are refused."""
    world.network.refuse(_address(world), fault.seconds)


def hang_connects(world: World, fault: Fault) -> None:
    """New connections are not answered."""
    world.network.hang_connects(_address(world), fault.seconds)


def lookup_fails(world: World, fault: Fault) -> None:
    """The name cannot be resolved."""
    world.network.lookup(HOST, "fail", fault.seconds)


def lookup_hangs(world: World, fault: Fault) -> None:
    """The resolver does not answer."""
    world.network.lookup(HOST, "hang", fault.seconds)


def lookup_slow(world: World, fault: Fault) -> None:
    """The resolver answers late."""
    world.network.lookup(HOST, "slow", fault.seconds)


# -- server --------------------------------------------------------------------------------


def freeze(world: World, fault: Fault) -> None:
    """The server process is stopped; its host still acknowledges."""
    _server(world).freeze(fault.seconds)


def kill(world: World, fault: Fault) -> None:
    """The server process is killed, and starts again at the end."""
    server = _server(world)
    server.kill(silently=fault.arguments.get("silently", False))
    world.loop.at(
        world.loop.time() + fault.seconds,
        lambda: server.start(
            keep_data=fault.arguments.get("keep_data", True),
            loading=fault.arguments.get("loading", 0.0),
        ),
    )


def loading(world: World, fault: Fault) -> None:
    """The server loads its data."""
    _server(world).load(fault.seconds)


def refuse_writes(world: World, fault: Fault) -> None:
    """The server refuses writes."""
    _server(world).refuse_writes(fault.arguments.get("why", "OOM"), fault.seconds)


def lose_then_refuse(world: World, fault: Fault) -> None:
    """Replies are lost with their connections, and the server refuses writes afterwards."""
    lose_replies(world, fault)
    delay = min(fault.arguments.get("delay", 0.05), fault.seconds)
    why = fault.arguments.get("why", "OOM")
    server = _server(world)
    world.loop.at(world.loop.time() + delay, lambda: server.refuse_writes(why, fault.seconds))


def refuse_then_reset(world: World, fault: Fault) -> None:
    """The server refuses writes, and all connections are reset meanwhile."""
    refuse_writes(world, fault)
    delay = min(fault.arguments.get("delay", 0.05), fault.seconds)
    world.loop.at(world.loop.time() + delay, world.network.reset, _address(world))


def refuse_and_hold_one(world: World, fault: Fault) -> None:
    """For a moment, the server is a replica. What is sent meanwhile arrives late."""
    _server(world).refuse_writes("READONLY", 0.05)
    connection = _connection(world, fault)
    if connection is not None:
        loop, delay = world.loop, fault.arguments.get("delay", 0.02)
        loop.at(loop.time() + delay, world.network.hold_one, connection, fault.seconds)
        loop.at(loop.time() + delay + 0.06, world.network.lose_at_client, connection)


def busy(world: World, fault: Fault) -> None:
    """A script runs on the server."""
    _server(world).busy(fault.seconds)


def pause(world: World, fault: Fault) -> None:
    """An operator pauses the clients of the server."""
    _server(world).pause(fault.seconds, fault.arguments.get("mode", "WRITE"))


def limit_clients(world: World, fault: Fault) -> None:
    """The server accepts no more clients."""
    _server(world).limit_clients(fault.arguments.get("count", 0), fault.seconds)


def deny(world: World, fault: Fault) -> None:
    """The ACL forbids commands with which the library fences and recovers."""
    commands = fault.arguments.get("commands", ("CLIENT|KILL",))
    _server(world).deny(commands, seconds=fault.seconds)


def deny_then_hold_one(world: World, fault: Fault) -> None:
    """The ACL forbids fencing, and then a connection is lost whose requests arrive late."""
    commands = fault.arguments.get("commands", ("CLIENT|KILL",))
    _server(world).deny(commands, seconds=fault.seconds + 3.0)
    hold_one_and_reset(world, fault)


def wrong_password(world: World, fault: Fault) -> None:
    """The password of the server changes, and is changed back: new connections cannot log in."""
    for server in world.servers:
        if server.password_required:
            server.change_password("another", fault.seconds)


def provider_fails(world: World, fault: Fault) -> None:
    """The provider of the credentials raises an exception."""
    for client in world.clients.values():
        if client.credentials is not None:
            client.credentials.fails = True
            world.loop.at(world.loop.time() + fault.seconds, _repair, client.credentials)


def _repair(credentials: RotatingCredentials) -> None:
    credentials.fails = False


def refuse_at_exec(world: World, fault: Fault) -> None:
    """The server begins to refuse writes between the commands of a transaction and its EXEC."""
    _server(world).refuse_at_exec(fault.arguments.get("why", "OOM"), fault.seconds)


def kill_client(world: World, fault: Fault) -> None:
    """An operator kills a client."""
    server = _server(world)
    ids = list(server.sessions)
    if ids:
        server.kill_client(ids[fault.arguments.get("index", 0) % len(ids)])


def unblock(world: World, fault: Fault) -> None:
    """An operator unblocks a client."""
    server = _server(world)
    ids = list(server.sessions)
    if ids:
        chosen = ids[fault.arguments.get("index", 0) % len(ids)]
        server.unblock(chosen, error=fault.arguments.get("error", False))


def forget_scripts(world: World, _fault: Fault) -> None:
    """An operator removes all scripts (SCRIPT FLUSH)."""
    _server(world).forget_scripts()


def fail_over(world: World, _fault: Fault) -> None:
    """The replica becomes the master, and the name moves to it."""
    old = _server(world)
    new = next(server for server in world.servers if server is not old)
    new.replicate(None)
    old.replicate(new)
    world.network.names[HOST] = [ADDRESSES[world.servers.index(new)]]


# -- our own process -----------------------------------------------------------------------


def stall(world: World, fault: Fault) -> None:
    """Our own event loop is blocked."""
    world.loop.block(fault.seconds)


KINDS: dict[str, Callable[[World, Fault], None]] = {
    "cut": cut,
    "drop replies": drop_replies,
    "hold requests": hold_requests,
    "hold replies": hold_replies,
    "hold and reset": hold_and_reset,
    "hold one": hold_one,
    "hold one and reset": hold_one_and_reset,
    "slow and hold one": slow_and_hold_one,
    "break off": break_off,
    "flap": flap,
    "lose replies": lose_replies,
    "slow": slow,
    "reset": reset,
    "reset one": reset_one,
    "close one": close_one,
    "lose one": lose_one,
    "forget": forget,
    "garbage": garbage,
    "refuse": refuse,
    "hang connects": hang_connects,
    "lookup fails": lookup_fails,
    "lookup hangs": lookup_hangs,
    "lookup slow": lookup_slow,
    "freeze": freeze,
    "kill": kill,
    "loading": loading,
    "refuse writes": refuse_writes,
    "lose then refuse": lose_then_refuse,
    "refuse then reset": refuse_then_reset,
    "refuse and hold one": refuse_and_hold_one,
    "busy": busy,
    "pause": pause,
    "limit clients": limit_clients,
    "deny": deny,
    "deny then hold one": deny_then_hold_one,
    "wrong password": wrong_password,
    "provider fails": provider_fails,
    "refuse at exec": refuse_at_exec,
    "kill client": kill_client,
    "unblock": unblock,
    "fail over": fail_over,
    "forget scripts": forget_scripts,
    "stall": stall,
}

PERMANENT = frozenset({"forget", "fail over"})
"""Faults that do not end: what they broke is broken until the client notices."""

INSTANT = frozenset({
    "reset", "reset one", "close one", "lose one", "forget", "garbage", "kill client", "unblock",
    "fail over", "forget scripts",
})  # fmt: skip
