"""Keeps the relay's certificate: obtains it, renews it in time, and never lets go of one that works.  Layer L3.

A task of server/server.py.  It asks by transport/acme.py, shows proofs by transport/tls_alpn.py, at
/.well-known/acme-challenge/ through server/pages.py or by the operator's hook, and writes the files that TlsServer
reads again.
"""

import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
)

from derp.config.relay import TlsConfig
from derp.server.files import is_pair, replace_file
from derp.text import error_text, without_secrets
from derp.transport.acme import ACCOUNT_FILE, DNS, HTTP, AcmeError, AcmeOrder, Proof, ProofRefused
from derp.transport.hook import HOOK_SECONDS, HookError, run_hook
from derp.transport.tls import certificate_covers, key_pem

_log = logging.getLogger("derp.server")

# Authorities ask for this share: the last 30 of 90 days, or the last two of six, leave room for failures.
_RENEWAL_PART: Final = 1 / 3
# Chance, so that relays which were set up together do not renew together.
_JITTER_PART: Final = 1 / 50
# Let's Encrypt allows five failed validations an hour: at 0, 5, 15 and 35 minutes, then one every hour or less often;
# with two kinds of proof to try, at half that pace.
_FIRST_RETRY_SECONDS: Final = 300.0
_LAST_RETRY_SECONDS: Final = 6 * 3600.0
# We notice within this time that somebody set the clock, or that the machine slept.
_LOOK_SECONDS: Final = 3600.0

Obtain = Callable[[bytes], Awaitable[bytes]]


