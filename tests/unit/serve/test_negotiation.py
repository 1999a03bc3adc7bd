"""Content negotiation."""

import pytest

from resilient_io.serve.endpoints import preferred_type

PLAIN, HEALTH, JSON, HTML = (
    "text/plain",
    "application/health+json",
    "application/json",
    "text/html",
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),  # the kubelet, curl
        (HEALTH, HEALTH),
        ("application/health+json, */*", HEALTH),
        ("application/health+json;q=0.5, text/plain", PLAIN),
        ("text/plain;q=0.1, application/json;q=0.2", JSON),
        ("application/*", HEALTH),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PLAIN),  # a browser
        ("image/png", PLAIN),
        ("APPLICATION/JSON", JSON),
        ("*/*, text/plain;q=0", HEALTH),
        ("application/json;q=wrong", PLAIN),
        ("application/json;charset=utf-8;q=0.9", JSON),
        (",,;;=,q", PLAIN),
    ],
)
def test_probe_format_follows_the_accept_header(accept, expected):
    assert preferred_type(accept, (PLAIN, HEALTH, JSON)) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("*/*", HTML),
        ("application/json, text/plain, */*", JSON),  # what scripts in browsers send
    ],
)
def test_status_is_html_for_browsers_and_json_for_scripts(accept, expected):
    assert preferred_type(accept, (HTML, JSON)) == expected
