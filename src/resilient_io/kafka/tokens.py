"""Keeps what an OAuth token provider raises from killing the driver's background tasks."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from resilient_io.errors import ConfigurationError

__all__ = ["TokenFailed", "guarded"]


class TokenFailed(KafkaConnectionError):
    """The token provider raised, so no connection could be made; tried again with the next one."""


_Provider: Any = AbstractTokenProvider  # its hints say that a token is None


class _Guarded(_Provider):  # type: ignore[misc]
    """Lets only errors of Kafka's out of `token()`.

    aiokafka 0.14 expects only those while it connects (`client.py`: `_get_conn`): any other error
    ends its background tasks for ever, without a word.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    async def token(self) -> str:
        """Ask the provider.

        Raises:
            TokenFailed: It raised, cancelled itself, or gave no token.
        """
        task = asyncio.current_task()
        try:
            token = await self._provider.token()
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise TokenFailed("the OAuth token provider cancelled itself") from None
        # The boundary between us and code of others: what it raises must not end the driver.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"the OAuth token provider raised {name}") from error
        if not isinstance(token, str) or not token:
            # The value may be a secret in another type: name its type only.
            raise TokenFailed(f"the OAuth token provider gave no token but {type(token).__name__}")
        return token

    def extensions(self) -> dict[str, str]:
        """Ask the provider for its extensions, if it has any.

        Raises:
            TokenFailed: It raised.
        """
        extensions: Any = getattr(self._provider, "extensions", None)
        if not callable(extensions):
            return {}
        try:
            given: Any = extensions()
            return dict(given)
        # The boundary between us and code of others, as above.
        except Exception as error:
            name = type(error).__name__
            raise TokenFailed(f"extensions() of the OAuth token provider raised {name}") from error


def guarded(provider: object) -> Any:
    """Wrap a token provider so that only errors of Kafka's escape from it.

    Args:
        provider: Has `async def token() -> str`, as `aiokafka.abc.AbstractTokenProvider`.

    Raises:
        ConfigurationError: It has no such method.
    """
    if isinstance(provider, _Guarded):
        return provider
    if not inspect.iscoroutinefunction(getattr(provider, "token", None)):
        raise ConfigurationError(
            f"sasl_oauth_token_provider must have `async def token(self) -> str`, which "
            f"{type(provider).__name__} has not: derive it from aiokafka.abc.AbstractTokenProvider"
        )
    return _Guarded(provider)
