"""What `resilient-io probe` makes of a heartbeat file, of a URL and of its own arguments."""

import json
import os
import time

import pytest

from resilient_io.cli import heartbeat
from resilient_io.cli.http_status import parsed
from resilient_io.cli.probe import main

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def _still(monkeypatch):
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
def test_a_heartbeat_grows_old(beat, capsys, question, age, code):
    assert main(["--file", beat(age), question]) == code
    assert f"{age:.1f} s" in capsys.readouterr().out


def test_a_slower_writer_may_have_an_older_heartbeat(beat):
    assert main(["--file", beat(40.0, interval=10.0)]) == 0
    assert main(["--file", beat(51.0, interval=10.0)]) == 1


def test_the_age_that_is_given_counts(beat, capsys):
    assert main(["--file", beat(2.0), "--max-age", "1.5"]) == 1
    assert capsys.readouterr().out == (
        "not ready: the heartbeat is 2.0 s old, 1.5 s are allowed: the process hangs, or is gone\n"
    )
    assert main(["--file", beat(100.0), "--max-age=200"]) == 0


def test_a_heartbeat_of_the_future_is_as_doubtful_as_an_old_one(beat):
    assert main(["--file", beat(-3600.0), "--live"]) == 1
    assert main(["--file", beat(-0.2), "--live"]) == 0


@pytest.mark.parametrize("question", ["ready", "live", "started"])
def test_each_question_has_its_own_answer(beat, capsys, question):
    fact = heartbeat._FACTS[question]
    path = beat(**{fact: False}, because=["redis is down (refused)", "draining"])
    assert main(["--file", path, f"--{question}"]) == 1
    said = capsys.readouterr().out
    assert said == f"not {fact}: redis is down (refused); draining\n"
    others = [other for other in heartbeat._FACTS if other != question]
    assert [main(["--file", path, f"--{other}"]) for other in others] == [0, 0]


def test_ready_is_what_is_asked_unless_told(beat, capsys):
    assert main(["--file", beat(ready=False)]) == 1
    assert capsys.readouterr().out == "not ready\n"


def test_who_ends_in_good_order_is_not_ready_and_not_to_be_restarted(beat, capsys):
    path = beat(stopped=True)
    assert main(["--file", path]) == 1
    assert capsys.readouterr().out == "not ready: it has stopped\n"
    assert main(["--file", path, "--live"]) == 0


def test_a_file_that_is_not_there_is_a_no(tmp_path, capsys):
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
def test_a_file_that_is_no_heartbeat_is_no_answer(tmp_path, capsys, text):
    path = tmp_path / "other"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["--file", str(path)]) == 2
    assert "is no heartbeat file" in capsys.readouterr().out


def test_a_folder_is_no_answer(tmp_path, capsys):
    assert main(["--file", str(tmp_path)]) == 2
    assert "Is a directory" in capsys.readouterr().out


def test_as_json_it_tells_the_whole_heartbeat(beat, capsys):
    assert main(["--file", beat(1.0, state="degraded"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert told["age"] == 1.0
    assert told["heartbeat"]["state"] == "degraded"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "write --file FILE or --url URL"),
        (["--file", "a", "--url", "http://b"], "write --file FILE or --url URL"),
        (["--file"], "--file needs a value"),
        (["--file", "a", "--file", "b"], "given twice"),
        (["--file", "a", "--live", "--ready"], "--ready and --live are two questions"),
        (["--fiel", "a"], "'--fiel' is unknown"),
        (["--live=yes", "--file", "a"], "is unknown"),
        (["--file", "a", "--max-age", "soon"], "write seconds above 0"),
        (["--file", "a", "--max-age", "-1"], "write seconds above 0"),
        (["--file", "a", "--max-age", "nan"], "write seconds above 0"),
        (["--file", "a", "--timeout", "1"], "--timeout is for --url"),
        (["--url", "http://a", "--live"], "--live is for --file"),
        (["--url", "http://a", "--max-age", "1"], "--max-age is for --file"),
        (["--url", "https://a/"], "the URL cannot be asked"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_line(arguments, said, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("resilient-io probe: ")
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_help_is_a_good_end(capsys):
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
def test_a_url_is_taken_apart(url, address):
    assert parsed(url) == address


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
def test_a_url_that_cannot_be_asked_is_none(url):
    assert parsed(url) is None


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
def test_what_json_allows_and_no_service_writes_is_no_heartbeat(tmp_path, capsys, text):
    path = tmp_path / "beat.json"
    path.write_text(
        text.replace('"state"', '"ready": true, "started": true, "alive": true, "state"')
    )
    assert main(["--file", str(path), "--live"]) == 2
    assert capsys.readouterr().out == f"{path} is no heartbeat file of resilient_io\n"


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_can_be_no_name_is_one_clear_line(capsys, host):
    assert main(["--url", f"http://{host}/readyz"]) == 1
    assert capsys.readouterr().out == f"{host} cannot be resolved: it can be no host name\n"


def test_a_port_of_any_length_is_one_clear_line(capsys):
    assert main(["--url", f"http://127.0.0.1:{'9' * 5000}/"]) == 2
    assert capsys.readouterr().err.startswith("resilient-io probe: the URL cannot be asked")


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path, capsys):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert main(["--file", str(path)]) == 2
    assert "is no heartbeat file" in capsys.readouterr().out
