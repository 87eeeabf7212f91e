"""What can be asked for, as operations: functions of one transaction (layer L3).  service.py carries them out."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.idempotency import Answer
from tailnet.services.administration.models import Given, KeyShown
from tailnet.services.administration.resources import RESOURCES, Resource, Secret, new_token
from tailnet.store.administration.changes import Changes
from tailnet.store.administration.kinds import AGENT, TOKEN, USER
from tailnet.store.administration.values import ANY, Match, Result, Wanted, etag_of
from tailnet.store.issued import keep_for_grace, revoke_issued
from tailnet.store.keys import add_key, drop_key, find_keys, signer
from tailnet.store.rows import Scope, SigningKey

Operation = Callable[[Changes], Answer]

# Purposes whose keys replace each other.  Others have one key for ever, such as the relay's, by which clients know it.
ROTATED: Final = ("resume token",)
NO_GRACE: Final = timedelta()
NEW: Final = Match(must_be_new=True)
_OK, _CREATED, _NO_CONTENT = 200, 201, 204


def put(resource: Resource, ident: Any, body: Given, match: Match = ANY) -> Operation:
    """Have a thing be as `body` says, whether it was there or not."""
    wanted, made = resource.wanted(ident, body, match=match)
    return lambda changes: _put(changes, resource, wanted, made)


def create(resource: Resource, body: Given) -> Operation:
    """Make a new thing, with an id that we choose."""
    return put(resource, resource.new_id(body), body, NEW)


def patch(resource: Resource, ident: Any, body: Given, match: Match = ANY) -> Operation:
    """Change a part of a thing."""
    wanted, _ = resource.wanted(ident, body, partial=True, match=match)
    return lambda changes: _put(changes, resource, replace(wanted, if_new={}), None)


def delete(resource: Resource, ident: Any, match: Match = ANY, action: str = "delete") -> Operation:
    """Delete a thing with all that belongs to it."""

    def operation(changes: Changes) -> Answer:
        changes.delete(resource.kind, ident, match, action)
        return Answer(_NO_CONTENT)

    return operation


def revoke_tokens(user_id: Any) -> Operation:
    """Delete every session token of a user: he is signed out everywhere."""

    def operation(changes: Changes) -> Answer:
        changes.existing(USER, user_id)
        table = TOKEN.table
        ids = changes.connection.execute(table.select().where(table.c.user_id == user_id)).scalars().all()
        for ident in ids:
            changes.delete(TOKEN, ident, action="revoke")
        return Answer(_OK, {"revoked": len(ids)})

    return operation


def revoke_issued_tokens(agent_id: Any) -> Operation:
    """End what was issued beside an agent's own token, which stays."""

    def operation(changes: Changes) -> Answer:
        changes.existing(AGENT, agent_id)
        count = revoke_issued(changes.connection, [agent_id])
        changes.account.note("revoke", "agent", agent_id, None, {"issued_tokens": count})
        return Answer(_OK, {"revoked": count})

    return operation


def rotate_token(token_id: str, grace: timedelta = NO_GRACE, match: Match = ANY) -> Operation:
    """Make a new session token like this one; the old one ends now, or after the time of grace."""
    resource = RESOURCES["token"]
    new_id = resource.new_id()
    made = new_token(TOKEN, new_id)

    def operation(changes: Changes) -> Answer:
        old = changes.existing(TOKEN, token_id, match)
        expires_at = old["expires_at"]
        values = {
            "user_id": old["user_id"],
            "purpose": old["purpose"],
            "seeded": False,
            # It lives as long as the old one was meant to.
            "expires_at": None if expires_at is None else changes.now + (expires_at - old["created_at"]),
            "secret_digest": made.digest,
        }
        changes.put_one(TOKEN, Wanted(new_id, values))
        changes.account.note("rotate", "token", token_id, None, {"new": new_id, "grace_seconds": grace.total_seconds()})
        if grace:
            _end_at(changes, token_id, changes.now + grace, expires_at)
        else:
            changes.delete(TOKEN, token_id, action="revoke")
        return _answer(changes, resource, new_id, _CREATED, made)

    return operation


