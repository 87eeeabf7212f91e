"""Invitations: who shows one may use a relay, whatever his key, until it ends or its bytes are used up.  Layer L3.

They lie in a file of SQLite that the relay and `derp invite` share; of the token only its digest.  An invited client
gets a DERP map whose host name begins with the token, so an unmodified one shows it in its Host header.  `Invitations`
is a relay's view: server/admission.py asks it, server/guests.py charges what is relayed.
"""

import base64
import json
import logging
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import trio

from derp.admission.terms import Terms
from derp.errors import ConfigError
from derp.server.sqlite_file import transaction
from derp.text import utc

_log = logging.getLogger("derp.server")

# In a host name, and below 63 characters; 128 bits.
_LABEL: Final = re.compile(r"i-([a-z2-7]{26})")
_TOKEN_BYTES: Final = 16
# A change of the file, a revocation above all, is felt within this time; so much of the count a crash may lose.
LOOK_SECONDS: Final = 0.5
# What an invitation without --bytes may relay.
UNLIMITED: Final = 1 << 62
# Of invitations that ended or were revoked: long enough for whoever asks why.
KEEP_SECONDS: Final = 30 * 86_400.0
_SCHEMA: Final = """
PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS invitations (
    id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, note TEXT NOT NULL,
    created_at REAL NOT NULL, ends_at REAL NOT NULL, max_bytes INTEGER NOT NULL, used_bytes INTEGER NOT NULL,
    max_keys INTEGER NOT NULL, revoked_at REAL, map TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS invited_keys (
    invitation TEXT NOT NULL REFERENCES invitations (id) ON DELETE CASCADE, key BLOB NOT NULL, first_at REAL NOT NULL,
    PRIMARY KEY (invitation, key)
);
CREATE TABLE IF NOT EXISTS invited_tenants (
    invitation TEXT PRIMARY KEY REFERENCES invitations (id) ON DELETE CASCADE, tenant TEXT NOT NULL
);
"""


@dataclass(slots=True, eq=False)
class Invitation:
    """One of them, and an account of its bytes.  Times are Unix seconds; `template` is the map without the token."""

    id: str
    digest: bytes = field(repr=False)
    note: str
    created_at: float
    ends_at: float
    max_bytes: int
    used_bytes: int
    max_keys: int
    revoked_at: float | None
    template: str = field(repr=False)
    tenant: str = ""
    keys: set[bytes] = field(default_factory=set, repr=False)
    unwritten_bytes: int = 0

    @property
    def left(self) -> int:
        return self.max_bytes - self.used_bytes - self.unwritten_bytes

    def spend(self, count: int) -> None:
        self.unwritten_bytes += count

    def why_not(self, now: float) -> str:
        """Why nobody may come in by it; empty: it is good."""
        if self.revoked_at is not None:
            return "was revoked"
        if now >= self.ends_at:
            return f"ended at {utc(self.ends_at)}"
        return "has no bytes left" if self.left <= 0 else ""


