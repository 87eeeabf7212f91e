"""What agents should run and show, and what became of it: apps, scripts, metadata descriptions (layer L2).

A seed defines them (definitions.py, importing.py); manifests carry them; agents report health, statuses and runs.
Reports come in batches and each batch is one transaction, as in reports.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from tailnet.store.callers import pieces
from tailnet.store.part import Part, notes, reads
from tailnet.store.reports import keep_last
from tailnet.store.rows import (
    App,
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    Definitions,
    HealthChange,
    HealthsTaken,
    RunStage,
    RunStatus,
    Script,
    ScriptRun,
)
from tailnet.store.schema import (
    PeerIdText,
    agent_app_statuses,
    agent_apps,
    agent_metadata_descriptions,
    agent_script_runs,
    agent_scripts,
)
from tailnet.types import PeerID

# What an app was doing is a story of some steps; what a script did lately are its starts and stops, or a day of hourly
# runs.  Either bound keeps a busy agent from filling the table.
MAX_STATUSES_PER_APP: Final = 50
MAX_RUNS_PER_SCRIPT: Final = 20

# Made once: every agent that starts asks for its manifest, and to make these took longer than to carry them out.
_agent: Final = sa.bindparam("agent", type_=PeerIdText)
_APPS: Final = sa.select(agent_apps).where(agent_apps.c.agent_id == _agent).order_by(agent_apps.c.position)
_SCRIPTS: Final = sa.select(agent_scripts).where(agent_scripts.c.agent_id == _agent).order_by(agent_scripts.c.position)
_METADATA: Final = (
    sa.select(agent_metadata_descriptions.c.definition)
    .where(agent_metadata_descriptions.c.agent_id == _agent)
    .order_by(agent_metadata_descriptions.c.position)
)


class AppTables(Part):
    """The part of the store behind manifests.  Every method raises StoreError."""

    @reads
    def definitions(self, connection: sa.Connection, agent_id: PeerID) -> Definitions:
        """All of an agent's, in the order of the seed, with what it reported of them: one snapshot."""
        asked = {"agent": agent_id}
        apps = connection.execute(_APPS, asked).all()
        scripts = connection.execute(_SCRIPTS, asked).all()
        statuses = _statuses(connection, agent_id) if apps else {}
        runs = _runs(connection, agent_id) if scripts else {}
        metadata = connection.execute(_METADATA, asked).scalars().all()
        return Definitions(
            [App(row.id, row.definition, AppHealth(row.health), statuses.get(row.id, ())) for row in apps],
            [Script(row.id, row.definition, runs.get(row.id, ())) for row in scripts],
            metadata,
        )

    @reads
    def list_metadata_descriptions(self, connection: sa.Connection, agent_id: PeerID) -> Sequence[Mapping[str, Any]]:
        """What an agent's metadata scripts are, in the order of the seed; their values are in reports.py."""
        return connection.execute(_METADATA, {"agent": agent_id}).scalars().all()

    @notes
    def update_app_healths(self, connection: sa.Connection, batches: Sequence[AppHealths]) -> HealthsTaken:
        """For each batch why it was refused, or nothing, and what changed.  Of a refused batch nothing is stored."""
        problems: list[str] = []
        changes: dict[UUID, AppHealth] = {}
        owners: dict[UUID, tuple[PeerID, bool]] = {}
        before: dict[UUID, tuple[AppHealth, str]] = {}
        for piece in pieces({app_id for batch in batches for app_id in batch.healths}):
            for row in connection.execute(sa.select(agent_apps).where(agent_apps.c.id.in_(piece))):
                owners[row.id] = row.agent_id, App(row.id, row.definition, AppHealth.DISABLED).is_checked
                before[row.id] = AppHealth(row.health), str(row.definition["slug"])
        for batch in batches:
            wrong = [each for each in batch.healths if owners.get(each) != (batch.agent_id, True)]
            problems.append(f"app {wrong[0]} is none of this agent's that has a health check" if wrong else "")
            if not wrong:
                changes.update(batch.healths)
        if changes:
            connection.execute(
                agent_apps.update()
                .where(agent_apps.c.id == sa.bindparam("app"))
                .values(health=sa.bindparam("new_health")),
                [{"app": app_id, "new_health": int(health)} for app_id, health in changes.items()],
            )
        changed = [
            HealthChange(owners[app_id][0], app_id, before[app_id][1], before[app_id][0], health)
            for app_id, health in changes.items()
            if health is not before[app_id][0]
        ]
        return HealthsTaken(problems, changed)

    @notes
    def add_app_statuses(self, connection: sa.Connection, reports: Sequence[AppStatusReport]) -> list[bool]:
        """Add what apps say they do.  For each: whether its agent has an app of that slug; others are dropped."""
        by_slug: dict[tuple[PeerID, str], UUID] = {}
        for piece in pieces({report.agent_id for report in reports}):
            for row in connection.execute(sa.select(agent_apps).where(agent_apps.c.agent_id.in_(piece))):
                by_slug[row.agent_id, row.definition["slug"]] = row.id
        app_ids = [by_slug.get((report.agent_id, report.slug)) for report in reports]
        rows = [
            {
                "app_id": app_id,
                "status_id": report.status.id,
                "created_at": report.status.created_at,
                "state": int(report.status.state),
                "message": report.status.message,
                "uri": report.status.uri,
            }
            for report, app_id in zip(reports, app_ids, strict=True)
            if app_id is not None
        ]
        if rows:
            connection.execute(agent_app_statuses.insert(), rows)
        for app_id in sorted({row["app_id"] for row in rows}, key=str):
            keep_last(connection, agent_app_statuses.c.app_id, app_id, MAX_STATUSES_PER_APP)
        return [app_id is not None for app_id in app_ids]

    @notes
    def add_script_runs(self, connection: sa.Connection, runs: Sequence[tuple[PeerID, ScriptRun]]) -> None:
        """Add runs, each with the agent that reports it; runs of scripts that are not that agent's are dropped."""
        owners: dict[UUID, PeerID] = {}
        for piece in pieces({run.script_id for _, run in runs}):
            query = sa.select(agent_scripts.c.id, agent_scripts.c.agent_id).where(agent_scripts.c.id.in_(piece))
            owners.update((script_id, agent_id) for script_id, agent_id in connection.execute(query))
        kept = [run for agent_id, run in runs if owners.get(run.script_id) == agent_id]
        if kept:
            connection.execute(agent_script_runs.insert(), [_run_row(run) for run in kept])
        for script_id in {run.script_id for run in kept}:
            keep_last(connection, agent_script_runs.c.script_id, script_id, MAX_RUNS_PER_SCRIPT)


