"""Models beside what the store and seeds know: one truth, told twice, compared here."""

from typing import get_args

import pytest

from tailnet.errors import AdministrationError
from tailnet.services.administration import models
from tailnet.services.administration.models import change_of
from tailnet.services.administration.resources import RESOURCES, Resource, read_model
from tailnet.store.definitions import KINDS as DEFINITIONS
from tailnet.store.rows import AppHealth, LifecycleState, Right, Role, WorkspaceStatus

DIGESTS = {"token", "token_sha256", "secret_sha256", *DEFINITIONS}


@pytest.mark.parametrize("resource", RESOURCES.values(), ids=RESOURCES.keys())
def test_fields_are_columns(resource: Resource) -> None:
    given = set(resource.given.model_fields) - DIGESTS
    if resource.name in ("app", "script"):
        own = {"agent_id", "position"}
        assert given - own == set(DEFINITIONS[f"{resource.name}s"]) - {"id"}
        assert own <= set(resource.kind.columns)
    else:
        assert given == {*resource.kind.columns, *resource.kind.key} - {"id"}
    assert given <= set(resource.shown.model_fields)
    assert set(resource.change.model_fields) == set(resource.given.model_fields)
    assert resource.label in {"", *resource.given.model_fields}


def test_metadata_is_that_of_seeds() -> None:
    assert set(models.MetadataGiven.model_fields) == set(DEFINITIONS["metadata"])


def test_words_are_those_of_the_store() -> None:
    assert get_args(models.Status) == tuple(each.name.lower() for each in WorkspaceStatus)
    assert get_args(models.Lifecycle) == tuple(each.name.lower() for each in LifecycleState)
    assert get_args(models.Health) == tuple(each.name.lower() for each in AppHealth)
    assert get_args(models.RoleWord) == tuple(each.value for each in Role)
    assert get_args(models.RightWord) == tuple(each.value for each in Right)


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("user", "{}", "username"),
        ("user", '{"username": ""}', "username"),
        ("user", '{"username": "a\\u0007"}', "username"),
        ("user", '{"username": 7}', "username"),
        ("user", '{"username": "a", "active": "yes"}', "active"),
        ("user", '{"username": "a", "role": "owner"}', "role"),
        ("user", '{"username": "a", "admin": true}', "admin"),
        ("token", '{"user_id": "00000000-0000-0000-0000-000000000000"}', "user_id"),
        (
            "token",
            '{"user_id": "01234567-89ab-cdef-0123-456789abcdef", "expires_at": "2026-01-01T00:00:00"}',
            "expires_at",
        ),
        ("agent", '{"name": "a", "workspace_id": "x"}', "workspace_id"),
        ("agent", '{"name": "a", "workspace_id": 7, "token": "x"}', "token"),
        ("grant", '{"workspace_id": "x", "user_id": "y", "rights": []}', "rights"),
        ("grant", '{"rights": ["enter"]}', "rights[0]"),
        ("app", '{"slug": "a", "healthcheck": {"url": 7}}', "healthcheck.url"),
    ],
)
def test_a_field_that_is_wrong_is_named(kind: str, text: str, field: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        RESOURCES[kind].read(text)
    assert field in [name for name, _ in caught.value.problems]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"": "x"}, "no environment takes"),
        ({"A=B": "x"}, "no environment takes"),
        ({"A": "\0"}, "characters that no environment takes"),
        ({f"N{number}": "x" * 30_000 for number in range(20)}, "in all"),
    ],
)
def test_environments(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.AgentGiven(workspace_id="x", name="a", environment=variables)  # type: ignore[arg-type]  # others are wrong too


def test_a_part_says_what_it_says() -> None:
    part = read_model(models.UserChange, '{"active": false}')
    assert part.model_dump(exclude_unset=True) == {"active": False}
    with pytest.raises(AdministrationError):
        read_model(models.UserChange, '{"username": null}')
    assert read_model(models.TokenChange, '{"expires_at": null}').model_dump(exclude_unset=True) == {"expires_at": None}
    assert change_of(models.UserGiven, "X").__name__ == "X"


def test_secrets_are_not_shown_by_accident() -> None:
    given = models.AgentGiven.model_validate_json(
        '{"workspace_id": "01234567-89ab-cdef-0123-456789abcdef", "name": "a", "environment": {"A": "hunter2"}, '
        '"token": "01234567-89ab-cdef-0123-456789abcdee"}'
    )
    assert "hunter2" not in repr(given)
    assert "89abcdee" not in repr(given)
