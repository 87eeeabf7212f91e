"""The keys of nodes that peers have announced: who may use a relay, here and elsewhere.  Layer L3.

The hub says of each node (`note`), rights.py of each peer that lost its place (`revoke`); the embedded relay asks
`has`, and is told at once.  Others get the same as a signed key set (api/relay_keys.py), which follows the store:
servers on one store sign the same set under the same version.  A key is forgotten when no peer had it for some days.
Whose a key is, for limits: the owner of the agent, or the user, who announced it first of those who are connected.
Nothing in a node proves that its sender has the private key: somebody else's would move it to his own limits.
"""

import logging
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import trio

from derp.admission.keyset import KeySet, sign_key_set
from derp.admission.signed import KEY_BYTES, Issuer, IssuerPrivate
from derp.keys import short_key
from derp.log import Rarely, and_more, fields
from tailnet.coordinator.nodes import Node
from tailnet.errors import StoreError
from tailnet.store.store import Store

_log = logging.getLogger("tailnet.server")

PURPOSE: Final = "relay key sets"
# Changes that come together are written together; a revocation has a second, and this is what the store adds to it.
_GATHER_SECONDS: Final = 0.05
# What other servers on the store have heard is known here within this time.
REFRESH_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 1.0
# Peers announce their keys whenever they connect, so a key need not be kept for longer than relays may be without us: a
# weekend, and its set lives for a day.
KEEP: Final = timedelta(days=3)
UPKEEP_SECONDS: Final = 3600.0
# Sets are good for a day, and signed anew when an hour of it has gone: whoever loses us has 23 hours at least.
RENEW_PART: Final = 24
_TELL_SECONDS: Final = 60.0
# As many as one set may have: 9 MB.
MAX_KEYS: Final = 100_000
# Whether a peer that is connected has a key is a walk over all of them, 0.6 ms for 10,000: it says so for as long.
HELD_SECONDS: Final = 1.0
# Keys of which that is known at a time: a stranger knows those of peers with whom he shares a tunnel.
_MAX_HELD: Final = 1_000
# Other replicas answer within a round trip; one that is stopped does not say who is connected there.
ANSWER_SECONDS: Final = 1.0
# What another replica said is believed for so long: a key that many announce is asked about so often.
ELSEWHERE_SECONDS: Final = 5.0
# Two servers that both believe to have been first would write for ever: each says it once in so long.
DEFENCE_SECONDS: Final = 60.0


class Announcer(Protocol):
    """Who announces a key: services/hub.py has them."""

    @property
    def tenant(self) -> str: ...


