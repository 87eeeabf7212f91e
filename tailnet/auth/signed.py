"""Who is calling, by tokens that the control plane signed: nobody is asked (layer L2).

JSON Web Tokens in the compact form, RS256, ES256 and EdDSA, by the keys of jwks.py.  Issuer, audience and expiry are
required; docs/auth.md has the claims.  What was verified is remembered until it expires, or until the keys change: a
key that leaves the set takes its tokens along.  Spec: RFC 7515, 7519, 8725.
"""

import base64
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import trio
from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError

from derp.json_numbers import parse_int
from tailnet import refusals
from tailnet.auth.callers import Identity, OutsideToken
from tailnet.auth.claims import Nonsense, read_agent, read_grants, read_user
from tailnet.auth.jwks import SigningKey, SigningKeys
from tailnet.auth.recent import RecentAnswers
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.tokens import MAX_SIGNED_CHARS

# Times in seconds; beyond this a float has no more whole seconds.
_MAX_TIME: Final = float(1 << 53)


ALGORITHMS: Final = ("RS256", "ES256", "EdDSA", "Ed25519")


class _Registry(jws.JWSRegistry):
    """The library's algorithms without its word at each use that EdDSA has got another name."""

    max_header_length = 4_096  # with a chain of certificates, which is not looked at

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS or not self.allowed or name not in self.allowed:
            raise UnsupportedAlgorithmError(name)
        return self.algorithms[name]


class TokenRefused(Exception):
    """Why a token is good for nothing; the text repeats nothing of it, and is shown to its holder."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token has to say beside who it is for.  `leeway_seconds`: how far its issuer's clock may be off."""

    issuer: str
    audience: str
    leeway_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Verified:
    """Whom a token is of, and until when, in Unix time, the leeway included."""

    identity: Identity
    expires_at: float


def read_header(token: str) -> tuple[str, str]:
    """The algorithm and the key id that an unverified token names.  Raises TokenRefused."""
    header = _json(_decode(token.split(".", 1)[0], "header"), "header")
    if "crit" in header or "b64" in header:
        raise TokenRefused("the token has a critical header that this server does not know")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(kid, str) or not 0 < len(kid) <= 256:
        raise TokenRefused("the token's header names no alg and kid")
    return algorithm, kid


def verify(token: str, key: SigningKey, rules: TokenRules, now: float) -> Verified:
    """Check a token with the key that it names.  `now` is Unix time.  Raises TokenRefused."""
    algorithm = read_header(token)[0]
    if not key.is_for(algorithm):
        raise TokenRefused(f"the token's alg is not that of its key, {key.algorithm}")
    try:
        payload = jws.deserialize_compact(token.encode(), key.key, registry=_Registry(algorithms=[algorithm])).payload
    except (JoseError, ValueError, TypeError):
        raise TokenRefused("the token's signature is not right") from None
    claims = _json(payload, "claims")
    return Verified(_identity(claims), _check(claims, rules, now))


def _check(claims: Mapping[str, Any], rules: TokenRules, now: float) -> float:
    audiences = claims.get("aud")
    if claims.get("iss") != rules.issuer:
        raise TokenRefused("the token is of another issuer")
    if rules.audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise TokenRefused("the token is for another audience")
    expires = _time(claims, "exp")
    if expires is None:
        raise TokenRefused("the token does not say when it expires")
    since = max(_time(claims, "nbf") or 0.0, _time(claims, "iat") or 0.0)
    if expires + rules.leeway_seconds <= now:
        raise TokenRefused("the token has expired")
    if since - rules.leeway_seconds > now:
        raise TokenRefused("the token is not valid yet: do the clocks agree?")
    return expires + rules.leeway_seconds


