"""Each public name needs its own extra, says which one, and brings no other."""

import subprocess
import sys

import pytest

from resilient_io import serve

WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import resilient_io.serve
try:
    print(resilient_io.serve.{name}.__name__)
except resilient_io.errors.ConfigurationError as error:
    print(error)
print(*sorted({drivers!r} & set(sys.modules)))
"""
DRIVERS = {"redis", "aiokafka", "starlette", "uvicorn", "aiohttp", "prometheus_client"}


def run(name, *missing):
    code = WITHOUT.format(name=name, missing=missing, drivers=DRIVERS - set(missing))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    told, brought = done.stdout.splitlines()
    return told, brought.split()


@pytest.mark.parametrize(
    ("name", "missing", "hint"),
    [
        ("serve", "uvicorn", "serve needs uvicorn: pip install 'resilient-io[serve]'"),
        ("serve", "starlette", "serve needs starlette: pip install 'resilient-io[serve]'"),
        (
            "health_app",
            "starlette",
            "health_app needs starlette: pip install 'resilient-io[serve]'",
        ),
        ("aiohttp_app", "aiohttp", "aiohttp_app needs aiohttp: pip install aiohttp"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(name, missing, hint):
    assert run(name, missing)[0] == hint


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("Heartbeat", []),
        ("health_app", ["starlette"]),
        ("aiohttp_app", ["aiohttp"]),
        ("serve", ["starlette", "uvicorn"]),
    ],
)
def test_a_name_brings_what_it_needs_and_nothing_else(name, needs):
    assert run(name) == (name, needs)


def test_every_public_name_is_there():
    assert serve.__all__ == sorted(serve.__all__) == sorted(serve._HOMES)
    for name in serve.__all__:
        assert getattr(serve, name).__name__ == name
        assert name in dir(serve)
    with pytest.raises(AttributeError, match="has no attribute 'server'"):
        serve.server  # noqa: B018
