"""How `resilient-io probe` reads a heartbeat file, a URL and its own arguments."""

import json
import os
import time

import pytest

from resilient_io.cli import probe
from resilient_io.cli.probe import main, parse_address

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def beat(tmp_path):
    """Write a heartbeat of some age; return its path."""

    def write(age=0.5, **changes):
        path = tmp_path / "beat.json"
        facts = {
            "at": NOW - age,
            "interval": 1.0,
            "ready": True,
            "alive": True,
            "started": True,
            "draining": False,
            "state": "up",
            "because": [],
        }
        path.write_text(json.dumps({**facts, **changes}))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("question", "age", "code"),
    [
        ("--ready", 4.9, 0),
        ("--ready", 5.1, 1),
        ("--started", 5.1, 1),
        ("--live", 29.9, 0),
        ("--live", 30.1, 1),
    ],
)
def test_heartbeat_becomes_too_old(beat, capsys, question, age, code):
    assert main(["--file", beat(age), question]) == code
    assert f"{age:.1f} s" in capsys.readouterr().out


def test_heartbeat_of_a_slower_writer_may_be_older(beat):
    assert main(["--file", beat(40.0, interval=10.0)]) == 0
    assert main(["--file", beat(51.0, interval=10.0)]) == 1


def test_max_age_replaces_the_default(beat, capsys):
    assert main(["--file", beat(2.0), "--max-age", "1.5"]) == 1
    assert capsys.readouterr().out == (
        "not ready: the heartbeat is 2.0 s old, 1.5 s are allowed: "
        "the process hangs or has exited\n"
    )
    assert main(["--file", beat(100.0), "--max-age=200"]) == 0


def test_heartbeat_from_the_future_counts_like_an_old_one(beat):
    assert main(["--file", beat(-3600.0), "--live"]) == 1
    assert main(["--file", beat(-0.2), "--live"]) == 0


@pytest.mark.parametrize("question", ["ready", "live", "started"])
def test_each_question_has_its_own_answer(beat, capsys, question):
    fact = probe._FIELDS[question]
    path = beat(**{fact: False}, because=["redis is down (refused)", "draining"])
    assert main(["--file", path, f"--{question}"]) == 1
    said = capsys.readouterr().out
    assert said == f"not {fact}: redis is down (refused); draining\n"
    others = [other for other in probe._FIELDS if other != question]
    assert [main(["--file", path, f"--{other}"]) for other in others] == [0, 0]


def test_ready_is_the_default_question(beat, capsys):
    assert main(["--file", beat(ready=False)]) == 1
    assert capsys.readouterr().out == "not ready\n"


def test_stopped_service_is_not_ready_but_alive(beat, capsys):
    path = beat(stopped=True)
    assert main(["--file", path]) == 1
    assert capsys.readouterr().out == "not ready: it has stopped\n"
    assert main(["--file", path, "--live"]) == 0


def test_missing_file_is_a_no(tmp_path, capsys):
    path = tmp_path / "none"
    assert main(["--file", str(path), "--live"]) == 1
    assert capsys.readouterr().out == f"not alive: there is no heartbeat at {path} yet\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"at": "x", "interval": 1}',
        b"\xff\xfe",
        '{"at":1,"interval":0}',
    ],
)
def test_file_that_is_not_a_heartbeat_is_unknown(tmp_path, capsys, text):
    path = tmp_path / "other"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["--file", str(path)]) == 2
    assert "is not a heartbeat file" in capsys.readouterr().out


