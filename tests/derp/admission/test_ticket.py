"""Tickets: one key, until a time, in front of a host name."""

import pytest

from derp.admission.signed import IssuerPrivate
from derp.admission.ticket import find_ticket, open_ticket, sign_ticket
from derp.errors import SignedFormatError

ISSUER, STRANGER = IssuerPrivate(b"i" * 32), IssuerPrivate(b"s" * 32)
KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000.0
TICKET = sign_ticket(ISSUER, KEY, NOW, NOW + 3600)


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
        ("t-ai" + TICKET[4:], KEY, NOW, "is of version 2"),
    ],
)
def test_what_is_not_good_says_why(text: str, key: bytes, now: float, reason: str) -> None:
    with pytest.raises(SignedFormatError, match=reason):
        open_ticket(text, key, [ISSUER.public()], now)


def test_every_changed_digit_is_refused() -> None:
    for at, digit in enumerate(TICKET):
        if at < 2 or digit == "." or at == len(TICKET) - 1:  # the last digit of base32 has bits that mean nothing
            continue
        changed = TICKET[:at] + ("a" if digit != "a" else "b") + TICKET[at + 1 :]
        with pytest.raises(SignedFormatError):
            open_ticket(changed, KEY, [ISSUER.public()], NOW)
