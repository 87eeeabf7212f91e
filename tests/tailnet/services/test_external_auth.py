"""Tokens that expire, are refreshed once, end, or cannot be asked about; two servers on one store; who waits."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import trio

from tailnet.errors import SecretsError
from tailnet.services.external_auth import CLAIMED_FOR, ExternalAuth, Linked, ProviderTrouble
from tailnet.store.credentials import LinkRow
from tailnet.store.rows import UserIdentity
from tailnet.store.sealing import Sealer
from tailnet.store.store import Store
from tests.support.api_world import ACCESS_URL, make_world
from tests.support.linked import Linking
from tests.support.providers import JSON, open_provider
from tests.support.seeds import make_id
from tests.support.sites import answer

ALICE, BOB = make_id("alice"), make_id("bob")


@pytest.fixture
async def linking(store: Store) -> AsyncIterator[Linking]:
    async with open_provider() as provider:
        made = Linking(make_world(store), provider)
        assert (await made.link("alice")).status_code == 200
        provider.asked.clear()
        yield made


async def token(linking: Linking, external: ExternalAuth | None = None) -> Linked | None:
    external = external or linking.external
    return await external.token(ALICE, external.providers[0])


def refreshes(linking: Linking) -> int:
    return sum(form.get("grant_type") == "refresh_token" for _, form, _ in linking.provider.asked)


@pytest.mark.stores
async def test_a_token_is_refreshed_when_it_expires(linking: Linking) -> None:
    first = await token(linking)
    assert first is not None
    assert refreshes(linking) == 0
    linking.later(3595)  # on its way to the git server it would expire
    second = await token(linking)
    assert second is not None
    assert refreshes(linking) == 1
    assert second.tokens.access_token != first.tokens.access_token
    assert second.tokens.expires_at == linking.now + timedelta(hours=1)
    linking.later(3600)
    assert await token(linking) is not None, "with the refresh token of the refresh"
    assert refreshes(linking) == 2
    assert linking.external.outcomes == {"linked": 1, "refreshed": 2}
    assert await linking.external.unlink(ALICE, "git")
    assert linking.external.outcomes["unlinked"] == 1


async def test_a_token_that_never_expires(linking: Linking) -> None:
    linking.provider.life_seconds = None
    await linking.link("alice")
    linking.later(10**8)
    assert await token(linking) is not None
    assert refreshes(linking) == 0


async def test_all_who_ask_at_once_refresh_once(linking: Linking) -> None:
    linking.later(3600)
    found: list[Linked | None] = []

    async def ask() -> None:
        found.append(await token(linking))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert refreshes(linking) == 1
    assert len({each.tokens.access_token for each in found if each is not None}) == 1
    assert None not in found
    assert not linking.external._turns


async def test_servers_that_refresh_at_once(linking: Linking) -> None:
    """A provider ends a link whose refresh token is shown twice: the second server waits for the first one's token."""
    other = linking.another_server()
    linking.later(3600)
    linking.provider.hold = trio.Event()
    found: list[Linked | None] = []

    async def ask(external: ExternalAuth) -> None:
        found.append(await token(linking, external))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, linking.external)
            while not refreshes(linking):
                await trio.lowlevel.checkpoint()
            nursery.start_soon(ask, other)
            while not other._turns:
                await trio.lowlevel.checkpoint()
            assert not await other._claim(await row_of(linking)), "the first one has it"
            linking.provider.hold.set()
    assert refreshes(linking) == 1
    assert len({each.tokens.access_token for each in found if each is not None}) == 1
    assert len(found) == 2


async def row_of(linking: Linking) -> LinkRow:
    row = await linking.world.store.run(linking.world.store.credentials.link, ALICE, "git")
    assert row is not None
    return row


async def test_a_server_that_died_has_a_link_no_longer_than_that(linking: Linking) -> None:
    linking.later(3600)
    assert await linking.external._claim(await row_of(linking))
    linking.later(CLAIMED_FOR.total_seconds())
    assert await token(linking, linking.another_server()) is not None
    assert (await row_of(linking)).refreshing_until is None


