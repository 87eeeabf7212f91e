"""What a relay believes of key sets: the newest it ever saw, until its end, and none older."""

from dataclasses import replace

import pytest

from derp.admission.keyset import SKEW_SECONDS, KeySet, NewestKeySet, open_key_set, sign_key_set
from derp.admission.signed import IssuerPrivate
from derp.errors import SignedFormatError

ISSUER, STRANGER = IssuerPrivate(b"i" * 32), IssuerPrivate(b"s" * 32)
GOOD, BAD, OTHER = b"g" * 32, b"b" * 32, b"o" * 32
NOW = 1_800_000_000.0
SET = KeySet(7, NOW, NOW + 3600, frozenset({GOOD, BAD}), frozenset({BAD}))


def newest() -> NewestKeySet:
    return NewestKeySet([ISSUER.public()])


def take(sets: NewestKeySet, document: bytes, now: float) -> KeySet | None:
    return sets.take(open_key_set(document, sets.issuers), now)


def test_a_set_says_who_may_come_in_until_it_ends() -> None:
    sets = newest()
    assert not sets.has(GOOD, NOW)
    taken = take(sets, sign_key_set(ISSUER, SET), NOW)
    assert taken == replace(SET, issuer=ISSUER.public())
    assert (sets.has(GOOD, NOW), sets.has(BAD, NOW), sets.has(OTHER, NOW)) == (True, False, False)
    assert sets.has(GOOD, NOW + 3599)
    assert not sets.has(GOOD, NOW + 3600)
    assert sets.is_revoked(BAD), "that does not end"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 6}, "has version 6, and 7 was seen already"),
        ({"version": 6, "ends_at": NOW + 9e6}, "has version 6, and 7 was seen already"),
        ({"keys": frozenset({OTHER})}, "has version 7 like the one that counts, and other keys"),
        ({"version": 8, "issued_at": NOW + 3600, "ends_at": NOW + 7200}, "one of the two clocks is wrong"),
        ({"version": 8, "ends_at": NOW}, "ended at 2027-01-15 08:00:00 UTC"),
    ],
)
def test_what_is_not_believed_leaves_what_was(changes: dict[str, object], reason: str) -> None:
    sets = newest()
    take(sets, sign_key_set(ISSUER, SET), NOW)
    with pytest.raises(SignedFormatError, match=reason):
        take(sets, sign_key_set(ISSUER, replace(SET, **changes)), NOW)  # type: ignore[arg-type]  # one table
    assert sets.has(GOOD, NOW)
    assert not sets.has(OTHER, NOW)


def test_it_says_whose_clients_keys_are_and_a_renewal_may_say_more() -> None:
    sets = newest()
    take(sets, sign_key_set(ISSUER, SET), NOW)
    assert sets.tenant_of(GOOD) == ""
    named = replace(SET, ends_at=NOW + 7200, tenants={GOOD: "acme", BAD: "other"})
    assert take(sets, sign_key_set(ISSUER, named), NOW) == replace(named, issuer=ISSUER.public())
    assert (sets.tenant_of(GOOD), sets.tenant_of(BAD), sets.tenant_of(OTHER)) == ("acme", "other", "")


def test_a_replay_is_no_news_and_a_renewal_lasts_longer() -> None:
    sets, document = newest(), sign_key_set(ISSUER, SET)
    assert take(sets, document, NOW) is not None
    assert take(sets, document, NOW) is None
    later = replace(SET, issued_at=NOW + 10, ends_at=NOW + 7200)
    assert take(sets, sign_key_set(ISSUER, later), NOW + 10) is not None
    assert take(sets, document, NOW + 20) is None, "the shorter one again"
    assert sets.has(GOOD, NOW + 7199)


def test_one_minute_of_a_clock_is_nothing_and_one_hour_is_said() -> None:
    for off, is_taken in ((60.0, True), (SKEW_SECONDS, True), (SKEW_SECONDS + 1, False), (3600.0, False)):
        sets = newest()
        document = sign_key_set(ISSUER, replace(SET, ends_at=NOW + 86_400))
        if is_taken:
            assert take(sets, document, NOW - off) is not None
        else:
            with pytest.raises(SignedFormatError, match="one of the two clocks is wrong"):
                take(sets, document, NOW - off)


def test_what_was_kept_admits_if_it_has_not_ended_and_bars_older_ones_anyway() -> None:
    sets = newest()
    sets.recall(sign_key_set(ISSUER, SET))
    assert sets.has(GOOD, NOW)
    assert not sets.has(GOOD, NOW + 3600)
    with pytest.raises(SignedFormatError, match="an old one is not believed"):
        take(sets, sign_key_set(ISSUER, replace(SET, version=6, ends_at=NOW + 9000)), NOW + 3600)
    with pytest.raises(SignedFormatError, match="none of the issuers"):
        newest().recall(sign_key_set(STRANGER, SET))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 5000,
        b'{"version":7,"issued":1,"ends":2,"keys":["ab"],"revoked":[]}',
        b'{"version":7,"issued":1,"ends":2,"keys":["' + b"zz" * 32 + b'"],"revoked":[]}',
        b'{"version":-1,"issued":1,"ends":2,"keys":[],"revoked":[]}',
        b'{"version":true,"issued":1,"ends":2,"keys":[],"revoked":[]}',
        b'{"version":1.5,"issued":1,"ends":2,"keys":[],"revoked":[]}',
        b'{"version":1,"issued":1,"ends":1e300,"keys":[],"revoked":[]}',
        b'{"version":1,"issued":1,"ends":2,"keys":{},"revoked":[]}',
        b'{"version":1,"issued":1,"ends":2,"keys":[1],"revoked":[]}',
        b'{"version":1,"issued":1,"ends":2,"keys":[],"revoked":[],"tenants":[]}',
        b'{"version":1,"issued":1,"ends":2,"keys":[],"revoked":[],"tenants":{"a b":[]}}',
        b'{"version":1,"issued":1,"ends":2,"keys":[],"revoked":[],"tenants":{"a":["ab"]}}',
    ],
)
def test_a_signature_over_nonsense_makes_no_key_set(payload: bytes) -> None:
    with pytest.raises(SignedFormatError, match="holds no key set"):
        open_key_set(ISSUER.sign("derp-key-set", payload), [ISSUER.public()])


def test_the_same_set_is_the_same_bytes_whatever_the_order_of_its_keys() -> None:
    many = [bytes([number]) * 32 for number in range(200)]
    one = replace(SET, keys=frozenset(many), tenants=dict.fromkeys(many, "a"))
    assert sign_key_set(ISSUER, one) == sign_key_set(
        ISSUER, replace(one, keys=frozenset(reversed(many)), tenants=dict.fromkeys(reversed(many), "a"))
    )
