"""Files that hold secrets or certificates: written whole or not at all, and for their owner only.  Layer L3."""

import contextlib
import os
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, readable to its owner alone.  Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def is_pair(leaf: x509.Certificate, key: bytes) -> bool:
    """Whether the PEM `key` is that of the certificate.  ValueError or TypeError if it is no key at all."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ours = load_pem_private_key(key, password=None).public_key()
    return leaf.public_key().public_bytes(*form) == ours.public_bytes(*form)
