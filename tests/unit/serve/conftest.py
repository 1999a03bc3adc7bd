"""A monitor of dependencies whose states the tests set."""

import asyncio

import pytest

from resilient_io.health import Cause, Dependency, HealthMonitor, State


class Service:
    """A service with one dependency of each role, all of them UP at first."""

    def __init__(self, *, liveness=()):
        self.redis = Dependency("redis")
        self.orders = Dependency("orders")
        self.cache = Dependency("cache")
        self.monitor = HealthMonitor(
            self.redis, shared=[self.orders], optional=[self.cache], liveness=liveness
        )
        for dependency in (self.redis, self.orders, self.cache):
            self.put(dependency, State.UP)

    @staticmethod
    def put(dependency, state, detail=""):
        if state is State.DOWN:
            dependency.failed(Cause.REFUSED, detail, definite=True)
        else:
            dependency.succeeded(0.002)
            if state is State.DEGRADED:
                dependency.refused(Cause.READ_ONLY, detail)


class Check:
    """A liveness check that fails while `why` is set."""

    why = None

    def liveness_failure(self):
        return self.why


@pytest.fixture
def check():
    return Check()


@pytest.fixture
async def service(check):
    made = Service(liveness=[check])
    yield made
    await made.monitor.aclose()


@pytest.fixture
def run_loop():
    async def wait():
        for _ in range(10):
            await asyncio.sleep(0)

    return wait