def _identity(claims: Mapping[str, Any]) -> Identity:
    kind, said = claims.get("kind"), {**claims, "id": claims.get("sub")}
    try:
        if kind == "agent":
            return read_agent(said, "claims")
        if kind == "user":
            user = read_user(said, "claims")
            if not user.active:
                raise TokenRefused("the token is of a user who is not active")
            return replace(user, grants=read_grants(claims.get("rights"), "claims.rights"))
    except Nonsense as error:
        raise TokenRefused(f"the token's {error}") from None
    raise TokenRefused("the token's claims.kind is neither agent nor user")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_TIME:  # nor NaN
        raise TokenRefused(f"the token's {name} is no time")
    return float(value)


def _decode(part: str, what: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise TokenRefused(f"the token's {what} is no base64url") from None


def _json(text: bytes, what: str) -> Mapping[str, Any]:
    try:
        said = json.loads(text, parse_int=parse_int)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise TokenRefused(f"the token's {what} is no JSON object")
    return said


class SignedTokens:
    """Verifies tokens.  One per server; `keys.run` is its task."""

    def __init__(self, keys: SigningKeys, rules: TokenRules, *, wall_seconds: Callable[[], float] = time.time) -> None:
        self.no_wait = False
        self.keys = keys
        self.refused_count = 0
        self._rules = rules
        self._wall_seconds = wall_seconds
        self._recent: RecentAnswers[bytes, Verified] = RecentAnswers()
        self._keys_seen = -1

    @property
    def cached_count(self) -> int:
        """Tokens that were verified and are remembered."""
        return len(self._recent)

    def knows(self, token: OutsideToken) -> bool:
        """Whether this one was verified lately."""
        return self._recent.get(token.digest) is not None

    async def find(self, token: OutsideToken) -> Verified:
        """Whom a token is of.  Raises Refused: 401 with the reason, 503 when its key may not be here yet."""
        try:
            return await self._find(token)
        except TokenRefused as error:
            self.refused_count += 1
            refused = refusals.agent_token_refused if token.is_agent else refusals.user_token_refused
            raise refused(f"{str(error)[0].upper()}{str(error)[1:]}.") from None

    async def standing(
        self, tokens: Collection[OutsideToken]
    ) -> tuple[Mapping[OutsideToken, Verified], Collection[OutsideToken]]:
        """Whom tokens are of now, those of them that are still good; and those about which nobody can say."""
        good: dict[OutsideToken, Verified] = {}
        unanswered: list[OutsideToken] = []
        for token in tokens:
            try:
                good[token] = await self._find(token)
            except TokenRefused:
                continue
            except Refused:
                unanswered.append(token)
        return good, unanswered

    def seconds_left(self, verified: Verified) -> float:
        """Until it expires."""
        return verified.expires_at - self._wall_seconds()

    async def _find(self, token: OutsideToken) -> Verified:
        if self._keys_seen != self.keys.version:
            self._recent.clear()
            self._keys_seen = self.keys.version
        found = self._recent.get(token.digest)
        if found is None:
            found = await self._verify(token.token)
            self._recent.keep({token.digest: found})
        elif found.expires_at <= self._wall_seconds():
            raise TokenRefused("the token has expired")
        if not isinstance(found.identity, AgentIdentity if token.is_agent else UserIdentity):
            raise TokenRefused(
                "the token is an agent's, not a user's" if not token.is_agent else "the token is a user's"
            )
        return found

    async def _verify(self, token: str) -> Verified:
        if len(token) > MAX_SIGNED_CHARS:
            raise TokenRefused(f"the token has more than {MAX_SIGNED_CHARS:,} characters")
        algorithm, kid = read_header(token)
        if algorithm not in ALGORITHMS:
            raise TokenRefused("the token's alg is none of RS256, ES256 and EdDSA")
        if self.no_wait:
            # A signature is 0.1 ms of work, and strangers make tokens up: who has to be known at once is in memory.
            raise trio.WouldBlock
        key = self.keys.find(kid)
        if key is None:
            try:
                key = await self.keys.look_for(kid)
            except trio.WouldBlock:
                raise refusals.signing_keys_missing() from None
        if key is None:
            raise TokenRefused("the token is signed with a key that is not in this server's set")
        return verify(token, key, self._rules, self._wall_seconds())