class InvitationFile:
    """The file, for commands and for the relay's thread.  Every method blocks, and raises ConfigError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(
        self, note: str, now: float, ends_at: float, max_bytes: int, max_keys: int, template: str, tenant: str = ""
    ) -> tuple[Invitation, str]:
        """Make one; its token is known to nobody else, and never again.  `tenant`: whose clients come by it."""
        token = base64.b32encode(secrets.token_bytes(_TOKEN_BYTES)).decode().rstrip("=").lower()
        made = Invitation(
            secrets.token_hex(4), _digest(token), note, now, ends_at, max_bytes, 0, max_keys, None, template, tenant
        )
        with self._open() as connection:
            connection.execute(
                "DELETE FROM invitations WHERE ends_at < ? OR revoked_at < ?", (now - KEEP_SECONDS, now - KEEP_SECONDS)
            )
            connection.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?, 0, ?, NULL, ?)",
                (made.id, made.digest, note, now, ends_at, max_bytes, max_keys, template),
            )
            if tenant:
                connection.execute("INSERT INTO invited_tenants VALUES (?, ?)", (made.id, tenant))
        return made, token

    def load(self) -> list[Invitation]:
        """All of them, the oldest first."""
        with self._open() as connection:
            rows = connection.execute("SELECT * FROM invitations ORDER BY created_at, id").fetchall()
            found = {row[0]: Invitation(*row) for row in rows}
            for invitation, key in connection.execute("SELECT invitation, key FROM invited_keys"):
                found[invitation].keys.add(key)
            for invitation, tenant in connection.execute("SELECT invitation, tenant FROM invited_tenants"):
                found[invitation].tenant = tenant
        return list(found.values())

    def revoke(self, ident: str, now: float) -> bool:
        """End one by its id.  False: there is none, or it was revoked before."""
        with self._open() as connection:
            change = "UPDATE invitations SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
            return connection.execute(change, (now, ident)).rowcount > 0

    def write(self, used: Sequence[tuple[int, str]], keys: Sequence[tuple[str, bytes, float]]) -> None:
        """What a relay counted: bytes by id, and keys that came first."""
        with self._open() as connection:
            connection.executemany("UPDATE invitations SET used_bytes = used_bytes + ? WHERE id = ?", used)
            connection.executemany("INSERT OR IGNORE INTO invited_keys VALUES (?, ?, ?)", keys)

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path, _SCHEMA, "for invitations")


class Invitations:
    """A relay's view.  `start`, then `run` as one task; the rest is for the reactor's thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._file = InvitationFile(path)
        self._clock = clock
        self._by_digest: dict[bytes, Invitation] = {}
        self._by_id: dict[str, Invitation] = {}
        self._new_keys: list[tuple[str, bytes, float]] = []
        self.on_revoked: list[Callable[[Invitation], None]] = []

    def judge(self, key: bytes, host: str) -> Terms | str | None:
        """On what terms a client comes in that asked for us by this host name; or why not; None: it shows nothing."""
        found = _LABEL.match(host.lower())
        if found is None:
            return None
        invitation = self._by_digest.get(_digest(found[1]))
        if invitation is None:
            return "it shows an invitation that nobody made here"
        if why := invitation.why_not(self._clock()):
            return f"its invitation {invitation.id} {why}"
        if key not in invitation.keys:
            if len(invitation.keys) >= invitation.max_keys:
                return f"its invitation {invitation.id} is used by {invitation.max_keys} machines already"
            invitation.keys.add(key)
            self._new_keys.append((invitation.id, key, self._clock()))
        return Terms("the invitation of this machine", invitation.ends_at, invitation, tenant=invitation.tenant)

    def map_for(self, token: str) -> bytes | None:
        """The DERP map for whoever has this token, as JSON; None: no invitation that is good has it."""
        invitation = self._by_digest.get(_digest(token))
        if invitation is None or invitation.why_not(self._clock()):
            return None
        return json.dumps(with_token(json.loads(invitation.template), token), indent=1).encode()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what was used and read what was changed, until cancelled, and then write the rest."""
        self._take(await trio.to_thread.run_sync(self._file.load))
        task_status.started()
        trouble = ""
        try:
            while True:
                await trio.sleep(LOOK_SECONDS)
                try:
                    await self._look()
                    trouble = ""
                except ConfigError as error:
                    if str(error) != trouble:
                        trouble = str(error)
                        _log.error("! invitations are not counted: %s", error)
        finally:
            self._file.write(*self._unwritten())

    async def _look(self) -> None:
        used, keys = self._unwritten()
        if used or keys:
            await trio.to_thread.run_sync(self._file.write, used, keys)
            del self._new_keys[: len(keys)]
            for count, ident in used:
                self._by_id[ident].unwritten_bytes -= count
                self._by_id[ident].used_bytes += count
        self._take(await trio.to_thread.run_sync(self._file.load))

    def _unwritten(self) -> tuple[list[tuple[int, str]], list[tuple[str, bytes, float]]]:
        used = [(each.unwritten_bytes, each.id) for each in self._by_id.values() if each.unwritten_bytes]
        return used, list(self._new_keys)

    def _take(self, found: list[Invitation]) -> None:
        """Those that are known go on as the same accounts; clients hold them."""
        before, self._by_id = self._by_id, {}
        for one in found:
            known = before.get(one.id)
            if known is not None:
                known.used_bytes, known.ends_at, known.max_bytes = one.used_bytes, one.ends_at, one.max_bytes
                known.max_keys, known.keys = one.max_keys, known.keys | one.keys
                if one.revoked_at is not None and known.revoked_at is None:
                    known.revoked_at = one.revoked_at
                    for revoked in self.on_revoked:
                        revoked(known)
                one = known
            self._by_id[one.id] = one
        self._by_digest = {one.digest: one for one in self._by_id.values()}


def with_token(derp_map: dict[str, Any], token: str) -> dict[str, Any]:
    """The map for whoever has the token: each relay's host name begins with it, and the certificate is for the rest.

    Addresses have to stand in the map, for nobody can look such a name up.
    """
    for region in derp_map.get("Regions", {}).values():
        for node in region.get("Nodes", ()):
            node.setdefault("CertName", node["HostName"])
            node["HostName"] = f"i-{token}.{node['HostName']}"
    return derp_map


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