async def test_a_clock_that_is_wrong_is_no_reason_to_wait_for_ever(
    linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailnet.services.external_auth._AGAIN_SECONDS", 0.001)
    linking.later(3600)
    row, far = await row_of(linking), linking.now + timedelta(days=1)
    assert await linking.world.store.run(linking.world.store.credentials.claim_link, row, far, linking.now)
    with trio.fail_after(20), pytest.raises(ProviderTrouble, match="clock"):
        await token(linking)
    assert refreshes(linking) == 0


async def test_who_asked_may_hang_up(linking: Linking) -> None:
    """A refresh token that was used up is lost unless its successor is kept."""
    linking.later(3600)
    linking.provider.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(token, linking)
        with trio.fail_after(60):
            while not refreshes(linking):
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
        linking.provider.hold.set()
    assert await token(linking) is not None
    assert refreshes(linking) == 1


async def test_a_refresh_that_is_refused_ends_the_link(linking: Linking) -> None:
    linking.later(3600)
    linking.provider.refresh_tokens.clear()
    assert await token(linking) is None
    row = linking.world.store.credentials.link(ALICE, "git")
    assert row is not None
    assert (row.sealed, row.failure) == (None, "invalid_grant: it is invalid_grant")
    assert linking.external.outcomes["ended"] == 1
    assert await token(linking) is None
    assert refreshes(linking) == 1, "nobody asks again"
    assert (await linking.link("alice")).status_code == 200
    assert await token(linking) is not None
    again = linking.world.store.credentials.link(ALICE, "git")
    assert again is not None
    assert again.failure == ""


@pytest.mark.parametrize(
    "response",
    [
        b"",
        answer(b"<html>"),
        answer(b"", status="503 Away"),
        answer(b'{"error": "temporarily_unavailable"}', JSON),
        answer(b'{"error": "invalid_client"}', JSON, status="401 Unauthorized"),
    ],
)
async def test_a_refresh_that_fails_for_now_keeps_the_link(linking: Linking, response: bytes) -> None:
    linking.later(3600)
    linking.provider.misbehave = lambda path: response if path == "/token" else None
    with pytest.raises(ProviderTrouble):
        await token(linking)
    assert linking.external.outcomes["trouble"] == 1
    assert (await row_of(linking)).refreshing_until is None, "it may be tried again at once"
    linking.provider.misbehave = lambda path: None
    assert await token(linking) is not None


async def test_no_refresh_token_no_refresh(linking: Linking) -> None:
    linking.provider.misbehave = lambda path: (
        answer(b'{"access_token": "t", "expires_in": 60}', JSON) if path == "/token" else None
    )
    linking.provider.good_tokens.add("t")
    await linking.link("alice")
    assert await token(linking) is not None
    linking.later(60)
    assert await token(linking) is None
    assert refreshes(linking) == 0
    assert (await row_of(linking)).failure == "expired: and there is no refresh token"


async def test_a_token_that_was_taken_back(linking: Linking) -> None:
    linking.provider.good_tokens.clear()
    assert await token(linking) is None


@pytest.mark.parametrize(
    ("response", "is_good"),
    [
        (answer(b"", status="403 Forbidden"), False),
        (answer(b"", "X-RateLimit-Remaining: 0", status="403 Forbidden"), True),
        (answer(b"", "X-RateLimit-Remaining: 7", status="403 Forbidden"), False),
        (answer(b"", status="204 Fine"), True),
    ],
)
async def test_what_a_provider_says_of_a_token(linking: Linking, response: bytes, is_good: bool) -> None:
    linking.provider.misbehave = lambda path: response if path == "/user" else None
    assert (await token(linking) is not None) is is_good


async def test_a_provider_that_is_slow(linking: Linking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailnet.services.external_auth.ASK_SECONDS", 0.05)
    linking.provider.hold = trio.Event()
    with trio.fail_after(60):
        with pytest.raises(ProviderTrouble, match="does not answer within"):
            await token(linking)


async def test_other_users_have_none(linking: Linking) -> None:
    assert await linking.external.token(BOB, linking.external.providers[0]) is None


@pytest.mark.stores
async def test_a_user_of_the_control_plane_before_his_first_agent(linking: Linking) -> None:
    external = linking.external
    carol = UserIdentity(make_id("carol"), "carol", active=True)
    begun = external.begin(carol.id, external.providers[0])
    query = linking.provider.sign_in(begun.url)
    await external.finish(carol, external.providers[0], begun.cookie, query["state"], query["code"])
    assert await external.token(carol.id, external.providers[0]) is not None
    assert linking.world.store.callers.find_user("carol") == carol


async def test_keys_that_are_missing_are_said(linking: Linking) -> None:
    blind = ExternalAuth(linking.world.store, Sealer([bytes(32)]), ACCESS_URL, linking.provider.config())
    with pytest.raises(SecretsError, match=f"link of user {ALICE} to git was encrypted with key"):
        await token(linking, blind)


async def test_a_row_that_was_copied_to_another_user(linking: Linking) -> None:
    row = linking.world.store.credentials.link(ALICE, "git")
    assert row is not None
    assert row.sealed is not None
    linking.world.store.credentials.put_link(BOB, "git", row.sealed, None, linking.now)
    with pytest.raises(SecretsError, match="somebody changed the store"):
        await linking.external.token(BOB, linking.external.providers[0])


async def test_who_waits_hears_of_another_server_s_link(linking: Linking, nursery: trio.Nursery) -> None:
    other = linking.another_server()
    nursery.start_soon(other.watch.run)
    linking.provider.good_tokens.clear()  # what is linked is bad, so that waiting begins
    found: list[Linked | None] = []

    async def wait() -> None:
        found.append(await other.wait_token(ALICE, other.providers[0]))

    with trio.fail_after(60):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(wait)
            while not any(path == "/user" for path, _, _ in linking.provider.asked):
                await trio.lowlevel.checkpoint()
            linking.later(1)
            await linking.link("alice")
    assert found[0] is not None
    assert found[0].tokens.access_token in linking.provider.good_tokens


async def test_a_bad_token_is_asked_about_once_while_somebody_waits(linking: Linking, nursery: trio.Nursery) -> None:
    nursery.start_soon(linking.external.watch.run)
    linking.provider.good_tokens.clear()
    with trio.move_on_after(2.5):  # three looks at the store
        await linking.external.wait_token(ALICE, linking.external.providers[0])
    assert sum(path == "/user" for path, _, _ in linking.provider.asked) == 1
