"""Rights follow from ownership, grants and roles, each for itself and together."""

from uuid import UUID

import pytest

from tailnet.auth.policy import EVERY_RIGHT, workspace_rights
from tailnet.store.rows import AgentIdentity, Grants, Right, Role, UserIdentity
from tests.support.seeds import make_id, peer_id

AGENT = AgentIdentity(peer_id("main"), "main", None, make_id("dev"), "dev", make_id("alice"), "alice")
READ, SSH, APPS, UPDATE = Right.READ, Right.SSH, Right.APPLICATION_CONNECT, Right.UPDATE


def user(name: str, role: Role = Role.USER, grants: dict[str, set[Right]] | None = None) -> UserIdentity:
    given: Grants = {make_id(workspace): frozenset(rights) for workspace, rights in (grants or {}).items()}
    return UserIdentity(make_id(name), name, True, role, given)


@pytest.mark.parametrize(
    ("asks", "rights", "where_admins_stay_out"),
    [
        (user("alice"), set(EVERY_RIGHT), set(EVERY_RIGHT)),
        (user("bob"), set(), set()),
        (user("bob", grants={"dev": {READ, SSH}}), {READ, SSH}, {READ, SSH}),
        (user("bob", grants={"shop": {READ, SSH}}), set(), set()),
        (user("bob", Role.AUDITOR), {READ}, {READ}),
        (user("bob", Role.AUDITOR, {"dev": {READ, UPDATE}}), {READ, UPDATE}, {READ, UPDATE}),
        (user("bob", Role.ADMIN), set(EVERY_RIGHT), {READ, UPDATE}),
        (user("bob", Role.ADMIN, {"dev": {READ, SSH}}), set(EVERY_RIGHT), {READ, SSH, UPDATE}),
        (user("alice", Role.ADMIN), set(EVERY_RIGHT), set(EVERY_RIGHT)),
        (user("alice", Role.AUDITOR), set(EVERY_RIGHT), set(EVERY_RIGHT)),
    ],
)
def test_rights(asks: UserIdentity, rights: set[Right], where_admins_stay_out: set[Right]) -> None:
    assert workspace_rights(asks, AGENT) == rights
    assert workspace_rights(asks, AGENT, admins_enter=False) == where_admins_stay_out


def test_a_name_is_not_an_id() -> None:
    impostor = UserIdentity(UUID(int=7), "alice", True)
    assert not workspace_rights(impostor, AGENT)
