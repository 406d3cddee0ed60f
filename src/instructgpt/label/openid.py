"""OpenID Connect: the authorization code flow with PKCE, and the validation of ID tokens.

OpenID Connect Core 1.0, Discovery 1.0; PKCE (RFC 7636); the issuer in the callback (RFC 9207).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, RSAKey

from instructgpt.label.mail_server import check_address
from instructgpt.label.outgoing import Answer, Network, OutgoingError, check_url, send_request
from instructgpt.label.vocabulary import OPENID_SECRET_VARIABLE

_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""Asymmetric ones only: neither `none` nor an HMAC, whose key would be a public key or the client's secret."""
_METADATA_SECONDS, _KEYS_SECONDS, _MIN_REFETCH_SECONDS, _FAILURE_SECONDS = 3_600.0, 300.0, 30.0, 15.0
_CLOCK_SKEW_S, _MAX_TOKEN_AGE_S = 60, 600
_MAX_REQUESTS = 4  # to the provider at the same time; the threads that answer pages must not all wait for it
_MAX_SUBJECT_LENGTH = 255  # OpenID Connect Core 1.0, section 2


class OpenIDError(Exception):
    """A sign-in that the provider's answers do not allow; the text is for the owner."""


class ProviderUnreachableError(OpenIDError):
    """The provider did not answer, or too many wait for it."""


@dataclass(frozen=True, slots=True)
class OpenIDProvider:
    issuer: str
    client_id: str
    name: str  # on the button
    admitted_domains: tuple[str, ...] = ()  # whose verified e-mail addresses become labelers without an invitation


@dataclass(frozen=True, slots=True)
class AuthorizationRequest:
    """What a browser takes to the provider, and what its return is checked with."""

    url: str
    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class OpenIDIdentity:
    """A person as the provider knows them; `email` only if the provider verified it."""

    issuer: str
    subject: str
    name: str
    email: str | None


def validate_provider(provider: OpenIDProvider) -> None:
    """Raise ValueError for settings that cannot work."""
    try:
        check_url(provider.issuer)
    except OutgoingError as error:
        raise ValueError(f"the issuer '{provider.issuer}': {error}") from error
    if urlsplit(provider.issuer).query or urlsplit(provider.issuer).fragment:
        raise ValueError(f"the issuer '{provider.issuer}' must have neither query nor fragment")
    for domain in provider.admitted_domains:
        if "@" in domain or "." not in domain.strip(".") or domain != domain.strip().lower():
            raise ValueError(f"'{domain}' is no domain in lower case, such as example.org")


