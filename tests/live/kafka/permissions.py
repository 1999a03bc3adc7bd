"""Permissions of users on a broker with `superusers=`."""

from aiokafka.conn import create_conn
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

_KINDS = {"topic": 2, "group": 3, "transactional id": 5}
_OPERATIONS = {"read": 3, "write": 4, "describe": 8}  # the first two include Describe
_LITERAL, _ALLOW, _ANY_HOST = 3, 3, "*"


async def allow(server, user, operation, kind, name):
    """Permit an operation: `await allow(server, "alice", "read", "topic", "orders")`."""
    answer = await _send(server, CreateAclsRequest(*_rule(user, operation, kind, name)))
    assert [code for code, _ in answer.creation_responses] == [0]


async def revoke(server, user, operation, kind, name):
    """Withdraw what `allow` with the same arguments has permitted."""
    answer = await _send(server, DeleteAclsRequest(*_rule(user, operation, kind, name)))
    ((code, _, matching),) = answer.filter_responses
    assert (code, len(matching)) == (0, 1)


def _rule(user, operation, kind, name):
    return (
        _KINDS[kind],
        name,
        _LITERAL,
        f"User:{user}",
        _ANY_HOST,
        _OPERATIONS[operation],
        _ALLOW,
    )


async def _send(server, request):
    host, _, port = server.direct_servers.partition(":")
    connection = await create_conn(host, int(port))
    try:
        return await connection.send(request)
    finally:
        await connection.close()
