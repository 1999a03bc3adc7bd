"""Exceptions of redis-py that reach the caller contain no secret, and no other one is changed."""

import redis.exceptions as driver

from resilient_io.redis.errors import remove_secrets

SECRET = "s3cr3t-canary"


def test_secrets_are_removed_from_an_exception_and_its_causes():
    error = driver.ConnectionError(f"cannot log in with {SECRET}")
    error.__cause__ = driver.ResponseError(f"invalid password {SECRET}")
    remove_secrets(error, [SECRET])
    assert str(error) == "cannot log in with …"
    assert str(error.__cause__) == "invalid password …"


def test_an_exception_of_the_application_is_not_changed():
    handled = LookupError("redis down", SECRET)
    error = driver.ConnectionError("Connection closed by server.")
    error.__context__ = handled
    remove_secrets(error, ["redis", SECRET])
    assert handled.args == ("redis down", SECRET)
