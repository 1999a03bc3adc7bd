"""Permissions of users on a broker with `superusers=`."""

from aiokafka.conn import create_conn
from aiokafka.protocol.admin import CreateAclsRequest

_KINDS = {"topic": 2, "group": 3}
_OPERATIONS = {"read": 3, "describe": 8}  # Read includes Describe
_LITERAL, _ALLOW, _ANY_HOST = 3, 3, "*"


async def allow(server, user, operation, kind, name):
    """Permit an operation: `await allow(server, "alice", "read", "topic", "orders")`."""
    host, _, port = server.direct_servers.partition(":")
    connection = await create_conn(host, int(port))
    try:
        answer = await connection.send(
            CreateAclsRequest(
                _KINDS[kind],
                name,
                _LITERAL,
                f"User:{user}",
                _ANY_HOST,
                _OPERATIONS[operation],
                _ALLOW,
            )
        )
        assert [code for code, _ in answer.creation_responses] == [0]
    finally:
        await connection.close()
