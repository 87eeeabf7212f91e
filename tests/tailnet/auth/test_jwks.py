"""Key sets: which keys are taken, from a file or a URL, how they change, and how often strangers can have them read."""

import json
from pathlib import Path

import pytest
import trio
from joserfc.jwk import ECKey, OctKey, RSAKey
from trio.testing import MockClock

from tailnet.auth import jwks
from tailnet.auth.callers import Changes
from tailnet.auth.jwks import KEPT_SECONDS, REFETCH_SECONDS, KeySetRefused, SigningKeys, parse_key_set
from tests.support.signed_tokens import EC, RSA, key_set, public
from tests.support.sites import Site, answer


def test_three_kinds_of_keys_each_with_its_one_algorithm() -> None:
    found = parse_key_set(key_set())
    assert {kid: key.algorithm for kid, key in found.keys.items()} == {"rsa": "RS256", "ec": "ES256", "ed": "EdDSA"}
    assert not found.left_out


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (public("x", EC, use="enc"), "is not for signatures"),
        (public("x", EC, alg="ES512"), "is for another algorithm than ES256"),
        (public("x", RSA, alg="none"), "is for another algorithm than RS256"),
        (public("x", RSA, alg="HS256"), "is for another algorithm than RS256"),
        (public("", EC), "has no kid"),
        (public("x", ECKey.generate_key("P-521", private=True)), "is none of RSA, EC P-256"),
        ({"kty": "EC", "crv": "P-256", "kid": "x", "x": "AA", "y": "AA"}, "cannot be read as the key"),
        ({"kty": "EC", "crv": ["P-256"], "kid": "x"}, "is none of"),
        ({"kty": [], "kid": "x"}, "is none of"),
        ({"kid": "x"}, "is none of"),
        ({"kty": "RSA", "kid": "x", "e": "AQAB"}, "cannot be read as the key"),
    ],
)
def test_keys_that_are_left_out(key: dict[str, object], says: str) -> None:
    found = parse_key_set(key_set(public("ec"), key))
    assert list(found.keys) == ["ec"]
    [sentence] = found.left_out
    assert says in sentence


def test_a_short_rsa_key_is_left_out(recwarn: pytest.WarningsRecorder) -> None:
    found = parse_key_set(key_set(public("ec"), public("x", RSAKey.generate_key(1024, private=True))))
    assert "has 1024 bits, and 2048 are the least" in found.left_out[0]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is no JSON"),
        (b"<html>", "it is no JSON"),
        (b"[]", "it is no"),
        (b'{"keys": 7}', "it is no"),
        (b'{"keys": []}', "it has no key"),
        (b'{"keys": [7]}', "keys[0] is no object"),
        (json.dumps({"keys": [public("ec")] * 65}).encode(), "with at most 64 keys"),
        (key_set(public("ec"), public("ec", RSA)), "keys[1] has a kid that another one has"),
        (key_set(public("ec"), {**EC.as_dict(private=True), "kid": "x"}), "keys[1] is a secret key"),
        (key_set({**OctKey.generate_key(256).as_dict(private=True), "kid": "x"}), "keys[0] is a secret key"),
        (key_set({"kty": "oct", "kid": "x"}), "keys[0] is a secret key"),
    ],
)
def test_sets_that_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(KeySetRefused) as caught:
        parse_key_set(body)
    assert says in str(caught.value)


async def test_a_file_is_read_again_when_it_is_another_one(
    tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    path, changes = tmp_path / "jwks.json", Changes()
    keys = SigningKeys(str(path), changes=changes)
    nursery.start_soon(keys.run)
    with pytest.raises(trio.WouldBlock):  # it is not there, and nobody knows what will be in it
        await keys.look_for("ec")
    assert "signing keys (--auth-jwks)" in caplog.text
    assert "no signed token is taken" in caplog.text
    path.write_bytes(key_set(public("ec"), public("x", EC, use="enc")))
    with trio.fail_after(20):
        seen = await changes.wait(0)
        assert keys.find("ec") is not None
        assert "is not for signatures: it is left out" in caplog.text
        assert (keys.key_count, keys.failures >= 1) == (1, True)
        path.with_suffix(".new").write_bytes(key_set(public("rsa")))
        path.with_suffix(".new").rename(path)
        await changes.wait(seen)
    assert keys.find("ec") is None
    assert await keys.look_for("ec") is None  # it is gone, so nobody is told to come again
    assert keys.find("rsa") is not None


async def test_a_url_is_asked_for_keys_that_are_new_but_not_by_every_stranger(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()
    site.respond = lambda head: answer(key_set(public("ec")))
    await nursery.start(site.serve)
    keys = SigningKeys(site.url)
    nursery.start_soon(keys.run)
    with trio.fail_after(20):
        await keys.changes.wait(0)
    assert len(site.heads) == 1
    answers: list[str] = []

    async def stranger(kid: str) -> None:
        try:
            answers.append("no" if await keys.look_for(kid) is None else "yes")
        except trio.WouldBlock:
            answers.append("later")

    async with trio.open_nursery() as strangers:
        for number in range(100):
            strangers.start_soon(stranger, f"forged {number}")
    assert (len(site.heads), answers) == (1, ["later"] * 100)
    # Ten seconds later the set is read for the first of them, and what is new in it is found.
    monkeypatch.setattr(jwks, "REFETCH_SECONDS", 0.0)
    site.respond = lambda head: answer(key_set(public("ec"), public("rsa")))
    assert await keys.look_for("rsa") is not None
    assert await keys.look_for("forged") is None
    assert len(site.heads) == 3


@pytest.mark.parametrize(
    "response",
    [
        answer(b"moved", "Location: /elsewhere", status="302 Found"),
        answer(b"<html>sorry</html>", status="502 Bad Gateway"),
        answer(b"<!DOCTYPE html>"),
        answer(b" " * (jwks.MAX_SET_BYTES + 1)),
        b"",
    ],
    ids=["redirect", "error", "web page", "too long", "hangs up"],
)
async def test_a_url_that_fails_leaves_the_last_good_set(
    response: bytes, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "REFETCH_SECONDS", 0.0)
    site = Site()
    site.respond = lambda head: answer(key_set(public("ec")))
    await nursery.start(site.serve)
    keys = SigningKeys(site.url)
    nursery.start_soon(keys.run)
    with trio.fail_after(20):
        await keys.changes.wait(0)
        site.respond = lambda head: response
        with pytest.raises(trio.WouldBlock):
            await keys.look_for("rsa")
    assert keys.find("ec") is not None
    assert keys.failures == 1
    # After a day nobody knows any more which keys were withdrawn.
    monkeypatch.setattr(jwks, "KEPT_SECONDS", 0.0)
    assert (keys.find("ec"), keys.key_count) == (None, 0)


async def test_waits_are_bounded(autojump_clock: MockClock) -> None:
    assert REFETCH_SECONDS < KEPT_SECONDS
    assert SigningKeys("/nowhere").age_seconds == float("inf")
