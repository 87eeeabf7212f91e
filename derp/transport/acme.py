"""Certificates from an authority by ACME (RFC 8555): an account, an order, a proof, a chain.  Layer L2.

The only file that imports `acme`.  The library blocks, so a caller runs `begin` and `finish` in threads; between the
two it publishes the proofs by its own means.  Next hop: server/certificates.py.
"""

import ipaddress
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import requests
from acme import challenges, client, crypto_util, errors, messages
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from josepy.b64 import b64encode
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC
from josepy.util import ComparableECKey

from derp.config.relay import AcmeConfig
from derp.errors import TransportError
from derp.map import is_address
from derp.text import error_text, printable, without_secrets
from derp.transport.stream import reason_of
from derp.transport.tls import key_pem

Returned = TypeVar("Returned")

ACCOUNT_FILE: Final = "acme-account.key"
HTTP: Final = "http-01"
DNS: Final = "dns-01"
TLS_ALPN: Final = "tls-alpn-01"
SHORT_LIVED: Final = "shortlived"
# One request; authorities answer within seconds, and a dead one should not hold a thread for long.
_REQUEST_SECONDS: Final = 30
# Authorities look from several places and ask again when a look fails; Let's Encrypt gives up well within this.
_VALIDATION: Final = timedelta(minutes=3)

_NOT_ACME: Final = "does not speak ACME as expected: is the directory's URL right?"

_log = logging.getLogger("derp.server")
# The library logs whole requests at DEBUG, among them the account's signatures.
logging.getLogger("acme").setLevel(logging.WARNING)


class AcmeError(TransportError):
    """There is no new certificate.  The text is one sentence: who says no to what, and what to look at."""


class ProofRefused(AcmeError):
    """The authority did not take, or did not ask for, this kind of proof; another kind may do."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What an authority wants to find.

    For http-01 `name` is the last part of a path below /.well-known/acme-challenge/ and `value` the body there; for
    dns-01 `name` is that of a TXT record and `value` its text; for tls-alpn-01 the proof holds the digest of `value`.
    """

    challenge: str
    name: str
    value: str


@challenges.ChallengeResponse.register
class _TlsAlpnResponse(challenges.KeyAuthorizationChallengeResponse):
    typ = TLS_ALPN


# The library dropped this kind together with the server it brought for it; ours is transport/tls_alpn.py.
@challenges.Challenge.register
class _TlsAlpn(challenges.KeyAuthorizationChallenge):
    typ = TLS_ALPN
    response_cls = _TlsAlpnResponse

    def validation(self, account_key: JWK, **kwargs: Any) -> str:
        return self.key_authorization(account_key)


