"""The SSH keys of an agent's owner (layer L3): GET /api/v2/workspaceagents/me/gitsshkey.

Next hop: services/git_keys.py.
"""

from fastapi import APIRouter

from tailnet.api.answers import Body
from tailnet.api.guards import AgentOfActiveOwner, ServicesOf

router = APIRouter(prefix="/api/v2/workspaceagents/me", tags=["agents"])


class GitSSHKey(Body):
    """A pair of keys in OpenSSH's forms."""

    public_key: str
    private_key: str


@router.get("/gitsshkey")
async def git_ssh_key(services: ServicesOf, caller: AgentOfActiveOwner) -> GitSSHKey:
    """Get workspace agent Git SSH key: that of its owner, made when it is asked for first."""
    key = await services.git_keys.read(caller.owner_id)
    return GitSSHKey(public_key=key.public_key, private_key=key.private_key)
