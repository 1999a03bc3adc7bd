"""Which form a client likes best."""

import pytest

from resilient_io.serve._negotiation import prefer

PLAIN, HEALTH, JSON, HTML = (
    "text/plain",
    "application/health+json",
    "application/json",
    "text/html",
)


@pytest.mark.parametrize(
    ("accept", "form"),
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
def test_the_form_is_the_one_that_the_client_likes_best(accept, form):
    assert prefer(accept, (PLAIN, HEALTH, JSON)) == form


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML),
        ("*/*", HTML),
        ("application/json, text/plain, */*", JSON),  # what scripts in browsers send
    ],
)
def test_the_page_is_for_browsers_and_json_for_scripts(accept, form):
    assert prefer(accept, (HTML, JSON)) == form