class OpenIDClient:
    """The site as a client of one provider, with the provider's metadata and keys cached."""

    def __init__(self, provider: OpenIDProvider, redirect_uri: str, allowed_networks: Sequence[Network] = ()) -> None:
        self.provider, self.redirect_uri, self._allowed_networks = provider, redirect_uri, allowed_networks
        self._places, self._lock = threading.BoundedSemaphore(_MAX_REQUESTS), threading.Lock()
        self._metadata: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._last_failure = -_FAILURE_SECONDS

    def start(self) -> AuthorizationRequest:
        """Return the address to send a browser to. Raises OpenIDError."""
        endpoint = self._fetch_metadata()["authorization_endpoint"]
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        parameters = {
            "response_type": "code",
            "client_id": self.provider.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": "openid profile email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        separator = "&" if urlsplit(endpoint).query else "?"
        return AuthorizationRequest(f"{endpoint}{separator}{urlencode(parameters)}", state, nonce, verifier)

    def finish(self, code: str, *, nonce: str, verifier: str, issuer: str | None) -> OpenIDIdentity:
        """Redeem the code of a callback and return who signed in.

        Args:
            issuer: the parameter `iss` of the callback, which providers may send.

        Raises:
            OpenIDError: the code or the ID token is not valid for this sign-in.
        """
        if issuer is not None and issuer != self.provider.issuer:
            raise OpenIDError("the callback names another issuer")
        id_token = self._redeem_code(code, verifier)
        return _read_identity(self._verify_token(id_token), self.provider, nonce)

    def _redeem_code(self, code: str, verifier: str) -> str:
        metadata = self._fetch_metadata()
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect_uri}
        form |= {"code_verifier": verifier, "client_id": self.provider.client_id}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        if secret := os.environ.get(OPENID_SECRET_VARIABLE, ""):
            methods = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
            if "client_secret_basic" in methods:
                credentials = f"{quote(self.provider.client_id, safe='')}:{quote(secret, safe='')}"
                headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
            else:
                form["client_secret"] = secret
        answer = self._request("POST", metadata["token_endpoint"], headers, urlencode(form).encode())
        content = _parse_object(answer)
        if answer.status != 200 or not isinstance(content.get("id_token"), str):
            raise OpenIDError(f"the provider refused the code (status {answer.status}, {content.get('error')!s:.60})")
        return str(content["id_token"])

    def _verify_token(self, token: str) -> dict[str, Any]:
        """Return the claims of an ID token whose signature is right."""
        try:
            header = jws.extract_compact(token.encode()).headers()
            key = self._find_key(header.get("kid"), str(header.get("alg")))
            content = jws.deserialize_compact(token, key, algorithms=list(_ALGORITHMS)).payload
            claims = json.loads(content)
        except (JoseError, ValueError) as error:
            raise OpenIDError(
                f"the ID token is not signed by a key of the provider ({type(error).__name__})"
            ) from error
        if not isinstance(claims, dict):
            raise OpenIDError("the ID token has no claims")
        return claims

    def _find_key(self, kid: str | None, algorithm: str) -> RSAKey | ECKey:
        """Return the provider's key of a token; fetch the keys again for an unknown `kid`, which new keys have."""
        if algorithm not in _ALGORITHMS:
            raise ValueError(algorithm)
        kind = ECKey if algorithm.startswith("ES") else RSAKey
        for oldest in (_KEYS_SECONDS, _MIN_REFETCH_SECONDS):
            keys = [key for key in self._fetch_keys(oldest).keys if isinstance(key, kind)]
            keys = [key for key in keys if key.dict_value.get("use", "sig") == "sig"]
            keys = [key for key in keys if key.dict_value.get("alg", algorithm) == algorithm]
            matches = [key for key in keys if kid is None or key.kid == kid]
            if len(matches) == 1:
                return matches[0]
        raise ValueError("no such key")

    def _fetch_metadata(self) -> dict[str, Any]:
        with self._lock:
            cached = self._metadata
            if cached is not None and time.monotonic() - cached[0] < _METADATA_SECONDS:
                return cached[1]
            if time.monotonic() - self._last_failure < _FAILURE_SECONDS:
                raise ProviderUnreachableError("the provider did not answer a moment ago")
        address = self.provider.issuer.rstrip("/") + "/.well-known/openid-configuration"
        metadata = _parse_object(self._request("GET", address))
        if metadata.get("issuer") != self.provider.issuer:
            raise OpenIDError(
                f"the provider names itself {metadata.get('issuer')!r:.100}, not {self.provider.issuer!r}"
            )
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            _check_endpoint(name, metadata.get(name), self.provider.issuer)
        with self._lock:
            self._metadata = (time.monotonic(), metadata)
        return metadata

    def _fetch_keys(self, oldest_seconds: float) -> KeySet:
        with self._lock:
            cached = self._keys
        if cached is not None and time.monotonic() - cached[0] < oldest_seconds:
            return cached[1]
        content = _parse_object(self._request("GET", self._fetch_metadata()["jwks_uri"]))
        entries = content.get("keys")
        objects = [key for key in entries if isinstance(key, dict)] if isinstance(entries, list) else []
        usable = [key for key in objects if key.get("kty") in ("RSA", "EC")]
        try:
            keys = KeySet.import_key_set({"keys": usable}) if usable else KeySet([])
        except Exception as error:  # whatever a malformed key raises in the library
            raise OpenIDError(f"the provider's keys cannot be read ({type(error).__name__})") from error
        with self._lock:
            self._keys = (time.monotonic(), keys)
        return keys

    def _request(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        if not self._places.acquire(blocking=False):
            raise ProviderUnreachableError("too many sign-ins wait for the provider")
        try:
            return send_request(method, url, headers=headers, body=body, allowed_networks=self._allowed_networks)
        except OutgoingError as error:
            with self._lock:
                self._last_failure = time.monotonic()
            raise ProviderUnreachableError(str(error)) from error
        finally:
            self._places.release()


def _check_endpoint(name: str, url: object, issuer: str) -> None:
    """Raise OpenIDError for an endpoint that is no address, or in clear for an issuer that is not."""
    try:
        check_url(str(url))
    except OutgoingError as error:
        raise OpenIDError(f"the provider's {name}: {error}") from error
    if urlsplit(issuer).scheme == "https" and urlsplit(str(url)).scheme != "https":
        raise OpenIDError(f"the provider's {name} does not begin with https://")


def _parse_object(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of an answer; raise OpenIDError."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise OpenIDError(f"the provider's answer is no JSON (status {answer.status})") from error
    if not isinstance(content, dict):
        raise OpenIDError(f"the provider's answer is no JSON object (status {answer.status})")
    return content


def _read_identity(claims: Mapping[str, Any], provider: OpenIDProvider, nonce: str) -> OpenIDIdentity:
    """Check the claims of an ID token (OpenID Connect Core 1.0, section 3.1.3.7); raise OpenIDError."""
    now_s, audience, subject = time.time(), claims.get("aud"), claims.get("sub")
    audiences = audience if isinstance(audience, list) else [audience]
    if claims.get("iss") != provider.issuer:
        raise OpenIDError("the ID token is of another issuer")
    if provider.client_id not in audiences:
        raise OpenIDError("the ID token is for another client")
    if claims.get("azp", provider.client_id) != provider.client_id or (len(audiences) > 1 and "azp" not in claims):
        raise OpenIDError("the ID token was issued to another client")
    if not _is_number(claims.get("exp")) or claims["exp"] + _CLOCK_SKEW_S <= now_s:
        raise OpenIDError("the ID token is too old")
    if not _is_number(claims.get("iat")) or not -_CLOCK_SKEW_S <= now_s - claims["iat"] <= _MAX_TOKEN_AGE_S:
        raise OpenIDError("the ID token was not issued now; are both clocks right?")
    if not secrets.compare_digest(str(claims.get("nonce", "")).encode("utf-8", "replace"), nonce.encode()):
        raise OpenIDError("the ID token belongs to another sign-in")
    if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_LENGTH or not subject.isprintable():
        raise OpenIDError("the ID token names nobody")
    is_verified = claims.get("email_verified") is True  # not the text "true", which some providers let people set
    email = _parse_email(claims.get("email")) if is_verified else None
    names = (claims.get(key) for key in ("preferred_username", "name"))
    name = next((each for each in names if isinstance(each, str) and each.strip()), (email or "").partition("@")[0])
    return OpenIDIdentity(provider.issuer, subject, name, email)


def _parse_email(value: object) -> str | None:
    """Return an e-mail address; None for anything else."""
    try:
        return check_address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
