"""Changes that administrators ask for, many of one kind at a time (layer L2).

What a batch needs to know is read in a few statements; each wanted thing is judged by itself, in order, in the light of
those before it; what passed is written in a few statements more.  One that is refused takes no other with it.  All of
it runs inside a transaction of the caller's, which holds the lock of administrators.  Next hop: audit.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from tailnet.errors import AdministrationError, Fault
from tailnet.store.administration.audit import Account, shown, shown_id
from tailnet.store.administration.kinds import AGENT, APP, GRANT, SCRIPT, TOKEN, USER, WORKSPACE, Kind
from tailnet.store.administration.reading import read_row
from tailnet.store.administration.values import ANY, Actor, Match, Outcome, Result, Wanted, etag_of
from tailnet.store.callers import pieces, raise_generation
from tailnet.store.database import Database
from tailnet.store.definitions import MAX_DEFINITION_BYTES, MAX_ITEMS, definition_bytes, read_one
from tailnet.store.importing_definitions import ID_TABLES, put_definitions
from tailnet.store.issued import revoke_issued
from tailnet.store.rows import MAX_GRANTS_PER_USER, Scope, first_health
from tailnet.store.schema import (
    agent_apps,
    agent_scripts,
    agent_tokens,
    agents,
    user_tokens,
    workspace_grants,
    workspaces,
)

# The lock of everybody who changes callers by hand: seeds take the same.
LOCK: Final = "import"
# What goes with a deleted one, for the account and for whoever is asked whether he means it.
_DEPENDENTS: Final[Mapping[str, Mapping[str, sa.Column[Any]]]] = {
    "user": {"tokens": user_tokens.c.user_id, "workspaces": workspaces.c.owner_id},
    "workspace": {"agents": agents.c.workspace_id},
    "agent": {
        "issued_tokens": agent_tokens.c.agent_id,
        "sub_agents": agents.c.parent_id,
        "apps": agent_apps.c.agent_id,
        "scripts": agent_scripts.c.agent_id,
    },
}


class Changes:
    """What one actor changes in one transaction.  Make it, change, and call `finish` before the commit.

    Its methods raise AdministrationError, after which the transaction is to be rolled back, and what the driver raises.
    """

    def __init__(self, database: Database, connection: sa.Connection, actor: Actor, now: datetime) -> None:
        self.connection = connection
        self.now = now
        self.account = Account(actor, now)
        self._touched = False
        self._scope = Scope()
        database.dialect.lock(connection, LOCK)

    def put(self, kind: Kind, wanted: Sequence[Wanted]) -> list[Outcome]:
        """Make or change many; what was refused is told in its outcome."""
        batch = _Batch(self, kind, wanted)
        outcomes = [batch.judge(each) for each in wanted]
        batch.write()
        outcomes = batch.write_definitions(outcomes)
        for each, outcome in zip(wanted, outcomes, strict=True):
            if kind.of_callers and outcome.error is None and outcome.result is not Result.UNCHANGED:
                self.touch(_scope_of(kind, each.id, batch.before(each), {**each.if_new, **each.values}))
        return outcomes

    def put_one(self, kind: Kind, wanted: Wanted) -> Outcome:
        """Make or change one.  Raises AdministrationError."""
        outcome = self.put(kind, [wanted])[0]
        if outcome.error is not None:
            raise outcome.error
        return outcome

    def delete(self, kind: Kind, ident: Any, match: Match = ANY, action: str = "delete") -> None:
        """Delete one, with all that belongs to it."""
        row = self.existing(kind, ident, match)
        before = shown(kind, {name: row[name] for name in kind.columns}) | count_dependents(
            self.connection, kind, ident
        )
        target = shown_id(ident)
        scope = _scope_of(kind, ident, row)
        if kind is USER:  # what others may do on his workspaces goes with these
            owned = sa.select(workspaces.c.id).where(workspaces.c.owner_id == ident)
            scope |= Scope(workspaces=frozenset(self.connection.execute(owned).scalars()))
        self.connection.execute(kind.table.delete().where(kind.is_one(ident)))
        self.account.note(action, kind.name, target, before)
        if kind.of_callers:
            self.touch(scope)

    def row(self, kind: Kind, ident: Any) -> Mapping[str, Any] | None:
        """One, with its digest, for whoever decides by it."""
        return read_row(self.connection, kind, ident)

    def existing(self, kind: Kind, ident: Any, match: Match = ANY) -> Mapping[str, Any]:
        """The same of one that has to be there, and to be what the caller thinks of it."""
        row = self.row(kind, ident)
        match.check(kind, etag_of(kind, row) if row is not None else None)
        if row is None:
            raise not_found(kind, ident)
        return row

    def touch(self, scope: Scope) -> None:
        """Callers are others now: caches forget at the commit, and whoever of them lost a right is sent away."""
        self._touched = True
        self._scope |= scope

    def finish(self) -> None:
        """Write the account, and have every server hear of it."""
        self.account.write(self.connection)
        if self._touched:
            self._touched = False
            raise_generation(self.connection, self._scope)


def _scope_of(kind: Kind, ident: Any, *rows: Mapping[str, Any]) -> Scope:
    """Whom the change of one is about; `rows`: what it was, and what it is to be."""
    if kind is USER:
        return Scope(users=frozenset((ident,)))
    if kind is GRANT:
        return Scope(users=frozenset((ident[1],)))
    if kind is WORKSPACE:
        return Scope(workspaces=frozenset((ident,)))
    name = "user_id" if kind is TOKEN else "workspace_id"
    found = frozenset(row[name] for row in rows if name in row)
    return Scope(users=found) if kind is TOKEN else Scope(workspaces=found)


def count_dependents(connection: sa.Connection, kind: Kind, ident: Any) -> dict[str, int]:
    """How many things of which sort go with one that is deleted."""
    counts = {
        name: int(connection.execute(sa.select(sa.func.count()).where(column == ident)).scalar_one())
        for name, column in _DEPENDENTS.get(kind.name, {}).items()
    }
    return {name: count for name, count in counts.items() if count}


def not_found(kind: Kind, ident: Any) -> AdministrationError:
    return AdministrationError(Fault.NOT_FOUND, f"there is no {kind.name} {shown_id(ident)[:80]}")


class _Batch:
    """Wanted things of one kind: what is known of them, what is decided, and what is to be written."""

    def __init__(self, changes: Changes, kind: Kind, wanted: Sequence[Wanted]) -> None:
        self._changes = changes
        self._connection = changes.connection
        self._kind = kind
        self._rows = {kind.ident(row): row for row in self._existing(wanted)}
        self._before: dict[Any, Mapping[str, Any]] = dict(self._rows)
        self._known = {
            name: self._referred(table, {each.values[name] for each in wanted if each.values.get(name) is not None})
            for name, table in kind.references.items()
        }
        self._holders = {name: self._holders_of(name, wanted) for name in kind.unique}
        self._item_holders = self._items(wanted)
        # Runs of the same statement, in order: a name that one gives up another may take.
        self._runs: list[tuple[tuple[str, ...] | None, list[dict[str, Any]]]] = []
        self._grants: dict[Any, int] = {}  # how many a user has
        self._moved: list[Any] = []  # agents whose token or machine is another one: what was issued beside ends
        self._defined: dict[Any, Wanted] = {}
        self._noted: dict[Any, dict[str, Any]] = {}  # rows of the account

    # --- what is known

    def before(self, wanted: Wanted) -> Mapping[str, Any]:
        """As it was; empty if it was not there."""
        return self._before.get(wanted.id, {})

    def _existing(self, wanted: Sequence[Wanted]) -> Iterable[dict[str, Any]]:
        kind = self._kind
        names = [*kind.key, *kind.columns, *([kind.digest] if kind.digest else [])]
        names += ["health"] if "health" in kind.table.c else []
        query = sa.select(*[kind.table.c[name] for name in names])
        for piece in pieces({each.id for each in wanted}):
            # In the order in which everybody locks rows, so that servers never wait for each other in a circle.
            found = query.where(kind.is_among(piece)).order_by(*kind.key_columns).with_for_update()
            yield from (dict(row._mapping) for row in self._connection.execute(found))

    def _referred(self, table: sa.Table, ids: set[Any]) -> dict[Any, Any]:
        """Of those that exist: of an agent its workspace."""
        beside = table.c.workspace_id if table is agents else sa.null()
        found: dict[Any, Any] = {}
        for piece in pieces(ids):
            query = sa.select(table.c.id, beside).where(table.c.id.in_(piece))
            found.update((row[0], row[1]) for row in self._connection.execute(query))
        return found

    def _holders_of(self, name: str, wanted: Sequence[Wanted]) -> dict[Any, Any]:
        table = self._kind.table
        values = {given[name] for each in wanted for given in (each.values, each.if_new) if name in given}
        found: dict[Any, Any] = {}
        for piece in pieces(values):
            query = sa.select(table.c[name], table.c.id).where(table.c[name].in_(piece))
            found.update((row[0], row[1]) for row in self._connection.execute(query))
            if name == "token_digest":
                issued = sa.select(agent_tokens.c.digest, agent_tokens.c.agent_id)
                found.update(
                    (row[0], row[1]) for row in self._connection.execute(issued.where(agent_tokens.c.digest.in_(piece)))
                )
        return found

    def _items(self, wanted: Sequence[Wanted]) -> dict[tuple[str, Any], Any]:
        """Whose the apps and scripts are that definitions name."""
        found: dict[tuple[str, Any], Any] = {}
        for sort, table in ID_TABLES.items():
            ids = {item.key for each in wanted for item in getattr(each.definitions, sort) or ()}
            for piece in pieces(ids):
                query = sa.select(table.c.id, table.c.agent_id).where(table.c.id.in_(piece))
                found.update(((sort, row[0]), row[1]) for row in self._connection.execute(query))
        return found

    # --- what is decided

    def judge(self, wanted: Wanted) -> Outcome:
        """Decide about one, and note what is to be written."""
        try:
            return self._judge(wanted)
        except AdministrationError as error:
            return Outcome(wanted.id, error=error)

    def _judge(self, wanted: Wanted) -> Outcome:
        kind = self._kind
        before = self._rows.get(wanted.id)
        wanted.match.check(kind, etag_of(kind, before) if before is not None else None)
        if before is None and wanted.must_exist:
            raise not_found(kind, wanted.id)
        values = dict(wanted.values)
        if before is None:
            values = {**wanted.if_new, **values}
        if kind in (APP, SCRIPT):
            self._complete_definition(wanted, values, before)
        self._check(wanted, values, before)
        return self._note(wanted, values, before)

    def _check(self, wanted: Wanted, values: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        kind = self._kind
        problems = [
            (name, f"there is no {_singular(table)} {values[name]}")
            for name, table in kind.references.items()
            if values.get(name) is not None and values[name] not in self._known[name]
        ]
        if before is not None:
            for name in kind.fixed & values.keys():
                if values[name] != before[name]:
                    problems.append((name, f"stays what it was made with, {before[name] or 'none'}"))
        if problems:
            raise AdministrationError(Fault.INVALID, f"this {kind.name} makes no sense as it is", problems)
        for name in kind.unique:
            holder = self._holders[name].get(values.get(name), wanted.id)
            if holder != wanted.id:
                called = "token" if name == kind.digest else name
                raise AdministrationError(
                    Fault.CONFLICT, "something else has it", [(called, f"is that of {kind.name} {holder}")]
                )
        if kind is AGENT:
            self._check_agent(wanted, values, before)
        if kind is GRANT and before is None:
            self._check_grants_of(wanted.id[1])

    def _check_grants_of(self, user_id: Any) -> None:
        if user_id not in self._grants:
            count = sa.select(sa.func.count()).where(workspace_grants.c.user_id == user_id)
            self._grants[user_id] = int(self._connection.execute(count).scalar_one())
        if self._grants[user_id] >= MAX_GRANTS_PER_USER:
            raise AdministrationError(
                Fault.CONFLICT, f"a user has at most {MAX_GRANTS_PER_USER:,} grants: revoke some, or give him a role"
            )
        self._grants[user_id] += 1

    def _check_agent(self, wanted: Wanted, values: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        workspace_id = values.get("workspace_id", before["workspace_id"] if before is not None else None)
        parent_id = values.get("parent_id", before["parent_id"] if before is not None else None)
        if parent_id is not None:
            of_parent = self._known["parent_id"].get(parent_id)
            if of_parent is None:
                of_parent = self._referred(agents, {parent_id}).get(parent_id)
            if of_parent != workspace_id:
                raise AdministrationError(
                    Fault.INVALID,
                    "a sub-agent is of the workspace of its parent",
                    [("workspace_id", f"is that of the parent, {of_parent}")],
                )
        elif (
            before is not None
            and workspace_id != before["workspace_id"]
            and "sub_agents" in count_dependents(self._connection, self._kind, wanted.id)
        ):
            raise AdministrationError(
                Fault.CONFLICT, "an agent moves to another workspace without its sub-agents: delete those first"
            )
        for sort in ID_TABLES:
            seen: set[object] = set()
            for item in getattr(wanted.definitions, sort) or ():
                holder = self._item_holders.get((sort, item.key), wanted.id)
                if holder != wanted.id or item.key in seen:
                    raise AdministrationError(
                        Fault.CONFLICT,
                        f"one of its {sort} has the id of another",
                        [(f"{item.place}.id", f"is that of one of agent {holder}")],
                    )
                seen.add(item.key)

    def _complete_definition(self, wanted: Wanted, values: dict[str, Any], before: Mapping[str, Any] | None) -> None:
        """An app or a script that is complete, fits beside the others of its agent, and has its place among them."""
        sort = f"{self._kind.name}s"
        table = self._kind.table
        given = values.get("definition", {})
        if wanted.must_exist and before is not None:  # a part of it
            given = _merged(before["definition"], given)
        read = read_one(sort, given)
        if isinstance(read, tuple):
            raise AdministrationError(Fault.INVALID, f"this {self._kind.name} makes no sense as it is", [read])
        values["definition"] = dict(read)
        agent_id = values.get("agent_id", before["agent_id"] if before is not None else None)
        query = sa.select(table.c.id, table.c.position, table.c.definition).where(table.c.agent_id == agent_id)
        others = [row for row in self._connection.execute(query) if row[0] != wanted.id]
        if before is None:
            values.setdefault("position", 1 + max((row[1] for row in others), default=-1))
        if len(others) >= MAX_ITEMS:
            raise AdministrationError(Fault.INVALID, f"an agent has at most {MAX_ITEMS} {sort}")
        if any(row[2].get("slug", "") == read.get("slug", None) for row in others):
            raise AdministrationError(
                Fault.CONFLICT, "another app of this agent has that slug", [("slug", "is that of another app")]
            )
        size = definition_bytes(read) + sum(definition_bytes(row[2]) for row in others)
        if size > MAX_DEFINITION_BYTES:
            raise AdministrationError(
                Fault.TOO_LARGE, f"the agent's {sort} would have {size:,} bytes, at most {MAX_DEFINITION_BYTES:,} fit"
            )
        if self._kind is APP:
            asked_before = before["definition"]["healthcheck"] if before is not None else None
            # What an agent found out holds for as long as it is asked the same.
            if before is None or asked_before != read["healthcheck"]:
                values["health"] = int(first_health(read))

    def _note(self, wanted: Wanted, values: dict[str, Any], before: Mapping[str, Any] | None) -> Outcome:
        kind = self._kind
        if before is None:
            times = dict.fromkeys(kind.times, self._changes.now)
            after = {**dict(zip(kind.key, kind.parts(wanted.id), strict=True)), **values}
            self._run(None, {**after, **times})
            result = Result.CREATED
        else:
            changed = {name: value for name, value in values.items() if before.get(name) != value}
            after = {**before, **changed}
            result = Result.CHANGED if changed else Result.UNCHANGED
            if changed:
                times = {"updated_at": self._changes.now} if "updated_at" in kind.table.c else {}
                self._run(tuple(changed | times), self._named(wanted.id) | _prefixed(changed | times))
                if kind is AGENT and changed.keys() & {"token_digest", "instance_id"}:
                    self._moved.append(wanted.id)
        self._remember(wanted, after, before)
        if result is not Result.UNCHANGED:
            self._noted[wanted.id] = self._changes.account.note_put(kind, wanted.id, result, before, after)
        if _lists(wanted):
            self._defined[wanted.id] = wanted
        return Outcome(wanted.id, result, etag_of(kind, after))

    def _remember(self, wanted: Wanted, after: dict[str, Any], before: Mapping[str, Any] | None) -> None:
        """What those behind it in the batch have to know."""
        kind = self._kind
        self._rows[wanted.id] = after
        for name in kind.unique:
            if (
                before is not None
                and before[name] != after[name]
                and self._holders[name].get(before[name]) == wanted.id
            ):
                del self._holders[name][before[name]]
            self._holders[name][after[name]] = wanted.id
        for name, table in kind.references.items():
            if table is kind.table:
                self._known[name][wanted.id] = after.get("workspace_id")
        for sort in ID_TABLES:
            for item in getattr(wanted.definitions, sort) or ():
                self._item_holders[sort, item.key] = wanted.id

    # --- what is written

    def _run(self, columns: tuple[str, ...] | None, values: dict[str, Any]) -> None:
        if (
            not self._runs
            or self._runs[-1][0] != columns
            or (columns is None and self._runs[-1][1][0].keys() != values.keys())
        ):
            self._runs.append((columns, []))
        self._runs[-1][1].append(values)

    def _named(self, ident: Any) -> dict[str, Any]:
        kind = self._kind
        return {f"of_{name}": part for name, part in zip(kind.key, kind.parts(ident), strict=True)}

    def write(self) -> None:
        table = self._kind.table
        for columns, rows in self._runs:
            if columns is None:
                self._connection.execute(table.insert(), rows)
                continue
            names = {name: sa.bindparam(f"new_{name}", type_=table.c[name].type) for name in columns}
            mine = [each == sa.bindparam(f"of_{each.name}", type_=each.type) for each in self._kind.key_columns]
            self._connection.execute(table.update().where(*mine).values(names), rows)
        revoke_issued(self._connection, self._moved)

    def write_definitions(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Write what agents should run and show.  Returns the outcomes as they are with that."""
        changed = put_definitions(self._connection, list(self._defined.values())) if self._defined else set()
        told: list[Outcome] = []
        for outcome in outcomes:
            if outcome.error is None and outcome.id in changed:
                after = dict.fromkeys(_lists(self._defined[outcome.id]), "replaced")
                if outcome.id in self._noted:
                    self._noted[outcome.id]["after"] |= after
                else:
                    self._noted[outcome.id] = self._changes.account.note("update", "agent", outcome.id, {}, after)
                if outcome.result is Result.UNCHANGED:
                    outcome = replace(outcome, result=Result.CHANGED)
            told.append(outcome)
        return told


def _prefixed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in values.items()}


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(before)
    for name, value in given.items():
        old = merged.get(name)
        merged[name] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _lists(wanted: Wanted) -> list[str]:
    return [sort for sort in (*ID_TABLES, "metadata") if getattr(wanted.definitions, sort) is not None]


def _singular(table: sa.Table) -> str:
    return table.name.removesuffix("s")
