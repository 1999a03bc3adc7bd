"""The demo's service, on Apache Kafka and on the embedded broker."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest

from demo import __main__ as command
from demo import service_part
from demo.ledgers import Calls, OrderLedger, Stores
from demo.timeline import Fault, Outcome
from resilient_io.testing import NoServerError, find_embedded_kafka
from tests.live.demo_report import ROOT, processes_of

TINY = (
    Fault(server="redis", what="killed", before=0.1, lasts=0.2, after=0.2),
    Fault(server="kafka", what="cut off", before=0.0, lasts=0.1, after=0.2),
)
RUN_TINY = (
    "import sys\n"
    "from demo import __main__ as command, service_part\n"
    "from demo.timeline import Fault\n"
    "from resilient_io.testing import find_embedded_kafka\n"
    "service_part.find_kafka = find_embedded_kafka\n"
    f"service_part.QUICK = {TINY!r}\n"
    "sys.exit(command.main(['--quick', '--only', 'kafka']))\n"
)


def row(output, label):
    """Return the number of a line of the ledger."""
    found = re.search(rf"^ *{re.escape(label)} +([\d,]+)$", output, re.MULTILINE)
    assert found, f"no line {label!r} in:\n{output}"
    return int(found[1].replace(",", ""))


# `shared_kafka` skips the test, or fails, without Apache Kafka.
@pytest.mark.usefixtures("shared_kafka")
def test_every_order_is_handled_on_apache_kafka_and_the_ledger_balances(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "demo", "--quick", "--only", "kafka"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    output = shown.stdout
    assert shown.stderr == ""
    assert shown.returncode == 0, output
    assert "\x1b" not in output
    assert "Traceback" not in output
    assert "Broker: Apache Kafka 4." in output
    assert max(len(line) for line in output.splitlines() if "Broker" not in line) <= 80
    for published in ("redis is DOWN", "redis is UP", "kafka is DOWN", "kafka is UP"):
        assert published in output
    assert "log: paused: redis is down and required by the handler" in output
    found = row(output, "found in Kafka")
    acknowledged = row(output, "acknowledged by Kafka")
    assert acknowledged <= found <= acknowledged + row(output, "unknown (maybe in Kafka)")
    assert acknowledged > 50
    assert row(output, "reported as not sent") > 0
    assert row(output, "repeated in Kafka") == 0
    assert row(output, "handled (booked in Redis)") == found
    assert row(output, "lost (in Kafka, but not handled)") == 0
    assert row(output, "handled, but not committed") == 0
    words = " ".join(output.split())
    assert " 0 were handled before an earlier one of the same customer." in words
    assert " and 0 passed." in words, "the driver's log was not kept quiet"
    assert output.endswith("The ledger of the service balances.\n")
    assert list(tmp_path.iterdir()) == []


def test_exit_code_follows_the_stores_on_the_embedded_broker(monkeypatch, capsys):
    read = service_part.read_stores

    async def with_a_loss(redis, kafka):
        stores = await read(redis, kafka)
        return replace(stores, booked=stores.booked[1:])

    monkeypatch.setattr(service_part, "find_kafka", find_embedded_kafka)
    monkeypatch.setattr(service_part, "read_stores", with_a_loss)
    monkeypatch.setattr(service_part, "QUICK", TINY)
    code = command.main(["--quick", "--only", "kafka"])
    output = capsys.readouterr().out
    assert "Broker: Tansu" in output
    assert "idempotent producers, so the producer may repeat" in output
    assert row(output, "lost (in Kafka, but not handled)") == 1
    assert row(output, "unexplained") == 0
    assert "The ledger of the service DOES NOT BALANCE." in output
    assert code == 1


@pytest.fixture
def balanced():
    """Return a ledger of three orders, and stores that agree with it."""
    ledger = OrderLedger()
    ledger.outcomes = {"a": Outcome.DONE, "b": Outcome.UNKNOWN, "c": Outcome.NOT_DONE}
    ledger.calls = {"a": Calls(succeeded=1), "b": Calls(succeeded=1, unknown=1)}
    stores = Stores(
        in_kafka=["a", "b"],
        dead_letters=[],
        booked=["a", "b"],
        times={"a": 1, "b": 2},
        uncommitted=0,
    )
    return ledger, stores


def test_ledger_counts_and_explains_orders_that_were_booked_twice(balanced):
    ledger, stores = balanced
    audit = ledger.audit(stores, idempotent=True)
    assert audit.balanced
    assert (audit.acknowledged, audit.unknown, audit.not_sent) == (1, 1, 1)
    assert (audit.found, audit.handled, audit.lost) == (2, 2, 0)
    assert (audit.twice, audit.twice_unknown, audit.twice_delivered) == (1, 1, 0)


@pytest.mark.parametrize(
    ("wrong", "count"),
    [
        ({"in_kafka": ["b"]}, "missing"),
        ({"in_kafka": ["a", "b", "c"], "booked": ["a", "b", "c"]}, "contradicted"),
        ({"in_kafka": ["a", "b", "d"], "booked": ["a", "b", "d"]}, "contradicted"),
        ({"in_kafka": ["a", "a", "b"]}, "repeated"),
        ({"booked": ["a"]}, "lost"),
        ({"booked": ["a", "b", "d"]}, "foreign"),
        ({"times": {"a": 2, "b": 1}}, "unexplained"),
        ({"times": {"a": 1, "b": 3}}, "unexplained"),
        ({"times": {"a": 0, "b": 1}}, "unexplained"),
        ({"uncommitted": 4}, "uncommitted"),
    ],
)
def test_ledger_finds_what_is_wrong(balanced, wrong, count):
    ledger, stores = balanced
    audit = ledger.audit(replace(stores, **wrong), idempotent=True)
    assert not audit.balanced
    assert getattr(audit, count) == wrong.get("uncommitted", 1)


def test_order_in_the_dead_letters_is_not_lost(balanced):
    ledger, stores = balanced
    audit = ledger.audit(
        replace(stores, booked=["a"], dead_letters=["b"], times={"a": 1, "b": 1}), idempotent=True
    )
    assert audit.balanced
    assert (audit.dead, audit.lost) == (1, 0)


def test_broker_without_idempotence_may_repeat_but_not_lose(balanced):
    ledger, stores = balanced
    assert ledger.audit(replace(stores, in_kafka=["a", "a", "b"]), idempotent=False).balanced
    assert not ledger.audit(replace(stores, in_kafka=["b"]), idempotent=False).balanced


def test_terminal_is_redrawn_in_place():
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        environment = os.environ | {"TERM": "xterm"}
        os.execve(sys.executable, [sys.executable, "-c", RUN_TINY], environment)  # noqa: S606 - this interpreter
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    output = b""
    with contextlib.suppress(OSError):  # the other side of the terminal is closed
        while read := os.read(terminal, 65536):
            output += read
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = output.decode()
    assert "Traceback" not in text
    heights = [run.count("\x1b[1A") for run in re.findall(r"(?:\x1b\[1A\x1b\[2K)+", text)]
    assert len(heights) > 5
    assert max(heights) <= 23
    seen = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text).replace("\r", "")
    assert max(len(line) for line in seen.split("\n") if "Broker" not in line) <= 80
    assert "The service: orders come from Kafka and are booked in Redis" in seen
    assert "The ledger of the service balances." in seen


def test_ctrl_c_leaves_no_server(tmp_path):
    # Tests that run in the background of a shell are started with Ctrl-C ignored.
    ready = f"import signal\nsignal.signal({signal.SIGINT:d}, signal.default_int_handler)\n"
    with subprocess.Popen(
        [sys.executable, "-c", ready + RUN_TINY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as demo:
        for line in demo.stdout:
            if "kafka is UP" in line:
                break
        time.sleep(0.3)
        assert processes_of(tmp_path)
        demo.send_signal(signal.SIGINT)
        output, errors = demo.communicate(timeout=25)
    assert demo.returncode == 130
    assert errors == ""
    assert "Interrupted" in output
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_missing_kafka_is_reported_before_the_demo_begins(monkeypatch, capsys):
    def nothing():
        raise NoServerError("no Kafka here")

    monkeypatch.setattr(command, "find_kafka", nothing)
    assert command.main(["--quick"]) == 2
    shown = capsys.readouterr()
    assert "needs servers: no Kafka here" in shown.err
    assert shown.out == ""