def rotate_agent(agent_id: Any, grace: timedelta = NO_GRACE, match: Match = ANY) -> Operation:
    """Give an agent a new token; the old one is good no more, or for the time of grace.

    What was issued beside the old one ends with it: who had the one may have had the other.
    """
    made = new_token(AGENT, agent_id)
    wanted = Wanted(agent_id, {"token_digest": made.digest}, must_exist=True, match=match)

    def operation(changes: Changes) -> Answer:
        old = changes.row(AGENT, agent_id)
        changes.put_one(AGENT, wanted)
        if grace and old is not None:
            keep_for_grace(changes.connection, agent_id, old["token_digest"], changes.now, changes.now + grace)
        changes.account.note("rotate", "agent", agent_id, None, {"grace_seconds": grace.total_seconds()})
        return _answer(changes, RESOURCES["agent"], agent_id, _OK, made)

    return operation


def rotate_key(purpose: str) -> Operation:
    """Make a new key of a purpose, which signs when every server has had time to read it; those of before go on
    verifying until they are spent."""

    def operation(changes: Changes) -> Answer:
        _insist_on_rotated(purpose)
        fresh = add_key(changes.connection, purpose, changes.now, secrets.token_bytes)
        changes.account.note("rotate", "key", fresh.id, None, {"purpose": purpose})
        changes.touch(Scope())  # nobody, but keys are read again
        shown = keys_shown(purpose, find_keys(changes.connection)[purpose], changes.now)
        return Answer(_CREATED, next(each for each in shown if each["id"] == fresh.id))

    return operation


def revoke_key(key_id: str) -> Operation:
    """Delete a key that is not the only one: what it signed is worth nothing from now on."""

    def operation(changes: Changes) -> Answer:
        found = find_keys(changes.connection)
        purpose = next((each for each, keys in found.items() if key_id in {key.id for key in keys}), None)
        if purpose is None:
            raise AdministrationError(Fault.NOT_FOUND, f"there is no key {key_id[:80]}")
        _insist_on_rotated(purpose)
        if len(found[purpose]) == 1:
            raise AdministrationError(Fault.CONFLICT, "no other key could sign: rotate first, and then revoke this one")
        drop_key(changes.connection, key_id)
        changes.account.note("revoke", "key", key_id, {"purpose": purpose})
        changes.touch(Scope())  # nobody, but keys are read again
        return Answer(_NO_CONTENT)

    return operation


def keys_shown(purpose: str, keys: Sequence[SigningKey], now: datetime) -> list[dict[str, Any]]:
    """The keys of a purpose, newest first, as JSON without their secrets."""
    signing = signer(keys, now)

    def state(key: SigningKey) -> str:
        if purpose not in ROTATED:
            return "lasting"
        return "signs" if key is signing else "next" if key.created_at > signing.created_at else "verifies"

    shown = (
        KeyShown(id=key.id, purpose=purpose, created_at=key.created_at, state=state(key))  # type: ignore[arg-type]  # one of its words
        for key in keys
    )
    return [each.model_dump(mode="json") for each in shown]


def _insist_on_rotated(purpose: str) -> None:
    if purpose not in ROTATED:
        known = ", ".join(repr(each) for each in ROTATED)
        raise AdministrationError(
            Fault.INVALID,
            f"keys of {purpose[:80]!r} are not replaced: those of {known} are",
            [("purpose", f"wants one of {known}")],
        )


def _put(changes: Changes, resource: Resource, wanted: Wanted, made: Secret | None) -> Answer:
    outcome = changes.put_one(resource.kind, wanted)
    is_new = outcome.result is Result.CREATED
    return _answer(changes, resource, wanted.id, _CREATED if is_new else _OK, made if is_new else None)


def _answer(changes: Changes, resource: Resource, ident: Any, status: int, made: Secret | None = None) -> Answer:
    row = changes.row(resource.kind, ident)
    assert row is not None, "it was written in this transaction"
    return Answer(status, resource.show(row, made.text if made is not None else ""), etag_of(resource.kind, row))


def _end_at(changes: Changes, token_id: str, end: datetime, expires_at: datetime | None) -> None:
    ends = end if expires_at is None else min(end, expires_at)
    changes.put_one(TOKEN, Wanted(token_id, {"expires_at": ends}))
