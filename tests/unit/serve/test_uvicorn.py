"""What we use of uvicorn's inside, and what we must not do to a process that uses it itself."""

import inspect
import logging
import signal

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from resilient_io.serve._answers import Answers
from resilient_io.serve._protocol import Connections, Protocol
from resilient_io.serve._server import _configure


def test_its_protocol_takes_what_we_give_it():
    parameters = list(inspect.signature(H11Protocol.__init__).parameters)
    assert parameters == ["self", "config", "server_state", "app_state", "_loop"]


async def test_its_protocol_has_what_we_use(service):
    config = _configure(Answers(service.monitor))
    assert isinstance(config, Config)
    protocol = Protocol(config=config, server_state=Connections(), app_state={})
    assert protocol.cycle is None
    assert protocol.access_log is False
    for name in ("shutdown", "pause_writing", "resume_writing", "_unset_keepalive_if_required"):
        assert callable(getattr(H11Protocol, name))
    assert isinstance(protocol.logger, logging.Logger)
    assert {"tasks", "default_headers"} <= set(vars(ServerState()))


def test_its_cycle_says_whether_the_answer_is_complete():
    assert "self.response_complete = False" in inspect.getsource(RequestResponseCycle.__init__)
    assert "self.server_state.default_headers" in inspect.getsource(H11Protocol.handle_events)


async def test_the_loggers_and_signals_of_the_process_are_left_alone(service):
    names = ("uvicorn", "uvicorn.access", "uvicorn.error", "")
    handler = logging.NullHandler()
    logging.getLogger("uvicorn.access").addHandler(handler)

    def settings():
        loggers = [logging.getLogger(name) for name in names]
        return [(each.level, each.propagate, list(each.handlers)) for each in loggers]

    try:
        before = settings(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        _configure(Answers(service.monitor))
        after = settings(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        assert after == before
    finally:
        logging.getLogger("uvicorn.access").removeHandler(handler)
