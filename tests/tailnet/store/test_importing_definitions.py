"""Imports of apps, scripts and metadata: what differs is written, what agents reported of the rest stays."""

from typing import Any

import pytest

from tailnet.errors import SeedError
from tailnet.store.importing import Tally
from tailnet.store.rows import (
    AppHealth,
    AppHealths,
    AppState,
    AppStatus,
    AppStatusReport,
    RunStage,
    RunStatus,
    ScriptRun,
)
from tailnet.store.store import Store
from tests.support.seeds import NOW, defined_document, definitions, fill, make_id, peer_id, seed_document
from tests.tailnet.store.test_importing import dump

MAIN = peer_id("main")
EDITOR, SHELL, START = make_id("editor of main"), make_id("shell of main"), make_id("start of main")


def filled(store: Store) -> Any:
    """Everything defined, and something reported of it; gives the document."""
    document = defined_document()
    assert fill(store, document).agents == Tally(3, 0, 0)
    assert store.apps.update_app_healths([AppHealths(MAIN, {EDITOR: AppHealth.HEALTHY})]).problems == [""]
    assert store.apps.add_app_statuses(
        [AppStatusReport(MAIN, "shell", AppStatus(make_id("status"), NOW, AppState.IDLE, "resting", ""))]
    ) == [True]
    store.apps.add_script_runs([(MAIN, ScriptRun(START, NOW, NOW, 0, RunStage.START, RunStatus.OK))])
    return document


def test_what_was_given_is_there_in_its_order(store: Store) -> None:
    fill(store, defined_document())
    found = store.apps.definitions(MAIN)
    assert [app.definition["slug"] for app in found.apps] == ["editor", "shell"]
    assert [app.health for app in found.apps] == [AppHealth.INITIALIZING, AppHealth.DISABLED]
    assert [script.id for script in found.scripts] == [START, make_id("nightly of main")]
    assert [each["key"] for each in found.metadata] == ["cpu", "disk"]
    assert store.apps.definitions(peer_id("gpu")).apps == []


def test_twice_changes_nothing(store: Store) -> None:
    document = filled(store)
    before, generation = dump(store), store.callers.callers_generation()
    assert not fill(store, document).changed_anything
    assert dump(store) == before
    assert store.callers.callers_generation() == generation


def test_a_seed_without_lists_leaves_them_alone(store: Store) -> None:
    filled(store)
    before = dump(store)
    assert not fill(store, seed_document()).changed_anything
    assert dump(store) == before


def test_a_list_is_the_whole_list(store: Store) -> None:
    document = filled(store)
    document["agents"][0]["apps"].reverse()
    del document["agents"][0]["scripts"][0]
    document["agents"][0]["metadata"] = []
    assert fill(store, document).agents == Tally(0, 1, 2)
    found = store.apps.definitions(MAIN)
    assert [(app.id, app.health, len(app.statuses)) for app in found.apps] == [
        (SHELL, AppHealth.DISABLED, 1),
        (EDITOR, AppHealth.HEALTHY, 0),
    ]
    assert [script.id for script in found.scripts] == [make_id("nightly of main")]
    assert found.metadata == []
    assert dump(store)["agent_script_runs"] == []


@pytest.mark.parametrize(
    ("check", "health"),
    [
        ({"url": "http://localhost:1", "interval": 5, "threshold": 6}, AppHealth.INITIALIZING),
        ({}, AppHealth.DISABLED),
    ],
)
def test_another_check_begins_anew(store: Store, check: dict[str, object], health: AppHealth) -> None:
    document = filled(store)
    document["agents"][0]["apps"][0]["healthcheck"] = check
    assert fill(store, document).agents == Tally(0, 1, 2)
    assert store.apps.definitions(MAIN).apps[0].health is health


def test_another_name_keeps_the_health(store: Store) -> None:
    document = filled(store)
    document["agents"][0]["apps"][0]["display_name"] = "Another"
    fill(store, document)
    [editor, _] = store.apps.definitions(MAIN).apps
    assert (editor.definition["display_name"], editor.health) == ("Another", AppHealth.HEALTHY)


def test_ids_of_other_agents_are_refused(store: Store) -> None:
    filled(store)
    before = dump(store)
    document: Any = seed_document()
    document["agents"][1] |= definitions()
    with pytest.raises(SeedError) as caught:
        fill(store, document)
    assert f"seed: agents[1].apps[0].id: belongs to agent {MAIN} in the store" in caught.value.problems
    assert f"seed: agents[1].scripts[1].id: belongs to agent {MAIN} in the store" in caught.value.problems
    assert len(caught.value.problems) == 4
    assert dump(store) == before


def test_they_go_with_their_agent(store: Store) -> None:
    filled(store)
    store.callers.delete_agent(MAIN)
    assert [name for name, rows in dump(store).items() if rows and name.startswith("agent_")] == []
