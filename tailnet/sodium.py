"""The two ciphers of libsodium that the data plane needs (layer L0): nobody else of this package imports nacl.

XChaCha20-Poly1305 seals WireGuard's cookies (white paper 5.4.7), NaCl's crypto_box seals disco messages.
Bytes in, bytes out; nonces come from the caller.  What does not open is None, since strangers send it.
"""

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_box_beforenm,
    crypto_box_easy_afternm,
    crypto_box_open_easy_afternm,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError


def seal_xchacha(key: bytes, nonce: bytes, text: bytes, associated: bytes) -> bytes:
    """`key` 32 B, `nonce` 24 B.  Returns the sealed text with its tag of 16 B."""
    return crypto_aead_xchacha20poly1305_ietf_encrypt(text, associated, nonce, key)


def open_xchacha(key: bytes, nonce: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The text; None if it was not sealed with this key, nonce and associated bytes."""
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, associated, nonce, key)
    except (CryptoError, ValueError):  # the latter: shorter than a tag
        return None


def agree(private: bytes, public: bytes) -> bytes | None:
    """The key of 32 B that both share: a curve computation, done once per peer.  None if the public key is one of the
    few for which everybody knows the result."""
    try:
        return crypto_box_beforenm(public, private)
    except SodiumError:
        return None


def public_of(private: bytes) -> bytes:
    """The public half of a key, 32 B each."""
    return crypto_scalarmult_base(private)


def seal_box(shared: bytes, nonce: bytes, text: bytes) -> bytes:
    """`shared` is of `agree`, `nonce` 24 B.  Returns the box without its nonce: 16 B more than the text."""
    return crypto_box_easy_afternm(text, nonce, shared)


def open_box(shared: bytes, nonce: bytes, box: bytes) -> bytes | None:
    """The text; None if somebody else made the box, or it is damaged."""
    try:
        return crypto_box_open_easy_afternm(box, nonce, shared)
    except CryptoError:
        return None
