"""The entry point: what it imports, its message without the extra, and closed outputs."""

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
from resilient_io.cli.__main__ import main
sys.exit(main())
"""


def without(*modules):
    return [sys.executable, "-c", BLOCKED.format(blocked=modules)]


@pytest.mark.parametrize("arguments", [["watch", "redis://cache"], ["--help"]])
async def test_missing_extra_is_one_line_with_the_command_to_install_it(command, arguments):
    code, out, err = await command(*arguments, prefix=without("typer", "rich"))
    assert code == 2
    assert out == ""
    assert err == "resilient-io: typer is not installed: pip install 'resilient-io[cli]'\n"


async def test_lint_needs_yaml(command):
    code, _, err = await command("lint", "x.yaml", prefix=without("yaml"))
    assert (code, err) == (
        2,
        "resilient-io: yaml is not installed: pip install 'resilient-io[cli]'\n",
    )


async def test_probe_needs_only_the_standard_library(command, tmp_path):
    blocked = without("typer", "rich", "yaml", "cryptography", "redis", "aiokafka", "tenacity")
    code, out, err = await command("probe", "--file", str(tmp_path / "x"), prefix=blocked)
    assert (code, err) == (1, "")
    assert out.startswith("not ready: there is no heartbeat at ")


@pytest.mark.parametrize("asked", ["--file=/tmp/none", "--url=http://127.0.0.1:1/readyz"])
async def test_probe_imports_no_driver_no_loop_and_no_parser(command, asked):
    code = (
        "import sys; before = set(sys.modules); from resilient_io.cli.__main__ import main;"
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


async def test_installed_script_is_the_same_command(command):
    script = Path(sys.executable).with_name("resilient-io")
    for prefix in ([str(script)], [sys.executable, "-m", "resilient_io.cli"]):
        code, out, err = await command("--version", prefix=prefix)
        assert (code, out, err) == (0, f"resilient-io {version('resilient-io')}\n", "")


async def test_help_names_every_command(command):
    code, out, err = await command("--help")
    assert (code, err) == (0, "")
    for name in ("probe", "doctor", "watch", "lint", "--version"):
        assert name in out


async def test_closed_pipe_prints_no_traceback(command):
    # The shell's own pipe: `true` reads nothing and ends at once.
    line = f"({sys.executable} -m resilient_io.cli watch redis://127.0.0.1:1 -c 3 -i 0.1"
    code, out, err = await command(prefix=["bash", "-c", f"{line}; echo ended: $? >&2) | true"])
    assert (code, out) == (0, "")
    assert err == "ended: 1\n"


@pytest.mark.parametrize("arguments", ["--version", "probe --help", "--help", "lint --help"])
async def test_pipe_that_was_closed_before_prints_no_traceback(command, arguments):
    line = f"{sys.executable} -m resilient_io.cli {arguments}"
    # The sleep gives `true` time to end first.
    shell = f"(sleep 0.3; {line}; echo ended: $? >&2) | true"
    code, _, err = await command(prefix=["bash", "-c", shell])
    assert (code, err) == (0, "ended: 1\n")


async def test_exit_code_of_probe_does_not_depend_on_its_output(command, tmp_path):
    beat = tmp_path / "beat"
    facts = {"at": time.time(), "interval": 1000, "state": "up"}
    beat.write_text(json.dumps({**facts, "alive": True, "ready": True, "started": True}))
    line = f"{sys.executable} -m resilient_io.cli probe --file {beat}"
    run = f"{line}; echo $? >&2"
    shell = f"({run}) >/dev/full; ({run}) >&-; (sleep 0.3; {run}) | true"
    assert await command(prefix=["bash", "-c", shell]) == (0, "", "0\n0\n0\n")


async def test_closed_or_binary_standard_input_is_one_clear_line(command):
    line = f"{sys.executable} -m resilient_io.cli lint -"
    shell = f"{line} <&-; echo $? >&2; printf '\\xff\\xfe' | LC_ALL=C {line}; echo $? >&2"
    _, _, err = await command(prefix=["bash", "-c", shell])
    assert err == (
        "resilient-io lint: cannot read standard input: it is closed\n2\n"
        "resilient-io lint: cannot read standard input: not a text file in UTF-8\n2\n"
    )
