"""Run an examination and check what must hold for each of its steps."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from resilient_io.doctor import examine


class Examined:
    """The steps of one examination, by name."""

    def __init__(self, steps):
        self.steps = steps
        self.names = [step.name for step in steps]

    def __getitem__(self, name):
        return self.steps[self.names.index(name)]

    def __repr__(self):
        """Return the steps as text, for the messages of failed tests."""
        return "\n" + "\n".join(f"{s.status} {s.name}: {s.found} -> {s.advice}" for s in self.steps)

    @property
    def last(self):
        return self.steps[-1]

    def statuses(self):
        return {step.name: str(step.status) for step in self.steps}


async def collect(url, *, secrets=("hunter2",), **options):
    """Return all steps of an examination."""
    steps = []
    async with contextlib.aclosing(examine(url, **options)) as found:
        async for step in found:
            steps.append(step)  # noqa: PERF401 - an asynchronous comprehension could not be closed
    text = json.dumps([step.as_dict() for step in steps])
    for secret in secrets:
        assert secret not in text
    for step in steps:
        assert step.found
        assert "\n" not in step.found + step.advice
        assert (step.status == "problem") <= bool(step.advice), step
    return Examined(steps)


@pytest.fixture
def examined():
    return collect


@pytest.fixture
def doctor_user():
    """The command of the docs that makes a user for the doctor, with the password hunter2."""
    page = (Path(__file__).parents[3] / "docs/howto/doctor.md").read_text()
    words = re.search(r"^ACL SETUSER doctor .+$", page, re.MULTILINE)[0].split()
    return [">hunter2" if word == ">…" else word for word in words]
