"""The order in which it is asked who is calling, and whose "no" is final."""

import time
from pathlib import Path

import pytest
import trio

from tailnet.auth.call_out import CallOut
from tailnet.auth.callers import Changes, ControlPlaneUser, OutsideToken
from tailnet.auth.chain import CallerChain
from tailnet.auth.jwks import SigningKeys
from tailnet.auth.signed import SignedTokens, TokenRules
from tailnet.refusals import Refused
from tailnet.store.rows import Right, Role
from tailnet.store.store import Store
from tests.support.administration import grant
from tests.support.control_plane import SECRET, ControlPlane, agent, http, user
from tests.support.seeds import agent_token, fill, make_id, peer_id, user_token
from tests.support.signed_tokens import AUDIENCE, ISSUER, key_set, sign, standard, unsigned

MAIN, NEW = peer_id("main"), peer_id("new")


@pytest.fixture
async def plane(nursery: trio.Nursery) -> ControlPlane:
    made = ControlPlane()
    await nursery.start(made.serve)
    made.users["carol's"] = user("carol")
    made.agents["new's"] = agent("new", "lab", "carol")
    return made


@pytest.fixture
async def chain(store: Store, plane: ControlPlane, tmp_path: Path, nursery: trio.Nursery) -> CallerChain:
    """All three."""
    fill(store)
    path, changes = tmp_path / "jwks.json", Changes()
    path.write_bytes(key_set())
    signed = SignedTokens(SigningKeys(str(path), changes=changes), TokenRules(ISSUER, AUDIENCE))
    made = CallerChain(store, signed=signed, call_out=CallOut(plane.url, SECRET, changes=changes), changes=changes)
    nursery.start_soon(made.run)
    await signed.keys.look_for("ec")
    return made


def bobs(**more: object) -> str:
    return sign(standard(time.time(), kind="user", sub=str(make_id("bob")), username="bob", **more))


async def status(chain: CallerChain, token: str) -> int:
    try:
        await chain.user(token)
    except Refused as refused:
        return refused.status
    return 200


async def test_whom_the_store_knows_nobody_else_hears_of(chain: CallerChain, plane: ControlPlane) -> None:
    assert (await chain.user(user_token("alice"))).username == "alice"
    assert (await chain.agent(agent_token("main"))).id == MAIN
    # Nor of those whom it refuses.
    assert await status(chain, user_token("alice")[:-1] + "z") == 401
    assert plane.questions == []


async def test_what_looks_signed_is_shown_to_nobody(chain: CallerChain, plane: ControlPlane) -> None:
    assert (await chain.user(bobs())).username == "bob"
    header = {"alg": "none", "kid": "ec"}
    assert await status(chain, unsigned(header, standard(time.time()))) == 401
    assert await status(chain, "eyJ.eyJ.") == 401
    assert plane.questions == []


async def test_the_rest_is_asked_of_the_control_plane(chain: CallerChain, plane: ControlPlane) -> None:
    assert isinstance(await chain.user("carol's"), ControlPlaneUser)
    assert (await chain.agent("new's")).id == NEW
    assert await status(chain, "nobody's") == 401
    assert [question["question"] for question in plane.questions] == ["user", "agent", "user"]


async def test_a_refusal_is_the_one_that_sdks_know(chain: CallerChain) -> None:
    texts = {"x": "Workspace agent token invalid.", str(make_id("x")): "Workspace agent not authorized."}
    for token, message in texts.items():
        with pytest.raises(Refused) as caught:
            await chain.agent(token)
        assert (caught.value.status, caught.value.message) == (401, message)


async def test_a_control_plane_that_is_down_is_in_nobody_elses_way(chain: CallerChain, plane: ControlPlane) -> None:
    plane.respond = lambda question: http("503 Service Unavailable", b"")
    assert await status(chain, user_token("alice")) == 200
    assert await status(chain, bobs()) == 200
    assert await status(chain, "carol's") == 503


