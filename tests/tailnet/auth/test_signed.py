"""Signed tokens: right ones of each algorithm, and every way in which one can be forged or be good for nothing."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey

from tailnet.auth.callers import OutsideToken
from tailnet.auth.jwks import SigningKeys, parse_key_set
from tailnet.auth.signed import SignedTokens, TokenRefused, TokenRules, read_header, verify
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, Role, UserIdentity
from tailnet.tokens import looks_signed
from tests.support.control_plane import agent
from tests.support.seeds import make_id, peer_id
from tests.support.signed_tokens import ALGORITHMS, AUDIENCE, ISSUER, RSA, key_set, public, sign, standard, unsigned

NOW = 1_767_323_045.0
RULES = TokenRules(ISSUER, AUDIENCE, 30.0)
KEYS = parse_key_set(key_set()).keys
BOB = {"kind": "user", "sub": str(make_id("bob")), "username": "bob"}


def user_claims(**more: Any) -> dict[str, Any]:
    return standard(NOW, **{**BOB, **more})


def agent_claims() -> dict[str, Any]:
    said = agent("main")
    return standard(NOW, kind="agent", sub=said.pop("id"), **said)


def check(token: str, now: float = NOW) -> AgentIdentity | UserIdentity:
    """As SignedTokens does: by the key that the token names."""
    return verify(token, KEYS[read_header(token)[1]], RULES, now).identity


def refused(token: str, now: float = NOW) -> str:
    with pytest.raises(TokenRefused) as caught:
        check(token, now)
    assert token[-20:] not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kid", ALGORITHMS)
def test_right_tokens(kid: str) -> None:
    token = sign(user_claims(role="auditor", rights={str(make_id("dev")): ["ssh"]}), kid)
    assert looks_signed(token)
    bob = check(token)
    assert isinstance(bob, UserIdentity)
    assert (bob.id, bob.username, bob.role) == (make_id("bob"), "bob", Role.AUDITOR)
    assert bob.grants == {make_id("dev"): {Right.SSH, Right.READ}}
    main = check(sign(agent_claims(), kid))
    assert isinstance(main, AgentIdentity)
    assert (main.id, main.workspace_name, main.owner_id) == (peer_id("main"), "dev", make_id("alice"))


def test_the_second_name_of_eddsa() -> None:
    assert check(sign(user_claims(), "ed", alg="Ed25519")).id == make_id("bob")
    assert "alg" in refused(sign(user_claims(), "rsa", key=ALGORITHMS["ed"][1], alg="Ed25519"))


@pytest.mark.parametrize("audience", [AUDIENCE, ["another", AUDIENCE]])
def test_several_audiences(audience: object) -> None:
    assert check(sign(user_claims(aud=audience))).id == make_id("bob")


def test_until_when() -> None:
    token = sign(user_claims())
    assert verify(token, KEYS["ec"], RULES, NOW).expires_at == NOW + 3600 + 30
    assert check(token, NOW + 3629).id == make_id("bob")
    assert refused(token, NOW + 3630) == "the token has expired"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"aud": "another"}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"aud": []}, "another audience"),
        ({"aud": {AUDIENCE: 1}}, "another audience"),
        ({"exp": None}, "does not say when it expires"),
        ({"exp": "never"}, "exp is no time"),
        ({"exp": True}, "exp is no time"),
        ({"exp": float("inf")}, "exp is no time"),
        ({"exp": float("nan")}, "exp is no time"),
        ({"exp": -1}, "exp is no time"),
        ({"exp": 10**300}, "exp is no time"),
        ({"exp": NOW - 30}, "has expired"),
        ({"nbf": NOW + 31}, "is not valid yet: do the clocks agree?"),
        ({"nbf": "x"}, "nbf is no time"),
        ({"iat": NOW + 31}, "is not valid yet"),
        ({"kind": "root"}, "claims.kind is neither agent nor user"),
        ({"kind": None}, "claims.kind is neither"),
        ({"sub": "bob"}, "claims.id is no UUID"),
        ({"sub": None}, "claims.id is no UUID"),
        ({"username": ""}, "claims.username"),
        ({"role": "root"}, "claims.role"),
        ({"active": False}, "is of a user who is not active"),
        ({"rights": {"dev": ["read"]}}, "claims.rights has a key that is no workspace"),
        ({"rights": {str(make_id("dev")): ["root"]}}, "claims.rights names a right"),
    ],
)
def test_claims_that_are_good_for_nothing(change: dict[str, Any], says: str) -> None:
    assert says in refused(sign(user_claims(**change)))


def test_a_clock_may_be_off_a_little() -> None:
    assert check(sign(user_claims(nbf=NOW + 30, iat=NOW + 30, exp=NOW - 29))).id == make_id("bob")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "HS256", "HS512", "RS512", "PS256", "ES384", ""])
@pytest.mark.parametrize("signature", ["", "AAAA"])
def test_algorithms_that_the_key_does_not_have(alg: str, signature: str) -> None:
    for kid in ALGORITHMS:
        assert "alg" in refused(unsigned({"alg": alg, "kid": kid}, user_claims(), signature))


def test_a_public_key_is_no_password() -> None:
    """The classic: the RSA key's own text as the secret of an HMAC."""
    for secret in (RSA.as_pem(private=False), json.dumps(public("rsa")).encode(), RSA.as_der(private=False)):
        bare = unsigned({"alg": "HS256", "kid": "rsa"}, user_claims()).rstrip(".")
        mac = base64.urlsafe_b64encode(hmac.digest(secret, bare.encode(), "sha256")).rstrip(b"=").decode()
        assert "alg is not that of its key, RS256" in refused(f"{bare}.{mac}")


