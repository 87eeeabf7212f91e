"""Users' accounts at other providers, linked by OAuth, so that their workspaces come in there.  Layer L3.

A user's browser goes to the provider and comes back with a code (`begin`, `finish`); agents ask for the token
(`token`, `wait_token`), which is refreshed and validated then.  Tokens lie in the store encrypted (store/sealing.py,
store/credentials.py); what a browser carries meanwhile is encrypted too, so no server remembers who is on his way.
Messages: auth/oauth.py.  Called by api/link_page.py, api/external_auth.py and api/external_auth_agents.py.
"""

import hmac
import json
import logging
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from uuid import UUID

import trio

from derp.log import Rarely, and_more
from tailnet.auth.oauth import (
    VERIFIER_BYTES,
    OAuthNonsense,
    OAuthRefused,
    Tokens,
    authorization_url,
    code_form,
    read_tokens,
    refresh_form,
    token_headers,
)
from tailnet.config.external_auth import Provider
from tailnet.config.matching import MAX_MATCHED_CHARS
from tailnet.errors import SecretsError, TailnetError, TransportError
from tailnet.services.link_watch import LinkWatch
from tailnet.store.credentials import LinkRow, link_place
from tailnet.store.rows import UserIdentity
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tailnet.transport.fetch import Answered, ask

_log = logging.getLogger("tailnet.external_auth")

# A provider's answer is below 4 KiB; GitHub's about a user, who a token is asked of, has 3 KiB.
MAX_ANSWER_BYTES: Final = 256 * 1024
# An agent's git waits for this; a provider that takes longer does not answer at all.
ASK_SECONDS: Final = 10.0
# Signing in there may take a second factor and a new password.
BEGUN_FOR: Final = timedelta(minutes=15)
# A token that expires on its way to the git server is of no use.
_LEEWAY: Final = timedelta(seconds=10)
# A server has a link for itself while it refreshes it; one that died then has it no longer than this.
CLAIMED_FOR: Final = timedelta(seconds=ASK_SECONDS + 5)
_AGAIN_SECONDS: Final = 0.25
_CLAIM_TRIES: Final = round((ASK_SECONDS + 10) / _AGAIN_SECONDS)
# Agents ask again when they got nothing; a connection that is silent for longer is cut by proxies anyway.
LISTEN_SECONDS: Final = 600.0
# An address of a repository; the beginning of it decides whose it is.
MAX_ADDRESS_CHARS: Final = 1024
# What is counted.
OUTCOMES: Final = ("linked", "unlinked", "refreshed", "ended", "trouble")
_COOKIE_PLACE: Final = "begun link"


class ProviderTrouble(TailnetError):
    """The provider cannot be asked now, or answers nonsense: coming again may help.  The text says why."""

    def __init__(self, provider: Provider, reason: str) -> None:
        super().__init__(f"external auth provider {provider.id} {reason}")
        self.provider = provider
        self.reason = reason


