"""What derper's certificate cache holds, taken over by a relay that replaces it.  Layer L3.

With `-certmode letsencrypt` derper keeps, in -certdir, one file per host name: its private key, then the chain, as
PEM; and the account at the authority beside it (the form of Go's autocert.DirCache).  We keep a .crt and a .key, so the
first start splits them: a node that is being replaced need not wait for an authority.  Called before TlsServer is made.
"""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from derp.config.relay import TlsConfig
from derp.server.files import is_pair, replace_file
from derp.text import error_text
from derp.transport.acme import ACCOUNT_FILE
from derp.transport.tls import certificate_covers, key_pem

_ACCOUNT: Final = "acme_account+key"
# A key and a chain of four are 10 KB.
_MAX_BYTES: Final = 256 * 1024
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----\r?\n.*?-----END \1-----\r?\n?", re.DOTALL)


def adopt_autocert(config: TlsConfig) -> list[str]:
    """Take over what derper left in the folder of `config`'s certificate, unless ours is there already; sentences for
    the operator about it.  What cannot be used is left alone: the authority is asked then."""
    cert_file, key_file = config.cert_file, config.key_file
    if config.acme is None or cert_file is None or key_file is None or cert_file.exists() or key_file.exists():
        return []
    folder = cert_file.parent
    # The second is the one for clients that know no ECDSA.
    for path in (folder / config.hostname, folder / f"{config.hostname}+rsa"):
        found = _read(path)
        if found is None:
            continue
        try:
            _adopt_account(folder)
            trouble = _adopt(found, config.hostname, cert_file, key_file)
        except OSError as error:
            trouble = f"{error.filename or folder}: {error_text(error)}"
        if trouble:
            return [f"{path}: what derper kept here is not used: {trouble}"]
        return [f"{path}: the certificate that derper kept here is used, as {cert_file.name} and {key_file.name}"]
    return []


def _adopt(content: bytes, hostname: str, cert_file: Path, key_file: Path) -> str:
    """Why we did not take it over; empty if we did."""
    blocks = [(match[1], match[0]) for match in _BLOCK.finditer(content)]
    kinds = [kind for kind, _ in blocks]
    if len(kinds) < 2 or not kinds[0].endswith(b"PRIVATE KEY") or set(kinds[1:]) != {b"CERTIFICATE"}:
        return "it is not a key and a chain"
    chain = b"".join(block if block.endswith(b"\n") else block + b"\n" for _, block in blocks[1:])
    try:
        key = load_pem_private_key(blocks[0][1], password=None)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        if not is_pair(leaf, blocks[0][1]):
            return "its key and its certificate do not belong together"
    except (ValueError, TypeError):
        return "it is damaged"
    if not certificate_covers(leaf, hostname):
        return f"it is not for {hostname}"
    if leaf.not_valid_after_utc <= datetime.fromtimestamp(time.time(), UTC):
        return f"it expired on {leaf.not_valid_after_utc:%Y-%m-%d}"
    # We write the key first: if we stopped in between, a certificate alone would be one whose key was lost.
    replace_file(key_file, key_pem(key))
    replace_file(cert_file, chain)
    return ""


def _adopt_account(folder: Path) -> None:
    """Take the account over too: authorities that know their customers bind one only once."""
    if (folder / ACCOUNT_FILE).exists():
        return
    found = _read(folder / _ACCOUNT)
    try:
        key = load_pem_private_key(found or b"", password=None)
    except (ValueError, TypeError):
        return
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        replace_file(folder / ACCOUNT_FILE, key_pem(key))


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return None
