"""Tickets: one key, until a time, in front of a host name."""

import pytest

from derp.admission.signed import IssuerPrivate
from derp.admission.ticket import MAX_TENANT_CHARS, Ticket, find_ticket, open_ticket, sign_ticket
from derp.errors import SignedFormatError

ISSUER, STRANGER = IssuerPrivate(b"i" * 32), IssuerPrivate(b"s" * 32)
KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
TICKET = sign_ticket(ISSUER, KEY, NOW, NOW + 3600)
OF_ACME = sign_ticket(ISSUER, KEY, NOW, NOW + 3600, "acme")


def test_it_is_found_in_front_of_a_name_in_any_case_and_is_good_for_its_key() -> None:
    for host in (f"{TICKET}.relay.example.org", f"{TICKET}.relay.example.org:3340".upper(), TICKET):
        assert find_ticket(host) == TICKET
    assert all(len(label) <= 63 for label in TICKET.split("."))
    assert open_ticket(TICKET, KEY, [STRANGER.public(), ISSUER.public()], NOW).ends_at == NOW + 3600
    for host in ("", "relay.example.org", "t.example.org", "t-x", "127.0.0.1:3340", "[::1]:3340"):
        assert find_ticket(host) == ""


@pytest.mark.parametrize(
    ("text", "key", "now", "reason"),
    [
        (TICKET, OTHER, NOW, "is for another key"),
        (sign_ticket(STRANGER, KEY, NOW, NOW + 3600), KEY, NOW, "of no issuer that is trusted"),
        (TICKET, KEY, NOW + 3600, "ended at 2027-01-15 09:00:00 UTC"),
        (TICKET, KEY, NOW - 3600, "one of the two clocks is wrong"),
        (TICKET[:-1], KEY, NOW, "is no whole ticket"),
        ("t-.", KEY, NOW, "is no whole ticket"),
        ("t-!.é", KEY, NOW, "is no whole ticket"),
        ("t-am" + TICKET[4:], KEY, NOW, "is of version 3"),
        (OF_ACME[:-1], KEY, NOW, "is no whole ticket"),
        (OF_ACME, OTHER, NOW, "is for another key"),
        (sign_ticket(ISSUER, KEY, NOW, NOW + 3600, "a b"), KEY, NOW, "names a tenant that wants a name"),
    ],
)
def test_what_is_not_good_says_why(text: str, key: bytes, now: float, reason: str) -> None:
    with pytest.raises(SignedFormatError, match=reason):
        open_ticket(text, key, [ISSUER.public()], now)


@pytest.mark.parametrize("tenant", ["a", "ab", "acme", "x" * (MAX_TENANT_CHARS - 1), "X" * MAX_TENANT_CHARS])
def test_one_with_a_tenant_has_three_labels_whatever_the_name(tenant: str) -> None:
    ticket = sign_ticket(ISSUER, KEY, NOW, NOW + 3600, tenant)
    assert [len(label) <= 63 for label in ticket.split(".")] == [True] * 3
    assert find_ticket(f"{ticket}.relay.example.org:3340".upper()) == ticket
    assert open_ticket(ticket, KEY, [ISSUER.public()], NOW) == Ticket(KEY, NOW + 3600, tenant)


def test_a_longer_tenant_is_refused_though_it_is_signed() -> None:
    digits = OF_ACME.removeprefix("t3-").replace(".", "")
    with pytest.raises(SignedFormatError, match="is no whole ticket"):
        open_ticket(f"t3-{digits + 'a' * 64}", KEY, [ISSUER.public()], NOW)


@pytest.mark.parametrize("ticket", [TICKET, OF_ACME])
def test_every_changed_digit_is_refused(ticket: str) -> None:
    for at, digit in enumerate(ticket):
        # The last digit of base32 has bits that mean nothing.
        if at < ticket.index("-") + 1 or digit == "." or at == len(ticket) - 1:
            continue
        changed = ticket[:at] + ("a" if digit != "a" else "b") + ticket[at + 1 :]
        with pytest.raises(SignedFormatError):
            open_ticket(changed, KEY, [ISSUER.public()], NOW)
