"""Rights on a workspace, derived from who asks and who owns it (layer L2).

One function decides; callers ask for the right they need and never compare ids themselves.  What a *connection* may
do with its tunnels is coordinator/policy.py.
"""

from enum import Enum
from typing import Final
from uuid import UUID


class Right(Enum):
    READ = "read"  # see the agent, its map and its logs
    SSH = "ssh"  # open a tunnel to it


EVERY_RIGHT: Final = frozenset(Right)
NO_RIGHT: Final[frozenset[Right]] = frozenset()


def workspace_rights(user_id: UUID, owner_id: UUID) -> frozenset[Right]:
    """An owner has every right, anybody else none: also administrators, who watch the server and not the workspaces."""
    return EVERY_RIGHT if user_id == owner_id else NO_RIGHT
