"""Who is calling (layer L3): GET /api/v2/users/me, and the caller by his own name or id.

Others are nobody's business: they are answered like users that do not exist.  What a control plane knows and we do not
(email, organizations) has its empty value.  Next hop: services/agents.py.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal
from uuid import UUID

from fastapi import APIRouter

from tailnet import refusals
from tailnet.api.answers import Body, GoTime
from tailnet.api.guards import ServicesOf, User
from tailnet.store.rows import Role as UserRole
from tailnet.store.rows import UserIdentity, UserTimes

router = APIRouter(prefix="/api/v2", tags=["users"])


class Role(Body):
    """What a user may do beside what everybody may."""

    name: str
    display_name: str


class UserBody(Body):
    """A user."""

    id: UUID
    username: str
    avatar_url: str = ""
    name: str = ""
    email: str = ""
    created_at: GoTime
    updated_at: GoTime
    status: Literal["active", "suspended"]
    login_type: str = "token"
    organization_ids: Sequence[UUID] = ()
    roles: Sequence[Role]
    theme_preference: str = ""


# Of users whom others vouch for, and who have no row here.
_NO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
_UNKNOWN: Final = UserTimes(created_at=_NO_TIME, updated_at=_NO_TIME)
# In the names of the reference, whose site owner is an administrator; everybody is a member, which it does not say.
_ROLES: Final[Mapping[UserRole, Sequence[Role]]] = {
    UserRole.USER: (),
    UserRole.AUDITOR: (Role(name="auditor", display_name="Auditor"),),
    UserRole.ADMIN: (Role(name="owner", display_name="Owner"),),
}


@router.get("/users/{user}")
async def user_by_name(services: ServicesOf, caller: User, user: str) -> UserBody:
    """The caller, as `me`, by name or by id."""
    if not is_caller(caller, user):
        raise refusals.resource_not_found()
    times = await services.agents.user_times(caller.id) or _UNKNOWN
    return UserBody(
        id=caller.id,
        username=caller.username,
        created_at=times.created_at,
        updated_at=times.updated_at,
        status="active" if caller.active else "suspended",
        roles=_ROLES[caller.role],
    )


def is_caller(caller: UserIdentity, text: str) -> bool:
    """Whether a path or a query means the caller."""
    return text == "me" or text.lower() in (caller.username.lower(), str(caller.id))
