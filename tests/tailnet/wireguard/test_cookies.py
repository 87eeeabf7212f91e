"""MACs and cookies against a genuine exchange; a cookie is bound to a source, a secret and a message."""

from random import Random

from tailnet.wireguard.cookies import COOKIE_SECONDS, CookieJar, CookieMaker, cookie_key, mac, mac1_key
from tests.vectors.wireguard import HANDSHAKES, VECTORS

COOKIE = VECTORS["cookie"]
RESPONDER = bytes.fromhex(HANDSHAKES[0]["responder_public"])
INITIATOR = bytes.fromhex(HANDSHAKES[0]["initiator_public"])
WITHOUT = bytes.fromhex(COOKIE["message_with_mac1"])
SOURCE = bytes.fromhex(COOKIE["source_bytes"])
BARE = WITHOUT[:-32]


def maker(*random: bytes) -> CookieMaker:
    given = iter(random)
    return CookieMaker(RESPONDER, lambda count: next(given))


def test_the_genuine_exchange_byte_for_byte() -> None:
    reply = bytes.fromhex(COOKIE["cookie_reply"])
    assert mac1_key(RESPONDER).hex() == COOKIE["mac1_key"] == HANDSHAKES[0]["derived"]["mac1_key_to_responder"]
    assert mac1_key(INITIATOR).hex() == HANDSHAKES[0]["derived"]["mac1_key_to_initiator"]
    assert cookie_key(RESPONDER).hex() == COOKIE["cookie_key"]
    cookies = maker(bytes.fromhex(COOKIE["cookie_secret"]), reply[8:32])
    jar = CookieJar(RESPONDER)
    assert jar.add_macs(BARE, 1.0) == WITHOUT
    assert cookies.has_mac1(WITHOUT)
    assert not cookies.has_mac2(WITHOUT, SOURCE, 1.0)
    assert cookies.make_reply(WITHOUT, 0xDEADBEEF, SOURCE, 1.0) == reply
    assert jar.receive(reply, 2.0)
    again = jar.add_macs(BARE, 3.0)
    assert again.hex() == COOKIE["message_with_mac2"]
    assert cookies.has_mac2(again, SOURCE, 3.0)
    assert not cookies.has_mac2(again, SOURCE + b"x", 3.0)


def test_genuine_handshakes_have_a_right_mac1() -> None:
    for vector in HANDSHAKES:
        for packet, receiver in zip(vector["packets"][:2], (RESPONDER, INITIATOR), strict=True):
            message = bytes.fromhex(packet["bytes"])
            assert CookieMaker(receiver, Random(1).randbytes).has_mac1(message)
            assert not CookieMaker(bytes(32), Random(1).randbytes).has_mac1(message)


def exchange(now: float) -> tuple[CookieMaker, CookieJar]:
    cookies, jar = CookieMaker(RESPONDER, Random(2).randbytes), CookieJar(RESPONDER)
    assert jar.receive(cookies.make_reply(jar.add_macs(BARE, now), 1, SOURCE, now), now)
    return cookies, jar


def test_a_cookie_lasts_as_long_as_the_secret() -> None:
    cookies, jar = exchange(10.0)
    last = 10.0 + COOKIE_SECONDS - 0.001
    assert cookies.has_mac2(jar.add_macs(BARE, last), SOURCE, last)
    end = 10.0 + COOKIE_SECONDS
    assert not cookies.has_mac2(jar.add_macs(BARE, last), SOURCE, end), "the secret is over"
    assert jar.add_macs(BARE, end)[-16:] == bytes(16), "and so is the cookie"


def test_a_new_secret_makes_old_cookies_worthless() -> None:
    cookies, jar = exchange(10.0)
    message = jar.add_macs(BARE, 20.0)
    cookies.make_reply(WITHOUT, 1, SOURCE, 10.0 + COOKIE_SECONDS)
    assert not cookies.has_mac2(message, SOURCE, 10.0 + COOKIE_SECONDS)


def test_a_reply_to_something_else_is_no_cookie() -> None:
    cookies, jar = exchange(10.0)
    early = cookies.make_reply(jar.add_macs(BARE, 11.0), 1, SOURCE, 11.0)
    other = CookieJar(RESPONDER)
    assert not other.receive(early, 11.0), "it has sent nothing"
    other.add_macs(b"something else", 11.0)
    assert not other.receive(early, 11.0)
    assert not jar.receive(early[:-1] + bytes((early[-1] ^ 1,)), 11.0)
    assert jar.receive(early, 11.0)


def test_a_mac_is_keyed() -> None:
    assert mac(b"a" * 32, b"x") != mac(b"b" * 32, b"x")
    assert len(mac(b"a" * 32, b"x")) == 16
