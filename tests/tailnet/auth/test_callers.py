"""What all who answer share: changes wake whoever waits, and a stream ends when nobody vouches for it any more."""

from collections.abc import Collection, Mapping

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tailnet import refusals
from tailnet.auth.callers import (
    Callers,
    Changes,
    Credential,
    Lost,
    OutsideToken,
    Reach,
    Standing,
    find_lost,
    user_of_agent_route,
)
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.types import PeerID
from tests.support.seeds import make_id, peer_id

MAIN = peer_id("main")
AGENT = AgentIdentity(MAIN, "main", None, make_id("dev"), "dev", make_id("alice"), "alice")
ALICE = UserIdentity(make_id("alice"), "alice", True)
READS = Reach(AGENT, frozenset({Right.READ}))


class Scripted:
    """Answers what it is told to."""

    no_wait = False

    def __init__(self) -> None:
        self.changes = Changes()
        self.rights: Reach | None = READS
        self.known = True
        self.silent = False
        self.refuses = False

    async def run(self) -> None: ...

    async def agent(self, token: str) -> AgentIdentity:
        raise refusals.agent_unknown()

    async def user(self, token: str) -> UserIdentity:
        raise refusals.store_unreachable() if self.silent else refusals.user_token_unknown()

    async def reach(self, user: UserIdentity, agent_id: PeerID) -> Reach | None:
        return self.rights

    def credential(self, token: str, *, is_agent: bool) -> Credential:
        if not token:
            raise refusals.user_token_missing()
        return OutsideToken(b"digest", is_agent, token)

    async def standing(self, asked: Mapping[Credential, Collection[PeerID]]) -> Standing:
        if self.refuses:
            raise refusals.store_unreachable()
        [credential] = asked
        reached = {MAIN: self.rights} if self.rights is not None else {}
        return Standing(
            {credential: ALICE} if self.known else {},
            {credential: reached} if self.known else {},
            {credential} if self.silent else (),
        )


async def test_changes_wake_all_who_wait() -> None:
    changes, seen = Changes(), []

    async def wait(known: int) -> None:
        seen.append(await changes.wait(known))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 0)
        nursery.start_soon(wait, 0)
        await wait_all_tasks_blocked()
        assert (changes.watchers, seen) == (2, [])
        changes.note()
    assert (changes.watchers, seen) == (0, [1, 1])
    assert await changes.wait(0) == 1  # what was missed is told at once


def test_the_contract_is_what_streams_need() -> None:
    callers: Callers = Scripted()
    assert callers.changes.count == 0


async def test_one_answer_for_every_unusable_key() -> None:
    callers = Scripted()
    with pytest.raises(Refused) as caught:
        await user_of_agent_route(callers, "x")
    assert str(caught.value) == str(refusals.key_or_proxy_missing())
    callers.silent = True
    with pytest.raises(Refused) as caught:
        await user_of_agent_route(callers, "x")
    assert caught.value.status == 503


async def test_who_has_no_task_is_told() -> None:
    changes, told = Changes(), []
    with changes.telling(lambda: told.append(changes.count)):
        assert changes.watchers == 1
        changes.note()
        changes.note()
    changes.note()
    assert (changes.watchers, told) == (0, [1, 2])


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({}, None),
        ({"known": False}, Lost.CREDENTIAL),
        ({"rights": None}, Lost.AGENT),
        ({"rights": Reach(AGENT, frozenset({Right.SSH}))}, Lost.RIGHT),
        # Nobody can say.
        ({"silent": True, "known": False}, None),
        ({"refuses": True}, None),
    ],
)
async def test_what_somebody_lost(change: dict[str, object], lost: Lost | None) -> None:
    callers = Scripted()
    for name, value in change.items():
        setattr(callers, name, value)
    credential = callers.credential("token", is_agent=False)
    assert await find_lost(callers, credential, MAIN) is lost
    assert await find_lost(callers, credential) is (lost if lost is Lost.CREDENTIAL else None)
