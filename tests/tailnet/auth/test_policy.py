"""An owner has every right, everybody else none."""

from uuid import uuid4

from tailnet.auth.policy import Right, workspace_rights


def test_rights() -> None:
    owner = uuid4()
    assert workspace_rights(owner, owner) == {Right.READ, Right.SSH}
    assert workspace_rights(uuid4(), owner) == frozenset()
