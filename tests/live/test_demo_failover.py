"""The demo of both Redis clients in a Sentinel failover; its ledger can fail."""

import os
import subprocess
import sys

import pytest

from demo import __main__ as command
from demo import failover_part
from demo.ledgers import WriteLedger
from demo.timeline import Fault
from tests.live.demo_report import ROOT, row

TINY = (Fault(what="failover", before=0.1, lasts=0.0, after=0.3),)
RUN_TINY = (
    "import sys\n"
    "from demo import __main__ as command, failover_part\n"
    "from demo.timeline import Fault\n"
    f"failover_part.QUICK = {TINY!r}\n"
    "sys.exit(command.main(['--quick', '--only', 'failover']))\n"
)


def test_failover_loses_nothing_and_leaves_nothing(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-c", RUN_TINY],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    output = shown.stdout
    assert shown.stderr == ""
    assert shown.returncode == 0, output
    assert max(len(line) for line in output.splitlines() if "Servers" not in line) <= 80
    acknowledged, found = row(output, "acknowledged"), row(output, "found in the final master")
    assert min(acknowledged) > 20
    unknown = row(output, "failed: unknown (maybe done)")
    assert acknowledged[1] <= found[1] <= acknowledged[1] + unknown[1]
    # redis-py stays with the former master, as long as that accepts writes.
    lost = row(output, "acknowledged, but lost")
    assert lost[0] >= acknowledged[0] - found[0]
    assert lost[1] == 0
    assert row(output, "planned failover") == lost
    assert row(output, "done more than once") == [0, 0]
    assert output.endswith("The ledger of ResilientRedis balances.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_exit_code_follows_the_ledger_of_resilient_redis(monkeypatch, capsys):
    class Planted(WriteLedger):
        async def audit(self, server):
            if "resilient" in self.pushes:
                await server.query("LPOP", self.pushes)
            return await super().audit(server)

    monkeypatch.setattr(failover_part, "QUICK", TINY)
    monkeypatch.setattr(failover_part, "WriteLedger", Planted)
    assert command.main(["--quick", "--only", "failover"]) == 1
    output = capsys.readouterr().out
    assert row(output, "acknowledged, but lost")[1] == 1
    assert "The ledger of ResilientRedis DOES NOT BALANCE." in output
