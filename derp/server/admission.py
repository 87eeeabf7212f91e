"""Who may become a client.  Layer L3: lists and key sets answer at once; tailscaled and a control plane, later.

Order: a mesh key of ours always comes in; a denied or revoked key never; a good ticket does.  Then the allow list has
to allow; then whoever is in the key set comes in, and a local tailscaled and the control plane are asked about all
others, as far as they are set.  Called by server/session.py for each handshake; docs/admission.md is the operator's
view.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from derp.admission.terms import Terms
from derp.admission.ticket import find_ticket, open_ticket
from derp.admission.trials import Trials
from derp.config import RelayRules
from derp.errors import SignedFormatError
from derp.server.address import address_group

# So many nonces of mesh peers' logins we remember.  Only a relay with the mesh key can add one, and a region of ten
# nodes that all reconnect every minute takes two days to fill this megabyte.
_MAX_LOGINS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a client comes in; `because` is for the log and never for the client.

    `faulty`: those who were asked are at fault, which the operator should hear.  Without `answered` nobody knows
    better than before, so it is not remembered.  `terms`: until when it may stay, and for how much; None: as it likes.
    `told`: what a refused client's user is told.  `tenant`: whose client it is; empty: nobody said.
    """

    allowed: bool
    because: str = ""
    faulty: bool = False
    answered: bool = True
    terms: Terms | None = None
    told: str = ""
    tenant: str = ""


ADMITTED: Final = Verdict(True)
_KNOWN: Final = Verdict(True, "its key is known")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a look at somebody who is asked showed: whether he can answer, and a sentence for the log.

    `lasting`: that a client is allowed meanwhile does not disprove it.
    """

    well: bool
    text: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a client may come in, for somebody else to decide."""

    key: bytes
    address: str
    answer: Callable[[Verdict], None]
    """Called once, later, from the reactor's thread; never, when the client has gone before it was asked about."""
    is_waiting: Callable[[], bool] = lambda: True
    """Whether the client is still there: nobody need be asked about one that is not."""


class Verifier(Protocol):
    """Asks somebody else about a key; server/verify.py does it over HTTP."""

    @property
    def problem(self) -> str:
        """Why nobody can get an answer now, if that is so."""
        ...

    async def look_again(self, key: bytes) -> None:
        """Ask those who did not answer about a key that nobody has, to learn whether they do."""

    @property
    def closed_by(self) -> str:
        """The same, of those whose silence means no."""
        ...

    def totals(self) -> Mapping[str, int]:
        """Questions so far by how they were answered; a verdict that was remembered is no question."""
        ...

    def cached(self, key: bytes, address: str) -> Verdict | None:
        """The last answer, while it is fresh."""
        ...

    def ask(self, question: Question) -> Verdict | None:
        """Have it answered later; or the verdict at once, when too many questions wait."""
        ...


class KnownKeys(Protocol):
    """Keys that may come in unasked; server/keysets.py has those that an issuer signed."""

    @property
    def problem(self) -> str:
        """What the operator should look at."""
        ...

    @property
    def closed_by(self) -> str:
        """Why no key gets in by these now; empty: some do."""
        ...

    def has(self, key: bytes) -> bool:
        """Whether a key may come in now."""
        ...

    def is_revoked(self, key: bytes) -> bool:
        """Whether a key may not, whoever else allows it."""
        ...

    def tenant_of(self, key: bytes) -> str:
        """Whose client a key is; empty: they do not say."""
        ...


class Invited(Protocol):
    """Who was invited; server/invitations.py reads it off a file."""

    def judge(self, key: bytes, host: str) -> Terms | str | None:
        """On what terms a client comes in that asked for us by this host name; or why not; None: it shows nothing."""
        ...


