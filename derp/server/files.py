"""Files that hold secrets or certificates: written whole or not at all, and for their owner only.  Layer L3."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from derp.config.files import write_whole


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and its folder if it is missing, for their owner alone.  Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, content)


def is_pair(leaf: x509.Certificate, key: bytes) -> bool:
    """Whether the PEM `key` is that of the certificate.  ValueError or TypeError if it is no key at all."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ours = load_pem_private_key(key, password=None).public_key()
    return leaf.public_key().public_bytes(*form) == ours.public_bytes(*form)
