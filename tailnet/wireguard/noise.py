"""The handshake Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s, both roles (layer L1; white paper 5.4.2 and 5.4.3).

Two messages and four computations on the curve a side; that of both static keys is the same for ever and done once.
Messages come and go without their two MACs (cookies.py).  What a stranger sent and does not open is None: no exception
per forgery.  Cheap order for the responder: `open_static` (one computation), look the key up, then `open_stamp`.
"""

import hmac
from hashlib import blake2s
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tailnet.wireguard.messages import (
    INITIATION,
    INITIATION_HEAD,
    KEY_BYTES,
    RESPONSE,
    RESPONSE_HEAD,
    TAG_BYTES,
    TIMESTAMP_BYTES,
    Payload,
)

NO_PRESHARED_KEY: Final = bytes(32)

_CHAIN: Final = blake2s(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s").digest()
_HASH: Final = blake2s(_CHAIN + b"WireGuard v1 zx2c4 Jason@zx2c4.com").digest()
_NONCE: Final = bytes(12)  # every key of the handshake seals one thing


def kdf(key: bytes, given: bytes, count: int) -> list[bytes]:
    """KDF1 to KDF3 of the paper: `count` keys of 32 bytes out of a chaining key and what is mixed in."""
    pseudorandom = hmac.digest(key, given, blake2s)
    keys = [hmac.digest(pseudorandom, b"\x01", blake2s)]
    while len(keys) < count:
        keys.append(hmac.digest(pseudorandom, keys[-1] + bytes((len(keys) + 1,)), blake2s))
    return keys


class Identity:
    """Our static key pair."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public: Final = self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes | None:
        """The shared secret with the owner of a public key; None for a key for which everybody knows it."""
        return _exchange(self._private, public)


class Remote(NamedTuple):
    """What the handshake has to know of a peer."""

    public: bytes
    static_static: bytes
    """`Identity.agree(public)`."""
    preshared: bytes = NO_PRESHARED_KEY


class TransportKeys(NamedTuple):
    """What both sides have in the end, from our point of view."""

    send: bytes
    receive: bytes


class Transcript:
    """Chaining key and hash: all that both sides have agreed on so far."""

    __slots__ = ("chain", "hash")

    def __init__(self, responder: bytes) -> None:
        self.chain = _CHAIN
        self.hash = blake2s(_HASH + responder).digest()

    def mix(self, given: Payload) -> None:
        self.hash = blake2s(self.hash + given).digest()

    def mix_key(self, given: bytes) -> None:
        (self.chain,) = kdf(self.chain, given, 1)

    def mix_ephemeral(self, public: bytes) -> None:
        self.mix(public)
        self.mix_key(public)

    def seal(self, secret: bytes, text: bytes) -> bytes:
        self.chain, key = kdf(self.chain, secret, 2)
        return self._seal(key, text)

    def open(self, secret: bytes, sealed: bytes) -> bytes | None:
        self.chain, key = kdf(self.chain, secret, 2)
        return self._open(key, sealed)

    def seal_nothing(self, preshared: bytes) -> bytes:
        return self._seal(self._mix_preshared(preshared), b"")

    def open_nothing(self, preshared: bytes, sealed: bytes) -> bool:
        return self._open(self._mix_preshared(preshared), sealed) is not None

    def split(self) -> list[bytes]:
        """The key of the initiator's packets, and of the responder's."""
        return kdf(self.chain, b"", 2)

    def _mix_preshared(self, preshared: bytes) -> bytes:
        self.chain, mixed, key = kdf(self.chain, preshared, 3)
        self.mix(mixed)
        return key

    def _seal(self, key: bytes, text: bytes) -> bytes:
        sealed = ChaCha20Poly1305(key).encrypt(_NONCE, text, self.hash)
        self.mix(sealed)
        return sealed

    def _open(self, key: bytes, sealed: bytes) -> bytes | None:
        try:
            text = ChaCha20Poly1305(key).decrypt(_NONCE, sealed, self.hash)
        except InvalidTag:
            return None
        self.mix(sealed)
        return text


class SentInitiation:
    """What an initiator keeps until the response comes."""

    __slots__ = ("_ephemeral", "_identity", "_transcript", "index", "remote")

    def __init__(
        self, identity: Identity, remote: Remote, index: int, ephemeral: X25519PrivateKey, transcript: Transcript
    ) -> None:
        self.index = index
        self.remote = remote
        self._identity = identity
        self._ephemeral = ephemeral
        self._transcript = transcript

    def open_response(self, message: bytes) -> TransportKeys | None:
        """The keys, if this is the answer to it.  A forged one changes nothing: the right one may follow."""
        at = RESPONSE_HEAD.size
        public = message[at : at + KEY_BYTES]
        transcript = Transcript(self.remote.public)
        transcript.chain, transcript.hash = self._transcript.chain, self._transcript.hash
        ephemeral_both = _exchange(self._ephemeral, public)
        static_both = self._identity.agree(public)
        if ephemeral_both is None or static_both is None:
            return None
        transcript.mix_ephemeral(public)
        transcript.mix_key(ephemeral_both)
        transcript.mix_key(static_both)
        sealed = message[at + KEY_BYTES : at + KEY_BYTES + TAG_BYTES]
        if not transcript.open_nothing(self.remote.preshared, sealed):
            return None
        send, receive = transcript.split()
        return TransportKeys(send, receive)


def make_initiation(
    identity: Identity, remote: Remote, index: int, seed: bytes, stamp: bytes
) -> tuple[bytes, SentInitiation]:
    """The message without its MACs, and what to keep.  `seed`: 32 random bytes for the ephemeral key."""
    ephemeral = X25519PrivateKey.from_private_bytes(seed)
    public = ephemeral.public_key().public_bytes_raw()
    transcript = Transcript(remote.public)
    transcript.mix_ephemeral(public)
    shared = _exchange(ephemeral, remote.public)
    assert shared is not None  # the peer's key was tried when its static-static secret was made
    static = transcript.seal(shared, identity.public)
    time = transcript.seal(remote.static_static, stamp)
    message = INITIATION_HEAD.pack(INITIATION, index) + public + static + time
    return message, SentInitiation(identity, remote, index, ephemeral, transcript)


class ReceivedInitiation:
    """An initiation that is being opened, in two steps."""

    __slots__ = ("_ephemeral", "_sealed_stamp", "_transcript", "public", "sender")

    def __init__(
        self, sender: int, public: bytes, ephemeral: bytes, sealed_stamp: bytes, transcript: Transcript
    ) -> None:
        self.sender = sender
        self.public = public
        """The static key that the sender claims; proved when `open_stamp` is not None."""
        self._ephemeral = ephemeral
        self._sealed_stamp = sealed_stamp
        self._transcript = transcript

    def open_stamp(self, static_static: bytes) -> bytes | None:
        """The time stamp, sealed with what only the owner of the claimed key and we can compute; else None."""
        return self._transcript.open(static_static, self._sealed_stamp)

    def respond(self, remote: Remote, index: int, seed: bytes) -> tuple[bytes, TransportKeys]:
        """The response without its MACs, and the keys.  Only after `open_stamp`.  `seed`: 32 random bytes."""
        ephemeral = X25519PrivateKey.from_private_bytes(seed)
        public = ephemeral.public_key().public_bytes_raw()
        ephemeral_both = _exchange(ephemeral, self._ephemeral)
        static_both = _exchange(ephemeral, remote.public)
        assert ephemeral_both is not None  # `open_static` computed with the same point already
        assert static_both is not None
        transcript = self._transcript
        transcript.mix_ephemeral(public)
        transcript.mix_key(ephemeral_both)
        transcript.mix_key(static_both)
        nothing = transcript.seal_nothing(remote.preshared)
        receive, send = transcript.split()
        message = RESPONSE_HEAD.pack(RESPONSE, index, self.sender) + public + nothing
        return message, TransportKeys(send, receive)


def open_static(identity: Identity, message: bytes) -> ReceivedInitiation | None:
    """Who claims to have sent an initiation; None if it was not made for us."""
    _, sender = INITIATION_HEAD.unpack_from(message)
    at = INITIATION_HEAD.size
    ephemeral = message[at : at + KEY_BYTES]
    sealed_static = message[at + KEY_BYTES : at + 2 * KEY_BYTES + TAG_BYTES]
    sealed_stamp = message[at + 2 * KEY_BYTES + TAG_BYTES :][: TIMESTAMP_BYTES + TAG_BYTES]
    shared = identity.agree(ephemeral)
    if shared is None:
        return None
    transcript = Transcript(identity.public)
    transcript.mix_ephemeral(ephemeral)
    static = transcript.open(shared, sealed_static)
    if static is None:
        return None
    return ReceivedInitiation(sender, static, ephemeral, sealed_stamp, transcript)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes | None:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # the result is zero: a point of small order
        return None