class CertificateKeeper:
    """`run` it in the relay's nursery; `retry_now` ends a wait after a failure.

    `digest` is what a proof by TLS holds, while there is one; `challenges` is what the plain listener shows, token to
    body; `failures` counts the attempts since the last success.  `changed` is called when one of the three has.
    `installed` is called when the files hold a new certificate.  `obtain(key PEM) -> chain PEM` raises AcmeError or
    HookError.  `clock` is the time of day in POSIX seconds; `spread` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        config: TlsConfig,
        changed: Callable[["CertificateKeeper"], None],
        installed: Callable[[], None],
        *,
        obtain: Obtain | None = None,
        clock: Callable[[], float] = time.time,
        spread: Callable[[], float] = random.random,
    ) -> None:
        assert config.acme is not None
        assert config.cert_file is not None
        assert config.key_file is not None
        self._changed = changed
        self._installed = installed
        self._config = config
        self._acme = config.acme
        self._cert_file = config.cert_file
        self._key_file = config.key_file
        self._obtain = obtain or self._ask_authority
        self._clock = clock
        self._spread = spread
        self._retry = trio.Event()
        self.digest: bytes | None = None
        self.challenges: dict[str, bytes] = {}
        self.failures = 0
        self.wait_shown: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Returns when whoever was told by `changed` shows the proofs: before that the authority may not look."""

    async def run(self) -> None:
        """Keep the certificate until cancelled."""
        due = self._due()
        while True:
            while (wait := due - self._clock()) > 0:
                self._retry = trio.Event()
                with trio.move_on_after(min(wait, _LOOK_SECONDS)):
                    await self._retry.wait()
                    break
                if not self.failures:  # the operator may have put another certificate there
                    due = self._due()
            problem = await self._renew()
            if problem is None:
                self.failures = 0
                self._changed(self)
                due = self._due()
                continue
            first = _FIRST_RETRY_SECONDS * len(self._acme.challenges)
            delay = min(first * 2 ** min(self.failures, 16), _LAST_RETRY_SECONDS) * (1 + self._spread() / 10)
            self.failures += 1
            self._changed(self)
            due = self._clock() + delay
            _log.error("! no new certificate: %s; %s", problem, self._prospect(delay))

    def retry_now(self) -> None:
        """The operator mended something: try again without waiting, if the last attempt failed."""
        if self.failures:
            self._retry.set()

    def _due(self) -> float:
        """When the certificate in the file has to be replaced, in POSIX seconds; 0 for at once."""
        leaf = self._leaf()
        # A self-signed certificate may lie there from before: good for years, of no use to clients that do not pin it.
        # And an operator may have copied a chain here without its key.
        if leaf is None or leaf.issuer == leaf.subject or not certificate_covers(leaf, self._config.hostname):
            return 0.0
        try:
            if not is_pair(leaf, self._key_file.read_bytes()):
                return 0.0
        except (OSError, ValueError, TypeError):
            return 0.0
        begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        return end - (end - begin) * (_RENEWAL_PART + self._spread() * _JITTER_PART)

    def _leaf(self) -> x509.Certificate | None:
        try:
            return x509.load_pem_x509_certificates(self._cert_file.read_bytes())[0]
        except (OSError, ValueError):
            return None

    def _prospect(self, delay: float) -> str:
        leaf = self._leaf()
        again = f"trying again in {delay / 60:.0f} min, on SIGHUP at once"
        if leaf is None:
            return f"clients refuse the temporary one; {again}"
        return f"the one in service lasts until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; {again}"

    async def _renew(self) -> str | None:
        """None when there is a new certificate, else why not."""
        hostname = self._config.hostname
        _log.info("= asking %s for a certificate for %s", without_secrets(self._acme.directory_url), hostname)
        try:
            key = await trio.to_thread.run_sync(_read_or_make_key, self._key_file)
            chain = await self._obtain(key)
            expires = _check(chain, key, hostname)
            await trio.to_thread.run_sync(replace_file, self._cert_file, chain)
        except (AcmeError, HookError) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or self._cert_file}: {error_text(error)}: --cert-dir has to be writable"
        _log.info("= new certificate for %s, valid until %s", hostname, expires)
        self._installed()
        return None

    async def _ask_authority(self, key: bytes) -> bytes:
        refusals = []
        for challenge in self._acme.challenges:
            try:
                return await self._prove(challenge, key)
            except ProofRefused as error:
                refusals.append(str(error))
        raise AcmeError("; ".join(refusals))

    async def _prove(self, challenge: str, key: bytes) -> bytes:
        order = AcmeOrder(self._acme, self._config.hostname, self._key_file.parent / ACCOUNT_FILE, challenge)
        # Abandoned threads write nothing but the account's key, and end with their requests.
        proofs = await trio.to_thread.run_sync(order.begin, key, abandon_on_cancel=True)
        async with self._published(proofs):
            return await trio.to_thread.run_sync(order.finish, abandon_on_cancel=True)

    @asynccontextmanager
    async def _published(self, proofs: Sequence[Proof]) -> AsyncIterator[None]:
        shown: list[Proof] = []
        try:
            for proof in proofs:
                shown.append(proof)  # first: we ask also a hook that failed half-way to clean up
                if proof.challenge == HTTP:
                    self.challenges[proof.name] = proof.value.encode()
                elif proof.challenge == DNS:
                    await run_hook(self._acme.dns_hook, "add", proof.name, proof.value)
                else:
                    self.digest = sha256(proof.value.encode()).digest()
            self._changed(self)
            await self.wait_shown()
            yield
        finally:
            self.digest = None
            for proof in shown:
                self.challenges.pop(proof.name, None)
            self._changed(self)
            for proof in shown:
                if proof.challenge == DNS:
                    await self._remove_record(proof)

    async def _remove_record(self, proof: Proof) -> None:
        # Also while we are being stopped, but then within what an impatient init system allows.
        seconds = 5.0 if trio.current_effective_deadline() == float("-inf") else HOOK_SECONDS
        with trio.CancelScope(shield=True):
            try:
                await run_hook(self._acme.dns_hook, "remove", proof.name, proof.value, timeout=seconds)
            except HookError as error:
                _log.warning("! %s; the TXT record %s may be left behind, which does no harm", error, proof.name)


def _check(chain: bytes, key: bytes, hostname: str) -> str:
    """Until when a chain is good; AcmeError if it could not be served."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise AcmeError("what the authority issued is no PEM chain") from None
    if not is_pair(leaf, key) or not certificate_covers(leaf, hostname):
        raise AcmeError(f"what the authority issued is not for our key and {hostname}")
    return f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"


def _read_or_make_key(path: Path) -> bytes:
    """The certificate's key.  It is made once and kept when the certificate is renewed: so one file changes at a time,
    and neither a crash nor a reload between two writes can find a pair that does not match."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = key_pem(ec.generate_private_key(ec.SECP256R1()))
        replace_file(path, key)
        return key
    try:
        load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise AcmeError(f"{path}: is no private key without passphrase: remove it, and a new one is made") from None
    return key
