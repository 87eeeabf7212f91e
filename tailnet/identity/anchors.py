"""Whom instance identities are believed: certificates and keys from one directory.  Layer L2.

    DIR/aws/*.pem          the clouds' public RSA certificates.  A file called as a region (eu-west-1.pem) vouches for
                           documents of that region alone; any other file for all regions.
    DIR/azure/*.pem        roots, self-signed, and intermediates, to which the signer's chain must lead
    DIR/google/jwks.json   Google's key set, as https://www.googleapis.com/oauth2/v3/certs answers
What is absent proves nothing: that kind of identity is refused.  Blocks; `load_anchors` raises ConfigError.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from derp.errors import ConfigError
from derp.text import error_text

_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")
# Azure has some twenty intermediates, AWS some thirty regions; a directory of a system's roots is a mistake.
_MAX_FILES: Final = 256
_MAX_FILE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class AwsAnchor:
    """A key that signs identity documents; `region` "": of any region."""

    public_key: rsa.RSAPublicKey
    region: str


@dataclass(frozen=True, slots=True)
class Anchors:
    """Everything that is trusted; empty where nothing was configured."""

    aws: tuple[AwsAnchor, ...] = ()
    azure_roots: tuple[x509.Certificate, ...] = ()
    azure_intermediates: tuple[x509.Certificate, ...] = ()
    google_keys: tuple[dict[str, Any], ...] = field(default=(), repr=False)


def load_anchors(folder: Path) -> Anchors:
    """Read the directory.  Raises ConfigError with the file that is wrong."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is no directory: it should have aws/*.pem, azure/*.pem or google/jwks.json")
    azure = [certificate for _, certificate in _certificates(folder / "azure")]
    return Anchors(
        aws=tuple(_aws_anchor(path, certificate) for path, certificate in _certificates(folder / "aws")),
        azure_roots=tuple(each for each in azure if each.issuer == each.subject),
        azure_intermediates=tuple(each for each in azure if each.issuer != each.subject),
        google_keys=_google_keys(folder / "google" / "jwks.json"),
    )


def _certificates(folder: Path) -> list[tuple[Path, x509.Certificate]]:
    paths = sorted(folder.glob("*.pem"))
    if len(paths) > _MAX_FILES:
        raise ConfigError(f"{folder}: has more than {_MAX_FILES} files")
    found = []
    for path in paths:
        try:
            found += [(path, each) for each in x509.load_pem_x509_certificates(_read(path))]
        except ValueError as error:
            raise ConfigError(f"{path}: holds no certificates as PEM: {error_text(error)}") from None
    return found


def _aws_anchor(path: Path, certificate: x509.Certificate) -> AwsAnchor:
    key = certificate.public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise ConfigError(f"{path}: wants certificates with RSA keys: the others that AWS publishes sign other formats")
    return AwsAnchor(key, path.stem if _REGION.fullmatch(path.stem) else "")


def _google_keys(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.exists():
        return ()
    try:
        document = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON: {error_text(error)}") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not all(isinstance(key, dict) and key.get("kty") in ("RSA", "EC") for key in keys):
        raise ConfigError(f'{path}: wants {{"keys": [...]}} with RSA or EC keys')
    return tuple(keys)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error_text(error)}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: has more than {_MAX_FILE_BYTES} bytes")
    return content