def _statuses(connection: sa.Connection, agent_id: PeerID) -> dict[UUID, list[AppStatus]]:
    table = agent_app_statuses
    query = sa.select(table).join(agent_apps, table.c.app_id == agent_apps.c.id)
    found: dict[UUID, list[AppStatus]] = {}
    for row in connection.execute(query.where(agent_apps.c.agent_id == agent_id).order_by(table.c.id.desc())):
        status = AppStatus(row.status_id, row.created_at, AppState(row.state), row.message, row.uri)
        found.setdefault(row.app_id, []).append(status)
    return found


def _runs(connection: sa.Connection, agent_id: PeerID) -> dict[UUID, list[ScriptRun]]:
    table = agent_script_runs
    query = sa.select(table).join(agent_scripts, table.c.script_id == agent_scripts.c.id)
    found: dict[UUID, list[ScriptRun]] = {}
    for row in connection.execute(query.where(agent_scripts.c.agent_id == agent_id).order_by(table.c.id.desc())):
        stage, status = RunStage(row.stage), RunStatus(row.status)
        run = ScriptRun(row.script_id, row.started_at, row.ended_at, row.exit_code, stage, status)
        found.setdefault(row.script_id, []).append(run)
    return found


def _run_row(run: ScriptRun) -> dict[str, object]:
    return {
        "script_id": run.script_id,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "exit_code": run.exit_code,
        "stage": int(run.stage),
        "status": int(run.status),
    }