class Admission:
    """The rules of one relay.  `verifier` is None when nobody needs to be asked."""

    def __init__(
        self,
        config: RelayRules,
        verifier: Verifier | None = None,
        *,
        known: Sequence[KnownKeys] = (),
        invitations: Invited | None = None,
        trials: Trials | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`known`: keys that come in unasked; `trials`: where others may for a minute.  `clock`: the wall's, by which
        tickets and trials end."""
        self.mesh_key = config.mesh_key
        """A client that proves to have it is a relay of our region, and always comes in."""
        self._allow: frozenset[bytes] | None
        self._deny: frozenset[bytes]
        self.configure(config)
        self._issuers = config.issuers
        self._verifier = verifier
        self._known = tuple(known)
        self._invitations = invitations
        self._trials = trials
        self._clock = clock
        self._logins: dict[bytes, None] = {}
        self._expected: set[bytes] = set()

    def configure(self, rules: RelayRules) -> None:
        """Take both lists from settings.  They judge clients that come from now on."""
        self._allow, self._deny = rules.allow_keys, rules.deny_keys

    def is_replayed(self, nonce: bytes) -> bool:
        """Whether a mesh peer's ClientInfo with this nonce was seen before.

        The frame proves the mesh key and holds nothing of ours that is fresh: on a link without TLS a listener could
        send it again, and then forward packets in anybody's name.  Honest relays draw a new nonce for each login.
        """
        if nonce in self._logins:
            return True
        if len(self._logins) >= _MAX_LOGINS:
            del self._logins[next(iter(self._logins))]
        self._logins[nonce] = None
        return False

    @contextmanager
    def expecting(self, key: bytes) -> Iterator[None]:
        """Let this key in, whatever the rules say, until the block ends: for a look at ourselves from outside.

        Nobody else can come with it: a handshake proves that its client has the private half.
        """
        self._expected.add(key)
        try:
            yield
        finally:
            self._expected.discard(key)

    @property
    def problem(self) -> str:
        """Why clients cannot get an answer now, or soon, for /debug/check; empty if they can, or need none."""
        problems = [one.problem for one in (*self._known, self._verifier) if one is not None]
        return "; ".join(filter(None, problems))

    @property
    def closed_by(self) -> str:
        """Why nobody can be admitted now.  Whoever is in a key set needs no answer of others, and they ask no key
        set."""
        ways = [one.closed_by for one in (*self._known, self._verifier) if one is not None]
        return "; ".join(ways) if all(ways) and self._trials is None else ""

    async def look_again(self, key: bytes) -> None:
        """Learn whether those answer again who did not; `key` is nobody's."""
        if self._verifier is not None:
            await self._verifier.look_again(key)

    def question_totals(self) -> Mapping[str, int]:
        """Questions by answer, for metrics; none where nobody is asked."""
        return self._verifier.totals() if self._verifier is not None else {}

    def decide(self, key: bytes, address: str, shown: str = "") -> Verdict | None:
        """The verdict; None: `ask` first.  `shown`: the host name by which the client asked for this relay, or its
        ticket."""
        if key in self._expected:
            return ADMITTED
        refused = self.refused_always(key)
        if refused is not None:
            return refused
        by_shown = self._by_shown(key, shown)
        if by_shown is not None and by_shown.allowed:
            return by_shown
        refused = self.refused_by_list(key)
        if refused is not None:
            return refused
        if any(known.has(key) for known in self._known):
            return _KNOWN
        if self._verifier is not None:
            return self._verifier.cached(key, address)
        if by_shown is not None:
            return by_shown
        return self._of_unknown(key, address)

    def _of_unknown(self, key: bytes, address: str) -> Verdict:
        """The verdict where nobody is to be asked."""
        if self._trials is not None:
            if self._allow is not None:
                return ADMITTED  # the operator named it
            offered = self._trials.offer(key, address_group(address), trio.current_time(), self._clock())
            return Verdict(False, offered) if isinstance(offered, str) else Verdict(True, terms=offered)
        if self._known:
            return Verdict(
                False, "; ".join(filter(None, (known.closed_by for known in self._known))) or "it is unknown"
            )
        return Verdict(False, "it shows no ticket and no invitation") if self._wants_to_see else ADMITTED

    def tenant_of(self, key: bytes) -> str:
        """Whose client a key is, by those that know it; empty: they do not say."""
        return next(filter(None, (known.tenant_of(key) for known in self._known)), "")

    def settle(self, key: bytes) -> None:
        """A key became known: if it was on trial, it is no longer."""
        if self._trials is not None:
            self._trials.settle(key)

    @property
    def _wants_to_see(self) -> bool:
        """Whether clients without anything to show stay out, if nobody else knows them."""
        return bool(self._issuers) or self._invitations is not None

    def _by_shown(self, key: bytes, shown: str) -> Verdict | None:
        """The verdict of the ticket or the invitation in `shown`; None: there is none, or it means nothing here."""
        if self._invitations is not None:
            judged = self._invitations.judge(key, shown)
            if judged is not None:
                return Verdict(False, judged) if isinstance(judged, str) else _on_terms(judged)
        text = find_ticket(shown) if self._issuers else ""
        if not text:
            return None
        try:
            ticket = open_ticket(text, key, self._issuers, self._clock())
        except SignedFormatError as error:
            return Verdict(False, f"its ticket {error}")
        return _on_terms(Terms("the ticket of this machine", ticket.ends_at, tenant=ticket.tenant))

    def refused_by_list(self, key: bytes) -> Verdict | None:
        """The verdict of the lists and of what was revoked, if that is a refusal."""
        if key in self._expected:
            return None
        if (refused := self.refused_always(key)) is not None:
            return refused
        if self._allow is not None and key not in self._allow:
            return Verdict(False, "it is none of --allow-keys")
        return None

    def refused_always(self, key: bytes) -> Verdict | None:
        """The refusal that holds whatever a client shows: it is denied, or was revoked."""
        if key in self._deny:
            return Verdict(False, "it is one of --deny-keys")
        if any(known.is_revoked(key) for known in self._known):
            return Verdict(False, "it was revoked")
        return None

    def ask(self, question: Question) -> Verdict | None:
        """Have others decide later; or the verdict at once, when too many questions wait."""
        assert self._verifier is not None, "decide gives None only when there is somebody to ask"
        return self._verifier.ask(question)


def _on_terms(terms: Terms) -> Verdict:
    return Verdict(True, terms=terms, tenant=terms.tenant)
