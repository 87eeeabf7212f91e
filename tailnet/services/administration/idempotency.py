"""Idempotency-Key: a request that is sent twice is carried out once, and answered alike (layer L3).

An answer may hold a token that is shown once, and the store keeps no token: so it is sealed with a key that is made of
the caller's own token, which the store does not know either.  Next hop: store/administration/answers.py.
"""

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tailnet.errors import AdministrationError, Fault
from tailnet.store.administration.answers import KeptAnswer

MAX_KEY_CHARS: Final = 255
MAX_ANSWER_BYTES: Final = 64 * 1024
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What a change is answered: an HTTP status, a JSON body or None, and the ETag of what it is about."""

    status: int
    body: dict[str, Any] | None = None
    etag: str = ""


class IdempotencyKey:
    """One request with such a key.  `token`: of the caller, whose keys are his own."""

    def __init__(self, text: str, token: bytes, request: bytes) -> None:
        """`request`: all that makes it another request.  Raises AdministrationError."""
        if not 0 < len(text) <= MAX_KEY_CHARS or not (text.isascii() and text.isprintable()):
            raise AdministrationError(
                Fault.INVALID,
                "this Idempotency-Key cannot be taken",
                [("Idempotency-Key", f"wants 1 to {MAX_KEY_CHARS} visible ASCII characters, such as a UUID")],
            )
        self.digest = hashlib.sha256(hashlib.sha256(token).digest() + text.encode()).digest()
        self._request_digest = hashlib.sha256(request).digest()
        self._seal = AESGCM(hashlib.sha256(b"tailnet kept answer " + self.digest + token).digest())

    def seal(self, answer: Answer) -> KeptAnswer:
        """An answer as it is kept.  Raises AdministrationError when it is too large for that."""
        plain = json.dumps([answer.status, answer.body, answer.etag]).encode()
        if len(plain) > MAX_ANSWER_BYTES:
            raise AdministrationError(
                Fault.TOO_LARGE,
                f"the answer is too large to be kept ({len(plain):,} bytes, at most {MAX_ANSWER_BYTES:,}): leave the "
                "Idempotency-Key out and use PUT with an id of your own, which may be sent twice as it is",
            )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return KeptAnswer(self._request_digest, nonce + self._seal.encrypt(nonce, plain, self._request_digest))

    def open(self, kept: KeptAnswer) -> Answer:
        """The answer of before.  Raises AdministrationError when it belongs to another request."""
        try:
            if kept.request_digest != self._request_digest:
                raise InvalidTag
            nonce, sealed = kept.sealed[:_NONCE_BYTES], kept.sealed[_NONCE_BYTES:]
            return Answer(*json.loads(self._seal.decrypt(nonce, sealed, self._request_digest)))
        except InvalidTag:
            raise AdministrationError(
                Fault.KEY_REUSED, "this Idempotency-Key was used for another request: make a new key for each request"
            ) from None
