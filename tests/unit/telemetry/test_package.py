"""The names of the package, which are imported when they are first used."""

import subprocess
import sys

import pytest

from resilient_io import telemetry


def test_package_has_every_public_name():
    assert telemetry.__all__ == sorted(telemetry._MODULES)
    for name in telemetry.__all__:
        assert getattr(telemetry, name).__name__ == name
        assert name in dir(telemetry)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Statsd'"):
        telemetry.Statsd  # noqa: B018


def test_name_imports_only_what_it_needs():
    code = (
        "import sys; from resilient_io.telemetry import PrometheusMetrics\n"
        "assert not [n for n in sys.modules if n.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
