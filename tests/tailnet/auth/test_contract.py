"""One suite over all who say who is calling: the store, the control plane's URL, signed tokens."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
import trio
import trio.lowlevel

from tailnet.api.streams import NORMAL, POLICY_VIOLATION, WITHDRAWN, End, Permit, reader_permit, user_permit
from tailnet.auth.call_out import CallOut
from tailnet.auth.callers import Changes, at_once
from tailnet.auth.chain import CallerChain
from tailnet.auth.jwks import SigningKeys
from tailnet.auth.policy import EVERY_RIGHT
from tailnet.auth.signed import SignedTokens, TokenRules
from tailnet.refusals import Refused
from tailnet.store.rows import Right, Role
from tailnet.store.store import Store
from tailnet.tokens import parse_user_token
from tests.support.administration import grant
from tests.support.control_plane import SECRET, ControlPlane, agent, user
from tests.support.seeds import NOW, agent_token, fill, make_id, peer_id, user_token
from tests.support.signed_tokens import AUDIENCE, ISSUER, key_set, public, sign, standard

MAIN, WEB = peer_id("main"), peer_id("web")
# A second, as long as an answer of the control plane holds here, and what two loaded cores add.
SOON_SECONDS = 10.0


class Side(Protocol):
    """One of those who answer, with alice (main, gpu), bob (web), and root, an administrator."""

    chain: CallerChain

    def token(self, name: str) -> str:
        """Of a user or an agent."""

    async def grant(self, name: str, *rights: Right) -> None:
        """Rights of a user on alice's workspace from here on."""

    async def withdraw(self, name: str) -> None:
        """His token is good for nothing from here on."""


@dataclass
class StoreSide:
    store: Store
    chain: CallerChain

    def token(self, name: str) -> str:
        return user_token(name) if name in ("alice", "bob", "root") else agent_token(name)

    async def grant(self, name: str, *rights: Right) -> None:
        await trio.to_thread.run_sync(grant, self.store, "dev", name, *rights)

    async def withdraw(self, name: str) -> None:
        if name in ("alice", "bob", "root"):
            await self.store.run(self.store.callers.delete_user_token, parse_user_token(user_token(name)).id)
        else:
            await self.store.run(self.store.callers.delete_agent, peer_id(name))


@dataclass
class CallOutSide:
    plane: ControlPlane
    chain: CallerChain

    def token(self, name: str) -> str:
        return f"secret-of-{name}"

    async def grant(self, name: str, *rights: Right) -> None:
        for each in ("main", "gpu"):
            self.plane.rights[name, each] = [right.value for right in rights]

    async def withdraw(self, name: str) -> None:
        self.plane.users.pop(self.token(name), None)
        self.plane.agents.pop(self.token(name), None)


@dataclass
class SignedSide:
    chain: CallerChain
    path: Path
    rights: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def token(self, name: str) -> str:
        if name in ("alice", "bob", "root"):
            role = "admin" if name == "root" else "user"
            said = {"kind": "user", "username": name, "role": role, "rights": self.rights.get(name, {})}
        else:
            workspace, owner = ("dev", "alice") if name in ("main", "gpu") else ("shop", "bob")
            said = {"kind": "agent", **{k: v for k, v in agent(name, workspace, owner).items() if k != "id"}}
        return sign(standard(time.time(), sub=str(make_id(name)), **said), "ec")

    async def grant(self, name: str, *rights: Right) -> None:
        self.rights[name] = {str(make_id("dev")): [right.value for right in rights]}

    async def withdraw(self, name: str) -> None:
        # The key that signed it leaves the set.
        self.path.with_suffix(".new").write_bytes(key_set(public("ed")))
        self.path.with_suffix(".new").rename(self.path)


