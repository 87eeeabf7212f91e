"""A self-signed certificate where derper's manual mode looks for it: <folder>/<hostname>.crt and .key."""

from pathlib import Path

from tests.support.certificates import issue


def write_certificate(folder: Path, hostname: str) -> Path:
    """Write a P-256 pair for a name or an IP address into `folder`; return the certificate's path."""
    issued = issue(hostname)
    certificate, key = folder / f"{hostname}.crt", folder / f"{hostname}.key"
    certificate.write_bytes(issued.pem)
    key.touch(mode=0o600)
    key.write_bytes(issued.key_pem)
    return certificate
