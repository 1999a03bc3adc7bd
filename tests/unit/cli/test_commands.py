"""Command lines that are wrong, and the help, in this process."""

import re

import click
import pytest
import typer.main

from resilient_io.cli import probe
from resilient_io.cli.__main__ import main
from resilient_io.cli.app import app
from resilient_io.cli.lint import SETTINGS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wach"], "No such command"),
        (["watch", "redis://a", "--count", "0"], "--count"),
        (["watch", "redis://a", "--interval", "never"], "--interval"),
        (["lint"], "Missing argument"),
        (["doctor", "--timeout"], "--timeout"),
        (["watch"], "nothing to watch: pass a URL, --url-env NAME or --url-file FILE"),
        (["doctor", "--no-host"], "nothing to examine: pass a URL"),
        (["doctor", "redis://cache", "--group", "orders"], "--group needs a kafka:// URL"),
    ],
)
def test_wrong_command_line_exits_with_2(capsys, arguments, message):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", ["watch", "doctor"])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:6379", "no scheme. Did you mean redis://localhost:6379?"),
        ("http://cache", "unsupported scheme of the URL 'http://cache': use redis://"),
        ("redis://:s3cret@cache:port", "invalid Redis URL 'redis://…@cache:…': use redis://"),
        ("kafka://a:s3cret@", "invalid Kafka URL 'kafka://…@': it has no server"),
        ("redis://cache?foo=bar", "invalid Redis URL 'redis://cache?…': unknown option 'foo'"),
        ("kafka://cache?foo=bar", "invalid Kafka URL 'kafka://cache?…': unknown option 'foo'"),
    ],
)
def test_wrong_url_is_one_clear_line_without_the_password(capsys, command, url, message):
    assert main([command, url]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"resilient-io {command}: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert "s3cret" not in shown.err


def test_same_server_twice_is_one_clear_line(capsys):
    assert main(["watch", "redis://cache", "redis://cache:6379/0"]) == 2
    assert capsys.readouterr().err == (
        "resilient-io watch: redis cache:6379/0 is given twice: remove one of the URLs\n"
    )


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["doctor"], ["watch"], ["lint"], ["probe"]])
def test_help_exits_with_0(capsys, command, option):
    assert main([*command, option]) == 0
    shown = capsys.readouterr().out
    assert "Usage: resilient-io" in shown
    assert "-h, --help" in shown


def test_help_shows_whole_summaries_of_all_commands(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) or hasattr(group, "commands")
    for name, command in group.commands.items():
        assert f"  {name}" in shown
        assert command.short_help in shown
    assert "..." not in shown.replace("[ARGS]...", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_can_be_shown(capsys, monkeypatch, shell):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    main(["--show-completion", shell])
    assert "_RESILIENT_IO_COMPLETE" in capsys.readouterr().out


def test_completion_of_probe_knows_all_its_options():
    command = typer.main.get_command(app).commands["probe"]
    completed = {name for option in command.params for name in option.opts}
    documented = set(re.findall(r"--[a-z-]+", probe._HELP)) - {"--help"}
    assert completed == documented


def test_help_of_lint_names_each_setting(capsys):
    main(["lint", "--help"])
    shown = re.sub(r"-\n\s+", "-", capsys.readouterr().out).split()
    assert [name for name in SETTINGS if name not in {word.strip(",.:") for word in shown}] == []
