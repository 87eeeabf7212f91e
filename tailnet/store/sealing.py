"""Encryption of what the store keeps for others: tokens of providers, private keys (layer L2).

AES-256-GCM (NIST SP 800-38D).  Sealed bytes are `1 | key id (8) | nonce (12) | ciphertext and tag`; the place where
they lie (whose they are, what for) is authenticated with them, so that a row that was copied to another user does not
open there.  The first key seals, all of them open: that is how keys are exchanged.  The file: config/key_file.py.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tailnet.errors import SecretsError

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_ID_BYTES: Final = 8
# Random nonces of 96 bits: 2**32 under one key are one chance in 2**32 of a repetition.  A refresh an hour for 10,000
# users is 2**27 in a year.
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_VERSION) + _ID_BYTES + _NONCE_BYTES


class Sealer:
    """Seals and opens.  Without keys it does neither."""

    def __init__(self, keys: Sequence[bytes] = (), random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._random_bytes = random_bytes
        self._ids: tuple[bytes, ...] = ()
        self._ciphers: dict[bytes, AESGCM] = {}
        self.take(keys)

    def take(self, keys: Sequence[bytes]) -> None:
        """Use these from now on, KEY_BYTES each; the first one seals."""
        self._ids = tuple(_key_id(key) for key in keys)
        self._ciphers = {ident: AESGCM(key) for ident, key in zip(self._ids, keys, strict=True)}

    @property
    def has_keys(self) -> bool:
        """Whether anything can be kept."""
        return bool(self._ids)

    def seal(self, plain: bytes, place: str) -> bytes:
        """Raises SecretsError without a key."""
        if not self._ids:
            raise SecretsError("this server keeps no secrets of others: it has no --secrets-key-file")
        head = _VERSION + self._ids[0]
        nonce = self._random_bytes(_NONCE_BYTES)
        return head + nonce + self._ciphers[self._ids[0]].encrypt(nonce, plain, head + place.encode())

    def open(self, sealed: bytes, place: str) -> bytes:
        """Raises SecretsError: its key is not there, or it was changed, or lay elsewhere."""
        head = sealed[: len(_VERSION) + _ID_BYTES]
        cipher = self._ciphers.get(head[len(_VERSION) :])
        if cipher is None or not sealed.startswith(_VERSION):
            key = head[len(_VERSION) :].hex()
            raise SecretsError(f"the {place} was encrypted with key {key}: --secrets-key-file has to have that one too")
        try:
            return cipher.decrypt(sealed[len(head) : _HEAD_BYTES], sealed[_HEAD_BYTES:], head + place.encode())
        except (InvalidTag, ValueError):
            raise SecretsError(f"the {place} is not what was encrypted: somebody changed the store") from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether the first key sealed it."""
        return bool(self._ids) and sealed.startswith(_VERSION + self._ids[0])


def _key_id(key: bytes) -> bytes:
    """Which key it is, for whoever looks for it; it tells nothing of the key."""
    return hashlib.sha256(b"tailnet secrets key" + key).digest()[:_ID_BYTES]