class RelayKeys:
    """One per server.  `start` it, then `run` it as one task."""

    def __init__(
        self,
        store: Store,
        *,
        life_seconds: float,
        connected: Callable[[], Iterable[tuple[Announcer, Node]]] = tuple,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`connected`: the peers that are, with their nodes."""
        self.life_seconds = life_seconds
        self._store = store
        self._connected = connected
        self._clock = clock
        self._private: IssuerPrivate
        self._known: dict[bytes, str] = {}  # and whose it is
        self._revoked: set[bytes] = set()
        self._heard: dict[bytes, str] = {}  # and not written yet, like the next
        self._withdrawn: set[bytes] = set()
        self._stored = KeySet(0, 0.0, 0.0, frozenset())  # what the store has, which is what is published
        self._document, self._signed_at = b"", 0.0
        self._signing = trio.Lock()
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._trouble: StoreError | None = None
        self._rarely = Rarely(_TELL_SECONDS)
        self._held_until: dict[bytes, float] = {}
        self._elsewhere_until: dict[bytes, float] = {}
        self._defended_until: dict[bytes, float] = {}
        self._asked_until: dict[bytes, float] = {}  # by others, when no peer here had it
        # Who wants a key while others are asked about it (None: that it be revoked), and until when they may answer.
        self._claims: dict[bytes, tuple[str | None, float]] = {}
        self.contested = 0
        """So often somebody announced the key of another tenant's peer."""
        self.ask_others: Callable[[bytes, str], bool] = lambda key, tenant: False
        """Asks other replicas whether a peer of that tenant, connected there, has a key; whether any were asked."""
        self.tell_others: Callable[[bytes, str], object] = lambda key, tenant: None
        """Tells other replicas that a peer of that tenant, connected here, has a key."""
        self.on_known: list[Callable[[bytes], None]] = []
        """Called for a key that nobody knew, or that is another one's now, from the reactor's thread."""
        self.on_revoked: list[Callable[[Collection[bytes]], None]] = []
        """Called with keys that may come in no more."""

    # --- for the embedded relay

    problem: Final = ""  # it asks nobody
    closed_by: Final = ""

    def has(self, key: bytes) -> bool:
        """Whether a peer has announced this key, and was not sent away since."""
        return key in self._known

    def is_revoked(self, key: bytes) -> bool:
        return key in self._revoked

    def tenant_of(self, key: bytes) -> str:
        """Whose client a key is; empty: that is not known."""
        return self._known.get(key, "")

    # --- what happens

    def note(self, key: bytes, tenant: str = "") -> None:
        """A peer announced a node with this raw key: it is good from now on, also if it was revoked before.

        `tenant`: whose peer it is; empty: nobody's.  While a peer of another tenant has the key, here or at another
        replica, it stays that one's.
        """
        before = self._known.get(key)
        if before == tenant or len(key) != KEY_BYTES:
            if key in self._asked_until and self._asked_until.pop(key) > self._clock().timestamp():
                self.tell_others(key, tenant)
            return
        if len(self._known) >= MAX_KEYS and before is None:
            self._tell_full()
            return
        if before is not None and self._is_held(key, before):
            self._tell_contested(key, before, tenant)
            return
        if before is not None and self._has_to_wait(key, before, tenant, tenant):
            return
        self._take(key, tenant)

    def _take(self, key: bytes, tenant: str) -> None:
        self._known[key] = tenant
        self._revoked.discard(key)
        self._withdrawn.discard(key)
        self._heard[key] = tenant
        self._wake.set()
        for known in self.on_known:
            known(key)

    def _tell_full(self) -> None:
        """A peer may announce a key after the other: those beyond are unknown ones, which have their minute."""
        more = self._rarely.held_back("full", self._clock().timestamp())
        if more is not None:
            _log.error("! %d keys are known to relays, and no more fit%s", MAX_KEYS, and_more(more))

    def holds(self, key: bytes, tenant: str) -> bool:
        """Whether the key is this tenant's, and a peer of his that is connected here has it, or had it a moment ago."""
        return self._known.get(key) == tenant and self._is_held_here(key, tenant)

    def note_asked(self, key: bytes) -> None:
        """Another replica waits for an answer, and no peer here has the key: one may be on its way to us."""
        _keep(self._asked_until, key, self._clock().timestamp() + ANSWER_SECONDS)

    def note_held_elsewhere(self, key: bytes, tenant: str) -> None:
        """Another replica holds it, for this tenant."""
        if self._known.get(key) != tenant:
            return
        _keep(self._elsewhere_until, key, self._clock().timestamp() + ELSEWHERE_SECONDS)
        claim, _ = self._claims.pop(key, (None, 0.0))
        if claim is not None:
            self._tell_contested(key, tenant, claim)

    def _is_held(self, key: bytes, tenant: str) -> bool:
        is_elsewhere = self._elsewhere_until.get(key, 0.0) > self._clock().timestamp()
        return is_elsewhere or self._is_held_here(key, tenant)

    def _is_held_here(self, key: bytes, tenant: str) -> bool:
        now = self._clock().timestamp()
        if self._held_until.get(key, 0.0) > now:
            return True
        if not self._announces(key, tenant):
            return False
        _keep(self._held_until, key, now + HELD_SECONDS)
        return True

    def _announces(self, key: bytes, tenant: str) -> bool:
        return any(node.public_key == key and peer.tenant == tenant for peer, node in self._connected())

    def _has_to_wait(self, key: bytes, holder: str, tenant: str, claim: str | None) -> bool:
        """Whether other replicas are asked first.  Until they have answered the key stays its holder's.

        `claim`: what this tenant wants, as in `_claims`.  Who was first keeps his claim while a peer of his is here.
        """
        if key in self._claims:
            first, until = self._claims[key]
            if first is None or first == tenant or not self._announces(key, first):
                self._claims[key] = claim, until
            return True
        # Of more than these nobody is asked, and nothing moves: whoever announces a thousand keys of others may wait.
        if len(self._claims) < _MAX_HELD:
            self._claims[key] = claim, self._clock().timestamp() + ANSWER_SECONDS
            if not self.ask_others(key, holder):
                del self._claims[key]
                return False
        return True

    def settle(self) -> None:
        """Nobody elsewhere holds what was asked about in time: whoever claims such a key still has it."""
        now = self._clock().timestamp()
        due = {key: claim for key, (claim, until) in self._claims.items() if until <= now}
        if not due:
            return
        # One walk over the peers for all: a thousand would be 0.6 s in which nobody is served.
        here = {(node.public_key, peer.tenant) for peer, node in self._connected() if node.public_key in due}
        for key, claim in due.items():
            del self._claims[key]
            holder = self._known.get(key)
            if holder is not None and holder != claim and (key, holder) in here:
                continue  # who was on its way from another replica is here by now
            if claim is None:
                self.revoke((key,))
            elif (key, claim) in here:
                self._take(key, claim)

    def _tell_contested(self, key: bytes, tenant: str, other: str) -> None:
        self.contested += 1
        more = self._rarely.held_back("contested", self._clock().timestamp())
        if more is not None:
            told = fields(event="relay_key_contested", key=key, tenant=tenant, other_tenant=other, more_count=more)
            text = "! %s stays with tenant %r, of whom a peer with it is connected: one of %r announced it too%s"
            _log.warning(text, short_key(key), tenant, other, and_more(more), extra=told)

    def revoke(self, keys: Collection[bytes], tenant: str | None = None) -> None:
        """These have no business here any more.  `tenant`: whose peer announced them; what a connected peer of another
        tenant has stays, or whoever signs out could have anybody sent away."""
        if tenant is not None:
            keys = [key for key in keys if not self._is_of_another(key, tenant)]
        for key in keys:
            self._known.pop(key, None)
            self._heard.pop(key, None)
        self._revoked.update(keys)
        self._withdrawn.update(keys)
        self._wake.set()
        for revoked in self.on_revoked:
            revoked(keys)

    def _is_of_another(self, key: bytes, tenant: str) -> bool:
        holder = self._known.get(key, tenant)
        return holder != tenant and (self._is_held(key, holder) or self._has_to_wait(key, holder, tenant, None))

    # --- for relays elsewhere

    @property
    def issuer(self) -> Issuer:
        """Whose signature relays have to believe."""
        return self._private.public()

    @property
    def version(self) -> int:
        return self._stored.version

    async def document(self) -> tuple[str, bytes]:
        """The signed set of now, and what tells it from others (an ETag without quotes)."""
        async with self._signing:  # followers come together at each change, and one signature serves all
            while not self._is_fresh:
                stored, now = self._stored, self._clock().timestamp()
                of_now = replace(stored, issued_at=now, ends_at=now + self.life_seconds)
                # 100,000 keys are 0.1 s of work.
                document = await trio.to_thread.run_sync(sign_key_set, self._private, of_now)
                if self._stored is stored:
                    self._document, self._signed_at = document, now
                    break
        return f"{self._stored.version}-{int(self._signed_at)}", self._document

    @property
    def _is_fresh(self) -> bool:
        """Whether what was signed last is what is to be published."""
        age = self._clock().timestamp() - self._signed_at
        return bool(self._document) and age < self.life_seconds / RENEW_PART

    async def wait_changed(self) -> None:
        """Until another set is published."""
        await self._changed.wait()

    # --- its life

    async def start(self) -> None:
        """Read the keys and the secret that signs, which is made the first time.  Raises StoreError."""
        keys = self._store.keys
        secret = await self._store.run(keys.lasting_key, PURPOSE, self._clock(), secrets.token_bytes, KEY_BYTES)
        self.sign_with(IssuerPrivate(secret))
        await self._refresh()

    def sign_with(self, private: IssuerPrivate) -> None:
        """Sign with this key from now on."""
        self._private = private

    async def run(self) -> None:
        """Write what was heard, hear what others wrote, and forget what is old, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_store)
            nursery.start_soon(self._forget_forever)

    async def _follow_store(self) -> None:
        while True:
            with trio.move_on_after(REFRESH_SECONDS):
                await self._wake.wait()
                await trio.sleep(_GATHER_SECONDS)
            self.settle()
            try:
                await self._write()
                await self._refresh()
                self._trouble = None
            except StoreError as error:
                if self._trouble is None:
                    _log.error("! keys for relays are not stored, this server's relay goes by what it heard: %s", error)
                self._trouble = error
                await trio.sleep(_RETRY_SECONDS)

    async def _write(self) -> None:
        heard, withdrawn, self._wake = dict(self._heard), frozenset(self._withdrawn), trio.Event()
        if heard or withdrawn:
            await self._store.run(self._store.relay_keys.put, heard, withdrawn, self._clock())
            self._heard = dict(self._heard.items() - heard.items())
            self._withdrawn -= withdrawn

    async def _refresh(self) -> None:
        before = self._stored
        changes = await self._store.run(self._store.relay_keys.changes, before.version)
        if changes.version == before.version:
            return
        keys, revoked = frozenset(changes.known), changes.revoked
        tenants = {} if changes.is_whole else dict(before.tenants)
        if not changes.is_whole:
            keys, revoked = keys | (before.keys - revoked), revoked | (before.revoked - keys)
        # Only what has changed is walked over: 100,000 keys would be 40 ms.
        for key in changes.revoked:
            tenants.pop(key, None)
        tenants.update(changes.known)
        self._stored = KeySet(changes.version, 0.0, 0.0, keys, revoked, tenants=tenants)
        self._document = b""
        self._changed.set()
        self._changed = trio.Event()
        self._hear(changes.known)

    def _hear(self, changed: Mapping[bytes, str]) -> None:
        """What other servers know, of which these keys are news; what was heard here meanwhile is newer."""
        stored, before = self._stored, self._known
        self._defend(changed)
        withdrawn = (stored.revoked & before.keys()) - self._heard.keys()
        self._known = {**stored.tenants, **self._heard}
        for key in self._withdrawn:
            self._known.pop(key, None)
        self._revoked = (set(stored.revoked) | self._withdrawn) - self._heard.keys()
        for key in changed:
            if key in self._known and self._known[key] != before.get(key):
                for heard in self.on_known:
                    heard(key)
        if withdrawn:
            for told in self.on_revoked:
                told(withdrawn)

    def _defend(self, changed: Mapping[bytes, str]) -> None:
        """Another server took keys that peers here hold, since it had not heard of them yet: say it once more."""
        now = self._clock().timestamp()
        for key, tenant in changed.items():
            ours = self._known.get(key, tenant)
            if ours == tenant or key in self._heard or self._defended_until.get(key, 0.0) > now:
                continue
            if self._is_held_here(key, ours):
                _keep(self._defended_until, key, now + DEFENCE_SECONDS)
                self._heard[key] = ours
                self._wake.set()
                self._tell_contested(key, ours, tenant)

    async def _forget_forever(self) -> None:
        while True:
            now = self._clock()
            tables = self._store.relay_keys
            try:
                in_use = frozenset(node.public_key for _, node in self._connected())
                await self._store.run(tables.touch, in_use & self._stored.keys, now)
                await self._store.run(tables.remove, now - KEEP, MAX_KEYS, now)
            except StoreError as error:
                _log.error("! old keys for relays are not removed: %s", error)
            await trio.sleep(UPKEEP_SECONDS)


def _keep(table: dict[bytes, float], key: bytes, until: float) -> None:
    """Of strangers' making, so there are few."""
    if len(table) >= _MAX_HELD:
        table.clear()
    table[key] = until
