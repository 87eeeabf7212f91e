"""The keys that signed tokens are checked with: a JWK Set from a file or a URL, kept fresh (layer L2).

The last good set stays in use while its source fails, for a day.  A token with a key that is not in it has the set read
again, but strangers write such tokens too, so only once in ten seconds for all of them.  Spec: RFC 7517, 7518, 8037.
Next hop: signed.py.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from derp.config.files import FileMark, file_mark
from derp.errors import TransportError
from derp.json_numbers import parse_int
from derp.text import error_text, fit_to_show
from derp.transport.fetch import HttpCaller
from tailnet.auth.callers import Changes

_log = logging.getLogger("tailnet.auth")

# A set of ten RSA keys with certificates has 30 KiB.
MAX_SET_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 64
MAX_GONE: Final = 1_024
FETCH_SECONDS: Final = 5.0
# A key that leaves the set is good for so long at the most.  A file costs nothing to look at.
REFRESH_SECONDS: Final = 300.0
LOOK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 5.0
# Between two reads for the sake of keys that are not there.
REFETCH_SECONDS: Final = 10.0
# After so long without its source nobody knows which keys were withdrawn.
KEPT_SECONDS: Final = 86_400.0
MIN_RSA_BITS: Final = 2_048

Key = RSAKey | ECKey | OKPKey


class KeySetRefused(Exception):
    """What was read is no set of keys to check with; the text says why, and repeats no key."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key and the one algorithm that it is good for: a token does not choose how it is checked."""

    key: Key
    algorithm: str

    def is_for(self, algorithm: str) -> bool:
        """Whether it is good for what a token calls its algorithm.  RFC 9864 gave EdDSA on this curve a second name."""
        return algorithm == self.algorithm or (self.algorithm == "EdDSA" and algorithm == "Ed25519")


@dataclass(frozen=True, slots=True)
class KeySet:
    """Keys by id.  `left_out` has a sentence for each that cannot be used."""

    keys: Mapping[str, SigningKey]
    left_out: Sequence[str] = ()


def parse_key_set(body: bytes) -> KeySet:
    """Read a JWK Set.  Raises KeySetRefused."""
    try:
        said = json.loads(body, parse_int=parse_int)
    except (ValueError, RecursionError):
        raise KeySetRefused("it is no JSON") from None
    items = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(items, list) or len(items) > MAX_KEYS:
        raise KeySetRefused(f'it is no {{"keys": [...]}} with at most {MAX_KEYS} keys')
    keys: dict[str, SigningKey] = {}
    left_out: list[str] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise KeySetRefused(f"keys[{number}] is no object")
        if item.get("kty") == "oct" or "d" in item or "k" in item:
            raise KeySetRefused(f"keys[{number}] is a secret key: publish the public ones alone, and make new ones")
        kid = item.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= 256:
            left_out.append(f"keys[{number}] has no kid")
            continue
        if kid in keys:
            raise KeySetRefused(f"keys[{number}] has a kid that another one has: each needs its own")
        try:
            keys[kid] = _signing_key(item)
        except KeySetRefused as refused:
            left_out.append(f"keys[{number}] {refused}")
    if not keys:
        raise KeySetRefused("; ".join(["it has no key to check signatures with", *left_out[:5]]))
    return KeySet(keys, left_out)


def _signing_key(item: Mapping[str, Any]) -> SigningKey:
    if item.get("use", "sig") != "sig":
        raise KeySetRefused("is not for signatures")
    kinds: dict[tuple[object, object], tuple[type[Key], str]] = {
        ("RSA", None): (RSAKey, "RS256"),
        ("EC", "P-256"): (ECKey, "ES256"),
        ("OKP", "Ed25519"): (OKPKey, "EdDSA"),
    }
    kty, curve = item.get("kty"), item.get("crv") if item.get("kty") != "RSA" else None
    found = kinds.get((kty, curve)) if isinstance(kty, str) and isinstance(curve, str | None) else None
    if found is None:
        raise KeySetRefused("is none of RSA, EC P-256 and OKP Ed25519")
    kind, algorithm = found
    if item.get("alg", algorithm) not in ((algorithm, "Ed25519") if algorithm == "EdDSA" else (algorithm,)):
        raise KeySetRefused(f"is for another algorithm than {algorithm}")
    names = {"RSA": ("kty", "n", "e"), "EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x")}[str(kty)]
    try:
        key = kind.import_key({name: item[name] for name in names})
        bits = key.public_key.key_size if isinstance(key, RSAKey) else MIN_RSA_BITS
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        raise KeySetRefused("cannot be read as the key that it says it is") from None
    if bits < MIN_RSA_BITS:
        raise KeySetRefused(f"has {bits} bits, and {MIN_RSA_BITS} are the least")
    return SigningKey(key, algorithm)


