"""Definitions in a seed: complete when they are read, each mistake with its place."""

import json
from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import SeedError
from tailnet.store import definitions as module
from tailnet.store.definitions import KINDS, MAX_ITEMS, read_app
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.seed import Seed, parse_seed
from tests.support.seeds import defined_document, definitions, make_id, seed_document


def parse(changes: dict[str, Any]) -> Seed:
    document: Any = seed_document()
    document["agents"][0] |= changes
    return parse_seed(json.dumps(document))


def problems(changes: dict[str, Any]) -> list[str]:
    with pytest.raises(SeedError) as caught:
        parse(changes)
    return [line.removeprefix("seed: agents[0].") for line in caught.value.problems]


def test_what_is_left_out_has_the_apis_empty_value() -> None:
    found = parse(definitions()).agents[0].definitions
    assert found.apps is not None
    assert found.scripts is not None
    assert found.metadata is not None
    assert found.apps[1].key == make_id("shell of main")
    assert found.apps[1].definition == {
        "url": "",
        "external": False,
        "slug": "shell",
        "display_name": "",
        "command": "htop\n",
        "icon": "",
        "subdomain": False,
        "subdomain_name": "",
        "sharing_level": "owner",
        "healthcheck": {"url": "", "interval": 0, "threshold": 0},
        "group": "",
        "hidden": True,
        "open_in": "slim-window",
        "tooltip": "",
    }
    assert found.scripts[1].definition == {
        "log_source_id": str(EXTERNAL_LOG_SOURCE),
        "log_path": "",
        "script": "",
        "cron": "0 3 * * *",
        "run_on_start": False,
        "run_on_stop": False,
        "start_blocks_login": False,
        "timeout": 0,
        "display_name": "",
    }
    assert (found.metadata[1].key, found.metadata[1].definition["script"]) == ("disk", "df -h")
    assert found.metadata[1].definition["interval"] == 0


def test_what_is_given_stays_as_it_is() -> None:
    found, given_ = parse(definitions()).agents[0].definitions, definitions()
    for sort in KINDS:
        for item, said in zip(getattr(found, sort), given_[sort], strict=True):
            assert {key: item.definition[key] for key in said if key != "id"} == {
                key: value for key, value in said.items() if key != "id"
            }


def test_no_list_is_not_an_empty_list() -> None:
    first, second = parse({"apps": []}).agents[:2]
    assert (first.definitions.apps, first.definitions.scripts) == ([], None)
    assert second.definitions.apps is None


APP = {"id": str(make_id("app")), "slug": "x"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"apps": {}}, "apps: wants a list, got an object"),
        ({"apps": [1]}, "apps[0]: wants an object with id, url, external, slug"),
        ({"apps": [{"slug": "x"}]}, "apps[0].id: is missing"),
        ({"apps": [APP | {"id": str(UUID(int=0))}]}, "apps[0].id: wants a UUID other than the nil one"),
        ({"apps": [APP | {"id": 7}]}, "apps[0].id: wants a UUID"),
        ({"apps": [{"id": APP["id"]}]}, "apps[0].slug: is missing"),
        ({"apps": [APP | {"slug": ""}]}, "apps[0].slug: is empty"),
        ({"apps": [APP | {"slug": "a\nb"}]}, "apps[0].slug: has characters that cannot be printed"),
        ({"apps": [APP | {"slug": "x" * 257}]}, "apps[0].slug: has 257 characters, at most 256"),
        ({"apps": [APP | {"hidden": 1}]}, "apps[0].hidden: wants true or false, got 1"),
        ({"apps": [APP | {"url": None}]}, "apps[0].url: wants text, got null"),
        ({"apps": [APP | {"sharing_level": "all"}]}, "apps[0].sharing_level: wants one of owner, authenticated, org"),
        ({"apps": [APP | {"open_in": []}]}, "apps[0].open_in: wants one of slim-window, tab, got a list"),
        ({"apps": [APP | {"command": "a\0"}]}, "apps[0].command: has characters that no script has"),
        ({"apps": [APP | {"command": "half \ud800"}]}, "apps[0].command: has characters that no script has"),
        ({"apps": [APP | {"healthcheck": 5}]}, "apps[0].healthcheck: wants an object with url, interval, threshold"),
        ({"apps": [APP | {"healthcheck": {"interval": -1}}]}, "apps[0].healthcheck.interval: wants a whole number"),
        ({"apps": [APP | {"healthcheck": {"interval": True}}]}, "apps[0].healthcheck.interval: wants a whole number"),
        ({"apps": [APP | {"healthcheck": {"url": "http://x"}}]}, "apps[0].healthcheck.interval: wants the seconds"),
        ({"apps": [APP, APP | {"id": str(make_id("b"))}]}, "apps[1].slug: clashes with agents[0].apps[0].slug"),
        ({"apps": [APP, APP | {"slug": "y"}]}, "apps[1].id: clashes with agents[0].apps[0].id"),
        ({"apps": [APP] * (MAX_ITEMS + 1)}, "apps: has 257 items, at most 256"),
        ({"scripts": [{"id": APP["id"], "timeout": 1 << 63}]}, "scripts[0].timeout: wants a whole number"),
        ({"scripts": [{"id": APP["id"], "log_source_id": "x"}]}, "scripts[0].log_source_id: wants a UUID"),
        ({"metadata": [{}]}, "metadata[0].key: is missing"),
        ({"metadata": [{"key": "a"}, {"key": "a"}]}, "metadata[1].key: clashes with agents[0].metadata[0].key"),
    ],
)
def test_one_mistake_one_line(changes: dict[str, Any], line: str) -> None:
    [found] = problems(changes)
    assert found.startswith(line)


def test_an_id_is_one_agents_only() -> None:
    document = defined_document()
    document["agents"][1] |= definitions()
    with pytest.raises(SeedError) as caught:
        parse_seed(json.dumps(document))
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        f"agents[1].{each}.id" for each in ("apps[0]", "apps[1]", "scripts[0]", "scripts[1]")
    ]


def test_unknown_keys_are_mistakes() -> None:
    with pytest.raises(SeedError) as caught:
        parse({"apps": [APP | {"health": "healthy", "healthcheck": {"path": "/"}}]})
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "agents[0].apps[0].health",
        "agents[0].apps[0].healthcheck.path",
    ]


def test_an_agents_definitions_fit_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DEFINITION_BYTES", 1000)
    document: Any = seed_document()
    document["agents"][0]["scripts"] = [{"id": APP["id"], "script": "x" * 1000}]
    with pytest.raises(SeedError, match=r"agents\[0\]: has 1,\d+ bytes of apps, scripts and metadata, at most 1,000"):
        parse_seed(json.dumps(document))


def test_an_app_by_itself() -> None:
    assert (
        read_app({"slug": "x", "hidden": True})
        == parse({"apps": [APP | {"hidden": True}]}).agents[0].definitions.apps[0].definition
    )  # type: ignore[index]  # there is one
    assert read_app({}) == ("slug", "is missing")
    field, reason = read_app({"slug": "x", "healthcheck": {"interval": -1}})
    assert (field, reason[:11]) == ("healthcheck.interval", "wants a who")
    field, _ = read_app(dict.fromkeys(KINDS["apps"], 7) | {"id": APP["id"]})
    assert field == "url"


names = st.sampled_from(sorted({key for keys in KINDS.values() for key in keys}))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(APP["id"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(sorted(KINDS)), st.lists(st.dictionaries(names, values, max_size=6), max_size=2))
)
def test_any_definitions_are_read_or_refused(changes: dict[str, Any]) -> None:
    with suppress(SeedError):
        parse(changes)