def test_folder_is_unknown(tmp_path, capsys):
    assert main(["--file", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().out


def test_json_contains_the_whole_heartbeat(beat, capsys):
    assert main(["--file", beat(1.0, state="degraded"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is True
    assert printed["age"] == 1.0
    assert printed["heartbeat"]["state"] == "degraded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "use --file FILE or --url URL"),
        (["--file", "a", "--url", "http://b"], "--file and --url are mutually exclusive"),
        (["--file"], "--file needs a value"),
        (["--file", "a", "--file", "b"], "given twice"),
        (["--file", "a", "--live", "--ready"], "--ready and --live are mutually exclusive"),
        (["--fiel", "a"], "unknown option '--fiel'"),
        (["--live=yes", "--file", "a"], "unknown option '--live'"),
        (["--file", "a", "--max-age", "soon"], "must be a number of seconds above 0"),
        (["--file", "a", "--max-age", "-1"], "must be a number of seconds above 0"),
        (["--file", "a", "--max-age", "nan"], "must be a number of seconds above 0"),
        (["--file", "a", "--timeout", "1"], "--timeout needs --url"),
        (["--url", "http://a", "--live"], "--live needs --file"),
        (["--url", "http://a", "--max-age", "1"], "--max-age needs --file"),
        (["--url", "https://a/"], "invalid --url"),
    ],
)
def test_wrong_arguments_are_one_clear_line(arguments, said, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("resilient-io probe: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_help_exits_with_0(capsys):
    assert main(["--file", "a", "--help"]) == 0
    assert "--max-age" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8080/readyz", ("127.0.0.1", 8080, "/readyz")),
        ("HTTP://localhost", ("localhost", 80, "/")),
        ("http://[::1]:81/a?b=c#d", ("::1", 81, "/a?b=c")),
        ("http://[::1]/a", ("::1", 80, "/a")),
        ("http://host?verbose", ("host", 80, "/?verbose")),
        ("http://host:1/a/b", ("host", 1, "/a/b")),
    ],
)
def test_url_is_split_into_its_parts(url, address):
    assert parse_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8080",
        "https://host/",
        "http://",
        "http:///path",
        "http://host:0/",
        "http://host:65536/",
        "http://host:x/",
        "http://host:²/",
        "http://user:password@host/",
        "http://host/a b",
        "http://host/a\r\nX: y",
        "http://höst/",
    ],
)
def test_unsupported_url_is_none(url):
    assert parse_address(url) is None


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        '{"at": %s, "interval": 1, "state": "up"}' % ("9" * 400),
        '{"at": 1000000, "interval": Infinity, "state": "up", "alive": true}',
        '{"at": Infinity, "interval": 1, "state": "up", "alive": true}',
    ],
    ids=["nested", "huge", "endless interval", "endless age"],
)
def test_extreme_json_is_not_a_heartbeat(tmp_path, capsys, text):
    path = tmp_path / "beat.json"
    path.write_text(
        text.replace('"state"', '"ready": true, "started": true, "alive": true, "state"')
    )
    assert main(["--file", str(path), "--live"]) == 2
    assert capsys.readouterr().out == f"{path} is not a heartbeat file of resilient-io\n"


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_invalid_host_name_is_one_clear_line(capsys, host):
    assert main(["--url", f"http://{host}/readyz"]) == 1
    assert capsys.readouterr().out == f"{host} cannot be resolved: not a valid host name\n"


def test_very_long_port_is_one_clear_line(capsys):
    assert main(["--url", f"http://127.0.0.1:{'9' * 5000}/"]) == 2
    assert capsys.readouterr().err.startswith("resilient-io probe: invalid --url")


def test_named_pipe_without_a_writer_does_not_block(tmp_path, capsys):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert main(["--file", str(path)]) == 2
    assert "is not a heartbeat file" in capsys.readouterr().out


def test_control_characters_of_a_heartbeat_do_not_reach_the_terminal(beat, capsys):
    path = beat(ready=False, because=["\x1b]0;title\x07", "\x9b31mred"], state="\x1b[2J")
    assert main(["--file", path]) == 1
    assert main(["--file", path, "--live"]) == 0
    assert main(["--file", path, "--json"]) == 1
    shown = capsys.readouterr().out
    assert not any(sign in shown for sign in "\x1b\x07\x9b")


def test_unknown_argument_is_not_quoted(capsys):
    assert main(["http://user:hunter2@host/"]) == 2
    assert "hunter2" not in capsys.readouterr().err
    assert main(["--url", "http://user:hunter2@host/"]) == 2
    assert "hunter2" not in capsys.readouterr().err
