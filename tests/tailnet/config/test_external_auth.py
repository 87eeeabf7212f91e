"""Tables of providers: what is known need not be said, what is wrong is named, secrets are in no text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tailnet.config import CoordinatorConfig, load_config
from tailnet.config.external_auth import KNOWN, MAX_PROVIDERS, providers, with_secrets
from tailnet.config.key_file import add_key
from tailnet.errors import ConfigError

SECRET = "hunter2-of-the-client"
OWN: dict[str, Any] = {
    "id": "own",
    "type": "gitea",
    "client_id": "me",
    "client_secret": SECRET,
    "auth_url": "https://git.example/a",
    "token_url": "https://git.example/t",
}


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_known_ones_need_two_lines(kind: str) -> None:
    (found,) = providers([{"type": kind, "client_id": "me", "client_secret": SECRET}])
    assert (found.id, found.auth_url, found.name) == (kind, KNOWN[kind]["auth_url"], KNOWN[kind]["display_name"])
    assert found.regex is not None
    host = found.auth_url.split("/")[2]
    assert found.regex.search(f"https://{host}/a/b.git")
    assert not found.regex.search(f"https://{host}.evil.example/a")
    assert not found.regex.search(f"https://evil.example/{host}")
    assert SECRET not in repr(found)


def test_an_installation_of_one_s_own_has_no_address_of_theirs() -> None:
    (found,) = providers([OWN | {"type": "gitlab"}])
    assert (found.auth_url, found.validate_url, found.regex) == (OWN["auth_url"], "", None)
    assert found.scopes == ("write_repository", "read_api")
    (found,) = providers([OWN])
    assert (found.name, found.scopes, found.basic_auth) == ("own", (), False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "Upper"}, "[0].id: wants lower-case"),
        ({"id": "a/b"}, "[0].id: wants lower-case"),
        ({"id": ""}, "[0].id: wants lower-case"),
        ({"type": 7}, "[0].type: wants a line of text"),
        ({"client_id": ""}, "[0].client_id: is missing"),
        ({"client_id": "two\nlines"}, "[0].client_id: wants a line"),
        ({"client_secret": ""}, "wants either client_secret_file or client_secret"),
        ({"client_secret_file": "/x"}, "wants either client_secret_file or client_secret"),
        ({"auth_url": "ftp://x"}, "[0].auth_url: wants a URL"),
        ({"token_url": ""}, "[0].token_url: wants a URL"),
        ({"regex": "("}, "[0].regex: is no regular expression"),
        ({"scopes": "read"}, "[0].scopes: wants a list"),
        ({"scopes": ["a b"]}, "[0].scopes: wants a list"),
        ({"basic_auth": "perhaps"}, "[0].basic_auth"),
        ({"secret": SECRET}, "'secret': unknown key"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        providers([OWN | changes])
    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "wants tables"),
        ("7", "wants at most"),
        ([7], "[0]: wants a table"),
        ([OWN, OWN], "[1].id: 'own' stands there twice"),
        ([OWN] * (MAX_PROVIDERS + 1), "wants at most"),
    ],
)
def test_what_is_no_list_of_tables(value: object, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        providers(value)
    assert reason in str(caught.value)
    assert providers("") == ()


def test_secrets_from_files(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    table = {name: value for name, value in OWN.items() if name != "client_secret"}
    found = providers([table | {"client_secret_file": str(path)}])
    assert with_secrets(found) == (replace(found[0], client_secret=SECRET),)
    for text in ("", "two\nlines"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="client secret"):
            with_secrets(found)


def load(tmp_path: Path, text: str) -> CoordinatorConfig:
    path = tmp_path / "tailnet.toml"
    path.write_text(text)
    return load_config({}, {}, str(path), open_files=1 << 20)


def table(**changes: str) -> str:
    lines = "".join(f'{name} = "{value}"\n' for name, value in (OWN | changes).items())
    return f"\n[[external_auth]]\n{lines}"


def test_tables_in_a_file(tmp_path: Path) -> None:
    keys = tmp_path / "secrets.keys"
    add_key(keys)
    settings = f'secrets_key_file = "{keys}"\n'
    config = load(tmp_path, settings + table() + table(id="other", auth_url="http://git.example/a"))
    assert [each.id for each in config.external_auth] == ["own", "other"]
    assert SECRET not in repr(config)
    assert any("provider other: tokens travel in the clear" in notice for notice in config.notices)
    assert not any("provider own" in notice for notice in config.notices)
    with pytest.raises(ConfigError, match="external_auth: users' tokens are kept encrypted only: set --secrets-key"):
        load(tmp_path, table())
    with pytest.raises(ConfigError, match=r"external_auth: \[0\]\.auth_url: wants a URL") as caught:
        load(tmp_path, settings + table(auth_url=f"nonsense://user:{SECRET}@x"))
    assert SECRET not in str(caught.value)


def test_a_secret_that_others_can_read_is_noticed(tmp_path: Path) -> None:
    keys, secret = tmp_path / "secrets.keys", tmp_path / "client.secret"
    add_key(keys)
    secret.write_text(SECRET)
    secret.chmod(0o644)
    text = table(client_secret_file=str(secret)).replace(f'client_secret = "{SECRET}"\n', "")
    config = load(tmp_path, f'secrets_key_file = "{keys}"\n{text}')
    assert config.external_auth[0].client_secret == SECRET
    assert any(f"chmod 600 {secret}" in notice for notice in config.notices)
