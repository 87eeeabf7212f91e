"""Identities in JSON, as the control plane's answers and signed tokens have them (layer L2).

Both say the same of an agent and of a user, in the same words; docs/auth.md has them.  Whatever is wrong is a
`Nonsense` that names the field and never repeats a token.  Next hop: call_out_wire.py and signed.py.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

from tailnet.store.rows import NO_GRANTS, AgentIdentity, Grants, Right, Role, UserIdentity, as_granted
from tailnet.types import PeerID

T = TypeVar("T")

MAX_NAME_CHARS: Final = 256
# A token has room for few of them, and who needs more asks by the control plane's URL, which answers about one.
MAX_GRANTS: Final = 256


class Nonsense(Exception):
    """What was said makes no sense; the text names the field."""


def read_agent(given: object, place: str = "agent") -> AgentIdentity:
    """{id, name, workspace_id, workspace_name, owner_id, owner_name, parent_id?}.  Raises Nonsense."""
    said = read_object(given, place)
    parent = said.get("parent_id")
    return AgentIdentity(
        PeerID(read_uuid(said, "id", place).bytes),
        read_name(said, "name", place),
        None if parent is None else PeerID(read_uuid(said, "parent_id", place).bytes),
        read_uuid(said, "workspace_id", place),
        read_name(said, "workspace_name", place),
        read_uuid(said, "owner_id", place),
        read_name(said, "owner_name", place),
    )


def read_user(given: object, place: str = "user") -> UserIdentity:
    """{id, username, role?, active?}.  Raises Nonsense."""
    said = read_object(given, place)
    active = said.get("active", True)
    if not isinstance(active, bool):
        raise Nonsense(f"{place}.active is neither true nor false")
    return UserIdentity(
        read_uuid(said, "id", place), read_name(said, "username", place), active, read_role(said, place)
    )


def read_role(said: Mapping[str, Any], place: str) -> Role:
    """A role, that of everybody if nothing is said.  Raises Nonsense."""
    try:
        return Role(said.get("role", Role.USER.value))
    except ValueError:
        raise Nonsense(f"{place}.role is none of {', '.join(role.value for role in Role)}") from None


def read_rights(given: object, place: str) -> frozenset[Right]:
    """A list of rights' names.  One that is not known here is a mistake, not a right less: raises Nonsense."""
    if not isinstance(given, list) or len(given) > len(Right):
        raise Nonsense(f"{place} is no list of at most {len(Right)} rights")
    try:
        return as_granted(Right(word) for word in given)
    except ValueError:
        raise Nonsense(f"{place} names a right that is none of {', '.join(right.value for right in Right)}") from None


def read_grants(given: object, place: str) -> Grants:
    """{workspace id: [right, ...]}.  Raises Nonsense."""
    if given is None:
        return NO_GRANTS
    said = read_object(given, place)
    if len(said) > MAX_GRANTS:
        raise Nonsense(f"{place} has more than {MAX_GRANTS} workspaces")
    try:
        return {UUID(workspace): read_rights(rights, place) for workspace, rights in said.items()}
    except ValueError:
        raise Nonsense(f"{place} has a key that is no workspace's UUID") from None


def read_object(given: object, place: str) -> Mapping[str, Any]:
    """An object.  Raises Nonsense."""
    if not isinstance(given, dict):
        raise Nonsense(f"{place} is no object")
    return given


def read_uuid(said: Mapping[str, Any], key: str, place: str) -> UUID:
    """A UUID, not the nil one, which peers refuse.  Raises Nonsense."""
    value = said.get(key)
    try:
        found = UUID(value) if isinstance(value, str) and len(value) <= 36 else UUID(int=0)
    except ValueError:
        found = UUID(int=0)
    if not found.int:
        raise Nonsense(f"{place}.{key} is no UUID")
    return found


def read_name(said: Mapping[str, Any], key: str, place: str) -> str:
    """A name that can be shown.  Raises Nonsense."""
    value = said.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise Nonsense(f"{place}.{key} is no text of 1 to {MAX_NAME_CHARS} printable characters")
    return value
