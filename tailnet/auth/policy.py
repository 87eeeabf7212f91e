"""Rights on a workspace, from who asks and whose it is (layer L2).

One function decides; callers ask for the right they need and never compare ids themselves.  What a *connection* may
do with its tunnels is coordinator/policy.py.
"""

from collections.abc import Collection
from typing import Final
from uuid import UUID

from tailnet.store.rows import AgentIdentity, Right, Role, UserIdentity

EVERY_RIGHT: Final = frozenset(Right)
NO_RIGHT: Final[frozenset[Right]] = frozenset()
# What can be done with a workspace without entering it.
FROM_OUTSIDE: Final = frozenset({Right.READ, Right.UPDATE})
# Either gives a terminal: who may log in by SSH gets nothing new by it.
TO_TERMINALS: Final = frozenset({Right.APPLICATION_CONNECT, Right.SSH})
TO_READ: Final = frozenset({Right.READ})


def workspace_rights(user: UserIdentity, agent: AgentIdentity, *, admins_enter: bool = True) -> frozenset[Right]:
    """What a user may do with an agent's workspace: all on his own, else what he was granted and what his role gives.

    An auditor reads every workspace and enters none.  An administrator has every right, as the site owner of the
    reference: whoever administers this server could grant himself any of them.  `admins_enter`: False leaves him
    reading and updating, as the reference's --disable-owner-workspace-access does.
    """
    if user.id == agent.owner_id:
        return EVERY_RIGHT
    granted = user.grants.get(agent.workspace_id, NO_RIGHT)
    if user.role is Role.ADMIN:
        return EVERY_RIGHT if admins_enter else granted | FROM_OUTSIDE
    return granted | TO_READ if user.role is Role.AUDITOR else granted


def reads_every_workspace(user: UserIdentity) -> bool:
    """Whether a user's role alone lets him read the workspaces of everybody."""
    return user.role in (Role.AUDITOR, Role.ADMIN)


def shared_with(user: UserIdentity) -> Collection[UUID]:
    """The workspaces of others that a user was granted to read; not what he reads by his role alone."""
    return frozenset(workspace_id for workspace_id, rights in user.grants.items() if Right.READ in rights)
