"""The two MACs of handshake messages, and cookies against floods (layer L1; white paper 5.3, 5.4.4 and 5.4.7).

mac1 proves that the sender knows the receiver's public key; mac2 that it receives at the address it sends from.
A receiver under load answers a message without a right mac2 with a cookie (64 bytes for 92 or 148, so nobody is
flooded by way of us); the sender puts it under its next message.  Next hop: admission.py, device.py.
"""

import hmac
from collections.abc import Callable
from hashlib import blake2s
from typing import Final

from tailnet.sodium import open_xchacha, seal_xchacha
from tailnet.wireguard.messages import (
    COOKIE_NONCE_BYTES,
    COOKIE_REPLY,
    COOKIE_REPLY_HEAD,
    MAC_BYTES,
    MACS_BYTES,
)

# How long a cookie is good for, and how long its secret lives: the paper's.
COOKIE_SECONDS: Final = 120.0

_NO_MAC: Final = bytes(MAC_BYTES)


def mac1_key(receiver: bytes) -> bytes:
    """The key of mac1, made from the public key of whoever receives the message."""
    return blake2s(b"mac1----" + receiver).digest()


def cookie_key(replier: bytes) -> bytes:
    """The key of cookie replies, made from the public key of whoever sends them."""
    return blake2s(b"cookie--" + replier).digest()


def mac(key: bytes, message: bytes) -> bytes:
    """Keyed BLAKE2s of 16 bytes."""
    return blake2s(message, key=key, digest_size=MAC_BYTES).digest()


class CookieJar:
    """One per peer: puts the MACs under what we send there, and keeps the cookie that it may ask for."""

    __slots__ = ("_cookie", "_cookie_at", "_cookie_key", "_last_mac1", "_mac1_key")

    def __init__(self, peer: bytes) -> None:
        self._mac1_key = mac1_key(peer)
        self._cookie_key = cookie_key(peer)
        self._cookie: bytes | None = None
        self._cookie_at = 0.0
        self._last_mac1: bytes | None = None

    def add_macs(self, message: bytes, now: float) -> bytes:
        """A handshake message with both MACs, ready to be sent."""
        mac1 = mac(self._mac1_key, message)
        self._last_mac1 = mac1
        message += mac1
        if self._cookie is None or now - self._cookie_at >= COOKIE_SECONDS:
            self._cookie = None
            return message + _NO_MAC
        return message + mac(self._cookie, message)

    def receive(self, reply: bytes, now: float) -> bool:
        """Keep the cookie of a reply to our last message; False if it is none."""
        if self._last_mac1 is None:
            return False
        nonce, sealed = _split(reply)
        cookie = open_xchacha(self._cookie_key, nonce, sealed, self._last_mac1)
        if cookie is None:
            return False
        self._cookie, self._cookie_at = cookie, now
        return True


class CookieMaker:
    """Checks what is sent to us, and makes cookies.  `source` is any stable form of where a message came from."""

    __slots__ = ("_cookie_key", "_mac1_key", "_random", "_secret", "_secret_at")

    def __init__(self, public: bytes, random: Callable[[int], bytes]) -> None:
        self._mac1_key = mac1_key(public)
        self._cookie_key = cookie_key(public)
        self._random = random
        self._secret = b""
        self._secret_at = float("-inf")

    def has_mac1(self, message: bytes) -> bool:
        """Whether it was made for our public key: the first thing to ask, at the cost of one hash."""
        end = len(message) - MACS_BYTES
        return hmac.compare_digest(mac(self._mac1_key, message[:end]), message[end : end + MAC_BYTES])

    def has_mac2(self, message: bytes, source: bytes, now: float) -> bool:
        """Whether its sender got a cookie of ours at this source, lately."""
        if now - self._secret_at >= COOKIE_SECONDS:
            return False
        end = len(message) - MAC_BYTES
        return hmac.compare_digest(mac(mac(self._secret, source), message[:end]), message[end:])

    def make_reply(self, message: bytes, sender: int, source: bytes, now: float) -> bytes:
        """The cookie reply to a handshake message whose mac1 is right."""
        if now - self._secret_at >= COOKIE_SECONDS:
            self._secret, self._secret_at = self._random(32), now
        nonce = self._random(COOKIE_NONCE_BYTES)
        mac1 = message[len(message) - MACS_BYTES : len(message) - MAC_BYTES]
        sealed = seal_xchacha(self._cookie_key, nonce, mac(self._secret, source), mac1)
        return COOKIE_REPLY_HEAD.pack(COOKIE_REPLY, sender) + nonce + sealed


def _split(reply: bytes) -> tuple[bytes, bytes]:
    at = COOKIE_REPLY_HEAD.size
    return reply[at : at + COOKIE_NONCE_BYTES], reply[at + COOKIE_NONCE_BYTES :]