async def test_a_store_that_is_away_is_in_nobody_elses_way(chain: CallerChain, store: Store) -> None:
    await chain.agent("new's")
    assert await status(chain, user_token("alice")) == 200  # what was read ahead of questions is in memory by now
    with store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE counters RENAME TO lost")
    chain.store._recent.clear()
    chain.store._checked_at = -1e9
    assert await status(chain, user_token("alice")) == 503
    assert await status(chain, "nobody's") == 503  # the store might know him
    assert await status(chain, "carol's") == 200
    assert await status(chain, bobs()) == 200
    assert (await chain.agent("new's")).id == NEW  # its rows are there
    with store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE lost RENAME TO counters")


async def test_rights_across(chain: CallerChain, plane: ControlPlane, store: Store) -> None:
    await chain.agent("new's")
    alice, carol = await chain.user(user_token("alice")), await chain.user("carol's")

    async def rights(who: object, agent_id: object) -> set[Right]:
        reach = await chain.reach(who, agent_id)  # type: ignore[arg-type]  # as they come
        return set() if reach is None else set(reach.rights)

    assert await rights(carol, NEW) == set(Right)
    assert await rights(carol, MAIN) == set()  # the control plane has never heard of it
    assert await rights(alice, MAIN) == set(Right)
    assert await rights(alice, NEW) == set()
    # The control plane's word counts for its users, also where the store has rows of the agent.
    plane.users["dora's"], plane.rights["dora", "new"] = user("dora"), ["update"]
    assert await rights(await chain.user("dora's"), NEW) == {Right.READ, Right.UPDATE}
    # What the store says of an agent of others, for users of its own and for signed ones.
    grant(store, "lab", "alice", Right.SSH)
    signed = await chain.user(bobs(rights={str(make_id("lab")): ["read"]}))
    assert await rights(signed, NEW) == {Right.READ}
    assert await rights(await chain.user(bobs(role=Role.ADMIN.value)), NEW) == set(Right)
    # An agent that has never come in is nobody to users of the store, whatever the control plane would say: what it
    # says of them is no more than what the store says when the agent is there.
    plane.agents["other's"] = agent("other", "lab2", "carol")
    plane.rights["alice", "other"] = ["ssh"]
    assert await rights(alice, peer_id("other")) == set()


async def test_tokens_are_kept_only_of_those_whom_others_vouch_for(chain: CallerChain) -> None:
    await chain.user(user_token("alice"))
    assert not isinstance(chain.credential(user_token("alice"), is_agent=False), OutsideToken)
    await chain.user("carol's")
    for token in ("carol's", bobs()):
        assert isinstance(chain.credential(token, is_agent=False), OutsideToken)


async def test_all_at_once(chain: CallerChain, plane: ControlPlane) -> None:
    tokens = (user_token("alice"), "carol's", bobs())
    for token in tokens:
        await chain.user(token)
    await chain.agent("new's")
    held = [chain.credential(token, is_agent=False) for token in tokens]
    asked = dict.fromkeys(held, (MAIN, NEW)) | {chain.credential("new's", is_agent=True): ()}
    standing = await chain.standing(asked)
    assert [standing.callers[each].id for each in asked] == [make_id("alice"), make_id("carol"), make_id("bob"), NEW]
    assert [Right.SSH in standing.rights(each, MAIN) for each in held] == [True, False, False]
    assert [Right.SSH in standing.rights(each, NEW) for each in held] == [False, True, False]
    assert set(standing.until) == set(list(asked)[1:])  # alice's token has no end
    assert await chain.standing({}) is not None


async def test_rows_that_somebody_deleted_are_made_again(chain: CallerChain, store: Store) -> None:
    await chain.agent("new's")
    seen = chain.changes.count
    await store.run(store.callers.delete_agent, NEW)
    with trio.fail_after(60):
        while chain.changes.count == seen or not store.callers.agent_identities([NEW]):
            await chain.agent("new's")
            await chain.user(user_token("alice"))  # so that the store is looked at
            await trio.sleep(0.05)
