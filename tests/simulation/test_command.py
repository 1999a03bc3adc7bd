"""The command `python -m tests.simulation`, with a made-up simulation in place of the real one."""

import io
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.simulation.__main__ import main
from tests.simulation.known_findings import KnownFinding
from tests.simulation.line_coverage import FILES, NOT_SIMULATED
from tests.simulation.processes import ROOT, SimulationBroken, run_seeds
from tests.simulation.search import differing_digests, jobs, search

FAKE = {
    "draw": """
        from tests.simulation.plan import Call, Caller, ClientSetup, Fault, Plan

        THEMES = {"mixed": None, "pops": None}

        def draw_plan(seed, theme=None):
            calls = tuple(Call(number, "set") for number in range(1, 6))
            faults = tuple(Fault(number, "cut", 0.5) for number in range(1, 4))
            caller = Caller(1, "a", calls)
            return Plan(seed, theme or "mixed", (ClientSetup("a"),), (caller,), faults)
        """,
    "run": """
        import os
        import time
        from types import SimpleNamespace
        from tests.simulation.history import History, Operation, Violation
        from . import planted

        def run(plan):
            if plan.seed == 666:
                while True:
                    pass
            if plan.seed == 667:
                os._exit(3)
            if plan.seed == 668:
                raise RuntimeError("the simulation has a bug")
            if plan.seed >= 10_000:
                time.sleep(0.05)
            history = History(lambda: 1000.0)
            calls = [call.number for caller in plan.callers for call in caller.calls]
            for number in calls:
                operation = Operation(number, "set", "a", 1, (("SET", "k", f"t{number}.0"),))
                operation.started_at = operation.ended_at = history.next()
                operation.started = operation.ended = 1000.0
                history.operations.append(operation)
            violations = []
            if plan.seed % 100 == 17 and 3 in calls:
                violations.append(Violation("applied_once", "#3 was applied twice.", (3,)))
            if plan.seed % 100 == 18:
                violations.append(Violation("calls_end", "#1 is an old friend.", (1,)))
            if planted.bug == "easy" and plan.seed >= 7:
                violations.append(Violation("budget_is_kept", "There is a bug."))
            digest = str(plan.seed)
            if plan.seed == 5:
                digest += os.environ.get("PYTHONHASHSEED", "")
            return SimpleNamespace(
                plan=plan, history=history, violations=violations, digest=digest,
                virtual_seconds=36.0,
            )
        """,
    "planted": "bug = None",
    "planted_bugs": """
        from . import planted

        def plant(name):
            planted.bug = name
        """,
    "measure_bugs": """
        from types import SimpleNamespace

        def measure(jobs, names, *, processes, arguments, known, baseline, output):
            print(len(jobs), names, processes, *arguments, file=output)
            return [SimpleNamespace(job=jobs[0] if names else None)]
        """,
    "checks": """
        def applied_once():
            '''Each write is applied
            at most once.

            More about it.
            '''

        ALL = (applied_once,)
        """,
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Install the made-up simulation and return its name."""
    name = "fake_simulation"
    (tmp_path / name).mkdir()
    for module, text in FAKE.items():
        (tmp_path / name / f"{module}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield name
    for module in [each for each in sys.modules if each.startswith(name)]:
        del sys.modules[module]


def command(fake, *arguments):
    return main(["--package", fake, "--processes", "2", "--limit", "1", *arguments])


def test_search_prints_a_table_and_a_minimized_timeline(fake, capsys):
    assert command(fake, "--seeds", "300") == 1
    printed = capsys.readouterr().out
    assert "\n2 rules broken: 300 seeds with 1,500 calls in " in printed
    assert re.search(r" in [\d.]+ s, 3\.0 virtual hours\n", printed)
    speed = re.search(
        r"\nSpeed: [\d.]+ seeds/s in 2 processes; per second of CPU time ([\d.]+) seeds "
        r"with ([\d,]+) calls \(5\.0 calls per seed\)\n",
        printed,
    )
    assert speed is not None, printed
    assert float(speed[2].replace(",", "")) == pytest.approx(5 * float(speed[1]), rel=0.01)
    first = '3 violations in 3 seeds, first: make simulate ARGS="--replay {}"'
    assert "applied_once\n    " + first.format(17) in printed
    assert "\ncalls_end\n    " + first.format(18) in printed
    assert "Broken rule: applied once\n  Each write is applied at most once." in printed
    assert "Minimized from 5 calls and 3 faults to 1 call and 0 faults in " in printed
    assert 'Replay: make simulate ARGS="--replay 17 --faults none --calls 3"' in printed


def test_search_without_findings_succeeds(fake, capsys):
    assert command(fake, "--seeds", "10", "--start", "20", "--theme", "pops") == 0
    assert "No rule was broken: 10 seeds" in capsys.readouterr().out


def test_hanging_dying_and_crashing_seeds_are_reported_and_the_others_run(fake, capsys):
    assert command(fake, "--seeds", "20", "--start", "655", "--no-minimize") == 1
    printed = capsys.readouterr().out
    assert "20 seeds" in printed
    assert "does not end, seed 666:" in printed
    assert "while True" not in printed
    assert "run.py" in printed
    assert "ends the process, seed 667:" in printed
    assert "crash of the simulation, seed 668:" in printed
    assert "RuntimeError: the simulation has a bug" in printed


def test_replay_prints_one_seed(fake, capsys):
    assert command(fake, "--replay", "17", "--theme", "pops") == 1
    printed = capsys.readouterr().out
    assert "Seed 17, theme pops. Minimized from" in printed
    assert '"--replay 17 --theme pops --faults none --calls 3"' in printed
    assert "starts #3 set: SET k t3.0" in printed
    assert "#2 set" not in printed


def test_replay_with_some_calls_runs_only_these(fake, capsys):
    assert command(fake, "--replay", "17", "--calls", "2,3", "--faults", "1", "--no-minimize") == 1
    printed = capsys.readouterr().out
    assert "#2 set" in printed
    assert "#4 set" not in printed
    assert "fault 1 " in printed
    assert "fault 2 " not in printed


def test_replay_of_a_seed_without_findings_can_show_it(fake, capsys):
    assert command(fake, "--replay", "20", "--full") == 0
    printed = capsys.readouterr().out
    assert "starts #5 set" in printed
    assert "Seed 20 with 5 calls breaks no rule." in printed


def test_hanging_replay_ends_with_a_traceback(fake):
    replay = [sys.executable, "-m", "tests.simulation", "--package", fake]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [*replay, "--replay", "666", "--limit", "0.5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_known_findings_are_counted_but_do_not_fail(fake):
    known = (KnownFinding("friend", "calls_end", "old friend", "because"),)
    summary = search(jobs(5, 15, ()), processes=1, arguments=("--package", fake), known=known)
    assert set(summary.rules) == {"applied_once"}
    assert summary.known == {"friend": 1}
    summary = search(jobs(1, 18, ()), processes=1, arguments=("--package", fake), known=())
    assert set(summary.rules) == {"calls_end"}


def test_planted_bugs_are_measured_and_one_that_survives_fails(fake, capsys):
    assert command(fake, "--planted-bugs", "--seeds", "15") == 1
    assert capsys.readouterr().out.startswith(f"15 None 2 --package {fake} --limit 1.0\n")
    assert command(fake, "--planted-bugs", "--plant", "easy") == 0
    assert capsys.readouterr().out.startswith(f"2000 ['easy'] 2 --package {fake}")


def test_planted_bug_is_found_and_replayed_with_its_name(fake, capsys):
    assert command(fake, "--plant", "easy", "--seeds", "10") == 1
    printed = capsys.readouterr().out
    assert "budget_is_kept" in printed
    assert '"--replay 7 --plant easy"' in printed


def test_check_replay_finds_seeds_that_differ(fake, capsys):
    assert command(fake, "--check-replay", "10") == 1
    printed = capsys.readouterr().out
    assert "1 of 10 seeds have differing digests" in printed
    assert "seed 5: 50 51 52" in printed
    assert not differing_digests(4, 0, (), processes=2, arguments=("--package", fake))


def test_several_themes_take_turns():
    assert list(jobs(3, 10, ("a", "b"))) == [(10, "a"), (11, "b"), (12, "a")]


def test_seeds_end_after_the_given_minutes(fake):
    chosen = jobs(None, 10_000, ())
    summary = search(chosen, processes=1, arguments=("--package", fake), minutes=0.01)
    assert 0 < summary.seeds < 100


def test_progress_is_written_to_the_output(fake, monkeypatch):
    now = iter(range(0, 100_000, 11))
    monkeypatch.setattr("tests.simulation.search.time.monotonic", lambda: float(next(now)))
    output = io.StringIO()
    search(jobs(20, 0, ()), processes=1, arguments=("--package", fake), output=output)
    assert "violation" in output.getvalue()
    assert "\r" not in output.getvalue()


def test_interrupted_search_prints_what_it_found(fake):
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ["PYTHONPATH"]])
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.simulation", "--package", fake, "--minutes", "5"),
            *("--start", "10010", "--processes", "1", "--every", "0.5"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "seeds" in line and " 0 violations" not in line:
            break
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert "applied_once" in printed
    assert process.returncode == 1


def test_simulation_that_cannot_be_imported_is_an_error(capsys):
    with pytest.raises(SimulationBroken, match="No module named"):
        list(run_seeds([(1, None)], processes=1, arguments=("--package", "missing_package")))
    assert main(["--package", "missing_package", "--seeds", "1"]) == 2
    assert "No module named" in capsys.readouterr().err


def test_wrong_arguments_are_refused(fake, capsys):
    assert command(fake, "--start", "soon") == 2
    assert "--start must be a number or \"random\", not 'soon'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command(fake, "--seeds", "many")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--theme", "closin"], "no theme has the name 'closin': did you mean closing"),
        (["--plant", "repeat-effect"], "no planted bug has the name 'repeat-effect': did you mean"),
        (["--plant", "x"], "no planted bug has the name 'x': (bugs.py has all)"),
    ],
)
def test_unknown_names_are_refused_with_the_closest_ones(arguments, message, capsys):
    assert main(["--seeds", "1", *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err


def test_themes_are_listed(fake, capsys):
    assert command(fake, "--list-themes") == 0
    assert capsys.readouterr().out == "mixed\npops\n"


def test_coverage_lists_the_lines_of_the_client_that_seeds_execute(capsys):
    main(["--coverage", "--seeds", "4", "--processes", "2", "--no-minimize"])
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert float(rows["redis/executor.py"][2].rstrip("%")) > 50
    assert float(rows["all"][2].rstrip("%")) > 50


def test_lines_that_are_not_counted_exist():
    sources = [(ROOT / "src" / "resilient_io" / name).read_text(encoding="utf-8") for name in FILES]
    texts = [text for texts in NOT_SIMULATED.values() for text in texts]
    assert [text for text in texts if not any(text in source for source in sources)] == []
