"""The files that settings name: private key, mesh key, rate limits, in derper's forms (layer L2).

Errors hold nothing of a secret.  The private key's file is made when it is missing.
"""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from derp.admission.signed import PRIVATE_PREFIX, Issuer
from derp.config.sources import read_file
from derp.errors import ConfigError, KeyFormatError
from derp.keys import MeshKey, NodePrivate
from derp.relay.limits import Rate
from derp.text import error_text

RATE_FIELDS: Final = ("PerClientRateLimitBytesPerSec", "PerClientRateBurstBytes")


def load_private_key(path: Path) -> NodePrivate:
    """Read a key file in derper's form.  Raises ConfigError, whose text holds nothing of the key."""
    text = _go_field(_read_json_object(path, "private key"), "PrivateKey")
    if not isinstance(text, str):
        raise ConfigError(f'{path}: PrivateKey: is missing: the file should read {{"PrivateKey": "privkey:..."}}')
    try:
        return NodePrivate.parse(text)
    except KeyFormatError as error:
        raise ConfigError(f"{path}: PrivateKey: {error}") from None


def load_mesh_key(path: Path) -> MeshKey:
    """Read a mesh key file.  Raises ConfigError, whose text holds nothing of the key."""
    return parse_mesh_key(read_file(path, "mesh key").decode("ascii", "replace"), f"{path}: mesh key")


def parse_mesh_key(text: str, place: str) -> MeshKey:
    """A mesh key from text that stood at `place`.  Raises ConfigError."""
    try:
        return MeshKey.parse(text)
    except KeyFormatError as error:
        raise ConfigError(f"{place}: {error}") from None


def load_issuers(path: Path) -> tuple[Issuer, ...]:
    """Read public keys of issuers, one a line; `#` begins a comment.  Raises ConfigError."""
    issuers = []
    for number, line in enumerate(read_file(path, "issuers' keys").decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if text.startswith(PRIVATE_PREFIX):
            raise ConfigError(f"{path}: line {number}: is an issuer's private key, which no relay should have")
        try:
            issuers.append(Issuer.parse(text))
        except KeyFormatError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from None
    if not issuers:
        raise ConfigError(f"{path}: has no issuer's key: nobody could come in")
    return tuple(dict.fromkeys(issuers))


def load_token(path: Path) -> str:
    """Read a bearer token.  Raises ConfigError, whose text holds nothing of it."""
    text = read_file(path, "token").decode("utf-8", "replace").strip()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigError(f"{path}: wants one token, of visible ASCII characters")
    return text


def load_rate_config(path: Path) -> Rate:
    """Read limits per client in derper's form.  Raises ConfigError, also when called again on SIGHUP."""
    document = _read_json_object(path, "limits")
    numbers = []
    for name in RATE_FIELDS:
        value = _go_field(document, name)
        if value is None:
            value = 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise ConfigError(f"{path}: {name}: wants a whole number of bytes, got {value!r:.80}")
        numbers.append(value)
    return Rate(*numbers) if numbers[0] else Rate()


def make_key_file(path: Path) -> None:
    """Put a new private key there.  Raises ConfigError."""
    text = json.dumps({"PrivateKey": NodePrivate.generate().text()}, indent="\t")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whole or not at all, never over an existing key, never readable to others, not even for a moment.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process made one meanwhile: that one counts
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise ConfigError(f"{path}: cannot make the private key's file: {error_text(error)}") from None


FileMark: TypeAlias = tuple[int, int, int]


def mark_of(status: os.stat_result) -> FileMark:
    """By what a file is known to be another one: a rename brings a new inode, a rewrite another time or size."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def file_mark(path: Path) -> FileMark | None:
    """The mark of the file that is there now; None when there is none to be seen."""
    try:
        return mark_of(path.stat())
    except OSError:
        return None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in the place of one that is there, readable to its owner alone.

    Raises OSError.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def readable_by_others(path: Path) -> str | None:
    """A sentence if others on this machine can read a secret's file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # reading it will say why
    return f"{path}: others on this machine can read this secret: chmod 600 {path}" if mode & 0o077 else None


def _read_json_object(path: Path, what: str) -> dict[str, object]:
    # The text of an error never repeats the file: it may hold the key.
    try:
        document = json.loads(read_file(path, what))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is not a JSON object with the {what}")
    return document


def _go_field(document: dict[str, object], name: str) -> object:
    """A field as Go's decoder finds it: whatever its case, the last one wins."""
    found: object = None
    for key, value in document.items():
        if key.casefold() == name.casefold():
            found = value
    return found
