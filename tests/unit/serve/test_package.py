"""Each public name needs only its own extra, and names it if it is missing."""

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
    output, imported = done.stdout.splitlines()
    return output, imported.split()


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
def test_missing_extra_is_named_in_one_line(name, missing, hint):
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
def test_name_imports_only_what_it_needs(name, needs):
    assert run(name) == (name, needs)


def test_package_has_every_public_name():
    assert serve.__all__ == sorted(serve.__all__) == sorted(serve._MODULES)
    for name in serve.__all__:
        assert getattr(serve, name).__name__ == name
        assert name in dir(serve)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        serve.nothing  # noqa: B018
