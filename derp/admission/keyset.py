"""Key sets: who may use a relay, as somebody signed it, with a version and an end.  Layer L1: `now` is an argument.

A snapshot names every key that may come in and those that were revoked, and counts until its end, whether its issuer
can be reached or not.  `NewestKeySet` is what one relay believes: the newest version that it ever saw, and none older.
server/keysets.py fetches them; the times are Unix seconds of the wall clock.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from derp.admission.signed import KEY_BYTES, Issuer, IssuerPrivate, open_signed
from derp.admission.terms import tenant_name
from derp.errors import SignedFormatError
from derp.text import utc

KIND: Final = "derp-key-set"
# Clocks that are kept by NTP agree within a second; five minutes are a clock that nobody keeps, and no key lives so
# short.
SKEW_SECONDS: Final = 300.0
# 100,000 keys are 6.7 MB of JSON, 9 MB as base64; twice that if each has a tenant.
MAX_DOCUMENT_BYTES: Final = 32 * 1024 * 1024
_MAX_NUMBER: Final = 1 << 53


@dataclass(frozen=True, slots=True)
class KeySet:
    """One snapshot.  Keys are raw public node keys of 32 bytes; a key that is both is revoked.

    `tenants`: whose clients keys are; of those that are missing, or have an empty one, the issuer does not say.
    """

    version: int
    issued_at: float
    ends_at: float
    keys: frozenset[bytes] = field(repr=False)
    revoked: frozenset[bytes] = field(default=frozenset(), repr=False)
    issuer: Issuer | None = None
    tenants: Mapping[bytes, str] = field(default_factory=dict, repr=False, hash=False)

    def __str__(self) -> str:
        return f"key set {self.version} with {len(self.keys):,} keys, which ends at {utc(self.ends_at)}"


def sign_key_set(private: IssuerPrivate, key_set: KeySet) -> bytes:
    """The document of a snapshot.  The same set gives the same bytes."""
    fields = {
        "version": key_set.version,
        "issued": int(key_set.issued_at),
        "ends": int(key_set.ends_at),
        "keys": _hex(key_set.keys),
        "revoked": _hex(key_set.revoked),
    }
    if any(key_set.tenants.values()):
        fields["tenants"] = _by_tenant(key_set.tenants)
    return private.sign(KIND, json.dumps(fields, separators=(",", ":")).encode())


def open_key_set(document: bytes, issuers: Collection[Issuer]) -> KeySet:
    """Check and read a document, of whatever age.  Raises SignedFormatError.  100,000 keys take 0.1 s."""
    issuer, payload = open_signed(document, KIND, issuers)
    try:
        fields = json.loads(payload)
        key_set = KeySet(
            _whole(fields["version"]),
            float(_whole(fields["issued"])),
            float(_whole(fields["ends"])),
            _keys(fields["keys"]),
            _keys(fields["revoked"]),
            issuer,
            _tenants(fields.get("tenants", {})),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SignedFormatError("is signed, but holds no key set as this relay knows them") from None
    return key_set


class NewestKeySet:
    """What one relay believes of the key sets that it saw."""

    def __init__(self, issuers: Collection[Issuer]) -> None:
        self.issuers = issuers
        self.current: KeySet | None = None
        """The newest one, whether or not it has ended."""

    def take(self, key_set: KeySet, now: float) -> KeySet | None:
        """Believe a snapshot that `open_key_set` gave, from now on.  None: it is the one that is believed already.

        Raises SignedFormatError: it is older than one that was seen, at its end, or of a time that has not come.
        """
        if key_set.issued_at > now + SKEW_SECONDS:
            raise SignedFormatError(
                f"was issued at {utc(key_set.issued_at)}, and here it is {utc(now)}: one of the two clocks is wrong"
            )
        before = self.current
        if before is not None:
            if key_set.version < before.version:
                raise SignedFormatError(
                    f"has version {key_set.version}, and {before.version} was seen already: an old one is not believed"
                )
            # Signed anew, to be good for longer, it has the same keys: another one would be a fork.
            if key_set.version == before.version and (key_set.keys, key_set.revoked) != (before.keys, before.revoked):
                raise SignedFormatError(f"has version {key_set.version} like the one that counts, and other keys")
            if key_set.version == before.version and key_set.ends_at <= before.ends_at:
                return None
        if key_set.ends_at <= now:
            raise SignedFormatError(f"ended at {utc(key_set.ends_at)}, and here it is {utc(now)}")
        self.current = key_set
        return key_set

    def recall(self, document: bytes) -> None:
        """What was kept of before this start: if it has ended, its version still counts.  Raises SignedFormatError."""
        self.current = open_key_set(document, self.issuers)

    def counts(self, now: float) -> bool:
        """Whether there is one, and it has not ended."""
        return self.current is not None and now < self.current.ends_at

    def has(self, key: bytes, now: float) -> bool:
        """Whether a key may come in."""
        return self.counts(now) and not self.is_revoked(key) and key in self._current.keys

    def is_revoked(self, key: bytes) -> bool:
        """Whether a key was revoked; that does not end."""
        return self.current is not None and key in self.current.revoked

    def tenant_of(self, key: bytes) -> str:
        """Whose client a key is; empty: the issuer does not say."""
        return self.current.tenants.get(key, "") if self.current is not None else ""

    @property
    def _current(self) -> KeySet:
        assert self.current is not None
        return self.current


def _hex(keys: Iterable[bytes]) -> list[str]:
    return sorted(key.hex() for key in keys)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_NUMBER:
        raise ValueError(value)
    return value


def _keys(values: Any) -> frozenset[bytes]:
    if not isinstance(values, list):
        raise TypeError(values)
    keys = frozenset(bytes.fromhex(value) for value in values)
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError
    return keys


def _by_tenant(tenants: Mapping[bytes, str]) -> dict[str, list[str]]:
    keys: dict[str, list[bytes]] = {}
    for key, name in tenants.items():
        if name:
            keys.setdefault(name, []).append(key)
    return {name: _hex(keys[name]) for name in sorted(keys)}


def _tenants(values: Any) -> dict[bytes, str]:
    """{tenant: its keys} by key."""
    if not isinstance(values, dict):
        raise TypeError(values)
    return {key: name for name, keys in values.items() if tenant_name(name) for key in _keys(keys)}
