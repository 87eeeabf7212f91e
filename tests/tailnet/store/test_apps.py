"""What agents report of apps and scripts: only their own, all of a batch or nothing of it, and not without end."""

from datetime import timedelta
from uuid import UUID

import pytest

from tailnet.store import apps
from tailnet.store.rows import (
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    HealthsTaken,
    RunStage,
    RunStatus,
    ScriptRun,
)
from tailnet.store.store import Store
from tests.support.seeds import NOW, defined_document, definitions, fill, make_id, peer_id

MAIN, GPU = peer_id("main"), peer_id("gpu")
EDITOR, SHELL, START = make_id("editor of main"), make_id("shell of main"), make_id("start of main")


@pytest.fixture
def defined(store: Store) -> Store:
    document = defined_document()
    document["agents"][1] |= definitions("gpu")
    fill(store, document)
    return store


def health_of(store: Store) -> list[AppHealth]:
    return [app.health for agent_id in (MAIN, GPU) for app in store.apps.definitions(agent_id).apps]


def test_healths(defined: Store) -> None:
    before = health_of(defined)
    good = AppHealths(MAIN, {EDITOR: AppHealth.UNHEALTHY})
    wrong = [
        AppHealths(MAIN, {EDITOR: AppHealth.HEALTHY, SHELL: AppHealth.HEALTHY}),  # nobody checks the shell
        AppHealths(MAIN, {EDITOR: AppHealth.HEALTHY, UUID(int=7): AppHealth.HEALTHY}),
        AppHealths(GPU, {EDITOR: AppHealth.HEALTHY}),
    ]
    said = defined.apps.update_app_healths(wrong).problems
    assert [str(each) in text for each, text in zip((SHELL, UUID(int=7), EDITOR), said, strict=True)] == [True] * 3
    assert health_of(defined) == before
    # One that is refused does not sink the others.
    assert [bool(text) for text in defined.apps.update_app_healths([*wrong, good]).problems] == [
        True,
        True,
        True,
        False,
    ]
    assert health_of(defined) == [AppHealth.UNHEALTHY, *before[1:]]


def test_statuses_are_added_and_the_last_are_kept(defined: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "MAX_STATUSES_PER_APP", 3)
    for number in range(5):
        status = AppStatus(UUID(int=number), NOW, AppState(number % 4), f"step {number}", "http://x")
        assert defined.apps.add_app_statuses([AppStatusReport(MAIN, "shell", status)]) == [True]
    other = AppStatus(UUID(int=9), NOW, AppState.COMPLETE, "done", "")
    assert defined.apps.add_app_statuses([AppStatusReport(MAIN, "editor", other)]) == [True]
    assert defined.apps.add_app_statuses([AppStatusReport(MAIN, "none", other)]) == [False]
    editor, shell = defined.apps.definitions(MAIN).apps
    assert editor.statuses == [other]
    assert [(each.id.int, each.state, each.message) for each in shell.statuses] == [
        (4, AppState.WORKING, "step 4"),
        (3, AppState.FAILURE, "step 3"),
        (2, AppState.COMPLETE, "step 2"),
    ]
    assert [each.statuses for each in defined.apps.definitions(GPU).apps] == [(), ()]


def test_runs_are_kept_of_the_agents_own_scripts(defined: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "MAX_RUNS_PER_SCRIPT", 2)

    def run(code: int, script_id: UUID = START) -> ScriptRun:
        return ScriptRun(script_id, NOW, NOW + timedelta(seconds=1), code, RunStage.CRON, RunStatus.EXIT_FAILURE)

    defined.apps.add_script_runs(
        [(MAIN, run(1)), (MAIN, run(2)), (GPU, run(3)), (MAIN, run(4, UUID(int=7))), (MAIN, run(5))]
    )
    start, nightly = defined.apps.definitions(MAIN).scripts
    assert start.runs == [run(5), run(2)]
    assert nightly.runs == ()
    defined.apps.add_script_runs([])


def test_an_agent_without_any(store: Store) -> None:
    fill(store)
    found = store.apps.definitions(MAIN)
    assert (found.apps, found.scripts, found.metadata) == ([], [], [])
    assert store.apps.update_app_healths([]) == HealthsTaken([], [])
