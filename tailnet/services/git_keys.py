"""A pair of SSH keys for each user, which his agents come in with at git servers.  Layer L3.

Ed25519, made when an agent asks first; the public key is to be entered at the git server by its user.  The private one
lies in the store encrypted and leaves it for the user's own agents alone.  Called by api/git_keys.py and
cli/admin_secrets.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tailnet.store.credentials import key_place
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store


@dataclass(frozen=True, slots=True)
class GitKey:
    """A pair in OpenSSH's forms: one line, and a PEM document."""

    public_key: str
    private_key: str = field(repr=False)


class GitKeys:
    """All users' keys.  Raises SecretsError where this server cannot encrypt or decrypt, and StoreError."""

    def __init__(self, store: Store, sealer: Sealer, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._sealer = sealer
        self._clock = clock

    async def read(self, user_id: UUID) -> GitKey:
        """The user's pair, made if there is none yet."""
        row = await self._store.run(self._store.credentials.git_key, user_id)
        if row is None:
            key = new_key()
            sealed = self._sealer.seal(key.private_key.encode(), key_place(user_id))
            row = await self._store.run(
                self._store.credentials.add_git_key, user_id, key.public_key, sealed, self._clock()
            )
        return GitKey(row.public_key, self._sealer.open(row.sealed, key_place(user_id)).decode())


def rotate_git_key(store: Store, sealer: Sealer, user_id: UUID, now: datetime) -> str:
    """Give a user a new pair in the place of the old one; returns the public key.  Blocks."""
    key = new_key()
    sealed = sealer.seal(key.private_key.encode(), key_place(user_id))
    store.credentials.put_git_key(user_id, key.public_key, sealed, now)
    return key.public_key


def new_key() -> GitKey:
    """A fresh pair."""
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return GitKey(
        public.decode() + "\n",
        private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode(),
    )