class LinkRefused(TailnetError):
    """A browser came back with something that makes no link.  The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A token that was good a moment ago."""

    provider: Provider
    tokens: Tokens = field(repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a browser goes, and what it carries."""

    url: str
    cookie: str = field(repr=False)


class Asks(Protocol):
    """transport/fetch.py's `ask`."""

    def __call__(
        self,
        url: str,
        *,
        form: dict[str, str] | None = None,
        headers: dict[str, str],
        timeout_seconds: float,
        max_bytes: int,
    ) -> Awaitable[Answered]:
        """Raises TransportError."""
        ...


class ExternalAuth:
    """All links of one server.  Methods raise StoreError, and SecretsError where a key is missing."""

    def __init__(
        self,
        store: Store,
        sealer: Sealer,
        access_url: str,
        providers: Sequence[Provider] = (),
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        send: Asks = ask,
    ) -> None:
        """`access_url`: where browsers come back to.  `providers`: as in `configure`."""
        self._configured = tuple(providers)
        self._fetched: tuple[Provider, ...] = ()
        self._providers = self._configured
        self.watch = LinkWatch(store)
        self.outcomes: Counter[str] = Counter()  # OUTCOMES
        self._store = store
        self._sealer = sealer
        self._access_url = access_url.rstrip("/")
        self._clock = clock
        self._send = send
        # One refresh of a link at a time: a provider takes each refresh token once.
        self._turns: dict[tuple[UUID, str], trio.Lock] = {}
        self._rarely = Rarely(60.0)

    @property
    def providers(self) -> tuple[Provider, ...]:
        """All of them; of several that match an address the last one counts."""
        return self._providers

    def configure(self, providers: Sequence[Provider]) -> None:
        """Take those of the settings, which go before others of their ids."""
        self._configured = tuple(providers)
        self._join()

    def take_fetched(self, providers: Sequence[Provider]) -> None:
        """Take those that the control plane has besides."""
        self._fetched = tuple(providers)
        self._join()

    def _join(self) -> None:
        taken = {each.id for each in self._configured}
        self._providers = (*(each for each in self._fetched if each.id not in taken), *self._configured)

    def find(self, provider_id: str) -> Provider | None:
        """The provider of that id."""
        return next((each for each in self.providers if each.id == provider_id), None)

    def match(self, address: str) -> Provider | None:
        """The provider of a git address: the last one whose expression is found in it."""
        text = address[:MAX_MATCHED_CHARS]
        return next((each for each in reversed(self.providers) if each.regex and each.regex.search(text)), None)

    def link_url(self, provider: Provider) -> str:
        """Where a user links his account."""
        return f"{self._access_url}/external-auth/{provider.id}"

    # --- a browser's way

    def begin(self, user_id: UUID, provider: Provider) -> Begun:
        """Send a user to the provider."""
        state, verifier = _random_text(), _random_text()
        until = (self._clock() + BEGUN_FOR).timestamp()
        carried = json.dumps([str(user_id), provider.id, state, verifier, until]).encode()
        cookie = urlsafe_b64encode(self._sealer.seal(carried, _COOKIE_PLACE)).decode()
        return Begun(authorization_url(provider, self._redirect_uri(provider), state, verifier), cookie)

    async def finish(self, user: UserIdentity, provider: Provider, cookie: str, state: str, code: str) -> None:
        """A browser came back.  Raises LinkRefused and ProviderTrouble; then what was linked before stays."""
        user_id = user.id
        verifier = self._check(user_id, provider, cookie, state)
        try:
            tokens = await self._exchange(provider, code_form(provider, self._redirect_uri(provider), code, verifier))
        except OAuthRefused as refused:
            raise LinkRefused(f"{provider.name} refuses the code ({refused}): begin again") from None
        if not await self._is_good(provider, tokens.access_token):
            raise LinkRefused(f"{provider.name} does not take the token that it just gave: begin again")
        sealed = self._sealer.seal(tokens.to_json(), link_place(user_id, provider.id))
        # Whom the control plane vouches for may link his account before his first agent comes.
        await self._store.run(self._store.outside.put_user, user, self._clock())
        keep = self._store.credentials.put_link
        await self._store.run(keep, user_id, provider.id, sealed, tokens.expires_at, self._clock())
        self.watch.changed(user_id, provider.id)
        self.outcomes["linked"] += 1
        _log.info("+ user %s links %s", user_id, provider.id)

    async def unlink(self, user_id: UUID, provider_id: str) -> bool:
        """Forget a link.  Returns whether there was one.  The provider's own list of grants is the user's affair."""
        was_there = await self._store.run(self._store.credentials.delete_link, user_id, provider_id)
        if was_there:
            self.outcomes["unlinked"] += 1
            _log.info("- user %s unlinks %s", user_id, provider_id)
        return was_there

    async def links(self, user_id: UUID) -> list[LinkRow]:
        """What a user linked, of whatever provider."""
        return await self._store.run(self._store.credentials.links, user_id)

    # --- what agents ask

    async def token(self, user_id: UUID, provider: Provider) -> Linked | None:
        """The user's token, refreshed and validated; None: he has to link his account.  Raises ProviderTrouble."""
        row = await self._store.run(self._store.credentials.link, user_id, provider.id)
        return await self._good(row, provider) if row is not None else None

    async def wait_token(self, user_id: UUID, provider: Provider) -> Linked | None:
        """The same, but wait for a link that is good.  None: nobody made one within LISTEN_SECONDS.

        Raises WouldBlock when too many wait already.
        """
        bad: bytes | None = None
        with self.watch.watching(user_id, provider.id) as watcher, trio.move_on_after(LISTEN_SECONDS):
            while True:
                row = await self._store.run(self._store.credentials.link, user_id, provider.id)
                # A token that was found bad is not asked about again until somebody changes it.
                if row is not None and row.sealed is not None and row.sealed != bad:
                    try:
                        found = await self._good(row, provider)
                    except (ProviderTrouble, SecretsError) as error:
                        self._tell(provider, str(error))  # and it is tried again with the next change, or later
                    else:
                        if found is not None:
                            return found
                        bad = row.sealed
                await watcher.wait_changed(row.updated_at if row is not None else None)
        return None

    async def _good(self, row: LinkRow, provider: Provider) -> Linked | None:
        current: LinkRow | None = row
        if self._has_expired(row):
            current = await self._refresh(row, provider)
        if current is None or current.sealed is None:
            return None
        tokens = self._open(current)
        return Linked(provider, tokens) if await self._is_good(provider, tokens.access_token) else None

    def _has_expired(self, row: LinkRow) -> bool:
        return row.expires_at is not None and row.expires_at <= self._clock() + _LEEWAY

    async def _refresh(self, seen: LinkRow, provider: Provider) -> LinkRow | None:
        """The link with a new token; None when it is of no use any more.  Raises ProviderTrouble."""
        key = seen.user_id, seen.provider_id
        turn = self._turns.setdefault(key, trio.Lock())
        try:
            async with turn:
                for _ in range(_CLAIM_TRIES):
                    row = await self._store.run(self._store.credentials.link, *key)
                    if row is None or row.sealed is None or not self._has_expired(row):
                        return row  # somebody else was faster
                    # Whoever asked may hang up; a refresh token that was used up is lost unless its successor is kept.
                    with trio.CancelScope(shield=True):
                        if await self._claim(row):
                            return await self._exchange_refresh(row, provider)
                    await trio.sleep(_AGAIN_SECONDS)  # another server has it, for CLAIMED_FOR at the most
                raise self._trouble(provider, "is asked by another server of ours: is the clock of one of them wrong?")
        finally:
            if not turn.locked():
                self._turns.pop(key, None)

    async def _claim(self, row: LinkRow) -> bool:
        now = self._clock()
        return await self._store.run(self._store.credentials.claim_link, row, now + CLAIMED_FOR, now)

    async def _exchange_refresh(self, row: LinkRow, provider: Provider) -> LinkRow | None:
        change, now = self._store.credentials.change_link, self._clock()
        try:
            before = self._open(row)
            if not before.refresh_token:
                raise OAuthRefused("expired", "and there is no refresh token", is_final=True)
            form = refresh_form(provider, before.refresh_token)
            fresh = await self._exchange(provider, form, before.refresh_token)
        except (ProviderTrouble, SecretsError):
            await self._store.run(self._store.credentials.release_link, row)
            raise
        except OAuthRefused as refused:
            if not refused.is_final:
                await self._store.run(self._store.credentials.release_link, row)
                raise self._trouble(provider, f"refuses a refresh: {refused}") from None
            if await self._store.run(change, row, None, None, str(refused), now):
                self.outcomes["ended"] += 1
                _log.info("- the link of user %s to %s has ended: %s", row.user_id, provider.id, refused)
        else:
            sealed = self._sealer.seal(fresh.to_json(), link_place(row.user_id, provider.id))
            await self._store.run(change, row, sealed, fresh.expires_at, "", now)
            self.outcomes["refreshed"] += 1
        # Where the user linked it anew meanwhile, that counts.
        return await self._store.run(self._store.credentials.link, row.user_id, row.provider_id)

    # --- questions to the provider

    async def _exchange(self, provider: Provider, form: dict[str, str], refresh_token: str = "") -> Tokens:
        answered = await self._ask(provider, provider.token_url, form, token_headers(provider))
        try:
            return read_tokens(provider, answered.status, answered.body, self._clock(), refresh_token)
        except OAuthNonsense as nonsense:
            raise self._trouble(provider, str(nonsense)) from None

    async def _is_good(self, provider: Provider, token: str) -> bool:
        if not provider.validate_url:
            return True
        answered = await self._ask(provider, provider.validate_url, None, {"authorization": f"Bearer {token}"})
        if 200 <= answered.status < 300:
            return True
        if answered.status == 401:
            return False
        if answered.status == 403:
            # GitHub's answer to too many questions says nothing of the token.
            return answered.headers.get("x-ratelimit-remaining") == "0"
        raise self._trouble(provider, f"answers {answered.status} when it is asked whether a token is good")

    async def _ask(
        self, provider: Provider, url: str, form: dict[str, str] | None, headers: dict[str, str]
    ) -> Answered:
        try:
            return await self._send(
                url, form=form, headers=headers, timeout_seconds=ASK_SECONDS, max_bytes=MAX_ANSWER_BYTES
            )
        except TransportError as error:
            raise self._trouble(provider, str(error)) from None

    def _trouble(self, provider: Provider, reason: str) -> ProviderTrouble:
        trouble = ProviderTrouble(provider, reason)
        self.outcomes["trouble"] += 1
        self._tell(provider, str(trouble))
        return trouble

    def _tell(self, provider: Provider, text: str) -> None:
        more = self._rarely.held_back(provider.id, trio.current_time())
        if more is not None:
            _log.warning("! %s%s", text, and_more(more))

    # --- what is encrypted

    def _open(self, row: LinkRow) -> Tokens:
        assert row.sealed is not None
        return Tokens.from_json(self._sealer.open(row.sealed, link_place(row.user_id, row.provider_id)), row.expires_at)

    def _check(self, user_id: UUID, provider: Provider, cookie: str, state: str) -> str:
        """The verifier that goes with the code.  Raises LinkRefused."""
        begin = f"begin again at {self.link_url(provider)}"
        try:
            carried: Any = json.loads(self._sealer.open(urlsafe_b64decode(cookie.encode()), _COOKIE_PLACE))
        except (SecretsError, Error, ValueError):
            raise LinkRefused(f"this browser did not begin here, or too long ago: {begin}") from None
        whose, where, wanted, verifier, until = carried
        if not hmac.compare_digest(wanted.encode(), state.encode("utf-8", "replace")):
            raise LinkRefused(f"the state is not the one that this browser was given: {begin}")
        if whose != str(user_id) or where != provider.id:
            raise LinkRefused(f"somebody else began this, or for another provider: {begin}")
        if self._clock().timestamp() > until:
            raise LinkRefused(f"this was begun too long ago: {begin}")
        return str(verifier)

    def _redirect_uri(self, provider: Provider) -> str:
        return f"{self.link_url(provider)}/callback"


def described(providers: Sequence[Provider]) -> list[str]:
    """The expressions by which providers are chosen, for who was given none."""
    return [each.regex.pattern for each in providers if each.regex is not None]


def _random_text() -> str:
    return urlsafe_b64encode(os.urandom(VERIFIER_BYTES)).rstrip(b"=").decode()