class AcmeOrder:
    """One attempt at one certificate: `begin`, publish what it returned, `finish`.  Both block, and raise AcmeError,
    of which ProofRefused leaves room for an order with another `challenge`."""

    def __init__(self, config: AcmeConfig, hostname: str, account_file: Path, challenge: str) -> None:
        """`account_file` is made when it is missing; whoever has it can revoke what was issued to it."""
        self._config = config
        self._challenge = challenge
        self._hostname = hostname
        self._account_file = account_file
        self._client: client.ClientV2 | None = None
        self._order: messages.OrderResource | None = None
        self._answers: list[tuple[messages.ChallengeBody, challenges.ChallengeResponse]] = []

    def begin(self, key: bytes) -> list[Proof]:
        """Log in and order a certificate for the PEM `key`; what is to be published, nothing if it is known yet."""
        return self._say(lambda: self._begin(key))

    def finish(self) -> bytes:
        """Have the published proofs looked at, and fetch the chain as PEM, leaf first."""
        return self._say(self._finish)

    def _begin(self, key: bytes) -> list[Proof]:
        account = JWKEC(key=ComparableECKey(_account_key(self._account_file)))
        # requests takes a bundle's file name as well; private authorities are trusted through this variable elsewhere.
        trust = cast(bool, os.environ.get("SSL_CERT_FILE") or True)
        network = client.ClientNetwork(
            account, alg=ES256, verify_ssl=trust, user_agent="derp", timeout=_REQUEST_SECONDS
        )
        directory = client.ClientV2.get_directory(self._config.directory_url, network)
        for resource in ("newNonce", "newAccount", "newOrder"):
            directory[resource]  # KeyError: it is some other JSON
        self._client = client.ClientV2(directory, network)
        self._log_in(self._client, account)
        self._order = self._client.new_order(_request(key, self._hostname), self._profile(directory))
        return [
            self._proof(authorization, account)
            for authorization in self._order.authorizations
            if authorization.body.status != messages.STATUS_VALID
        ]

    def _log_in(self, acme: client.ClientV2, account: JWK) -> None:
        try:
            # Asked first, so that a binding is needed once only and the contact is not sent each time.
            acme.query_registration(messages.RegistrationResource(body=messages.NewRegistration()))
            return
        except messages.Error as error:
            if error.code != "accountDoesNotExist":
                raise
        binding = None
        if self._config.eab_kid:
            encoded = b64encode(self._config.eab_key).decode()
            public = account.public_key()
            binding = messages.ExternalAccountBinding.from_data(public, self._config.eab_kid, encoded, acme.directory)
        elif acme.external_account_required():
            raise self._failure(
                "wants to know whose account this is: set --acme-eab-kid and --acme-eab-key, which it gives out"
            ) from None
        acme.new_account(
            messages.NewRegistration.from_data(
                email=self._config.email or None, terms_of_service_agreed=True, external_account_binding=binding
            )
        )

    def _proof(self, authorization: messages.AuthorizationResource, account: JWK) -> Proof:
        wanted = self._challenge
        for body in authorization.body.challenges:
            challenge = body.chall
            if challenge.typ != wanted:
                continue
            response, value = challenge.response_and_validation(account)
            self._answers.append((body, response))
            if wanted == DNS:
                return Proof(wanted, challenge.validation_domain_name(self._hostname), value)
            return Proof(wanted, challenge.encode("token"), value)
        offered = ", ".join(sorted({str(body.chall.to_json()["type"]) for body in authorization.body.challenges}))
        raise ProofRefused(
            self._said(f"does not offer {wanted} for {self._hostname}, only {offered}: change --acme-challenge")
        )

    def _profile(self, directory: messages.Directory) -> str | None:
        """Certificates for addresses are issued for days only, by a profile of that name."""
        try:
            known = directory.meta.profiles or {}
        except (KeyError, AttributeError):
            return None
        return SHORT_LIVED if is_address(self._hostname) and SHORT_LIVED in known else None

    def _finish(self) -> bytes:
        assert self._client is not None
        assert self._order is not None
        for body, response in self._answers:
            self._client.answer_challenge(body, response)
        # The library compares with the local clock, without a zone.
        order = self._client.poll_and_finalize(self._order, datetime.now() + _VALIDATION)
        return str(order.fullchain_pem).encode()

    def _say(self, work: Callable[[], Returned]) -> Returned:
        try:
            return work()
        except AcmeError:
            raise
        except errors.ValidationError as error:
            raise ProofRefused(
                self._said(f"could not see that {self._hostname} is ours by {self._challenge}: {_first_reason(error)}")
            ) from None
        except errors.IssuanceError as error:
            raise self._failure(f"did not issue a certificate for {self._hostname}: {_detail(error.error)}") from None
        except messages.Error as error:
            raise self._failure(f"refused: {_detail(error)}") from None
        except errors.TimeoutError:
            raise self._failure(f"did not come to an end within {_VALIDATION.total_seconds():.0f} s") from None
        except requests.exceptions.SSLError as error:
            raise self._failure(
                f"has a certificate that is not trusted here ({_cause(error)}): SSL_CERT_FILE names other roots"
            ) from None
        except requests.exceptions.RequestException as error:
            if isinstance(error, ValueError):  # a URL that it gave out is none
                raise self._failure(_NOT_ACME) from None
            raise self._failure(f"cannot be reached: {_cause(error)}") from None
        except Exception:
            # What the library raises over answers it does not expect has no common root, TypeError among it.
            _log.debug("unexpected answer", exc_info=True)
            raise self._failure(_NOT_ACME) from None

    def _failure(self, text: str) -> AcmeError:
        return AcmeError(self._said(text))

    def _said(self, text: str) -> str:
        return f"{urlsplit(without_secrets(self._config.directory_url)).netloc.rpartition('@')[2]} {text}"


def _request(key: bytes, hostname: str) -> bytes:
    if is_address(hostname):
        return crypto_util.make_csr(key, ipaddrs=[ipaddress.ip_address(hostname)])
    return crypto_util.make_csr(key, [hostname])


def _account_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        try:
            pem = path.read_bytes()
        except FileNotFoundError:
            fresh = ec.generate_private_key(ec.SECP256R1())
            pem = key_pem(fresh)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
            return fresh
        key = load_pem_private_key(pem, password=None)
    except OSError as error:
        raise AcmeError(f"{path}: cannot use the account's key: {error_text(error)}") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AcmeError(f"{path}: is no account key on P-256: remove it, and a new account is made")
    return key


def _first_reason(error: errors.ValidationError) -> str:
    for authorization in error.failed_authzrs:
        for challenge in authorization.body.challenges:
            if challenge.error is not None:
                return _detail(challenge.error)
    return "it does not say why"


def _detail(error: messages.Error) -> str:
    """What an authority wrote, as one line of bounded length."""
    text = " ".join(str(error.detail or error.title or error.code or "it does not say why").split())
    return printable(without_secrets(text), 500)


def _cause(error: BaseException) -> str:
    """The innermost reason, which says more than the names of the layers around it."""
    seen: Any = error
    while True:
        inner = (
            getattr(seen, "reason", None)
            or seen.__cause__
            or next((part for part in getattr(seen, "args", ()) if isinstance(part, BaseException)), None)
        )
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    return reason_of(seen)
