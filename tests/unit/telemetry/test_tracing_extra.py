"""Tracing without OpenTelemetry's API."""

import importlib
import sys

import pytest

from resilient_io.errors import ConfigurationError


def test_missing_api_is_an_error_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.delitem(sys.modules, "resilient_io.telemetry.tracing", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'resilient-io\[otel\]'"):
        importlib.import_module("resilient_io.telemetry.tracing")