@pytest.mark.parametrize(
    ("kid", "key"),
    [
        ("rsa", RSAKey.generate_key(2048, private=True)),
        ("ec", ECKey.generate_key("P-256", private=True)),
        ("ed", OKPKey.generate_key("Ed25519", private=True)),
    ],
)
def test_a_swapped_key(kid: str, key: Any) -> None:
    assert refused(sign(user_claims(), kid, key=key)) == "the token's signature is not right"


def test_a_key_of_ones_own_in_the_header() -> None:
    mine = ECKey.generate_key("P-256", private=True)
    for header in ({"jwk": mine.as_dict(private=False)}, {"jku": "https://evil.example/"}, {"x5u": "https://evil/"}):
        assert "signature is not right" in refused(sign(user_claims(), "ec", key=mine, **header))


def test_another_kid_than_that_of_its_key() -> None:
    assert "alg is not that of its key" in refused(sign(user_claims(), "rsa", key=ALGORITHMS["ec"][1], alg="ES256"))


def test_changed_after_it_was_signed() -> None:
    head, _, signature = sign(user_claims()).split(".")
    payload = unsigned({}, user_claims(role="admin")).split(".")[1]
    assert "signature" in refused(f"{head}.{payload}.{signature}")
    raw = sign(user_claims())
    assert "signature" in refused(raw[:-8] + ("AAAAAAAA" if raw[-8:] != "AAAAAAAA" else "BBBBBBBB"))
    assert "signature" in refused(f"{head}.{payload}.")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"alg": "ES256"}, "names no alg and kid"),
        ({"kid": "ec"}, "names no alg and kid"),
        ({"alg": "ES256", "kid": 7}, "names no alg and kid"),
        ({"alg": "ES256", "kid": "x" * 257}, "names no alg and kid"),
        ({"alg": ["ES256"], "kid": "ec"}, "names no alg and kid"),
        ({"alg": "ES256", "kid": "ec", "crit": ["exp"]}, "critical header"),
        ({"alg": "ES256", "kid": "ec", "b64": False}, "critical header"),
    ],
)
def test_headers_that_are_refused(header: dict[str, Any], says: str) -> None:
    with pytest.raises(TokenRefused, match=says):
        read_header(unsigned(header, user_claims()))


@given(st.text(max_size=80))
def test_garbage_is_only_refused(text: str) -> None:
    for token in (text, f"eyJ{text}.{text}.{text}", f"{sign(user_claims()).split('.')[0]}.{text}.{text}"):
        with pytest.raises(TokenRefused):
            verify(token, KEYS["ec"], RULES, NOW)


# --- with the keys' own life


class World:
    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.path = path
        path.write_bytes(key_set())
        self.signed = SignedTokens(SigningKeys(str(path)), RULES, wall_seconds=lambda: self.now)

    async def find(self, token: str, *, is_agent: bool = False) -> AgentIdentity | UserIdentity | str:
        digest = hashlib.sha256(token.encode()).digest()
        try:
            return (await self.signed.find(OutsideToken(digest, is_agent, token))).identity
        except Refused as refused:
            return f"{refused.status} {refused.detail}"


@pytest.fixture
async def world(tmp_path: Path, nursery: trio.Nursery) -> World:
    made = World(tmp_path / "jwks.json")
    nursery.start_soon(made.signed.keys.run)
    with trio.fail_after(60):
        await made.signed.keys.changes.wait(0)
    return made


async def test_what_was_verified_is_remembered_until_it_expires(world: World) -> None:
    token = sign(user_claims())
    assert isinstance(await world.find(token), UserIdentity)
    assert world.signed.cached_count == 1
    world.now += 3630
    assert await world.find(token) == "401 The token has expired."
    assert world.signed.refused_count == 1


async def test_what_is_refused_is_not_kept(world: World) -> None:
    for number in range(5):
        assert "signature" in str(await world.find(sign(user_claims(n=number))[:-8] + "AAAAAAAA"))
    assert world.signed.cached_count == 0


async def test_kinds(world: World) -> None:
    assert await world.find(sign(user_claims()), is_agent=True) == "401 The token is a user's."
    assert await world.find(sign(agent_claims())) == "401 The token is an agent's, not a user's."
    assert isinstance(await world.find(sign(agent_claims()), is_agent=True), AgentIdentity)


async def test_a_key_that_leaves_takes_its_tokens_along(world: World) -> None:
    token = sign(user_claims())
    assert isinstance(await world.find(token), UserIdentity)
    world.path.with_suffix(".new").write_bytes(key_set(public("rsa")))
    seen = world.signed.keys.changes.count
    world.path.with_suffix(".new").rename(world.path)
    with trio.fail_after(60):
        await world.signed.keys.changes.wait(seen)
    assert await world.find(token) == "401 The token is signed with a key that is not in this server's set."
    assert isinstance(await world.find(sign(user_claims(), "rsa")), UserIdentity)


async def test_a_key_that_nobody_knows_yet_is_no_no(world: World) -> None:
    assert str(await world.find(sign(user_claims(), "new one"))).startswith("503 ")
    assert str(await world.find("eyJ" + "x" * 20_000 + "..")).startswith("401 The token has more than 16,384")