class SigningKeys:
    """The keys of one source.  `run` is one task; `find` answers from memory, `look_for` may read the source."""

    def __init__(self, source: str, *, changes: Changes | None = None, http: HttpCaller | None = None) -> None:
        self.changes = Changes() if changes is None else changes
        self.version = 0  # of the set
        self.failures = 0
        self.reads = 0
        self._source = source
        self._is_url = source.startswith(("http://", "https://"))
        self._name = fit_to_show(source)
        self._http = HttpCaller(timeout_seconds=FETCH_SECONDS) if http is None else http
        self._set = KeySet({})
        self._gone: frozenset[str] = frozenset()
        self._stamp: FileMark | None = None
        self._read_at = -float("inf")
        self._tried_at = -float("inf")
        self._is_failing = False
        self._turn = trio.Lock()

    @property
    def age_seconds(self) -> float:
        """Since the set was read, infinite before the first time."""
        return trio.current_time() - self._read_at

    @property
    def key_count(self) -> int:
        """Keys that can be used."""
        return len(self._set.keys) if self._is_believed() else 0

    async def run(self) -> None:
        """Read the source now and then, until cancelled."""
        async with self._http:
            while True:
                # A file is read when it is another one; one that cannot be looked at is read too, which says why.
                if not self._is_url and self._stamp is not None and self._stamp == file_mark(Path(self._source)):
                    self._read_at = trio.current_time()
                else:
                    async with self._turn:
                        await self._read()
                if self._is_failing:
                    await trio.sleep(RETRY_SECONDS)
                else:
                    await trio.sleep(REFRESH_SECONDS if self._is_url else LOOK_SECONDS)

    def find(self, kid: str) -> SigningKey | None:
        """The key with this id, of those in memory."""
        return self._set.keys.get(kid) if self._is_believed() else None

    async def look_for(self, kid: str) -> SigningKey | None:
        """The same after another look at the source.  Raises trio.WouldBlock if it was looked at a moment ago: then
        nobody knows."""
        async with self._turn:
            found = self.find(kid)
            if found is not None or kid in self._gone:
                return found
            if trio.current_time() - self._tried_at < REFETCH_SECONDS:
                raise trio.WouldBlock
            await self._read()
            if self._is_failing:
                raise trio.WouldBlock
        return self.find(kid)

    def _is_believed(self) -> bool:
        return self.age_seconds < KEPT_SECONDS

    async def _read(self) -> None:
        self._tried_at = trio.current_time()
        self.reads += 1
        try:
            stamp = None if self._is_url else file_mark(Path(self._source))
            found = parse_key_set(await self._fetch())
        except (TransportError, KeySetRefused, OSError) as error:
            self.failures += 1
            if not self._is_failing:
                left = "those of before stay" if self._set.keys else "until then no signed token is taken"
                _log.error("! signing keys (--auth-jwks) %s: %s; %s", self._name, error_text(error), left)
            self._is_failing = True
            return
        if self._is_failing:
            _log.warning("= signing keys %s: they can be read again", self._name)
        self._is_failing = False
        self._stamp, self._read_at = stamp, trio.current_time()
        if _thumbprints(found) != _thumbprints(self._set):
            for sentence in found.left_out:
                _log.warning("! signing keys %s: %s: it is left out", self._name, sentence)
            _log.info("= signing keys %s: %d", self._name, len(found.keys))
            # Whoever asks for one that left is not told to come again.
            self._gone = (self._gone | self._set.keys.keys()) - found.keys.keys()
            if len(self._gone) > MAX_GONE:
                self._gone = frozenset()
            self._set = found
            self.version += 1
            self.changes.note()

    async def _fetch(self) -> bytes:
        if not self._is_url:
            body = await trio.Path(self._source).read_bytes()
        else:
            fetched = await self._http.get(self._source, MAX_SET_BYTES + 1)
            if fetched.redirect:
                raise KeySetRefused("it redirects, which is not followed: set --auth-jwks to where it leads")
            if fetched.status != 200:
                raise TransportError(f"it answers {fetched.status}")
            body = fetched.body
        if len(body) > MAX_SET_BYTES:
            raise KeySetRefused(f"it has more than {MAX_SET_BYTES} bytes")
        return body


def _thumbprints(found: KeySet) -> dict[str, str]:
    return {kid: each.key.thumbprint() for kid, each in found.keys.items()}
