"""No login leaves the process in an address, whatever signs it has."""

import json

import pytest

from resilient_io.text import redact_credentials


@pytest.mark.parametrize("password", ["word", "it's", "a<b>c", "p@ss", "back\\slash", "a/b:c?d#e"])
def test_whatever_a_password_is_made_of_it_is_left_out(password):
    address = f"redis://user:{password}@host:6379/0"
    assert redact_credentials(f"{address} is down") == "redis://…@host:6379/0 is down"
    told = json.loads(redact_credentials(json.dumps({"name": address, "other": "a@b"})))
    assert told == {"name": "redis://…@host:6379/0", "other": "a@b"}


def test_a_quotation_mark_in_a_password_does_not_end_it_in_json():
    told = redact_credentials(json.dumps(['redis://user:wo"rd@host', "a@b"]))
    assert json.loads(told) == ["redis://…@host", "a@b"]


def test_what_is_no_login_stays():
    for text in ("redis://host:6379/0", 'client="redis://host",mail="a@b"', "no address, a@b"):
        assert redact_credentials(text) == text
