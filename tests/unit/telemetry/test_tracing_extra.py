"""Tracing without OpenTelemetry's API says how to install it."""

import importlib
import sys

import pytest

from resilient_io.errors import ConfigurationError


def test_without_the_api_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.delitem(sys.modules, "resilient_io.telemetry.tracing", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'resilient-io\[otel\]'"):
        importlib.import_module("resilient_io.telemetry.tracing")
