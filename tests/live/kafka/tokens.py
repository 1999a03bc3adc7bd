"""An issuer of signed OAuth tokens, and the options with which a broker trusts it."""

import asyncio
import base64
import json
import time

from aiokafka.abc import AbstractTokenProvider
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER, AUDIENCE, KEY_ID = "https://issuer.example", "kafka", "k1"
_VALIDATOR = "org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler"


def encoded(data):
    """Return bytes, a number or a JSON value as a part of a token."""
    if isinstance(data, int):
        data = data.to_bytes((data.bit_length() + 7) // 8, "big")
    elif not isinstance(data, bytes):
        data = json.dumps(data).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Issuer:
    """Signs tokens (JWT, RS256) with a key that it publishes in a file."""

    def __init__(self, folder):
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self._key.public_key().public_numbers()
        public = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID}
        public |= {"n": encoded(numbers.n), "e": encoded(numbers.e)}
        folder.mkdir()
        path = folder / "jwks.json"
        path.write_text(json.dumps({"keys": [public]}))
        self.url = path.as_uri()

    def server_options(self, **options):
        """Return the arguments of a `KafkaServer` that accepts the tokens of this issuer."""
        lines = {
            "listener.name.client.oauthbearer.sasl.server.callback.handler.class": _VALIDATOR,
            "sasl.oauthbearer.jwks.endpoint.url": self.url,
            "sasl.oauthbearer.expected.issuer": ISSUER,
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.clock.skew.seconds": 0,
        }
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self.url}"
        return {"oauth": True, "jvm": [allowed], "options": lines | options}

    def token(self, lifetime, **claims):
        """Return a token that expires in `lifetime` seconds."""
        now = time.time()
        claims = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE, **claims}
        header = {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}
        signed = f"{encoded(header)}.{encoded(claims | {'iat': now, 'exp': now + lifetime})}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encoded(signature)}"


def unsigned(lifetime, user="alice"):
    """Return a token without a signature, which a `KafkaServer(oauth=True)` accepts."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": user, "iat": now, "exp": now + lifetime})
    return ".".join(encoded(part) for part in parts) + "."


class Tokens(AbstractTokenProvider):
    """Returns the tokens that a function makes."""

    def __init__(self, make):
        self.make = make
        self.asked = 0

    async def token(self):
        self.asked += 1
        return self.make()


class SlowTokens(Tokens):
    """Takes 1.4 s for each."""

    async def token(self):
        await asyncio.sleep(1.4)
        return await super().token()


def oauth(provider):
    """Return the options of a client that logs in with the tokens of a provider."""
    login = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER"}
    return login | {"sasl_oauth_token_provider": provider}


def login(mechanism, password, user="alice"):
    """Return the options of a client that logs in with a password."""
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": password,
    }