@pytest.fixture(params=["store", "call-out", "signed"])
async def side(request: pytest.FixtureRequest, store: Store, tmp_path: Path, nursery: trio.Nursery) -> Side:
    changes = Changes()
    if request.param == "store":
        fill(store)
        document = {"users": [{"id": str(make_id("root")), "username": "root", "token": user_token("root")}]}
        fill(store, document)
        store.callers.update_user(make_id("root"), NOW, role=Role.ADMIN)
        chain = CallerChain(store, changes=changes)
        made: Side = StoreSide(store, chain)
    elif request.param == "call-out":
        plane = ControlPlane()
        await nursery.start(plane.serve)
        plane.more = {"max_age": 1}
        for name in ("alice", "bob", "root"):
            plane.users[f"secret-of-{name}"] = user(name, role="admin" if name == "root" else "user")
        for name in ("main", "gpu"):
            plane.agents[f"secret-of-{name}"] = agent(name)
            plane.rights["root", name] = [right.value for right in Right]
        plane.agents["secret-of-web"] = agent("web", "shop", "bob")
        chain = CallerChain(store, call_out=CallOut(plane.url, SECRET, changes=changes), changes=changes)
        made = CallOutSide(plane, chain)
    else:
        path = tmp_path / "jwks.json"
        path.write_bytes(key_set())
        signed = SignedTokens(SigningKeys(str(path), changes=changes), TokenRules(ISSUER, AUDIENCE))
        chain = CallerChain(store, signed=signed, changes=changes)
        made = SignedSide(chain, path)
    nursery.start_soon(chain.run)
    # Agents are known to users once they have come in.
    for name in ("main", "gpu", "web"):
        await chain.agent(made.token(name))
    return made


async def refusal(ask: Callable[[str], object], token: str) -> Refused:
    with pytest.raises(Refused) as caught:
        await ask(token)  # type: ignore[misc]  # any awaitable
    return caught.value


async def rights_of(side: Side, name: str) -> frozenset[Right] | None:
    reach = await side.chain.reach(await side.chain.user(side.token(name)), MAIN)
    return None if reach is None else reach.rights


async def test_who_it_is(side: Side) -> None:
    found = await side.chain.agent(side.token("main"))
    assert (found.id, found.name, found.workspace_id, found.workspace_name) == (MAIN, "main", make_id("dev"), "dev")
    assert (found.owner_id, found.owner_name, found.parent_id) == (make_id("alice"), "alice", None)
    bob = await side.chain.user(side.token("bob"))
    assert (bob.id, bob.username, bob.active, bob.role) == (make_id("bob"), "bob", True, Role.USER)
    assert (await side.chain.user(side.token("root"))).admin


@pytest.mark.parametrize("token", ["", "hunter2", str(make_id("x")), "0123456789-0123456789012345678901", "e" * 20_000])
async def test_strangers(side: Side, token: str) -> None:
    assert (await refusal(side.chain.agent, token)).status == 401
    assert (await refusal(side.chain.user, token)).status == 401


async def test_tokens_of_one_kind_are_none_of_the_other(side: Side) -> None:
    assert (await refusal(side.chain.agent, side.token("alice"))).status == 401
    assert (await refusal(side.chain.user, side.token("main"))).status == 401


async def test_rights(side: Side) -> None:
    assert await rights_of(side, "alice") == EVERY_RIGHT
    assert await rights_of(side, "root") == EVERY_RIGHT
    assert not await rights_of(side, "bob")
    alice = await side.chain.user(side.token("alice"))
    assert await side.chain.reach(alice, peer_id("nobody")) is None


async def test_a_grant_comes_and_goes_within_a_second(side: Side) -> None:
    await rights_of(side, "bob")
    for rights in ({Right.READ, Right.SSH}, {Right.READ}, set()):
        await side.grant("bob", *rights)
        with trio.fail_after(SOON_SECONDS):
            while (await rights_of(side, "bob") or set()) != rights:  # noqa: ASYNC110  # nothing tells
                await trio.sleep(0.05)


async def test_outside_of_tasks(side: Side) -> None:
    with pytest.raises(trio.WouldBlock):
        at_once(side.chain, side.chain.user(_unknown_to(side)))
    alice = await side.chain.user(side.token("alice"))
    await side.chain.reach(alice, MAIN)
    token = side.token("alice")
    await side.chain.user(token)
    assert at_once(side.chain, side.chain.user(token)) == alice
    assert side.chain.reach_now(alice, MAIN) == EVERY_RIGHT
    assert not side.chain.no_wait


def _unknown_to(side: Side) -> str:
    if isinstance(side, SignedSide):
        return sign(standard(time.time()), "a key that nobody has seen")
    return "9999999999-0123456789012345678901"


