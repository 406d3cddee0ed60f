"""A small OpenID provider with real keys, over real HTTP: discovery, keys, and a token endpoint that is strict."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey
from support.receiver import Received, Receiver, receiving_server


@dataclass
class Provider:
    """`claims`: what replaces the claims of the next ID tokens. `accepts_codes_twice`: a careless provider."""

    receiver: Receiver
    client_id: str = "site"
    secret: str = ""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}))
    signing_key: Any = None
    header: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    accepts_codes_twice: bool = False
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        return self.receiver.url

    def authorize(self, url: str, **more: str) -> str:
        """What a browser does at the provider. -> the address it is sent back to"""
        parts = urlsplit(url)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{self.issuer}/authorize"
        parameters = {name: values[0] for name, values in parse_qs(parts.query).items()}
        assert (parameters["response_type"], parameters["code_challenge_method"]) == ("code", "S256")
        assert "openid" in parameters["scope"].split()
        assert parameters["client_id"] == self.client_id
        code = secrets.token_urlsafe(16)
        self.codes[code] = parameters
        back = {"code": code, "state": parameters["state"], "iss": self.issuer} | more
        return f"{parameters['redirect_uri']}?{urlencode(back)}"

    def reply(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        path = urlsplit(request.path).path
        if path == "/.well-known/openid-configuration":
            content: dict[str, Any] = {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            } | self.metadata
            return 200, {}, json.dumps(content).encode()
        if path == "/keys":
            return 200, {}, json.dumps({"keys": [self.key.as_dict(private=False)]}).encode()
        if path == "/authorize":
            return 303, {"Location": self.authorize(f"{self.issuer}{request.path}")}, b""
        if path == "/token":
            return self._exchange(request)
        return 404, {}, b"{}"

    def _exchange(self, request: Received) -> tuple[int, dict[str, str], bytes]:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        flow = self.codes.get(form["code"])
        if not self.accepts_codes_twice:
            self.codes.pop(form["code"], None)
        digest = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        credentials = f"{self.client_id}:{self.secret}" if self.secret else ""
        expected = f"Basic {base64.b64encode(credentials.encode()).decode()}" if credentials else None
        if (
            flow is None
            or flow["code_challenge"] != digest.decode()
            or flow["redirect_uri"] != form["redirect_uri"]
            or request.headers.get("authorization") != expected
        ):
            return 400, {}, b'{"error": "invalid_grant"}'
        return 200, {}, json.dumps({"id_token": self.sign(flow["nonce"]), "token_type": "Bearer"}).encode()

    def sign(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "subject-1", "aud": self.client_id, "iat": now, "exp": now + 300}
        claims |= {"nonce": nonce, "preferred_username": "ada", "email": "ada@example.org", "email_verified": True}
        claims |= self.claims
        header = {"alg": "RS256", "kid": "one"} | self.header
        algorithm = str(header["alg"])
        values = {name: value for name, value in claims.items() if value is not None}
        if isinstance(self.signing_key, bytes):  # the library refuses to use a public key as a secret
            parts = [base64.urlsafe_b64encode(json.dumps(each).encode()).rstrip(b"=") for each in (header, values)]
            digest = hmac.digest(self.signing_key, b".".join(parts), "sha256")
            return b".".join([*parts, base64.urlsafe_b64encode(digest).rstrip(b"=")]).decode()
        return jwt.encode(header, values, self.signing_key or self.key, algorithms=[algorithm])


@contextmanager
def openid_provider() -> Iterator[Provider]:
    with receiving_server() as receiver:
        provider = Provider(receiver)
        receiver.reply = provider.reply
        yield provider
