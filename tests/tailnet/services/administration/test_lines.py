"""JSON lines: cut wherever the network cuts them; what is exported makes the same again."""

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.importing import import_lines
from tailnet.services.administration.lines import LINE_MODELS, LineCutter, export_lines, read_line
from tailnet.services.administration.resources import RESOURCES
from tailnet.services.administration.service import Administration
from tailnet.store.store import Store
from tests.support.administration import ACTOR, DEV, MAIN, agent_line, put
from tests.support.seeds import defined_document, fill, make_id


@given(st.lists(st.binary(max_size=12)), st.integers(1, 7))
def test_lines_are_cut_the_same_however_they_come(pieces: list[bytes], size: int) -> None:
    text = b"".join(pieces)
    whole, cut = LineCutter(8), LineCutter(8)
    expected = whole.feed(text) + whole.finish()
    found = [line for at in range(0, len(text), size) for line in cut.feed(text[at : at + size])] + cut.finish()
    assert found == expected
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    assert expected == [line if len(line) <= 8 else None for line in lines]


def test_a_line_that_is_too_long_is_not_kept() -> None:
    cutter = LineCutter(100)
    assert cutter.feed(b"x" * 1_000_000) == []
    assert len(cutter._begun) == 0
    assert cutter.feed(b"y\nnext\n") == [None, b"next"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (b"{", ""),
        (b"[]", "body"),
        (b'"x"', "body"),
        (b"{}", "body"),
        (b'{"kind": "nonsense", "id": "x"}', "body"),
        (b'{"kind": "user", "username": "x"}', "user.id"),
        (b'{"kind": "user", "id": "x", "username": "x"}', "id"),
        (b'{"kind": "user", "id": "01234567-89ab-cdef-0123-456789abcdef", "usernam": "x"}', "user.usernam"),
        (b'\xff{"kind": "user"}', ""),
        (b"[" * 100_000, ""),
    ],
)
def test_lines_that_make_no_sense(text: bytes, field: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        read_line(text)
    assert caught.value.fault is Fault.INVALID
    assert field in [name for name, _ in caught.value.problems] or not field


def test_every_kind_has_its_line() -> None:
    kinds = {model.model_fields["kind"].annotation.__args__[0] for model in LINE_MODELS}  # type: ignore[union-attr]  # a Literal
    assert kinds == set(RESOURCES)
    line = read_line(agent_line("new").strip())
    assert (line.resource.name, line.id, line.token) == ("agent", str(make_id("new")), "")


# --- exports

_UTC, _YEAR = UTC, datetime(1970, 1, 1)
_UNPRINTABLE: Any = ["Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"]
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=_UNPRINTABLE), min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@st.composite
def worlds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Lines that make a small world: users, tokens, workspaces, grants, agents with all they can have."""
    users = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    lines: list[dict[str, Any]] = []
    for number, name in enumerate(users):
        role = draw(st.sampled_from(["user", "auditor", "admin"]))
        lines.append(
            {"kind": "user", "id": f"user {number}", "username": name, "active": draw(st.booleans()), "role": role}
        )
    for number in range(draw(st.integers(0, 3))):
        expires = draw(
            st.none() | st.datetimes(min_value=_YEAR, timezones=st.just(_UTC)).map(lambda at: at.isoformat())
        )
        lines.append(
            {"kind": "token", "id": f"{number:010}", "user_id": f"user {number % len(users)}", "purpose": draw(NAMES),
             "expires_at": expires, "seeded": draw(st.booleans()), "secret_sha256": f"{number:064x}"}
        )  # fmt: skip
    workspaces = draw(st.integers(0, 2))
    for number in range(workspaces):
        status = draw(st.sampled_from(["running", "stopped", "failed"]))
        lines.append(
            {
                "kind": "workspace",
                "id": f"workspace {number}",
                "owner_id": "user 0",
                "name": draw(NAMES),
                "status": status,
            }
        )
        for other in range(draw(st.integers(0, len(users)))):
            rights = draw(
                st.lists(st.sampled_from(["read", "ssh", "application-connect", "update"]), min_size=1, unique=True)
            )
            lines.append(
                {"kind": "grant", "workspace_id": f"workspace {number}", "user_id": f"user {other}", "rights": rights}
            )
    for number in range(draw(st.integers(0, 4)) if workspaces else 0):
        lines.append(draw(agents(number, lines)))
    return lines


@st.composite
def agents(draw: st.DrawFn, number: int, before: list[dict[str, Any]]) -> dict[str, Any]:
    others = [line for line in before if line["kind"] == "agent"]
    parent = draw(st.none() | st.sampled_from(others)) if others else None
    check = draw(st.booleans())
    app: dict[str, Any] = {
        "id": f"app {number}",
        "slug": draw(NAMES),
        "command": draw(VALUES),
        "hidden": draw(st.booleans()),
    }
    if check:
        app["healthcheck"] = {"url": "http://localhost/", "interval": 1, "threshold": draw(st.integers(0, 9))}
    script = {"id": f"script {number}", "script": draw(VALUES), "timeout": draw(st.integers(0, 2**62))}
    line = {
        "kind": "agent",
        "id": f"agent {number}",
        "name": draw(NAMES),
        "workspace_id": parent["workspace_id"] if parent is not None else "workspace 0",
        "parent_id": parent["id"] if parent is not None else None,
        "environment": draw(st.dictionaries(NAMES.filter(lambda name: "=" not in name), VALUES, max_size=2)),
        "instance_id": draw(st.just("") | NAMES),
        "connection_timeout_seconds": draw(st.integers(0, 2**31 - 1)),
        "token_sha256": f"{number:064x}",
    }
    if draw(st.booleans()):
        line |= {
            "apps": [app],
            "scripts": [script],
            "metadata": [{"key": draw(NAMES), "interval": draw(st.integers(0, 9))}],
        }
    return line


def as_text(lines: list[dict[str, Any]]) -> bytes:
    """With UUIDs in place of the words that stand for them."""
    found = []
    for line in lines:
        if line["kind"] == "grant":
            ids = (str(make_id(line["workspace_id"])), str(make_id(line["user_id"])))
            line = {**line, "id": ":".join(ids)}
        ids = {
            name: str(make_id(line[name]))
            for name in ("owner_id", "user_id", "workspace_id", "parent_id")
            if line.get(name)
        }
        own = {} if line["kind"] in ("token", "grant") else {"id": str(make_id(line["id"]))}
        lists = {
            sort: [{**each, "id": str(make_id(each["id"]))} for each in line[sort]]
            for sort in ("apps", "scripts")
            if sort in line
        }
        found.append(json.dumps({**line, **own, **ids, **lists}))
    return "\n".join(found).encode()


@settings(max_examples=25)
@given(worlds())
def test_import_and_export_are_inverse(migrated_file: Path, lines: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = (open_copy(migrated_file, Path(folder) / name) for name in ("a.db", "b.db"))
        try:
            import_lines(Administration(first), ACTOR, as_text(lines), "lines")
            exported = b"".join(export_lines(first))
            counts = import_lines(Administration(second), ACTOR, exported, "exported")
            assert all(set(each) == {"created"} for each in counts.values())
            assert b"".join(export_lines(second)) == exported
            again = import_lines(Administration(second), ACTOR, exported, "exported")
            assert all(set(each) == {"unchanged"} for each in again.values())
            assert len(exported.splitlines()) == len(lines)
        finally:
            first.close()
            second.close()


def open_copy(source: Path, path: Path) -> Store:
    path.write_bytes(source.read_bytes())
    return Store.open(f"sqlite:///{path}")


@pytest.mark.stores
def test_an_export_has_no_token(store: Store) -> None:
    fill(store, defined_document())
    put(Administration(store), "agent", make_id("child"), name="child", workspace_id=str(DEV), parent_id=str(MAIN))
    text = b"".join(export_lines(store)).decode()
    for name in ("main", "gpu", "web"):
        assert str(make_id(f"token of {name}")) not in text
    assert "yyyyyyyyyy" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [each["kind"] for each in lines] == ["user"] * 2 + ["token"] * 2 + ["workspace"] * 2 + ["agent"] * 4
    assert lines[-1]["id"] == str(make_id("child"))
    assert len(next(each for each in lines if each["id"] == str(MAIN))["apps"]) == 2
