"""The fixtures, as a project that uses them sees them."""

import pytest

pytest_plugins = ["pytester"]

CONFIGURATION = """
[pytest]
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = function
filterwarnings = error
addopts = --strict-markers -p no:cacheprovider
"""


@pytest.fixture(params=["auto", "strict"])
def project(pytester, request):
    pytester.makeini(CONFIGURATION.format(mode=request.param))
    pytester.makeconftest('pytest_plugins = ["resilient_io.testing.pytest_plugin"]')
    return pytester


def run(project, code):
    project.makepyfile("import asyncio\nimport pytest\npytestmark = pytest.mark.asyncio\n" + code)
    return project.runpytest_subprocess()


def test_servers_and_the_proxy_are_there(project):
    result = run(
        project,
        """
async def test_fresh(redis_server, shared_redis, fault_proxy):
    assert fault_proxy.target == (redis_server.host, redis_server.port)
    assert redis_server.port != shared_redis.port
    await shared_redis.query("SET", "k", 1)

async def test_flushed(shared_redis):
    assert await shared_redis.query("DBSIZE") == 0
""",
    )
    result.assert_outcomes(passed=2)


def test_the_marker_gives_virtual_time_and_only_there(project):
    result = run(
        project,
        """
from resilient_io.testing import VirtualTimeLoop

@pytest.mark.virtual_time
async def test_virtual():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
    await asyncio.sleep(3600)

async def test_real():
    assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)

@pytest.mark.virtual_time
async def test_servers_need_real_time(shared_redis):
    pass

@pytest.mark.virtual_time
async def test_that_hangs():
    await asyncio.Event().wait()
""",
    )
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(
        ["*shared_redis needs real time*", "*NothingWillHappenError: no timer is set*"]
    )


def test_loop_factories_of_the_project_itself_stay(project):
    project.makeconftest(
        """
import asyncio
pytest_plugins = ["resilient_io.testing.pytest_plugin"]

class Loop(asyncio.SelectorEventLoop):
    own = True

def pytest_asyncio_loop_factories(config, item):
    return {"own": Loop}
"""
    )
    result = run(
        project,
        """
from resilient_io.testing import VirtualTimeLoop

async def test_own():
    assert asyncio.get_running_loop().own

@pytest.mark.virtual_time
async def test_virtual():
    assert isinstance(asyncio.get_running_loop(), VirtualTimeLoop)
""",
    )
    result.assert_outcomes(passed=2)


def test_a_task_that_is_left_fails_the_test(project):
    result = run(
        project,
        """
pytestmark = [pytest.mark.asyncio, pytest.mark.usefixtures("no_leaks")]
kept = []

async def test_leaves_one():
    kept.append(asyncio.create_task(asyncio.sleep(60), name="left"))

async def test_leaves_one_that_ends_by_itself():
    kept.append(asyncio.create_task(asyncio.sleep(0)))
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*the test left tasks behind:*", "*<Task*name='left'*"])


@pytest.mark.parametrize("project", ["auto"], indirect=True)
def test_the_shared_broker_and_one_of_its_own_are_there(project, shared_kafka):
    result = run(
        project,
        """
async def test_shared(shared_kafka):
    await shared_kafka.create_topic("t")

async def test_the_same(shared_kafka, kafka_server):
    assert await shared_kafka.topics() == ["t"]
    assert await kafka_server.topics() == []

@pytest.mark.virtual_time
async def test_brokers_need_real_time(kafka_server):
    pass
""",
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*kafka_server needs real time*"])


@pytest.mark.parametrize("required", [True, False])
def test_without_kafka_tests_are_skipped_loudly_or_fail_where_it_is_required(
    project, monkeypatch, required
):
    monkeypatch.setenv("RESILIENT_IO_KAFKA_LIBS", "/missing/libs")
    monkeypatch.setenv("RESILIENT_IO_REQUIRE_SERVERS", str(int(required)))
    project.makepyfile(
        "async def test_shared(shared_kafka): pass\n"
        "async def test_own(kafka_server): pass\n"
        "async def test_cluster(kafka_cluster): pass\n"
    )
    result = project.runpytest_subprocess("-rs", "--asyncio-mode=auto")
    if required:
        result.assert_outcomes(errors=3)
        result.stdout.fnmatch_lines(["*RESILIENT_IO_REQUIRE_SERVERS=1, but*"])
    else:
        result.assert_outcomes(skipped=3)
        result.stdout.fnmatch_lines(["*NEEDS APACHE KAFKA*/missing/libs*"])


@pytest.mark.parametrize("required", [True, False])
def test_without_a_server_tests_are_skipped_loudly_or_fail_where_it_is_required(
    project, monkeypatch, required
):
    monkeypatch.setenv("RESILIENT_IO_REDIS_SERVER", "/missing/redis-server")
    monkeypatch.setenv("RESILIENT_IO_REQUIRE_SERVERS", str(int(required)))
    project.makepyfile("async def test_needs_one(redis_server): pass")
    result = project.runpytest_subprocess("-rs", "--asyncio-mode=auto")
    if required:
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*RESILIENT_IO_REQUIRE_SERVERS=1, but*"])
    else:
        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["*NEEDS A REDIS SERVER*/missing/redis-server*"])
