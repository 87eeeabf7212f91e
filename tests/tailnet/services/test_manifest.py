"""A manifest says what the store says, in the units and numbers of the wire."""

import pytest

from tailnet.config import CoordinatorConfig
from tailnet.config.external_auth import providers
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.manifest import manifest
from tailnet.store.definitions import KINDS
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import AppHealth, AppHealths
from tailnet.store.store import Store
from tests.support.seeds import NOW, defined_document, fill, make_id, peer_id

pytestmark = pytest.mark.stores

MAIN = peer_id("main")


def made(store: Store, agent_id: bytes = MAIN, derp_map: bytes = b"") -> agent.Manifest:
    row = store.callers.get_agent(type(MAIN)(agent_id))
    assert row is not None
    [identity] = store.callers.agent_identities([row.id]).values()
    return manifest(identity, row, store.apps.definitions(row.id), CoordinatorConfig(), derp_map)


def test_it_says_how_many_providers_there_are(store: Store) -> None:
    """Agents offer git their help where there is one."""
    fill(store)
    row = store.callers.get_agent(MAIN)
    assert row is not None
    [identity] = store.callers.agent_identities([MAIN]).values()
    table = {"type": "github", "client_id": "x", "client_secret": "y"}
    config = CoordinatorConfig(external_auth=providers([table, table | {"id": "other"}]))
    assert manifest(identity, row, store.apps.definitions(MAIN), config, b"").git_auth_configs == 2
    assert made(store).git_auth_configs == 0


def test_apps(store: Store) -> None:
    fill(store, defined_document())
    store.apps.update_app_healths([AppHealths(MAIN, {make_id("editor of main"): AppHealth.UNHEALTHY})])
    editor, shell = made(store).apps
    assert editor == agent.WorkspaceApp(
        id=make_id("editor of main").bytes,
        url="http://localhost:13337",
        slug="editor",
        display_name="Editor",
        icon="/icon/code.svg",
        subdomain=True,
        subdomain_name="editor--main--dev--alice",
        sharing_level=agent.WorkspaceApp.AUTHENTICATED,
        healthcheck={"url": "http://localhost:13337/healthz", "interval": {"seconds": 5}, "threshold": 6},
        health=agent.WorkspaceApp.UNHEALTHY,
    )
    assert (shell.command, shell.hidden, shell.sharing_level) == ("htop\n", True, agent.WorkspaceApp.OWNER)
    assert shell.health == agent.WorkspaceApp.DISABLED


@pytest.mark.parametrize("word", ["owner", "authenticated", "organization", "public"])
def test_every_sharing_level_has_its_number(store: Store, word: str) -> None:
    document = defined_document()
    document["agents"][0]["apps"][0]["sharing_level"] = word
    fill(store, document)
    assert agent.WorkspaceApp.SharingLevel.Name(made(store).apps[0].sharing_level) == word.upper()


def test_scripts(store: Store) -> None:
    fill(store, defined_document())
    start, nightly = made(store).scripts
    assert start == agent.WorkspaceAgentScript(
        id=make_id("start of main").bytes,
        log_source_id=make_id("a source").bytes,
        log_path="start.log",
        script="#!/bin/sh\nset -e\n\techo started\n",
        run_on_start=True,
        start_blocks_login=True,
        timeout={"seconds": 30},
        display_name="Start",
    )
    assert (nightly.cron, nightly.log_source_id) == ("0 3 * * *", EXTERNAL_LOG_SOURCE.bytes)


def test_numbers_of_metadata_travel_as_nanoseconds(store: Store) -> None:
    fill(store, defined_document())
    cpu, disk = made(store).metadata
    assert cpu == agent.WorkspaceAgentMetadata.Description(
        display_name="CPU", key="cpu", script="uptime", interval={"nanos": 10}, timeout={"nanos": 1}
    )
    assert (disk.key, disk.script) == ("disk", "df -h")


def test_an_agent_of_a_parent_and_without_definitions(store: Store) -> None:
    fill(store)
    child = peer_id("child")
    assert store.callers.add_sub_agent(MAIN, child, bytes(32), "child", NOW, directory="/src")
    found = made(store, child, tailnet.DERPMap(regions={7: {"region_id": 7}}).SerializeToString())
    assert (found.parent_id, found.directory, found.workspace_name) == (MAIN, "/src", "dev")
    assert found.derp_map.HasField("home_params")
    assert found.derp_map.regions[7].region_id == 7
    assert not found.apps
    assert not found.scripts
    assert not found.metadata
    assert not made(store).HasField("parent_id")


def test_everything_that_a_seed_can_say_has_a_place_here_or_a_reason_not_to() -> None:
    messages = {
        "apps": agent.WorkspaceApp,
        "scripts": agent.WorkspaceAgentScript,
        "metadata": agent.WorkspaceAgentMetadata.Description,
    }
    # Where a page shows an app is nothing to the agent.
    pages_only = {"group", "open_in", "tooltip"}
    for sort, keys in KINDS.items():
        assert keys.keys() - pages_only <= set(messages[sort].DESCRIPTOR.fields_by_name)
