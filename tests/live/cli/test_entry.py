"""The command's front door: what it imports, what it says without its extra, how it is called."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

BLOCKED = """\
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from resilient_io.cli.entry import main
sys.exit(main())
"""


def without(*modules):
    return [sys.executable, "-c", BLOCKED.format(blocked=modules)]


@pytest.mark.parametrize("arguments", [["watch", "redis://cache"], ["--help"]])
async def test_without_its_extra_it_says_in_one_line_what_to_install(command, arguments):
    code, out, err = await command(*arguments, prefix=without("typer", "rich"))
    assert code == 2
    assert out == ""
    assert err == "resilient-io: typer is not installed: pip install 'resilient-io[cli]'\n"


async def test_without_yaml_only_lint_is_missing(command):
    code, _, err = await command("lint", "x.yaml", prefix=without("yaml"))
    assert (code, err) == (
        2,
        "resilient-io: yaml is not installed: pip install 'resilient-io[cli]'\n",
    )


async def test_probe_needs_nothing_but_the_standard_library(command, tmp_path):
    blocked = without("typer", "rich", "yaml", "cryptography", "redis", "aiokafka", "tenacity")
    code, out, err = await command("probe", "--file", str(tmp_path / "x"), prefix=blocked)
    assert (code, err) == (1, "")
    assert out.startswith("not ready: there is no heartbeat at ")


@pytest.mark.parametrize("asked", ["--file=/tmp/none", "--url=http://127.0.0.1:1/readyz"])
async def test_probe_imports_no_driver_no_loop_and_no_parser(command, asked):
    code = (
        "import sys; before = set(sys.modules); from resilient_io.cli.entry import main;"
        f"main(['probe', {asked!r}]);"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    _, out, err = await command(prefix=[sys.executable, "-c", code])
    assert err == ""
    brought = {*out.splitlines()[-1].split()}
    heavy = {"redis", "aiokafka", "asyncio", "logging", "argparse", "http", "email", "ssl"}
    heavy |= {"typer", "rich", "yaml", "pathlib", "dataclasses", "tenacity", "cryptography"}
    assert brought & heavy == set()
    assert "resilient_io" in brought


async def test_the_installed_script_is_the_same_command(command):
    script = Path(sys.executable).with_name("resilient-io")
    for prefix in ([str(script)], [sys.executable, "-m", "resilient_io.cli"]):
        code, out, err = await command("--version", prefix=prefix)
        assert (code, out, err) == (0, f"resilient-io {version('resilient-io')}\n", "")


async def test_help_names_every_command(command):
    code, out, err = await command("--help")
    assert (code, err) == (0, "")
    for name in ("probe", "doctor", "watch", "demo", "lint", "--version"):
        assert name in out


async def test_demo_is_the_demo(command):
    code, out, _ = await command("demo", "--help")
    assert code == 0
    assert out.startswith("usage: resilient-io demo")
    assert "--quick" in out


async def test_a_reader_that_goes_away_is_no_traceback(command):
    # The shell's own pipe: `true` reads nothing and ends at once.
    line = f"({sys.executable} -m resilient_io.cli watch redis://127.0.0.1:1 -c 3 -i 0.1"
    code, out, err = await command(prefix=["bash", "-c", f"{line}; echo ended: $? >&2) | true"])
    assert (code, out) == (0, "")
    assert err == "ended: 1\n"


@pytest.mark.parametrize("arguments", ["--version", "probe --help", "--help", "lint --help"])
async def test_a_reader_that_is_gone_is_no_traceback_either(command, arguments):
    line = f"{sys.executable} -m resilient_io.cli {arguments}"
    # The sleep gives `true` time to be gone; were it not, the test would pass for nothing.
    shell = f"(sleep 0.3; {line}; echo ended: $? >&2) | true"
    code, _, err = await command(prefix=["bash", "-c", shell])
    assert (code, err) == (0, "ended: 1\n")


async def test_the_verdict_of_a_probe_does_not_depend_on_who_reads_it(command, tmp_path):
    beat = tmp_path / "beat"
    facts = {"at": time.time(), "interval": 1000, "state": "up"}
    beat.write_text(json.dumps({**facts, "alive": True, "ready": True, "started": True}))
    line = f"{sys.executable} -m resilient_io.cli probe --file {beat}"
    told = f"{line}; echo $? >&2"
    shell = f"({told}) >/dev/full; ({told}) >&-; (sleep 0.3; {told}) | true"
    assert await command(prefix=["bash", "-c", shell]) == (0, "", "0\n0\n0\n")


async def test_standard_input_that_is_closed_or_no_text_is_one_clear_line(command):
    line = f"{sys.executable} -m resilient_io.cli lint -"
    shell = f"{line} <&-; echo $? >&2; printf '\\xff\\xfe' | LC_ALL=C {line}; echo $? >&2"
    _, _, err = await command(prefix=["bash", "-c", shell])
    assert err == (
        "resilient-io lint: standard input cannot be read: it is closed\n2\n"
        "resilient-io lint: - is no text in UTF-8\n2\n"
    )
