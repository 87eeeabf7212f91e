"""Names of things, durations, and who is at work."""

import re
from datetime import timedelta

import click
import pytest

from tailnet.cli.admin_work import (
    administration,
    confirm,
    duration,
    every,
    find_id,
    find_reference,
    local_actor,
    moment,
)
from tailnet.services.administration.resources import RESOURCES
from tailnet.store.store import Store
from tests.support.administration import ALICE, BOB, DEV, MAIN, put
from tests.support.seeds import fill, make_id, peer_id


def test_things_are_named_as_people_name_them(store: Store, store_url: str) -> None:
    fill(store)
    with administration(store_url, None) as work:
        user, workspace, agent = (RESOURCES[name] for name in ("user", "workspace", "agent"))
        assert find_id(work, user, "alice") == find_id(work, user, str(ALICE)) == ALICE
        assert find_id(work, workspace, "dev") == find_id(work, workspace, "alice/dev") == DEV
        assert find_id(work, agent, "main") == peer_id("main")
        assert find_reference(work, "agent_id", "main") == str(MAIN)
        put(work, "workspace", make_id("other"), owner_id=str(BOB), name="dev")
        assert find_id(work, workspace, "bob/dev") == make_id("other")
        with pytest.raises(click.ClickException, match="several workspaces are called 'dev'"):
            find_id(work, workspace, "dev")
        with pytest.raises(click.ClickException, match="there is no agent 'x'"):
            find_id(work, agent, "x")
        with pytest.raises(click.ClickException, match="there is no user 'carol'"):
            find_id(work, workspace, "carol/dev")
        with pytest.raises(click.ClickException, match="is no id of a app"):
            find_id(work, RESOURCES["app"], "editor")


def test_all_pages(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    monkeypatch.setattr("tailnet.cli.admin_work.MAX_PAGE", 2)
    with administration(store_url, None) as work:
        agent = RESOURCES["agent"]
        assert len(list(every(work, agent, {}, 0))) == 3
        assert len(list(every(work, agent, {}, 1))) == 1
        assert len(list(every(work, agent, {}, 3))) == 3


def test_times() -> None:
    assert duration("90s") == timedelta(seconds=90)
    assert duration("2w") == timedelta(days=14)
    assert moment("2026-01-31") == "2026-01-31T00:00:00+00:00"
    assert re.fullmatch(r"\d{4}-.*\+00:00", moment("30d"))
    for wrong in ("", "30", "-1d", "1y", "soon", "9999999d"):
        with pytest.raises(click.BadParameter):
            duration(wrong)
        with pytest.raises(click.BadParameter):
            moment(wrong)


def test_who_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert re.fullmatch(r"[^@]+@[^ ]+", local_actor().name)
    monkeypatch.setenv("SUDO_USER", "alice")
    assert local_actor().name.endswith(" (sudo by alice)")
    assert local_actor().kind == "local"


def test_without_a_terminal_nobody_is_asked() -> None:
    confirm("delete it", yes=True)
    with pytest.raises(click.UsageError, match="add --yes"):
        confirm("delete it", yes=False)
