"""What the server uses of uvicorn, and what it must not do to a process that uses uvicorn too."""

import inspect
import logging
import signal

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from resilient_io.serve import server as module
from resilient_io.serve.endpoints import Endpoints
from resilient_io.serve.server import HttpConnection, HttpConnections, _Server


@pytest.fixture
async def server(service):
    made = _Server(Endpoints(service.monitor), [])
    made.config.load()
    return made


def test_uvicorn_server_calls_the_methods_that_are_overridden():
    source = inspect.getsource(uvicorn.Server.serve) + inspect.getsource(uvicorn.Server._serve)
    for call in (
        "with self.capture_signals():",
        "await self.startup(sockets=sockets)",
        "await self.main_loop()",
        "if self.started:\n            await self.shutdown(sockets=sockets)",
    ):
        assert call in source
    source = inspect.getsource(uvicorn.Server.on_tick)
    assert "if counter % 10 == 0:" in source
    assert "if self.should_exit:\n            return True" in source


async def test_uvicorn_protocol_has_the_attributes_that_are_used(server):
    assert server.config.http_protocol_class is H11Protocol
    parameters = list(inspect.signature(H11Protocol.__init__).parameters)
    assert parameters == ["self", "config", "server_state", "app_state", "_loop"]
    protocol = H11Protocol(
        config=server.config, server_state=server.server_state, app_state={"a": 1}
    )
    assert isinstance(protocol.logger, logging.Logger)
    assert isinstance(protocol.access_log, bool)
    assert callable(protocol._unset_keepalive_if_required)
    assert callable(protocol.shutdown)
    source = inspect.getsource(H11Protocol.handle_events)
    assert '"state": self.app_state.copy()' in source
    assert "default_headers=self.server_state.default_headers" in source
    assert "self.response_complete" in inspect.getsource(RequestResponseCycle.send)


async def test_server_leaves_the_loggers_and_signals_of_the_process_alone(service):
    names = ("uvicorn", "uvicorn.access", "uvicorn.error", "")
    handler = logging.NullHandler()
    logging.getLogger("uvicorn.access").addHandler(handler)

    def settings():
        loggers = [logging.getLogger(name) for name in names]
        return [(each.level, each.propagate, list(each.handlers)) for each in loggers]

    try:
        before = settings(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        server = _Server(Endpoints(service.monitor), [])
        server.config.load()
        with server.capture_signals():
            after = settings(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        assert after == before
    finally:
        logging.getLogger("uvicorn.access").removeHandler(handler)


class FakeHttpConnection(HttpConnection):
    def __init__(self):
        self.aborted = False

    def abort(self):
        self.aborted = True


def test_connections_close_the_one_that_has_waited_longest(monkeypatch):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 3)
    connections = HttpConnections()
    first, _, third, fourth, fifth = made = [FakeHttpConnection() for _ in range(5)]
    for each in made[:3]:
        connections.wait(each)
    connections.answer(first)
    connections.wait(first)  # its response is complete: now the second one has waited longest
    connections.answer(third)
    connections.wait(fourth)
    assert [each.aborted for each in made] == [False, True, False, False, False]
    connections.wait(fifth)
    assert [each.aborted for each in made] == [True, True, False, False, False]
    assert list(connections) == [fourth, fifth, third]


def test_connections_close_a_slow_reader_if_no_other_one_waits(monkeypatch):
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    connections = HttpConnections()
    first, second, third = made = [FakeHttpConnection() for _ in range(3)]
    for each in (first, second):
        connections.wait(each)
        connections.answer(each)
    connections.wait(third)
    assert [each.aborted for each in made] == [True, False, False]