async def test_who_is_inside_stays_until_it_is_withdrawn(side: Side) -> None:
    tokens = {name: side.token(name) for name in ("alice", "main", "bob")}
    for name, token in tokens.items():
        await (side.chain.agent if name == "main" else side.chain.user)(token)
    held = {name: side.chain.credential(token, is_agent=name == "main") for name, token in tokens.items()}
    asked = {held["alice"]: (MAIN, peer_id("nobody")), held["main"]: (), held["bob"]: (MAIN, WEB)}
    standing = await side.chain.standing(asked)
    assert {each.id for each in standing.callers.values()} == {make_id("alice"), MAIN, make_id("bob")}
    assert standing.rights(held["alice"], MAIN) == EVERY_RIGHT
    assert not standing.rights(held["alice"], peer_id("nobody"))
    assert not standing.rights(held["bob"], MAIN)
    assert standing.rights(held["bob"], WEB) == EVERY_RIGHT
    assert not standing.unanswered
    await side.withdraw("alice")
    with trio.fail_after(SOON_SECONDS):
        while held["alice"] in (await side.chain.standing(asked)).callers:  # noqa: ASYNC110  # nothing tells
            await trio.sleep(0.05)
    assert (await refusal(side.chain.user, tokens["alice"])).status == 401


async def test_streams_end_with_the_token(side: Side) -> None:
    token = side.token("alice")
    await side.chain.user(token)
    permits = [user_permit(side.chain, token), reader_permit(side.chain, token, MAIN)]
    assert [await permit.ask() for permit in permits] == [None, None]
    gone = await reader_permit(side.chain, token, peer_id("nobody")).ask()
    assert gone == (NORMAL, "the agent is gone")
    ended: list[End] = []

    async def follow(permit: Permit) -> None:
        ended.append(await permit.wait_ended())

    with trio.fail_after(SOON_SECONDS):
        async with trio.open_nursery() as nursery:
            for permit in permits:
                nursery.start_soon(follow, permit)
            await trio.lowlevel.checkpoint()
            await side.withdraw("alice")
    assert ended == [(POLICY_VIOLATION, WITHDRAWN)] * 2


async def test_nothing_shows_a_token(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    token = side.token("alice")
    await side.chain.user(token)
    credential = side.chain.credential(token, is_agent=False)
    standing = await side.chain.standing({credential: (MAIN,)})
    in_memory = [side.chain.store._recent._found, side.chain._written._found]
    if side.chain.call_out is not None:
        in_memory += [side.chain.call_out._recent._found, side.chain.call_out._strangers._found]
    if side.chain.signed is not None:
        in_memory += [side.chain.signed._recent._found]
    shown = repr((credential, standing, in_memory)) + caplog.text
    assert token not in shown
    assert token[-16:] not in shown


async def test_an_agent_of_others_has_a_row(side: Side, store: Store) -> None:
    """Its reports belong to it, whoever vouched for it."""
    row = await store.run(store.callers.get_agent, MAIN)
    assert row is not None
    assert (row.name, row.workspace_id) == ("main", make_id("dev"))
    [workspace] = await store.run(store.callers.list_workspaces, make_id("alice"))
    assert [each.name for each in workspace.agents] == ["gpu", "main"]


async def test_who_was_found_is_known_however_old_that_is_and_who_makes_a_token_up_is_not(side: Side) -> None:
    chain, main, alice = side.chain, side.token("main"), side.token("alice")
    await chain.agent(main)
    await chain.user(alice)
    for _ in range(2):
        assert chain.knows_token(main, is_agent=True)
        assert chain.knows_token(alice, is_agent=False)
        chain.store._checked_at = -float("inf")  # nobody asked for long
    made_up = ("", "x" * 70_000, str(make_id("made up")), "x" * 33, f"{user_token('alice')[:10]}-{'x' * 22}")
    for token in (*made_up, alice[:-2] + "xx"):
        for is_agent in (True, False):
            assert not chain.knows_token(token, is_agent=is_agent), token


async def test_a_signature_is_not_looked_at_where_nobody_may_wait(store: Store, tmp_path: Path) -> None:
    """Strangers make tokens up; each would take 0.1 ms of everybody."""
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set())
    signed = SignedTokens(SigningKeys(str(path)), TokenRules(ISSUER, AUDIENCE))
    chain = CallerChain(store, signed=signed)
    side = SignedSide(chain, path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.run)
        await chain.agent(side.token("gpu"))  # the keys are here
        good = side.token("main")
        for token in (good, good[:-8] + "AAAAAAAA"):
            with pytest.raises(trio.WouldBlock):
                at_once(chain, chain.agent(token))
        assert signed.refused_count == 0
        assert await chain.agent(good) == at_once(chain, chain.agent(good))
        nursery.cancel_scope.cancel()
